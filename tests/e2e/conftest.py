from pathlib import Path

import pytest

from support.certificates import Authority
from support.fixtures import client, server

__all__ = ["client", "server"]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/operations.db"
