"""Peers that mean harm, by HTTP, beside a client that means well. bench/hostile_http.py measures the rest."""

import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from support.hostile import Done, launch
from support.hostile_http import HTTP_ATTACKS, IDLE, IDLE_STREAMS
from support.http_bystander import HttpBystander
from support.process import peak_mib, restart_peak
from support.server import ServerProcess, serving

pytestmark = pytest.mark.slow

SECONDS = 4.0
MEMORY_BOUND_MIB = 768
"""A quiet server has 110 MiB. The most is taken by 10,000 streams, and by answers that nobody reads."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for all attacks, so that what one leaves behind meets the next."""
    directory = tmp_path_factory.mktemp("hostile")
    settings = {"http_listen": "127.0.0.1:0", "max_waits_per_caller": 20_000}
    with serving(directory, f"sqlite:///{directory}/operations.db", **settings) as running:
        yield running


@pytest.mark.parametrize("attack", HTTP_ATTACKS)
async def test_calls_beside_an_attack_succeed_and_the_servers_memory_is_bounded(
    server: ServerProcess, attack: str
) -> None:
    pid = server.pid
    bystander = HttpBystander(server.http_url)
    await bystander.prepare()
    restart_peak(pid)
    address = urlsplit(server.http_url).netloc
    with launch(attack, address, SECONDS, "support.hostile_http") as attacker:
        await bystander.run(lambda: attacker.poll() is not None)
        said, _ = attacker.communicate()

    done = Done(**json.loads(said))
    assert done.bytes > 0
    assert done.held == IDLE_STREAMS or attack != IDLE
    assert bystander.failures == []
    assert bystander.took
    assert server.pid == pid
    assert peak_mib(pid) < MEMORY_BOUND_MIB
    assert server.log(level="error") == []
