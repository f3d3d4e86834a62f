"""A request is bounded before it is decoded, and decoded only for who may make it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyPb
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1.producer_service_pb2 import FailRequest
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice.methods.method_policy import METHOD_POLICIES
from security.calls import EVERY_METHOD, PRODUCER, REFLECTION, PendingCall, request_for
from support.client import Refusal, refusal_from
from support.identities import Issuer, bearer
from support.server import ServerProcess, eventually, serving

FAIL = f"{PRODUCER}/Fail"
UNKNOWN_FIELD = b"\xf8\x3f\x01"
SMALL = [method for method in EVERY_METHOD if METHOD_POLICIES[method].max_bytes is not None]


@dataclass(frozen=True)
class Bytes:
    """A request that is sent as it is."""

    data: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802 - as messages have it
        return self.data


@dataclass(frozen=True)
class Site:
    server: ServerProcess
    issuer: Issuer

    def refusal(self, method: str, data: bytes, *grants: str) -> Refusal:
        metadata = bearer(self.issuer.token("ann", *grants)) if grants else ()
        call = PendingCall(self.server.client.channel, method, Bytes(data), metadata)  # type: ignore[arg-type] # all that it needs
        with pytest.raises(grpc.RpcError) as caught:
            call.answer()
        return refusal_from(caught.value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("sizes")
    issuer = Issuer(directory)
    with serving(directory, f"sqlite:///{directory}/o.db", **issuer.settings) as server:
        yield Site(server, issuer)


@pytest.mark.parametrize("method", SMALL)
def test_a_request_of_too_many_bytes_is_refused_by_every_method(site: Site, method: str) -> None:
    most = METHOD_POLICIES[method].max_bytes
    assert most is not None
    request = request_for(method, "id", "folders/a").SerializeToString()
    request += UNKNOWN_FIELD * (most // len(UNKNOWN_FIELD) + 1)

    refusal = site.refusal(method, request, "admin:*")

    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.reason == "REQUEST_TOO_LARGE"
    assert refusal.message == f"The request has {len(request)} bytes, at most {most} are allowed"

    def told() -> bool:
        if site.server.log(method=method, error="RequestTooLarge"):
            return True
        site.refusal(method, request, "admin:*")  # of reflection one has a line each second
        return False

    assert eventually(told)


@pytest.mark.parametrize("name", ["Start", "Renew", "Complete", "Fail"])
def test_a_request_of_too_many_fields_is_refused_by_methods_with_payloads(
    site: Site, name: str
) -> None:
    refusal = site.refusal(f"{PRODUCER}/{name}", UNKNOWN_FIELD * 300_000, "admin:*")

    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_TOO_LARGE",
    )
    assert "more than 1000 fields" in refusal.message


def test_empty_details_by_the_thousand_are_not_decoded(site: Site) -> None:
    error = Status(code=13, details=[AnyPb()] * 100_000)
    request = FailRequest(operation_id="id", error=error).SerializeToString()

    assert site.refusal(FAIL, request, "producer:*").reason == "REQUEST_TOO_LARGE"


def test_who_may_end_no_operation_is_told_so_before_the_request_is_read(site: Site) -> None:
    refusal = site.refusal(FAIL, b"\xff\xff no protobuf", "viewer:*")

    assert refusal.code == grpc.StatusCode.PERMISSION_DENIED
    assert refusal.message == "You may not start, renew or end any operation"
    told = {"logger": "opservice.audit", "method": FAIL, "error": "PermissionDenied"}
    assert eventually(lambda: site.server.log(subject="ann", **told))


def test_who_may_end_some_operation_has_it_read(site: Site) -> None:
    refusal = site.refusal(FAIL, b"\xff\xff no protobuf", "producer:elsewhere")

    assert refusal.reason == "MALFORMED_REQUEST"


def test_reflection_takes_short_names_only(site: Site) -> None:
    assert METHOD_POLICIES[REFLECTION[0]].max_bytes == 1024


def test_compressed_requests_are_refused_where_the_setting_says_so_and_only_these(
    tmp_path: Path,
) -> None:
    request = GetOperationRequest(operation_id="none")
    with serving(tmp_path, f"sqlite:///{tmp_path}/o.db", no_compression=True) as server:
        get = server.client.operations.Get
        codes = {}
        for how in (
            grpc.Compression.NoCompression,
            grpc.Compression.Gzip,
            grpc.Compression.Deflate,
        ):
            with pytest.raises(grpc.RpcError) as caught:
                get(request, compression=how)
            codes[how] = caught.value.code()

    assert codes == {
        grpc.Compression.NoCompression: grpc.StatusCode.NOT_FOUND,
        grpc.Compression.Gzip: grpc.StatusCode.UNIMPLEMENTED,
        grpc.Compression.Deflate: grpc.StatusCode.UNIMPLEMENTED,
    }


@pytest.mark.parametrize("how", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_taken_otherwise(site: Site, how: grpc.Compression) -> None:
    request = GetOperationRequest(operation_id="none")
    token = bearer(site.issuer.token("ann", "viewer:*"))
    with pytest.raises(grpc.RpcError) as caught:
        site.server.client.operations.Get(request, compression=how, metadata=token)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
