"""Who loses their right, or can no longer show who they are, is let go in the middle of a Watch or Wait."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    BatchWatchOperationRecordsRequest,
    WaitOperationRecordRequest,
    WatchOperationRecordRequest,
)
from opservice.auth.authenticator import LEEWAY_SECONDS
from support.certificates import Authority
from support.client import Client, Refusal, refusal_from, refused
from support.identities import (
    Issuer,
    TokenFile,
    bearer,
    calling_with,
    client_certificate,
    make_key,
    replace_text,
    write_policy,
)
from support.rest_channel import RestChannel
from support.server import ServerProcess, eventually, serving

pytestmark = pytest.mark.slow  # many servers are started, and stopped

PARENT = "folders/a"
CONNECTIONS = 6
"""Of two workers both get some of so many."""


class Site:
    """A server and the files that say who may do what, all of which may change while it runs."""

    def __init__(self, directory: Path, *, by_http: bool) -> None:
        self._by_http = by_http
        self.issuer = Issuer(directory, make_key("first"), make_key("second"))
        self.static = TokenFile(directory)
        self.policy = directory / "policy.yaml"
        self._grants: dict[str, list[str]] = {}
        self._markers = count()
        self.marker = self.static.add("marker")
        self.grant("root", "admin:*")
        self.settings = {
            **self.issuer.settings,
            "tokens": self.static.file,
            "policy": self.policy,
            "http_listen": "127.0.0.1:0" if by_http else "off",
        }
        self.server: ServerProcess
        self.channels: Sequence[grpc.Channel]
        self.rest_channels: list[RestChannel] = []

    def grant(self, subject: str, *grants: str) -> None:
        """These, and none that they had before."""
        self._grants[subject] = [*grants]
        write_policy(self.policy, self._grants)

    def reload(self) -> None:
        """Returns once every worker has the tokens and the policy of now."""
        parent = f"marker/{next(self._markers)}"
        id_ = self.root.started(parent=parent)
        self.grant("marker", f"viewer:{parent}")
        self.server.send_signal(signal.SIGHUP)
        for channel in self.channels:
            eventually(lambda on=channel: sees(calling_with(on, self.marker), id_))  # type: ignore[misc] # mypy does not see the default's type

    @property
    def root(self) -> Client:
        return calling_with(self.channels[0], self.issuer.token("root"))

    def calling(self, token: str) -> list[Client]:
        """On connections that lead to all workers."""
        if not self._by_http:
            return [calling_with(channel, token) for channel in self.channels]
        url, brought = self.server.http_url, bearer(token)
        made = [RestChannel(url, events=True, metadata=brought) for _ in self.channels]
        self.rest_channels += made
        return [Client(channel) for channel in made]


def sees(client: Client, id_: str) -> bool:
    try:
        return client.get(id_).id == id_
    except grpc.RpcError:
        return False


@pytest.fixture(
    scope="module",
    params=[(1, False), (2, False), (2, True)],
    ids=["alone", "two", "two by HTTP"],
)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("revocation")
    workers, by_http = request.param
    made = Site(directory, by_http=by_http)
    database = f"sqlite:///{directory}/operations.db"
    with serving(directory, database, workers=workers, **made.settings) as server:
        made.server = server
        made.channels = [server.channel() for _ in range(CONNECTIONS)]
        yield made
        for channel in made.rest_channels:
            channel.close()


def watching(clients: Sequence[Client], id_: str) -> list[Any]:
    """Watches, once all have begun."""
    calls = [
        client.records.Watch(WatchOperationRecordRequest(operation_id=id_)) for client in clients
    ]
    for call in calls:
        next(call)
    return calls


def waiting(clients: Sequence[Client], id_: str) -> list[Any]:
    request = WaitOperationRecordRequest(operation_id=id_, timeout=Duration(seconds=50))
    return [client.records.Wait.future(request) for client in clients]


def ends(watches: Sequence[Any], waits: Sequence[Any] = ()) -> list[Refusal]:
    """What they end with, all of them."""
    refusals = []
    for call in watches:
        with refused() as refusal:
            for _ in call:
                pass
        refusals.append(refusal)
    return refusals + [refusal_from(call.exception()) for call in waits]


def told(refusals: Sequence[Refusal]) -> set[tuple[grpc.StatusCode, str, str]]:
    return {(each.code, each.reason, each.message) for each in refusals}


def go_on(site: Site, id_: str, watches: Sequence[Any], waits: Sequence[Any] = ()) -> bool:
    """Whether they are told of the operation's end."""
    site.root.complete(id_)
    ended = [record.operation.done for call in watches for record in call]
    ended += [call.result().operation.done for call in waits]
    return ended == [True] * (len(watches) + len(waits))


