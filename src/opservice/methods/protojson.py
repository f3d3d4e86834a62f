"""Protobuf JSON, also of an `Any` whose type is not known: `{"@type": URL, "value": BASE64}`, both ways.

Everything else is as https://protobuf.dev/programming-guides/json/ has it. protobuf's own json_format does
the work, but it refuses a whole message when it holds one `Any` of an unknown type. So such an `Any` is
disguised as a `google.protobuf.BytesValue`, whose JSON in an `Any` has just this form. Its URL is restored
afterwards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyPayload
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.wrappers_pb2 import BytesValue

from opservice.methods.json_messages import (
    DEEPEST,
    DISGUISE,
    LONGEST,
    MessageCheck,
    NotJson,
    type_of,
)

_WRONG_FIELD = re.compile(r"Failed to parse (?P<field>\w+) field: (?P<why>.*)")
_UNPRINTABLE = (
    TypeError,
    ValueError,
    KeyError,
    OverflowError,
    RecursionError,
    DecodeError,
    json_format.Error,
)
"""What json_format raises for a message that it cannot print, or for JSON that is no message."""


class ProtoJson:
    """Converts messages to JSON and back. What stands inside an `Any` is looked up in the pool."""

    def __init__(self, pool: DescriptorPool) -> None:
        self._pool = pool
        self._check = MessageCheck(pool)

    def to_dict(self, message: Message, *, with_defaults: bool = False) -> dict[str, Any]:
        """The JSON object of the message, which it can always make.

        `with_defaults` also shows fields that have their default value and of which it is not known whether
        they were set.
        """
        try:
            return self._print(message, with_defaults=with_defaults)
        except _UNPRINTABLE:
            disguised = type(message)()
            disguised.CopyFrom(message)
            self._disguise(disguised, 0)
            shown = self._print(disguised, with_defaults=with_defaults)
            _restore_urls(shown)
            return shown

    def to_json(self, message: Message, *, with_defaults: bool = False) -> bytes:
        """The JSON of the message in UTF-8, on one line."""
        shown = self.to_dict(message, with_defaults=with_defaults)
        return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()

    def fill(self, message: Message, value: dict[str, Any]) -> None:
        """Sets the fields of the message from a JSON value. Raises NotJson."""
        try:
            disguised = self._check.check(value, cast("Descriptor", message.DESCRIPTOR))
            json_format.ParseDict(
                value, message, descriptor_pool=self._pool, max_recursion_depth=DEEPEST
            )
            if disguised:
                self._unmask(message)
        except NotJson:
            raise
        except _UNPRINTABLE as error:
            raise _explained(error) from error
        except SystemError as error:  # protobuf's, for a string with half a surrogate pair
            raise NotJson("a string is not valid Unicode") from error

    def _print(self, message: Message, *, with_defaults: bool) -> dict[str, Any]:
        printed: dict[str, Any] = json_format.MessageToDict(
            message,
            descriptor_pool=self._pool,
            always_print_fields_with_no_presence=with_defaults,
        )
        return printed

    def _disguise(self, message: Message, depth: int) -> None:
        """Disguises each `Any` in the message that cannot be printed."""
        if not isinstance(message, AnyPayload):
            _for_each_message(message, lambda each: self._disguise(each, depth + 1))
            return
        held = message.value
        kind = type_of(self._pool, message.type_url)
        if kind is not None and depth < DEEPEST:
            try:
                inner = GetMessageClass(kind).FromString(held)
                self._disguise(inner, depth + 1)
                message.value = inner.SerializeToString()
                self._print(message, with_defaults=False)
            except _UNPRINTABLE:
                pass
            else:
                return
        message.type_url += DISGUISE
        message.value = BytesValue(value=held).SerializeToString()

    def _unmask(self, message: Message) -> None:
        """Undoes `_disguise`, after the message was read from JSON."""
        if not isinstance(message, AnyPayload):
            _for_each_message(message, self._unmask)
            return
        if message.type_url.endswith(DISGUISE):
            message.type_url = message.type_url.removesuffix(DISGUISE)
            message.value = BytesValue.FromString(message.value).value
        elif (kind := type_of(self._pool, message.type_url)) is not None:
            inner = GetMessageClass(kind).FromString(message.value)
            self._unmask(inner)
            message.value = inner.SerializeToString(deterministic=True)


def _for_each_message(message: Message, visit: Callable[[Message], None]) -> None:
    """Calls `visit` with each message that a field of the message holds."""
    for field, value in message.ListFields():
        kind = field.message_type
        if kind is None:
            continue
        if kind.GetOptions().map_entry:
            if kind.fields_by_name["value"].message_type is not None:
                for each in value.values():
                    visit(each)
        elif field.is_repeated:
            for each in value:
                visit(each)
        else:
            visit(value)


def _restore_urls(value: object) -> None:
    if isinstance(value, dict):
        url = value.get("@type")
        if isinstance(url, str) and url.endswith(DISGUISE):
            value["@type"] = url.removesuffix(DISGUISE)
        for each in value.values():
            _restore_urls(each)
    elif isinstance(value, list):
        for each in value:
            _restore_urls(each)


def _explained(error: BaseException) -> NotJson:
    """json_format's words, with the field apart."""
    if isinstance(error, RecursionError):
        return NotJson("is nested too deeply")
    said = " ".join(str(error).split())
    wrong = _WRONG_FIELD.match(said)
    field, said = (wrong["field"], wrong["why"]) if wrong is not None else ("", said)
    return NotJson(said[:LONGEST], field)
