"""Tokens of pages, in the lists of both services."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, cast

import atheris
from google.longrunning.operations_proto_pb2 import ListOperationsRequest

from opservice._proto.opservice.v1.operation_record_service_pb2 import ListOperationRecordsRequest
from opservice.auth.authenticator import Caller
from opservice.domain.errors import InvalidArgument
from opservice.domain.filters import ListQuery, Position
from opservice.domain.identity import ANYBODY, Right
from opservice.domain.operation import DAY
from opservice.methods.filtering import FilterError, parse_filter
from opservice.methods.guard import GuardedStore
from opservice.methods.listing import position_to_token
from opservice.methods.longrunning import LongrunningService
from opservice.methods.records import OperationRecordService
from opservice.store.listing import Listed


def fuzz_foreign_page_tokens(data: bytes) -> None:
    """In both lists a token gives its position for the parent and filter that it was made for alone.

    However it is changed, cut or joined with others it gives none.
    """
    provider = atheris.FuzzedDataProvider(data)
    queries = [(_parent(provider), _filter(provider)) for _ in range(2)]
    given: dict[tuple[str, str, str], Position] = {}
    for parent, filter_ in queries:
        position = provider.ConsumeIntInRange(0, 2**60), f"ops{provider.ConsumeUInt(8):x}"
        given[position_to_token(position, parent, filter_), parent, filter_] = position
    tokens = [token for token, _, _ in given]
    for token in filter(None, [*tokens, _changed(provider, tokens)]):
        for parent, filter_ in queries:
            expected = given.get((token, parent, filter_))
            records = ListOperationRecordsRequest(parent=parent, filter=filter_, page_token=token)
            names = ListOperationsRequest(
                name=f"{parent}/operations" if parent else "operations",
                filter=filter_,
                page_token=token,
            )
            assert _begin(_RECORDS.List(records, _CALL)) == expected
            assert _begin(_OPERATIONS.ListOperations(names, _CALL)) == expected


def _parent(provider: atheris.FuzzedDataProvider) -> str:
    return str(provider.PickValueInList(["", "-", "folders/a", "folders/b", "folders/a/b", "x"]))


def _filter(provider: atheris.FuzzedDataProvider) -> str:
    made = "done = true" if provider.ConsumeBool() else ""
    if provider.ConsumeBool():
        made += f"{' AND ' if made else ''}description = {json.dumps(provider.ConsumeString(8))}"
    with suppress(FilterError):
        parse_filter(made)
        return made
    return ""


def _changed(provider: atheris.FuzzedDataProvider, tokens: list[str]) -> str:
    token = str(provider.PickValueInList(tokens))
    match provider.ConsumeIntInRange(0, 4):
        case 0:
            changed = bytearray(token, "ascii")
            at = provider.ConsumeIntInRange(0, len(token) - 1)
            changed[at] ^= 1 << provider.ConsumeIntInRange(0, 6)
            return changed.decode()
        case 1:
            return token[: provider.ConsumeIntInRange(0, len(token))]
        case 2:
            return token[provider.ConsumeIntInRange(0, len(token)) :]
        case 3:
            return f"{token}{provider.PickValueInList(tokens)}"
        case _:
            return f"{token}{provider.PickValueInList(list('=A -'))}"


class _Asked:
    """A store that has nothing, and knows where the last page was to begin."""

    def __init__(self) -> None:
        self.after: Position | None = None

    async def page(self, query: ListQuery, _caller: str) -> Listed:
        self.after = query.after
        return Listed((), None)


class _Call:
    """By anybody."""

    caller = Caller(ANYBODY, Right.SEE)
    peer = "ipv4:127.0.0.1:1"


def _begin(call: Coroutine[Any, Any, object]) -> Position | None:
    """Where the page of this call begins; None when the token is refused."""
    try:
        call.send(None)
    except StopIteration:
        return _ASKED.after
    except InvalidArgument as refusal:
        if [violation.field for violation in refusal.violations] == ["page_token"]:
            return None
        raise
    raise AssertionError("it waits")


_ASKED = _Asked()
_GUARDED = GuardedStore(cast("Any", _ASKED), None)
_RECORDS = OperationRecordService(
    _GUARDED, max_wait=DAY, watch_repeat=DAY, resume_window=DAY, hide_error=False
)
_OPERATIONS = LongrunningService(_GUARDED, DAY)
_CALL = cast("Any", _Call())
