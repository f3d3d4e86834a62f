"""A server with two tenants, each of whom may learn nothing of the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from security.calls import Metadata, PendingCall
from support.client import TOKEN, Client, refused
from support.fixtures import empty_database
from support.identities import Issuer, TokenFile, bearer, calling_with
from support.server import ServerProcess, serving

MINE, THEIRS, SHARED = "folders/mine", "folders/theirs", "folders/shared"
MISSING = "ops00000000000000000"
GRANTS = {
    "root": ["admin:*"],
    "ann": [f"producer:{MINE}/*", f"editor:{MINE}/*", f"producer:{SHARED}"],
    "bob": [f"admin:{THEIRS}/*", f"producer:{SHARED}"],
    "eve": [f"viewer:{MINE}"],
}


@dataclass(frozen=True)
class Site:
    """Where Ann and Bob are two tenants, Root has every right, and Eve may look at what is Ann's."""

    server: ServerProcess
    tokens: dict[str, str]
    clients: dict[str, Client]
    audit_log: Path

    @property
    def root(self) -> Client:
        return self.clients["root"]

    @property
    def ann(self) -> Client:
        return self.clients["ann"]

    @property
    def bob(self) -> Client:
        return self.clients["bob"]

    def channel_of(self, who: str) -> tuple[grpc.Channel, Metadata]:
        return self.server.client.channel, bearer(self.tokens[who])


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("leaks")
    issuer, static = Issuer(directory), TokenFile(directory)
    tokens = {who: issuer.token(who, *grants) for who, grants in GRANTS.items()}
    tokens["eve"] = static.add("eve", *GRANTS["eve"])
    settings = {
        **issuer.settings,
        "tokens": static.file,
        "audit_log": directory / "audit.log",
        "log_level": "debug",
        "max_wait": "10m",
    }
    with serving(directory, empty_database(request, directory), **settings) as server:
        clients = {who: calling_with(server.channel(), token) for who, token in tokens.items()}
        yield Site(server, tokens, clients, settings["audit_log"])


def running(client: Client, parent: str) -> str:
    return client.started(parent=parent, lease_token=TOKEN)


def done(client: Client, parent: str) -> str:
    id_ = running(client, parent)
    client.complete(id_, lease_token=TOKEN)
    return id_


def everything_told(site: Site, method: str, request: Any) -> list[object]:
    """All that Ann gets on the wire when she is refused."""
    channel, metadata = site.channel_of("ann")
    call = PendingCall(channel, method, request, (*metadata, ("x-request-id", "the-same")))
    with refused() as refusal:
        call.answer()
    return [
        refusal.code,
        refusal.message,
        sorted(refusal.trailers.items()),
        call.call.initial_metadata(),
    ]
