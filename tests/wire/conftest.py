from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from support.fixtures import client, server
from support.rest import Rest
from support.server import ServerProcess

__all__ = ["client", "server"]


@pytest.fixture(scope="package")
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.trust_env = False
        yield made


@pytest.fixture
def rest(session: requests.Session, server: ServerProcess) -> Rest:
    return Rest(session, server.http_url)
