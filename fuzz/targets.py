"""What bytes from anybody go through. Each target lets no exception pass that is not one of ours.

    scripts/fuzz.sh 60              # each target for 60 seconds
    scripts/fuzz.sh 600 filters     # one of them

`python fuzz/targets.py NAME` runs one; arguments of libFuzzer may follow. What it finds it writes to the
working directory as `crash-…`; given as an argument it is tried again.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress

import atheris
from cryptography.hazmat.primitives.asymmetric import ec

INSTRUMENTED = ["opservice", "lark", "google.protobuf", "jwt", "shapes"]

with atheris.instrument_imports(include=INSTRUMENTED):
    from google.longrunning.operations_proto_pb2 import ListOperationsRequest
    from google.protobuf.message import DecodeError, Message
    from jwt.algorithms import ECAlgorithm
    from jwt.api_jws import PyJWS

    from opservice._proto.opservice.v1 import producer_service_pb2 as producer_pb
    from opservice._proto.opservice.v1.operation_record_service_pb2 import (
        ListOperationRecordsRequest,
        WaitOperationRecordRequest,
    )
    from opservice.auth.authenticator import Authenticator, Credentials, JwtRules
    from opservice.auth.keys import KeySource
    from opservice.auth.policy import Policy
    from opservice.domain.errors import InvalidArgument, OperationDone, Unauthenticated
    from opservice.domain.identity import ANYBODY, MAX_SUBJECT, Right
    from opservice.domain.operation import DAY, CancelPolicy, Record
    from opservice.methods import convert
    from opservice.methods.filtering import FilterError, parse_filter
    from opservice.methods.listing import position_from_token, position_to_token
    from opservice.methods.status import error_to_pb
    from opservice.methods.validation import Limits, valid_id, wait_time

LIMITS = Limits(retention=DAY, max_retention=DAY, max_lease=DAY, max_payload_bytes=1 << 20)
MOST_HEADER_BYTES = 8 << 10
"""Of a status, which clients accept."""

Target = Callable[[bytes], None]
_Convert = Callable[[Message, Limits], object]


def fuzz_filters(data: bytes) -> None:
    with suppress(FilterError):
        parse_filter(data.decode(errors="replace"))


def fuzz_page_tokens(data: bytes) -> None:
    """Of random tokens none is a position; of a position's token it is that position, and no other's."""
    provider = atheris.FuzzedDataProvider(data)
    parent, filter_ = (
        provider.ConsumeUnicodeNoSurrogates(20),
        provider.ConsumeUnicodeNoSurrogates(20),
    )
    created_at = provider.ConsumeIntInRange(-(2**63), 2**63 - 1)
    rest = provider.ConsumeUnicodeNoSurrogates(200)
    assert position_from_token(rest, parent, filter_) is None
    if rest and "\0" not in rest:
        token = position_to_token((created_at, rest), parent, filter_)
        assert position_from_token(token, parent, filter_) in ((created_at, rest), None)
        assert position_from_token(token, parent + "x", filter_) is None


def fuzz_names(data: bytes) -> None:
    name = data.decode(errors="replace")
    convert.parent_from_pb(name)
    with suppress(InvalidArgument):
        valid_id(name)
    with suppress(InvalidArgument):
        assert convert.name_to_pb(*convert.name_from_pb(name)) == name


def fuzz_requests(data: bytes) -> None:
    """Every message that a client sends, as what it would be read as."""
    for message_type, read in _REQUESTS:
        message = message_type()
        try:
            message.ParseFromString(data)
        except DecodeError:
            continue
        try:
            read(message)
        except InvalidArgument as error:
            status = error_to_pb(error, "a-request-id")
            assert status.ByteSize() < MOST_HEADER_BYTES


def fuzz_records(data: bytes) -> None:
    """What is read back from the database: payloads that were once a message's, in every answer."""
    provider = atheris.FuzzedDataProvider(data)
    text = provider.ConsumeUnicodeNoSurrogates(50)
    times = [provider.ConsumeIntInRange(0, 2**55) for _ in range(2)]
    record = Record(
        **{
            **dict.fromkeys(Record.__dataclass_fields__),
            "id": text,
            "parent": text,
            "method": text,
            "description": text,
            "created_by": text,
            "created_at": times[0],
            "modified_at": times[1],
            "revision": 1,
            "done": provider.ConsumeBool(),
            "cancel_policy": CancelPolicy.IMMEDIATE,
            "retention": DAY,
            "metadata": _any(provider),
            "response": _any(provider),
            "error": _status(provider),
        }
    )
    convert.record_to_pb(record).SerializeToString()
    convert.operation_to_longrunning_pb(record).SerializeToString()
    assert error_to_pb(OperationDone(record), "a-request-id").ByteSize() < MOST_HEADER_BYTES


def fuzz_tokens(data: bytes) -> None:
    """Whatever stands in the header of a call."""
    _identify(data.decode("latin-1"))


