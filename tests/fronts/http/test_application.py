"""What is served beside the API: to whom it tells how much, and with which methods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import httpx
import pytest

from opservice.fronts.http.application import alive, for_monitors, metrics, monitoring, readiness
from opservice.fronts.http.origins import Origins

AWAY = "the database is not available"
FOREIGN = {
    "a name of others": {"host": "evil.example"},
    "no host": {"host": ""},
    "a page": {"origin": "https://evil.example"},
    "a page, as browsers tell it": {"sec-fetch-site": "cross-site"},
}


async def not_ready() -> Sequence[str]:
    return [AWAY]


@pytest.fixture
async def local() -> AsyncIterator[httpx.AsyncClient]:
    origins = Origins((), only_local_names=True)
    served = monitoring(
        livez=alive, metrics=for_monitors(metrics, origins), readyz=readiness(not_ready, origins)
    )
    transport = httpx.ASGITransport(served)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as made:
        yield made


async def test_who_asks_by_address_is_told_everything(local: httpx.AsyncClient) -> None:
    assert "opservice_" in (await local.get("/metrics")).text
    ready = await local.get("/readyz")
    assert (ready.status_code, ready.json()) == (503, {"ready": False, "reasons": [AWAY]})


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
async def test_pages_and_names_of_others_are_told_nothing(
    local: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    refused = await local.get("/metrics", headers=headers)
    assert (refused.status_code, reason(refused)) == (403, "PERMISSION_DENIED")
    ready = await local.get("/readyz", headers=headers)
    assert (ready.status_code, ready.json()) == (503, {"ready": False, "reasons": []})
    assert (await local.get("/livez", headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/readyz"])
async def test_only_reads_are_served(local: httpx.AsyncClient, path: str) -> None:
    allowed = await local.options(path)
    assert (allowed.status_code, allowed.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    refused = await local.put(path, headers={"x-request-id": "mine"})
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert (reason(refused), refused.headers["x-request-id"]) == ("METHOD_NOT_ALLOWED", "mine")


def reason(refused: httpx.Response) -> str:
    found: str = refused.json()["error"]["details"][0]["reason"]
    return found
