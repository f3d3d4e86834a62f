"""What the command line reads and prints: payloads as JSON."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import cast

import atheris
import click
import grpc
from google.longrunning.operations_proto_pb2 import Operation
from google.protobuf import duration_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2
from google.protobuf.any_pb2 import Any as AnyPb
from google.protobuf.descriptor import Descriptor

from decoding import REQUESTS
from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice._proto.opservice.v1.operation_record_service_pb2 import ListOperationRecordsResponse
from opservice._proto.opservice.v1.producer_service_pb2 import StartResponse
from opservice.cli.connection import Connection
from opservice.cli.payloads import Payloads
from opservice_client import Producer
from shapes import encoded, json_of

_NO_SERVER = "unix:/nonexistent/opservice"
_CHANNEL = grpc.insecure_channel(_NO_SERVER)
_CONNECTION = Connection(_NO_SERVER, _CHANNEL, None, 1.0, lambda: Producer(_NO_SERVER))
_PAYLOADS = Payloads(_CONNECTION, [])
_KINDS: list[Descriptor] = [
    *REQUESTS.values(),
    *(
        cast("Descriptor", kind.DESCRIPTOR)
        for kind in (
            OperationRecord,
            ListOperationRecordsResponse,
            StartResponse,
            Operation,
            AnyPb,
            duration_pb2.Duration,
            field_mask_pb2.FieldMask,
            struct_pb2.Struct,
            struct_pb2.Value,
            timestamp_pb2.Timestamp,
            wrappers_pb2.BytesValue,
            wrappers_pb2.DoubleValue,
            wrappers_pb2.Int64Value,
        )
    ),
]


def fuzz_json(data: bytes) -> None:
    """JSON for a payload becomes one, or a clear refusal; it is shown as JSON that becomes the same one."""
    provider = atheris.FuzzedDataProvider(data)
    if provider.ConsumeBool():
        text_ = json.dumps(json_of(provider, AnyPb.DESCRIPTOR, _KINDS))
    else:
        text_ = provider.ConsumeUnicode(provider.remaining_bytes())
    if text_.startswith("@"):
        return  # a file
    with suppress(click.BadParameter):
        payload = _PAYLOADS.from_json("--metadata", text_)
        assert payload is not None
        _shown_again(payload)


def fuzz_payloads(data: bytes) -> None:
    """Whatever an operation holds is shown."""
    provider = atheris.FuzzedDataProvider(data)
    kind = provider.PickValueInList(_KINDS)
    payload = AnyPb(type_url=f"type.googleapis.com/{kind.full_name}", value=encoded(provider, kind))
    _shown_again(payload)


def _shown_again(payload: AnyPb) -> None:
    """Without loss, but of what is unknown, or has no form in JSON and is shown as bytes."""
    shown = _PAYLOADS.to_json(payload)
    if shown == {"@type": payload.type_url, "value": base64.b64encode(payload.value).decode()}:
        return
    again = _PAYLOADS.from_json("--metadata", json.dumps(shown))
    assert again is not None
    assert _PAYLOADS.to_json(again) == shown