def fuzz_token_claims(data: bytes) -> None:
    """Whatever is signed with a key that is accepted: any bytes, or claims of which some are good."""
    provider = atheris.FuzzedDataProvider(data)
    if provider.ConsumeBool():
        payload = provider.ConsumeBytes(1000)
    else:
        claims: dict[str, object] = {"iss": "issuer", "aud": "audience", "exp": 2**40, "sub": "a"}
        for name in ("sub", "exp", "opservice"):
            if provider.ConsumeBool():
                claims[name] = _value(provider)
        payload = json.dumps(claims).encode()
    _identify("Bearer " + PyJWS().encode(payload, _KEY, "ES256", headers={"kid": "a"}))


def _value(provider: atheris.FuzzedDataProvider) -> object:
    made: list[Callable[[], object]] = [
        lambda: provider.ConsumeUnicode(300),
        lambda: provider.ConsumeFloat(),
        lambda: provider.ConsumeInt(20),
        lambda: [provider.ConsumeUnicode(30) for _ in range(5)],
        lambda: f"viewer:{provider.ConsumeUnicode(30)}",
        lambda: None,
    ]
    return made[provider.ConsumeIntInRange(0, len(made) - 1)]()


def fuzz_token_headers(data: bytes) -> None:
    """Whatever stands in the header of a token."""
    header = base64.urlsafe_b64encode(data).decode().rstrip("=")
    _identify(f"Bearer {header}.e30.c2lnbmF0dXJl")


def _identify(authorization: str) -> None:
    with suppress(Unauthenticated):
        credentials = Credentials.of([("authorization", authorization)], None)
        identity = _AUTHENTICATOR.identify_now(credentials)
        if identity is not None:  # then it is somebody, and what they may do can be asked
            assert 0 < len(identity.subject) <= MAX_SUBJECT
            identity.scope()
            identity.may(Right.SEE, "folders/a", "")


def _make_authenticator(key: ec.EllipticCurvePrivateKey) -> Authenticator:
    made = Authenticator(Policy(), {}, JwtRules("issuer", ("audience",), ("ES256",), "opservice"))
    public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "a"}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"keys": [public]}, file)
        file.flush()
        made.keys = KeySource(file.name, DAY, made.forget)
        asyncio.run(made.keys.start())
    return made


_KEY = ec.generate_private_key(ec.SECP256R1())
_AUTHENTICATOR = _make_authenticator(_KEY)


def _any(provider: atheris.FuzzedDataProvider) -> bytes | None:
    request = producer_pb.StartRequest()
    request.metadata.type_url = provider.ConsumeUnicodeNoSurrogates(50)
    request.metadata.value = provider.ConsumeBytes(100)
    return convert.payload_to_bytes(request.metadata) if provider.ConsumeBool() else None


def _status(provider: atheris.FuzzedDataProvider) -> bytes | None:
    request = producer_pb.FailRequest()
    with suppress(DecodeError):
        request.error.ParseFromString(provider.ConsumeBytes(200))
    return convert.failure_from_pb(request.error).status if provider.ConsumeBool() else None


def _wait(message: Message) -> None:
    assert isinstance(message, WaitOperationRecordRequest)
    assert 0 <= wait_time(message.timeout, DAY, 3600.0) <= DAY


def _list(message: Message) -> None:
    assert isinstance(message, (ListOperationRecordsRequest, ListOperationsRequest))
    fuzz_filters(message.filter.encode())
    position_from_token(message.page_token, "", message.filter)


_REQUESTS: list[tuple[type[Message], Callable[..., object]]] = [
    (producer_pb.StartRequest, lambda message: convert.start_from_pb(message, LIMITS, ANYBODY)),
    (producer_pb.RenewRequest, lambda message: convert.renew_from_pb(message, LIMITS)),
    (producer_pb.CompleteRequest, lambda message: convert.complete_from_pb(message, LIMITS)),
    (producer_pb.FailRequest, lambda message: convert.fail_from_pb(message, LIMITS)),
    (WaitOperationRecordRequest, _wait),
    (ListOperationRecordsRequest, _list),
    (ListOperationsRequest, _list),
]
TARGETS: dict[str, Target] = {
    "filters": fuzz_filters,
    "page_tokens": fuzz_page_tokens,
    "names": fuzz_names,
    "requests": fuzz_requests,
    "records": fuzz_records,
    "tokens": fuzz_tokens,
    "token_headers": fuzz_token_headers,
    "token_claims": fuzz_token_claims,
}
ELSEWHERE = {
    "decoding": "decoding",
    "json": "command_line",
    "payloads": "command_line",
    "database_urls": "database_urls",
    "foreign_page_tokens": "page_tokens",
}
"""The modules of other targets, imported for these alone: instrumenting takes seconds."""


def target_of(name: str) -> Target:
    if name in TARGETS:
        return TARGETS[name]
    with atheris.instrument_imports(include=INSTRUMENTED):
        module = importlib.import_module(ELSEWHERE[name])
    target: Target = getattr(module, f"fuzz_{name}")
    return target


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(*TARGETS, *ELSEWHERE)
        sys.exit()
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target_of(sys.argv[1]))
    atheris.Fuzz()