def test_a_role_that_is_taken_away_ends_what_it_allowed(site: Site) -> None:
    site.grant("ann", f"viewer:{PARENT}/*")
    site.grant("bob", f"viewer:{PARENT}/*")
    site.reload()
    id_ = site.root.started(parent=PARENT)
    own = site.root.started(parent=PARENT, created_by="ann")
    ann, bob = (site.calling(site.issuer.token(who)) for who in ("ann", "bob"))
    anns, anns_waits = watching(ann, id_), waiting(ann, id_)
    bobs, bobs_waits = watching(bob, id_), waiting(bob, id_)
    of_own = watching(ann, own)

    site.grant("ann", "viewer:folders/another")
    site.reload()

    with refused() as missing:
        ann[0].get(id_)
    assert missing.code == grpc.StatusCode.NOT_FOUND
    assert told(ends(anns, anns_waits)) == told([missing])
    assert go_on(site, id_, bobs, bobs_waits)
    assert go_on(site, own, of_own)


def test_a_batch_watch_begins_anew_when_what_its_caller_may_see_has_changed(site: Site) -> None:
    site.grant("ann", f"viewer:{PARENT}")
    site.reload()
    id_ = site.root.started(parent=PARENT)
    ann = site.calling(site.issuer.token("ann"))
    requests = [
        BatchWatchOperationRecordsRequest(operation_ids=[id_]),
        BatchWatchOperationRecordsRequest(parent=PARENT),
    ]
    calls = [client.records.BatchWatch(request) for client in ann for request in requests]
    tokens = []
    for call in calls:
        for event in call:
            if event.HasField("caught_up"):
                tokens.append(event.resume_token)
                break

    site.grant("ann", "viewer:folders/another")
    site.reload()

    outdated = (grpc.StatusCode.ABORTED, "RESUME_TOKEN_EXPIRED")
    assert {each[:2] for each in told(ends(calls))} == {outdated}
    for request, token in zip(requests, tokens, strict=False):
        request.resume_token = token
        with refused() as refusal:
            next(ann[0].records.BatchWatch(request))
        assert (refusal.code, refusal.reason) == outdated
        request.resume_token = ""
    assert next(ann[0].records.BatchWatch(requests[0])).removed_id == id_
    for event in ann[0].records.BatchWatch(requests[1]):
        assert id_ not in (event.record.operation.id, event.removed_id)
        if event.HasField("caught_up"):
            break


