"""What requests must be like beyond their types, as JSON Schema. src/opservice/methods/validation.py checks it.

A pattern is one for JavaScript, Python and Rust alike. Limits that are settings are in the comments only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.rpc.code_pb2 import Code

from opservice.methods.filtering import MAX_FILTER
from opservice.methods.listing import MAX_PAGE_TOKEN
from opservice.methods.validation import (
    LABEL_KEY,
    MAX_CREATED_BY,
    MAX_DESCRIPTION,
    MAX_DETAILS,
    MAX_ID,
    MAX_IDEMPOTENCY_KEY,
    MAX_IDS,
    MAX_LABEL_VALUE,
    MAX_LABELS,
    MAX_LEASE_TOKEN,
    MAX_NAME,
    MAX_PROGRESS_MESSAGE,
    MAX_PROGRESS_UNIT,
    MIN_LEASE_TOKEN,
)

_CONTROL = r"\x00-\x1f\x7f-\x9f"
_ONE_LINE = f"^[^{_CONTROL}]*$"
_SEGMENT = rf"([^-/\s{_CONTROL}][^/\s{_CONTROL}]*|-[^/\s{_CONTROL}]+)"
_PARENT = f"{_SEGMENT}(/{_SEGMENT})*"

PAGE_TOKEN, RESUME_TOKEN = "page-token", "resume-token"
FILTER, IDEMPOTENCY_KEY = "aip-160-filter", "idempotency-key"
"""Formats of our own: strings of which a pattern cannot say what they are."""

ID = {"minLength": 1, "maxLength": MAX_ID, "pattern": _ONE_LINE}
OPERATION_OF_NAME = {"minLength": 1, "maxLength": MAX_ID, "pattern": f"^[^/{_CONTROL}]+$"}
"""The id in a name of google.longrunning."""
PARENT_OF_NAME = {"minLength": 1, "maxLength": MAX_NAME, "pattern": f"^(-|{_PARENT})$"}
_ANY_PARENT = {"maxLength": MAX_NAME, "pattern": f"^(-|{_PARENT})?$"}
_NOT_NEGATIVE = {"pattern": "^(0|[1-9][0-9]{0,17}|[1-8][0-9]{18})$"}
_SECONDS = r"[0-9]{0,11}[1-9][0-9]{0,11}(\.[0-9]{1,9})?"
_DURATION = {"pattern": r"^[0-9]{1,12}(\.[0-9]{1,9})?s$"}
_FROM_1_SECOND = {"pattern": f"^{_SECONDS}s$"}
_FROM_1_MICROSECOND = {"pattern": rf"^({_SECONDS}|0{{1,12}}\.[0-9]{{0,5}}[1-9][0-9]{{0,3}})s$"}
_PAGE_SIZE = {"minimum": 0}
_PAGE_TOKEN = {"maxLength": MAX_PAGE_TOKEN, "format": PAGE_TOKEN}
_FILTER = {"maxLength": MAX_FILTER, "format": FILTER}


def _line(most: int) -> dict[str, Any]:
    return {"maxLength": most, "pattern": _ONE_LINE}


def _text(most: int) -> dict[str, Any]:
    return {"maxLength": most, "pattern": r"^[^\x00]*$"}


LIMITS: Mapping[str, Mapping[str, Any]] = {
    "opservice.v1.StartRequest.description": _text(MAX_DESCRIPTION),
    "opservice.v1.StartRequest.parent": {"maxLength": MAX_NAME, "pattern": f"^({_PARENT})?$"},
    "opservice.v1.StartRequest.method": _line(MAX_NAME),
    "opservice.v1.StartRequest.created_by": _line(MAX_CREATED_BY),
    "opservice.v1.StartRequest.lease_token": {
        "pattern": rf"^([^\x00]{{{MIN_LEASE_TOKEN},{MAX_LEASE_TOKEN}}})?$"
    },
    "opservice.v1.StartRequest.labels": {
        "maxProperties": MAX_LABELS,
        "propertyNames": {"pattern": f"^{LABEL_KEY.pattern}$"},
        "additionalProperties": {"type": "string", **_line(MAX_LABEL_VALUE)},
    },
    "opservice.v1.StartRequest.lease": _FROM_1_SECOND,
    "opservice.v1.StartRequest.timeout": _FROM_1_MICROSECOND,
    "opservice.v1.StartRequest.retention": _FROM_1_MICROSECOND,
    "opservice.v1.WaitOperationRecordRequest.timeout": _DURATION,
    "google.longrunning.WaitOperationRequest.timeout": _DURATION,
    "opservice.v1.StartRequest.idempotency_key": {
        **_line(MAX_IDEMPOTENCY_KEY),
        "format": IDEMPOTENCY_KEY,
    },
    "opservice.v1.StartRequest.id_prefix": {"pattern": "^([a-z][a-z0-9]{2})?$"},
    "opservice.v1.Progress.done": _NOT_NEGATIVE,
    "opservice.v1.Progress.total": _NOT_NEGATIVE,
    "opservice.v1.Progress.unit": _text(MAX_PROGRESS_UNIT),
    "opservice.v1.Progress.message": _text(MAX_PROGRESS_MESSAGE),
    "google.rpc.Status.code": {"enum": sorted(set(Code.values()) - {Code.OK})},
    "google.rpc.Status.details": {"maxItems": MAX_DETAILS},
    "opservice.v1.ListOperationRecordsRequest.parent": _ANY_PARENT,
    "opservice.v1.BatchWatchOperationRecordsRequest.operation_ids": {
        "maxItems": MAX_IDS,
        "items": ID,
    },
    "opservice.v1.BatchWatchOperationRecordsRequest.parent": _ANY_PARENT,
    "opservice.v1.BatchWatchOperationRecordsRequest.filter": _FILTER,
    "opservice.v1.BatchWatchOperationRecordsRequest.resume_token": {"format": RESUME_TOKEN},
    "opservice.v1.ListOperationRecordsRequest.page_size": _PAGE_SIZE,
    "opservice.v1.ListOperationRecordsRequest.page_token": _PAGE_TOKEN,
    "opservice.v1.ListOperationRecordsRequest.filter": _FILTER,
    "google.longrunning.ListOperationsRequest.page_size": _PAGE_SIZE,
    "google.longrunning.ListOperationsRequest.page_token": _PAGE_TOKEN,
    "google.longrunning.ListOperationsRequest.filter": _FILTER,
    "opservice.v1.BatchGetOperationRecordsRequest.operation_ids": {
        "minItems": 1,
        "maxItems": MAX_IDS,
        "items": ID,
    },
    "yandex.cloud.endpoint.GetApiEndpointRequest.api_endpoint_id": ID,
}
"""By the full names of fields. An `operation_id` is an ID everywhere."""

REQUIRED: Mapping[str, Sequence[str]] = {
    "opservice.v1.FailRequest": ("error",),
    "google.rpc.Status": ("code",),
    "opservice.v1.BatchGetOperationRecordsRequest": ("operation_ids",),
}
"""The fields that a request must have, beside those in its path."""

WITH: Mapping[str, Mapping[str, Any]] = {
    "opservice.v1.StartRequest": {
        "lease": {"required": ["leaseToken"], "properties": {"leaseToken": {"minLength": 1}}}
    },
}
"""What a request that has a field must be like, by the field."""


def limits_of(field: str) -> dict[str, Any]:
    """Those of a field, by its full name."""
    own_id = ID if field.endswith(".operation_id") else {}
    return dict(LIMITS.get(field, own_id))
