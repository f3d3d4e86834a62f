"""Peers that mean harm, beside a client that means well. bench/hostile.py measures what this does not."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bystander import Bystander
from support.hostile import ATTACKS, FAILED_AUTHENTICATION, IDLE_CONNECTIONS, Done, launch
from support.identities import Issuer
from support.process import peak_mib, restart_peak
from support.server import ServerProcess, serving

pytestmark = pytest.mark.slow

SECONDS = 4.0
MEMORY_BOUND_MIB = 1536
"""A quiet server has 90 MiB. Most of the rest are answers that nobody reads, of which gRPC holds copies."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for all attacks, so that what one leaves behind meets the next."""
    directory = tmp_path_factory.mktemp("hostile")
    with serving(directory, f"sqlite:///{directory}/operations.db") as running:
        yield running


@pytest.mark.parametrize("attack", [each for each in ATTACKS if each != FAILED_AUTHENTICATION])
async def test_calls_beside_an_attack_succeed_and_the_servers_memory_is_bounded(
    server: ServerProcess, attack: str
) -> None:
    await withstands(server, Bystander(server.address), attack)

    assert server.client.get(server.client.started())


async def test_who_is_known_is_served_while_others_fail_to_authenticate_from_the_same_address(
    tmp_path: Path,
) -> None:
    issuer = Issuer(tmp_path)
    with serving(tmp_path, f"sqlite:///{tmp_path}/operations.db", **issuer.settings) as server:
        bystander = Bystander(server.address, issuer.token("ann", "admin:*"))
        await withstands(server, bystander, FAILED_AUTHENTICATION)


async def withstands(server: ServerProcess, bystander: Bystander, attack: str) -> None:
    pid = server.pid
    await bystander.prepare()
    restart_peak(pid)
    with launch(attack, server.address, SECONDS) as attacker:
        await bystander.run(lambda: attacker.poll() is not None)
        said, _ = attacker.communicate()

    done = Done(**json.loads(said))
    assert done.bytes > 0
    assert done.held == IDLE_CONNECTIONS or attack != "idle connections"
    assert bystander.failures == []
    assert bystander.took
    assert server.pid == pid
    assert peak_mib(pid) < MEMORY_BOUND_MIB
    assert server.log(level="error") == []
