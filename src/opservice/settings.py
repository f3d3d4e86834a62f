"""Every setting of the server: its default, its bounds, what it means, its environment variable.

The command line, the environment and the README's table are made from this one list.
Durations are microseconds, as everywhere; on the command line they are written `30d`, `2m`, `1.5s`.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from opservice.errors import StartupError
from opservice.operation import DAY, SECOND

Kind = Literal["text", "choice", "flag", "count", "bytes", "duration", "files", "file", "texts"]

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
_UNITS = {"us": 1, "ms": 1_000, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}


_LONGEST = 10_000 * DAY


def _setting(kind: Kind, default: Any, meaning: str, **more: Any) -> Any:
    return field(default=default, metadata={"kind": kind, "meaning": meaning, **more})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    listen: str = _setting(
        "text", "127.0.0.1:50051", "Address to serve on, HOST:PORT; port 0 picks a free one."
    )
    database: str = _setting(
        "text",
        "sqlite:///opservice.db",
        "Where operations are kept: sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/NAME."
        " A password is better given in the environment variable than on the command line.",
    )
    workers: int = _setting(
        "count",
        1,
        "Processes that serve on the port, each with connections of its own to the database.",
        least=1,
        most=256,
    )
    migrate: bool = _setting(
        "flag", False, "Bring a PostgreSQL schema up to date at start; SQLite's always is."
    )
    tls_cert: Path | None = _setting(
        "file", None, "Certificate chain (PEM). Serves TLS, and needs the key."
    )
    tls_key: Path | None = _setting("file", None, "Private key (PEM) of the certificate.")
    tls_client_ca: Path | None = _setting(
        "file", None, "Certificate authorities (PEM): demands client certificates made by these."
    )
    advertise: str = _setting(
        "text",
        "",
        "Address that clients of ApiEndpointService are told for this server, HOST:PORT;"
        " the address it listens on unless given.",
    )
    endpoint: tuple[str, ...] = _setting(
        "texts",
        (),
        "Another service for ApiEndpointService to list, ID=HOST:PORT"
        " (for example container-registry=10.0.0.7:443). May be repeated.",
    )
    descriptor_set: tuple[Path, ...] = _setting(
        "files",
        (),
        "FileDescriptorSet (protoc --include_imports -o FILE) whose types reflection also knows,"
        " so that grpcurl shows them inside Any. May be repeated.",
    )
    demo: bool = _setting(
        "flag", False, "Start a few operations of a container registry that run and end."
    )
    retention: int = _setting(
        "duration",
        30 * DAY,
        "How long a done operation is kept unless its Start says.",
        least=SECOND // 1000,
    )
    max_retention: int = _setting(
        "duration",
        365 * DAY,
        "The longest retention that a Start may ask for.",
        least=SECOND // 1000,
    )
    max_lease: int = _setting(
        "duration", DAY, "The longest lease that a Start may ask for.", least=SECOND
    )
    cancel_grace: int = _setting(
        "duration",
        MINUTE,
        "How long the producer of a cooperative operation may take to end it once it is cancelled.",
        least=0,
    )
    max_payload_bytes: int = _setting(
        "bytes", 1 << 20, "The largest metadata, response or error of an operation.", least=1 << 10
    )
    max_message_bytes: int = _setting(
        "bytes", 4 << 20, "The largest request; it holds two payloads and some text.", least=1 << 14
    )
    max_pending_requests: int = _setting(
        "count",
        20_000,
        "Calls that wait to be accepted at which a worker begins to refuse more; at twice this it"
        " refuses all.",
        least=1,
    )
    max_calls: int = _setting(
        "count",
        12_000,
        "Calls in progress in a worker, those that wait or watch aside, at which further ones are"
        " refused with RESOURCE_EXHAUSTED.",
        least=1,
    )
    max_concurrent_streams: int = _setting(
        "count", 10_000, "Calls in progress on one connection.", least=1
    )
    min_ping_interval: int = _setting(
        "duration", 10 * SECOND, "How often a client may ping, busy or idle.", least=0, most=DAY
    )
    keepalive: int = _setting(
        "duration",
        MINUTE,
        "How long a connection may be silent before it is pinged.",
        least=SECOND,
        most=DAY,
    )
    drain: int = _setting(
        "duration", 20 * SECOND, "How long calls in progress may go on after SIGTERM.", least=0
    )
    housekeeping_interval: int = _setting(
        "duration",
        SECOND,
        "How often lapsed leases, timeouts, cancel grace and retention are looked for.",
        least=SECOND // 100,
    )
    restart_grace: int = _setting(
        "duration",
        10 * SECOND,
        "How long after its start the server lets lapsed leases be: their producers may have been"
        " unable to renew them while it was away.",
        least=0,
    )
    poll_interval: int = _setting(
        "duration",
        SECOND // 2,
        "How often operations that are waited for are looked up, for changes of which no hint came.",
        least=SECOND // 100,
    )
    no_notify: bool = _setting(
        "flag",
        False,
        "Neither give nor take hints of changes (LISTEN and NOTIFY on PostgreSQL): changes made by"
        " other replicas are then noticed by polls alone. For poolers that cannot do it.",
    )
    max_wait: int = _setting(
        "duration",
        2 * MINUTE,
        "The longest that a Wait takes; a Wait for longer ends then, and is called again.",
        least=SECOND // 1000,
        most=DAY,
    )
    log_level: str = _setting(
        "choice",
        "info",
        "What to log: successful reads only at debug.",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: str = _setting(
        "choice",
        "auto",
        "auto is console on a terminal, else json.",
        choices=("auto", "json", "console"),
    )

    def __post_init__(self) -> None:
        """Raises StartupError when a setting is out of bounds, or settings contradict each other."""
        for each in fields(self):
            least, most = each.metadata.get("least"), each.metadata.get("most")
            if each.metadata["kind"] == "duration":
                most = most or _LONGEST
            value = getattr(self, each.name)
            if least is not None and value < least:
                shown = format_value(each, value), format_value(each, least)
                raise StartupError(f"{flag(each)} is {shown[0]}, but must be at least {shown[1]}")
            if most is not None and value > most:
                shown = format_value(each, value), format_value(each, most)
                raise StartupError(f"{flag(each)} is {shown[0]}, but must be at most {shown[1]}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise StartupError("--tls-cert and --tls-key belong together: give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise StartupError("--tls-client-ca needs --tls-cert and --tls-key")
        if self.retention > self.max_retention:
            raise StartupError("--retention is longer than --max-retention")
        if self.max_message_bytes < 2 * self.max_payload_bytes:
            raise StartupError(
                "--max-message-bytes must hold two payloads: it is less than twice"
                " --max-payload-bytes"
            )
        for address in filter(None, (self.listen, self.advertise)):
            split_address(address)
        self.endpoints()

    def endpoints(self) -> dict[str, str]:
        """The addresses of `endpoint`, by id. Raises StartupError when one is malformed."""
        listed = {}
        for item in self.endpoint:
            id_, equals, address = item.partition("=")
            if not (id_ and equals):
                raise StartupError(f"--endpoint {item}: expected ID=HOST:PORT")
            split_address(address)
            listed[id_] = address
        return listed


def flag(setting: Field[Any]) -> str:
    return "--" + setting.name.replace("_", "-")


def environment_variable(setting: Field[Any]) -> str:
    return "OPSERVICE_" + setting.name.upper()


def default_of(setting: Field[Any]) -> Any:
    assert setting.default is not MISSING
    return setting.default


def format_value(setting: Field[Any], value: Any) -> str:
    """The value as one would write it on the command line."""
    if setting.metadata["kind"] == "duration":
        return format_duration(value)
    if setting.metadata["kind"] == "flag":
        return "on" if value else "off"
    return "" if value in (None, ()) else str(value)


def parse_duration(text: str) -> int:
    """Microseconds from `500ms`, `2m`, `1.5h`, `30d`. Raises ValueError when it is none of these."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d)", text.strip())
    if match is None:
        raise ValueError("expected a number and a unit (us, ms, s, m, h, d), such as 30s or 1.5h")
    return round(float(match[1]) * _UNITS[match[2]])


def format_duration(microseconds: int) -> str:
    for unit, length in reversed(_UNITS.items()):
        if microseconds and microseconds % length == 0:
            return f"{microseconds // length}{unit}"
    return "0s"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPV6]:PORT. Raises StartupError when it is neither."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^:\[\]/\s]+):([0-9]{1,5})", address)
    if match is None or int(match[2]) > 65_535:
        raise StartupError(f"{address!r} is no address: expected HOST:PORT")
    return match[1], int(match[2])
