"""Several addresses behind one target, given in it or by DNS, one of which connects but never answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from opservice_client.aio import Producer, Work
from support.dns import NameServer
from support.relay import Relay
from support.server import PATIENCE, ServerProcess
from support.tools import stable_port

from .conftest import ended

HOSTS = ("127.0.0.2", "127.0.0.3")
LEASE = timedelta(seconds=4)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target with a name server does not look as if it were this machine."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def replicas(server: ServerProcess) -> AsyncIterator[list[Relay]]:
    """Two addresses of the server, with the same port."""
    port = stable_port()
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Relay(server.address, host, port)) for host in HOSTS]


@pytest.fixture
async def names() -> AsyncIterator[NameServer]:
    async with NameServer(*HOSTS) as names:
        yield names


@pytest.fixture(params=["ipv4", "dns"])
def target(request: pytest.FixtureRequest, replicas: list[Relay], names: NameServer) -> str:
    if request.param == "ipv4":
        return "ipv4:" + ",".join(each.address for each in replicas)
    return f"dns://{names.address}/opservice.test:{replicas[0].address.rpartition(':')[2]}"


async def succeeds(server: ServerProcess, work: Work) -> bool:
    return (await asyncio.to_thread(ended, server, work.id)).HasField("response")


async def outlast_leases(work: Work) -> None:
    await asyncio.sleep(3 * LEASE.total_seconds())


@pytest.mark.parametrize("silent", [0, 1])
async def test_an_address_that_never_answers_keeps_nobody_waiting(
    server: ServerProcess, replicas: list[Relay], target: str, silent: int
) -> None:
    replicas[silent].fall_silent()
    async with Producer(target, start_timeout=timedelta(seconds=PATIENCE)) as producer:
        work = await producer.start()
        async with work:
            work.complete()

    assert await succeeds(server, work)
    assert replicas[silent].connections


@pytest.mark.slow
async def test_no_lease_lapses_when_one_of_two_addresses_falls_silent(
    server: ServerProcess, replicas: list[Relay], target: str
) -> None:
    async with Producer(target) as producer:
        works = [await producer.start(lease=LEASE) for _ in range(10)]
        for work in works:
            work.run(outlast_leases)
        assert all(each.connections for each in replicas)
        replicas[0].fall_silent()

        for work in works:
            assert await succeeds(server, work)


@pytest.mark.slow
async def test_no_lease_lapses_when_dns_leads_elsewhere_and_the_old_address_falls_silent(
    server: ServerProcess, replicas: list[Relay], names: NameServer
) -> None:
    old, new = replicas
    names.addresses = [HOSTS[0]]
    port = old.address.rpartition(":")[2]
    async with Producer(f"dns://{names.address}/opservice.test:{port}") as producer:
        works = [await producer.start(lease=LEASE) for _ in range(10)]
        for work in works:
            work.run(outlast_leases)
        assert old.connections
        assert not new.connections
        names.addresses = [HOSTS[1]]
        old.fall_silent()

        for work in works:
            assert await succeeds(server, work)
    assert new.connections
