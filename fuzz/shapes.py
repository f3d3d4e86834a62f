"""What random bytes would seldom be: messages, JSON and URLs that are nearly right."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

import atheris
from google.protobuf.descriptor import Descriptor, FieldDescriptor

_VARINT, _FIXED64, _DELIMITED, _GROUP, _GROUP_END, _FIXED32 = range(6)
_MOST_FIELDS = 60
_DEEPEST = 6
_SCALARS: tuple[object, ...] = (
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    2**64,
    1.5,
    1e308,
    1e400,
    float("nan"),
    "",
    "1",
    "YQ==",
    [],
    {},
)
_TIMES = (
    "1.5s",
    "-1s",
    "315576000000s",
    "315576000000.999999999s",
    "1970-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999Z",
    "0001-01-01T00:00:00+23:59",
)
_MARKS = (
    "@",
    ":",
    "/",
    "?",
    "#",
    "%",
    "&",
    "=",
    "+",
    ",",
    ";",
    " ",
    "[",
    "]",
    "%40",
    "%3d",
    "host=",
    "dbname=",
)


def encoded(provider: atheris.FuzzedDataProvider, kind: Descriptor, depth: int = 0) -> bytes:
    """A message of this kind, or nearly: with fields that it has not, groups, numbers written at length."""
    made = b""
    for _ in range(provider.ConsumeIntInRange(0, _MOST_FIELDS)):
        if not provider.remaining_bytes():
            break
        made += _field(provider, kind, depth)
    return made


def _field(provider: atheris.FuzzedDataProvider, kind: Descriptor, depth: int) -> bytes:
    field: FieldDescriptor | None = None
    if kind.fields and provider.ConsumeIntInRange(0, 3):
        field = provider.PickValueInList(list(kind.fields))
    number = provider.ConsumeIntInRange(0, 20) if field is None else field.number
    if field is not None and provider.ConsumeIntInRange(0, 7):
        wire_type = _DELIMITED if field.type in _DELIMITED_TYPES else _VARINT
    else:
        wire_type = provider.ConsumeIntInRange(0, 7)
    tag = _varint(provider, number << 3 | wire_type)
    if wire_type == _VARINT:
        return tag + _varint(provider, provider.ConsumeUInt(8))
    if wire_type == _GROUP and depth < _DEEPEST:
        inner = encoded(provider, kind, depth + 1)
        return tag + inner + _varint(provider, number << 3 | _GROUP_END)
    if wire_type != _DELIMITED:
        return tag + bytes({_FIXED64: 8, _FIXED32: 4}.get(wire_type, 0))
    if field is not None and field.message_type is not None and depth < _DEEPEST:
        inner = encoded(provider, field.message_type, depth + 1)
    else:
        inner = provider.ConsumeBytes(provider.ConsumeIntInRange(0, 20))
    size = len(inner) if provider.ConsumeIntInRange(0, 15) else provider.ConsumeUInt(5)
    return tag + _varint(provider, size) + inner


_DELIMITED_TYPES = {
    FieldDescriptor.TYPE_MESSAGE,
    FieldDescriptor.TYPE_STRING,
    FieldDescriptor.TYPE_BYTES,
}


def _varint(provider: atheris.FuzzedDataProvider, number: int) -> bytes:
    """Now and then in more bytes than are needed, and with bits that are not the number's."""
    made = bytearray()
    while not made or number:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    if not provider.ConsumeIntInRange(0, 7):
        made += bytes([0x80]) * provider.ConsumeIntInRange(0, 10)
        made[-1] |= provider.ConsumeIntInRange(0, 0x7F)
    made[-1] &= 0x7F
    return bytes(made)


def json_of(
    provider: atheris.FuzzedDataProvider,
    kind: Descriptor,
    kinds: Sequence[Descriptor],
    depth: int = 0,
) -> dict[str, object]:
    """An object with the fields of a message of this kind, whose values are right, or nearly, or not.

    What an Any holds is one of `kinds`.
    """
    made: dict[str, object] = {}
    if kind.full_name == "google.protobuf.Any":
        kind = provider.PickValueInList(list(kinds))
        made["@type"] = f"type.googleapis.com/{kind.full_name}"
        if kind.full_name.startswith("google.protobuf."):
            made["value"] = _json_value(provider, None, kinds, depth + 1)
    for _ in range(provider.ConsumeIntInRange(0, 4) if kind.fields else 0):
        field = provider.PickValueInList(list(kind.fields))
        name = field.json_name if provider.ConsumeIntInRange(0, 7) else field.name
        made[name] = _json_value(provider, field, kinds, depth + 1)
    return made


def _json_value(
    provider: atheris.FuzzedDataProvider,
    field: FieldDescriptor | None,
    kinds: Sequence[Descriptor],
    depth: int,
) -> object:
    if depth > _DEEPEST:
        return None
    message = None if field is None else field.message_type
    if message is not None and provider.ConsumeIntInRange(0, 3):
        if message.GetOptions().map_entry:
            return {provider.ConsumeUnicode(5): provider.ConsumeUnicode(5)}
        made = json_of(provider, message, kinds, depth)
        return [made] if field is not None and field.is_repeated else made
    if provider.ConsumeBool():
        return provider.PickValueInList([*_SCALARS, *_TIMES])
    if provider.ConsumeBool():
        return [_json_value(provider, field, kinds, depth + 1)]
    return provider.ConsumeUnicode(20)


def text(provider: atheris.FuzzedDataProvider) -> str:
    """Of a few characters, many of them with a meaning in URLs."""
    made = ""
    for _ in range(provider.ConsumeIntInRange(0, 6)):
        mark = provider.ConsumeIntInRange(0, len(_MARKS) + 3)
        made += _MARKS[mark] if mark < len(_MARKS) else provider.ConsumeUnicode(3)
    return made


def database_url(provider: atheris.FuzzedDataProvider, secret: str, names: Sequence[str]) -> str:
    """One with this secret as the password, or as one of the parameters of these names."""
    user, hosts, database = (text(provider) for _ in range(3))
    scheme = provider.PickValueInList(
        [
            "postgresql://",
            "postgres://",
            "postgresql+psycopg://",
            "postgresql:",
            "sqlite:///",
            "mysql://",
            "",
        ]
    )
    if provider.ConsumeBool():
        return f"{scheme}{user}:{secret}@{hosts}/{database}"
    name = provider.PickValueInList(list(names))
    if provider.ConsumeBool():
        name = "".join(quote(c) if provider.ConsumeBool() else f"%{ord(c):02x}" for c in name)
    joint = provider.PickValueInList(
        ["?", "&", ";", " ", "/", "#", "?sslmode=require&", "?user=u&"]
    )
    return f"{scheme}{hosts}/{database}{joint}{name}={secret}"