def test_a_batch_watch_ends_with_the_token_that_it_began_with(site: Site) -> None:
    ann = site.static.add("ann", f"viewer:{PARENT}")
    site.reload()
    calls = [
        client.records.BatchWatch(BatchWatchOperationRecordsRequest(parent=PARENT))
        for client in site.calling(ann)
    ]
    for call in calls:
        next(call)

    site.static.remove("ann")
    site.reload()

    assert {each[:2] for each in told(ends(calls))} == {
        (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")
    }


def test_what_a_role_still_allows_goes_on_across_reloads(site: Site) -> None:
    site.grant("ann", f"viewer:{PARENT}/*")
    site.reload()
    id_ = site.root.started(parent=PARENT)
    ann = site.calling(site.issuer.token("ann"))
    watches, waits = watching(ann, id_), waiting(ann, id_)

    site.grant("ann", f"editor:{PARENT}")  # another role, for the same operation
    site.reload()
    site.grant("carol", "viewer:*")
    site.reload()

    assert go_on(site, id_, watches, waits)


def test_a_static_token_that_is_removed_ends_what_it_allowed(site: Site) -> None:
    ann, bob = (site.static.add(who, f"viewer:{PARENT}") for who in ("ann", "bob"))
    site.reload()
    id_ = site.root.started(parent=PARENT)
    anns, anns_waits = watching(site.calling(ann), id_), waiting(site.calling(ann), id_)
    bobs = watching(site.calling(bob), id_)

    site.static.remove("ann")
    site.reload()

    assert told(ends(anns, anns_waits)) == {
        (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID", "The token is not valid")
    }
    assert go_on(site, id_, bobs)


def expiring_token(site: Site, kind: str, seconds: int) -> str:
    if kind == "jwt":
        expires = int(time.time()) + seconds - LEEWAY_SECONDS
        return site.issuer.token("ann", f"viewer:{PARENT}", exp=expires)
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    token = site.static.add("ann", f"viewer:{PARENT}", expires=until)
    site.reload()
    return token


@pytest.mark.parametrize("kind", ["jwt", "static"])
def test_a_token_that_expires_ends_what_it_allowed(site: Site, kind: str) -> None:
    id_ = site.root.started(parent=PARENT)
    lasting = watching(site.calling(site.issuer.token("bob", f"viewer:{PARENT}")), id_)

    watches: list[Any] = []
    for seconds in (3, 10, 30):  # on a busy machine it may expire before it is used
        clients = site.calling(expiring_token(site, kind, seconds))
        with suppress(grpc.RpcError):
            watches = watching(clients, id_)
            break
    waits = waiting(clients, id_)

    assert len(watches) == CONNECTIONS
    assert told(ends(watches, waits)) == {
        (
            grpc.StatusCode.UNAUTHENTICATED,
            "CREDENTIALS_EXPIRED",
            "The credentials have expired.",
        )
    }
    assert go_on(site, id_, lasting)


def test_a_certificate_that_expires_ends_what_it_allowed(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue()
    settings = {
        "tls_cert": pair.certificate,
        "tls_key": pair.key,
        "tls_client_ca": authority.certificate,
        "policy": write_policy(
            tmp_path / "policy.yaml", {"root": ["admin:*"], "ann": [f"viewer:{PARENT}"]}
        ),
    }
    with serving(tmp_path, f"sqlite:///{tmp_path}/operations.db", **settings) as server:

        def calling(name: str, lasts: timedelta) -> Client:
            shown = client_certificate(authority, tmp_path / name, names=[name], lasts=lasts)
            return Client(
                server.channel(
                    root_certificates=authority.certificate.read_bytes(),
                    private_key=shown.key.read_bytes(),
                    certificate_chain=shown.certificate.read_bytes(),
                )
            )

        root = calling("root", timedelta(days=1))
        id_ = root.started(parent=PARENT)
        lasting = watching([root], id_)
        watches: list[Any] = []
        for seconds in (3, 10, 30):  # on a busy machine it may expire before it is used
            ann = calling("ann", timedelta(seconds=seconds))
            with suppress(grpc.RpcError):
                watches = watching([ann], id_)
                break
        waits = waiting([ann], id_)

        assert told(ends(watches, waits)) == {
            (
                grpc.StatusCode.UNAUTHENTICATED,
                "CREDENTIALS_EXPIRED",
                "The credentials have expired.",
            )
        }
        assert len(watches) == 1
        with refused() as refusal:  # on the connection that the certificate made
            ann.get(id_)
        assert refusal.reason == "CREDENTIALS_EXPIRED"
        root.complete(id_)
        assert [record.operation.done for record in lasting[0]][-1]


def test_a_key_that_is_removed_ends_what_its_tokens_allowed(site: Site) -> None:
    first, second = site.issuer.keys
    id_ = site.root.started(parent=PARENT)
    tokens = [site.issuer.token("ann", f"viewer:{PARENT}", key=key) for key in (first, second)]
    kept, lost = (watching(site.calling(token), id_) for token in tokens)
    waits = waiting(site.calling(tokens[1]), id_)

    site.issuer.publish(first)
    site.reload()

    message = "The token is signed with a key that is not accepted any more"
    assert told(ends(lost, waits)) == {
        (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID", message)
    }
    assert go_on(site, id_, kept)
    site.issuer.publish(first, second)


def test_what_cannot_be_used_leaves_the_last_good_in_use(site: Site) -> None:
    ann = site.static.add("ann", f"viewer:{PARENT}")
    site.grant("bob", f"viewer:{PARENT}")
    site.reload()
    id_ = site.root.started(parent=PARENT)
    clients = [
        site.calling(token)[0]
        for token in (ann, site.issuer.token("bob"), site.issuer.token("carol", "viewer:*"))
    ]
    watches = watching(clients, id_)
    files = (site.policy, site.static.file, site.issuer.file)
    good = [file.read_text() for file in files]

    for file in files:
        replace_text(file, "half of a fi: [le")
    site.server.send_signal(signal.SIGHUP)

    kept = "SIGHUP: the previous content stays in use"
    for what in ("policy", "tokens"):
        line = eventually(lambda of=what: site.server.log(event=kept, of=of))[-1]  # type: ignore[misc] # mypy does not see the default's type
        assert (line["level"], "is not YAML at line" in line["cause"]) == ("error", True)
    line = eventually(lambda: site.server.log(event="the previous keys stay in use"))[-1]
    assert (line["level"], "no keys from" in line["cause"]) == ("error", True)
    assert [client.get(id_).id for client in clients] == [id_] * 3

    # A file that is good again is taken, whatever the others are like.
    dora = site.static.add("dora", f"viewer:{PARENT}")
    site.server.send_signal(signal.SIGHUP)
    eventually(lambda: all(sees(client, id_) for client in site.calling(dora)))
    assert go_on(site, id_, watches)
    for file, text in zip(files, good, strict=True):
        replace_text(file, text)
    site.reload()
