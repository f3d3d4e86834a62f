"""What the document says of answers and headers that many routes share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.rpc.code_pb2 import Code

HEADERS: Mapping[str, str] = {
    "ETag": "ETag",
    "PreferenceApplied": "Preference-Applied",
    "RequestId": "X-Request-Id",
    "RetryAfter": "Retry-After",
}
"""The names of the answers' headers, by their names in the document."""

_TEXT = {"type": "string"}

HEADER_COMPONENTS: Mapping[str, Any] = {
    "ETag": {
        "description": "The revision of what was read, in quotes; weak when the answer is compressed.",
        "required": True,
        "schema": {**_TEXT, "pattern": '^(W/)?"[0-9]+"$'},
    },
    "PreferenceApplied": {
        "description": "`wait=SECONDS`, as the request preferred.",
        "schema": {**_TEXT, "pattern": "^wait=[0-9]+$"},
    },
    "RequestId": {
        "description": "The id of the request: the client's, or one that the server has made. It is in the server's log.",
        "required": True,
        "schema": {**_TEXT, "minLength": 1, "maxLength": 128},
    },
    "RetryAfter": {
        "description": "After how many seconds to ask again.",
        "schema": {"type": "integer", "minimum": 1},
    },
}

PARAMETERS: Mapping[str, Any] = {
    "IfNoneMatch": {
        "name": "If-None-Match",
        "in": "header",
        "description": "The `ETag` of an earlier answer. While nothing has changed since, the answer is 304.",
        "schema": _TEXT,
    },
    "Prefer": {
        "name": "Prefer",
        "in": "header",
        "description": (
            "`wait=SECONDS` (RFC 7240): the answer comes when the operation is done, or when the time is over. A setting of"
            " the server bounds the time (50 seconds by default). Other preferences are ignored."
        ),
        "schema": _TEXT,
    },
    "LastEventId": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "The id of the last event that the client has received: only what has changed since is sent.",
        "schema": {**_TEXT, "format": "last-event-id"},
    },
    "RequestId": {
        "name": "X-Request-Id",
        "in": "header",
        "description": "An id of the client's for the request: 1 to 128 visible ASCII characters. Others are ignored.",
        "schema": _TEXT,
    },
    "ServerTimeout": {
        "name": "X-Server-Timeout",
        "in": "header",
        "description": "The deadline of the call, in seconds from now, such as `2.5`. When it is over, the answer is 504.",
        "schema": {**_TEXT, "format": "seconds"},
    },
}

_DETAILS = {
    "type": "array",
    "description": "Messages that say more, such as google.rpc.ErrorInfo with the `reason`.",
    "items": {"$ref": "#/components/schemas/ProtobufAny"},
}
ERROR_SCHEMAS: Mapping[str, Any] = {
    "GoogleError": {
        "type": "object",
        "description": "An error, as Google's clients expect it: of all paths under `/v1`.",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message", "status", "details"],
                "properties": {
                    "code": {"type": "integer", "description": "The HTTP code."},
                    "message": {"type": "string", "description": "What is wrong, for people."},
                    "status": {
                        "type": "string",
                        "description": "The name of the google.rpc.Code.",
                        "enum": [name for name in Code.keys() if name != "OK"],  # noqa: SIM118 - no dict
                    },
                    "details": _DETAILS,
                },
            }
        },
    },
    "YandexError": {
        "type": "object",
        "description": "An error, as Yandex's clients expect it: of all paths under `/operations` and `/endpoints`.",
        "required": ["code", "message", "details"],
        "properties": {
            "code": {"type": "integer", "description": "The number of the google.rpc.Code."},
            "message": {"type": "string", "description": "What is wrong, for people."},
            "details": _DETAILS,
        },
    },
}
_EXAMPLES: Mapping[str, Any] = {
    "GoogleError": {
        "error": {
            "code": 404,
            "message": "Operation nothing not found",
            "status": "NOT_FOUND",
            "details": [],
        }
    },
    "YandexError": {"code": 5, "message": "Operation nothing not found", "details": []},
}

_RETRY = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}
_CHALLENGE = {
    "WWW-Authenticate": {
        "description": "`Bearer`.",
        "required": True,
        "schema": {"type": "string"},
    }
}
_CODES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "400": (
        "BadRequest",
        "The request is wrong: its details name each field. Or the operation's state forbids it: FAILED_PRECONDITION.",
        {},
    ),
    "401": ("Unauthorized", "There are no valid credentials.", _CHALLENGE),
    "403": (
        "Forbidden",
        "The caller may not do this, the lease token is another, or the request is one of a page of another site.",
        {},
    ),
    "404": (
        "NotFound",
        "There is no such thing, it has expired, or the caller may not see it.",
        {},
    ),
    "409": (
        "Conflict",
        "The stream cannot be continued: forget what it told, and ask without a token.",
        {},
    ),
    "412": (
        "PreconditionFailed",
        "The request has `If-Match` or `If-None-Match`, and is no GET that only reads; or `If-Match` of a read names another version.",
        {},
    ),
    "415": ("UnsupportedMediaType", "The body is not JSON in UTF-8, or is compressed.", {}),
    "429": ("TooManyRequests", "A limit of the server is reached.", _RETRY),
    "500": (
        "InternalServerError",
        "The server has failed. Its log has more, by the request id.",
        {},
    ),
    "503": ("ServiceUnavailable", "For now the server cannot do this: try again.", _RETRY),
    "504": ("GatewayTimeout", "The time of `X-Server-Timeout` is over.", {}),
}
_FAMILIES = {"GoogleError": "Google", "YandexError": "Yandex"}

ANSWERS: Mapping[str, Any] = {
    "204": {
        "description": "The client has the last event already, by `Last-Event-ID`: nothing more comes."
    },
}


def errors_of(
    is_yandex: bool,
    *,
    takes_body: bool,
    has_variable: bool,
    is_continued: bool,
) -> dict[str, Any]:
    """The errors that a route may answer with."""
    family = "Yandex" if is_yandex else "Google"
    only_if = {
        "404": has_variable,
        "409": is_continued,
        "415": takes_body,
    }
    left_out = {code for code, is_so in only_if.items() if not is_so}
    return {
        code: {"$ref": f"#/components/responses/{family}{name}"}
        for code, (name, _, _) in _CODES.items()
        if code not in left_out
    } | {"431": {"$ref": "#/components/responses/HeadTooLarge"}}


def error_components() -> dict[str, Any]:
    """The answers that `errors_of` refers to, and 304."""
    found: dict[str, Any] = {
        "HeadTooLarge": {
            "description": "The request line and headers have more than 64 KiB.",
            "content": {"text/plain": {"schema": _TEXT}},
        },
        "NotModified": {
            "description": "Nothing has changed since the answer with the `ETag` that the request has.",
            "headers": {
                HEADERS[each]: {"$ref": f"#/components/headers/{each}"} for each in HEADERS
            },
        },
    }
    for schema, family in _FAMILIES.items():
        for code, (name, description, headers) in _CODES.items():
            content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
            if code == "404":
                content["example"] = _EXAMPLES[schema]
            found[family + name] = {
                "description": description,
                **({"headers": headers} if headers else {}),
                "content": {"application/json": content},
            }
    return found
