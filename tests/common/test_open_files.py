"""How many connections the files of a process allow."""

import resource

import pytest

from opservice.common.open_files import connections_of


@pytest.mark.parametrize(
    ("files", "part", "connections"),
    [(20_000, 1, 5_000), (4_256, 1, 4_000), (4_256, 0.25, 1_000), (100, 0.5, 1), (-1, 0.5, 5_000)],
)
def test_connections_leave_files_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, files: int, part: float, connections: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)

    assert connections_of(5_000, part) == connections
