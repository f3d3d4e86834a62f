"""How many connections the files of a process allow."""

import resource

import pytest

from opservice.common.open_files import connections_for_each


@pytest.mark.parametrize(
    ("files", "fronts", "connections"),
    [(20_000, 1, 5_000), (4_256, 1, 4_000), (4_256, 2, 2_000), (100, 2, 1), (-1, 2, 5_000)],
)
def test_each_front_gets_its_part(
    monkeypatch: pytest.MonkeyPatch, files: int, fronts: int, connections: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)

    assert connections_for_each(5_000, fronts) == connections
