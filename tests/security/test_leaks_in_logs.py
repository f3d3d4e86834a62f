"""The log and the audit log tell no secret, and tell alike of what is hidden and what is not there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from opservice.domain.operation import new_id
from security.calls import (
    BY_NAME,
    OF_IDS,
    OF_OPERATION,
    PRODUCER,
    RECORDS,
    PendingCall,
    request_for,
)
from security.tenants import THEIRS, Site, everything_told, running, site
from support.client import TOKEN, refusal_from
from support.identities import Issuer, bearer, make_key, with_another_signature
from support.server import eventually

__all__ = ["site"]

pytestmark = pytest.mark.slow  # many servers are started, and stopped


def test_no_token_reaches_the_log_the_audit_log_or_an_error(site: Site, tmp_path: Path) -> None:
    good = site.tokens["ann"]
    other = Issuer(tmp_path)
    broken = {
        "tampered": with_another_signature(good),
        "expired": other.token("ann", exp=int(time.time()) - 3600),
        "of an unknown key": other.token("ann", key=make_key("unknown")),
        "unknown": "opservice_0123456789-0123456789-0123456789-012",
        "no token": "not.a.token",
    }
    headers = [bearer(token) for token in (*site.tokens.values(), *broken.values())]
    headers += [(("authorization", f"Basic {good}"),), (("authorization", good),)]
    id_ = running(site.bob, THEIRS)
    channel = site.server.client.channel
    calls = [
        PendingCall(channel, method, request_for(method, id_, THEIRS), metadata)
        for metadata in headers
        for method in (f"{RECORDS}/Get", f"{PRODUCER}/Renew", f"{PRODUCER}/Start", *BY_NAME)
    ]
    told = "".join(map(all_that_is_told, calls))

    secrets = [*site.tokens.values(), *broken.values(), TOKEN]
    parts = {part for secret in secrets for part in secret.split(".") if len(part) > 10}
    for where in (site.server.stderr, site.audit_log.read_text(), told):
        assert [part for part in parts if part in where] == []
    assert '"subject": "eve"' in site.server.stderr


def all_that_is_told(call: PendingCall) -> str:
    try:
        return repr(call.answer())
    except grpc.RpcError as error:
        refusal = refusal_from(error)
        return f"{refusal.message} {refusal.trailers}"


@pytest.mark.parametrize("method", OF_OPERATION)
def test_the_audit_log_tells_of_attempts_at_what_may_not_be_seen(site: Site, method: str) -> None:
    id_ = running(site.bob, THEIRS)

    everything_told(site, method, request_for(method, id_, THEIRS))

    attempt = told_of(site, method, id_)
    told = (attempt["subject"], attempt["code"], attempt.get("hidden"))
    assert told == ("ann", "NOT_FOUND", True)


@pytest.mark.parametrize("method", OF_IDS)
def test_the_audit_log_tells_alike_of_what_may_not_be_seen_and_does_not_exist_among_several(
    site: Site, method: str
) -> None:
    channel, metadata = site.channel_of("ann")
    ids = running(site.bob, THEIRS), new_id()
    for id_ in ids:
        PendingCall(channel, method, request_for(method, id_, ""), metadata).answer()

    def lines() -> list[dict[str, Any]]:
        every = [*map(json.loads, site.audit_log.read_text().splitlines())]
        return [line for id_ in ids for line in every if line.get("operation_ids") == [id_]]

    hidden, missing = eventually(lambda: found if len(found := lines()) == 2 else None)
    assert hidden.keys() == missing.keys()
    assert (hidden["subject"], hidden["not_found"], hidden["method"]) == ("ann", 1, method)


def told_of(site: Site, method: str, id_: str) -> dict[str, Any]:
    """The audit log's line of the one call for this operation."""
    (line,) = [
        line
        for line in map(json.loads, site.audit_log.read_text().splitlines())
        if line["method"] == method
        and id_ in (line.get("operation_id"), line.get("name", "")[-20:])
    ]
    assert isinstance(line, dict)
    return line


@pytest.mark.parametrize("method", OF_OPERATION)
def test_the_audit_log_tells_as_much_of_attempts_at_what_does_not_exist(
    site: Site, method: str
) -> None:
    """What is told of one alone would make its answer come later."""
    hidden, missing = running(site.bob, THEIRS), new_id()

    for id_ in (hidden, missing):
        everything_told(site, method, request_for(method, id_, THEIRS))

    of_hidden, of_missing = (told_of(site, method, id_) for id_ in (hidden, missing))
    assert of_hidden.keys() - of_missing.keys() == {"hidden"}
    assert of_missing["code"] == "NOT_FOUND"
