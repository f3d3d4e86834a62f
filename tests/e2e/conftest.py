import pytest

from support.certificates import Authority
from support.fixtures import client, server

__all__ = ["client", "server"]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))
