"""Every setting of the server: its default, its bounds, what it means, its environment variable.

The command line, the environment and docs/settings.md are made from this one list.
Durations are microseconds, as everywhere; on the command line they are written `30d`, `2m`, `1.5s`.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from opservice.common.addresses import is_loopback, socket_path, split_address
from opservice.common.durations import HOUR, MINUTE, format_duration
from opservice.domain.errors import StartupError
from opservice.domain.operation import DAY, SECOND

Kind = Literal["text", "choice", "flag", "count", "bytes", "duration", "files", "file", "texts"]


_LONGEST = 10_000 * DAY

ASYMMETRIC_ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""Of JWTs. With the others whoever can check a token can make one."""


def _setting(kind: Kind, default: Any, meaning: str, **more: Any) -> Any:
    return field(default=default, metadata={"kind": kind, "meaning": meaning, **more})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    listen: str = _setting(
        "text",
        "127.0.0.1:50051",
        "Address to serve on, HOST:PORT or unix:PATH; port 0 picks a free one.",
    )
    unix_socket_mode: str = _setting(
        "text",
        "0600",
        "Mode of the socket of --listen unix:PATH, octal: who may connect must be able to write to it.",
    )
    database: str = _setting(
        "text",
        "sqlite:///opservice.db",
        "Where operations are kept: sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/NAME."
        " With a password, only in the environment variable.",
    )
    workers: int = _setting(
        "count",
        1,
        "Processes that serve on the port, each with connections of its own to the database.",
        least=1,
        most=256,
    )
    worker_timeout: int = _setting(
        "duration",
        30 * SECOND,
        "A worker whose event loop shows no sign of life for so long is killed and replaced.",
        least=SECOND,
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
    allow_anonymous: bool = _setting(
        "flag",
        False,
        "Let everybody who can connect do everything, also from other machines: without this, and without"
        " authentication, the server listens on loopback or a Unix socket only.",
    )
    tokens: Path | None = _setting(
        "file", None, "Static tokens (YAML), hashed; `opservice token` makes them."
    )
    jwks: str = _setting(
        "text",
        "",
        "Keys (JWKS) that sign the tokens (JWT) of callers: a file or an https URL. Needs --jwt-issuer and"
        " --jwt-audience.",
    )
    jwks_proxy: str = _setting(
        "text",
        "",
        "The proxy, http://HOST:PORT, through which the https URL of --jwks is asked. `https_proxy` and the"
        " like are ignored.",
    )
    jwks_refresh: int = _setting(
        "duration",
        5 * MINUTE,
        "How often the keys are read again; a token of an unknown key has them read at once.",
        least=SECOND,
    )
    jwt_issuer: str = _setting("text", "", "The `iss` that a token must have.")
    jwt_audience: tuple[str, ...] = _setting(
        "texts", (), "The `aud` that a token must have, one of these. May be repeated."
    )
    jwt_algorithm: tuple[str, ...] = _setting(
        "texts",
        ("RS256", "ES256"),
        "The algorithms that tokens may be signed by, none but asymmetric ones. May be repeated.",
    )
    jwt_grants_claim: str = _setting(
        "text", "opservice", "The claim of a token that lists grants, such as viewer:folders/b1g/*."
    )
    policy: Path | None = _setting(
        "file", None, "Grants (YAML) by subject, beside those that tokens bring."
    )
    audit_log: Path | None = _setting(
        "file", None, "File for the audit log, as lines of JSON; they stand in the log in any case."
    )
    file_group: str = _setting(
        "text",
        "",
        "Group that may also read and write the files of SQLite, and read the audit log; without it only the"
        " server's user may.",
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
    max_waits: int = _setting(
        "count",
        20_000,
        "Calls that wait or watch in a worker at a time; further ones are refused with RESOURCE_EXHAUSTED.",
        least=1,
    )
    max_waits_per_caller: int = _setting(
        "count",
        2_000,
        "The same, of one caller. With --workers, or several servers, a caller may have that many in each.",
        least=1,
    )
    rate_limit: int = _setting(
        "count",
        0,
        "Calls a second that a worker takes from one caller on average; 0 is no limit. Beyond it calls are"
        " refused with RESOURCE_EXHAUSTED and told when to try again.",
        least=0,
    )
    rate_burst: int = _setting(
        "count",
        0,
        "Calls that a caller may make at once in a worker; 0 is those of a second.",
        least=0,
    )
    failed_auth_rate: int = _setting(
        "count",
        100,
        "Calls a second with credentials that are not valid, from one address, on average and in a worker;"
        " ten times as many at once. Beyond it credentials from there that the worker does not know yet are"
        " refused unchecked, with RESOURCE_EXHAUSTED. All callers on a Unix socket count as one address. 0 is"
        " no limit, as for a proxy that all calls come through.",
        least=0,
    )
    max_running_per_parent: int = _setting(
        "count",
        0,
        "Operations of one parent that may run at a time, in all workers and replicas; 0 is no limit. A Start"
        " beyond it is refused with RESOURCE_EXHAUSTED. On PostgreSQL Starts at the same moment may exceed it"
        ", by at most the limit, or 500, for each further worker.",
        least=0,
    )
    max_unsent_bytes: int = _setting(
        "bytes",
        128 << 20,
        "Answers of 32 KiB or more that callers of a worker have not read yet, of one connection an eighth"
        " of it; beyond it they are refused with RESOURCE_EXHAUSTED, and from a quarter of its eighth on the"
        " reads of a connection begin later.",
        least=1 << 20,
    )
    no_compression: bool = _setting(
        "flag",
        False,
        "Refuse calls with compressed requests, with UNIMPLEMENTED (streams: sometimes INTERNAL). gRPC"
        " decompresses requests before it is known who calls. Clients compress none unless they are told to.",
    )
    max_connections: int = _setting(
        "count",
        20_000,
        "Connections to a worker at which further ones are closed at once; no more in any case than the"
        " process may have files open, less 256.",
        least=1,
    )
    max_concurrent_streams: int = _setting(
        "count",
        100,
        "Calls in progress on one connection, those that wait or watch among them; clients hold back"
        " further ones. Raise it for clients that you trust and that follow more operations.",
        least=1,
    )
    handshake_timeout: int = _setting(
        "duration",
        20 * SECOND,
        "How long a new connection may take until it speaks HTTP/2, TLS included.",
        least=SECOND // 10,
        most=HOUR,
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
        "How long after its start, and after each time when it could not take renewals, the server ends"
        " nothing because of a lease, a timeout or a cancel grace: producers may have been unable to"
        " reach it.",
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
        50 * SECOND,
        "The longest that a Wait takes; a Wait for longer ends then, and is called again. Keep it below the"
        " timeouts of proxies (nginx: grpc_read_timeout, 60 s).",
        least=SECOND // 1000,
        most=DAY,
    )
    watch_repeat: int = _setting(
        "duration",
        30 * SECOND,
        "A Watch that has had nothing to send for so long sends its record again, unchanged, so that proxies"
        " do not end it; 0s is never.",
        least=0,
        most=DAY,
    )
    hide_error_until_done: bool = _setting(
        "flag",
        False,
        "Show the error of an operation that is being cancelled only once it is done, for clients that take"
        " an error for the end, as Yandex's SDK for Node does.",
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
        self._check_authentication()
        if self.retention > self.max_retention:
            raise StartupError("--retention is longer than --max-retention")
        if 0 < self.watch_repeat < SECOND // 10:
            raise StartupError("--watch-repeat must be at least 100ms, or 0s for never")
        if self.max_message_bytes < 2 * self.max_payload_bytes:
            raise StartupError(
                "--max-message-bytes must hold two payloads: it is less than twice"
                " --max-payload-bytes"
            )
        self._check_listen()
        if self.advertise:
            split_address(self.advertise)
        self.endpoints()

    @property
    def authenticates(self) -> bool:
        """Whether callers are asked who they are."""
        by_certificate = self.tls_client_ca is not None and self.policy is not None
        return self.tokens is not None or bool(self.jwks) or by_certificate

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server."""
        return socket_path(self.listen) is not None or is_loopback(split_address(self.listen)[0])

    def _check_listen(self) -> None:
        """Raises StartupError when it cannot be listened there."""
        if not re.fullmatch(r"0?[0-7]{3}", self.unix_socket_mode):
            raise StartupError(
                f"--unix-socket-mode is {self.unix_socket_mode!r}: expected three octal digits, such as 0660"
            )
        if socket_path(self.listen) is None:
            split_address(self.listen)
        elif self.workers > 1:
            raise StartupError(
                "--workers needs a port: processes cannot share the socket of --listen unix:PATH"
            )

    def _check_authentication(self) -> None:
        """Raises StartupError when it is not clear who may do what."""
        if self.jwks and not (self.jwt_issuer and self.jwt_audience):
            raise StartupError("--jwks needs --jwt-issuer and --jwt-audience")
        if not self.jwks and (self.jwt_issuer or self.jwt_audience):
            raise StartupError("--jwt-issuer and --jwt-audience need --jwks")
        unsafe = sorted(set(self.jwt_algorithm) - ASYMMETRIC_ALGORITHMS)
        if unsafe or not self.jwt_algorithm:
            known = ", ".join(sorted(ASYMMETRIC_ALGORITHMS))
            raise StartupError(f"--jwt-algorithm {' '.join(unsafe)}: expected one of {known}")
        if "://" in self.jwks:
            _check_url(self.jwks)
        if self.jwks_proxy:
            if not self.jwks.startswith("https://"):
                raise StartupError("--jwks-proxy needs --jwks with an https URL")
            _check_proxy(self.jwks_proxy)
        if self.policy is not None and not self.authenticates:
            raise StartupError(
                "--policy says what callers may do, but nothing says who they are: give --tokens, --jwks or"
                " --tls-client-ca"
            )
        if self.allow_anonymous and self.authenticates:
            raise StartupError("--allow-anonymous contradicts --tokens, --jwks and --policy")
        if not (self.authenticates or self.allow_anonymous or self.is_local):
            raise StartupError(
                f"--listen {self.listen} is open to other machines, and callers are not asked who they are:"
                " give --tokens, --jwks, or --tls-client-ca with --policy; or --allow-anonymous to let"
                " everybody who can connect see and change every operation"
            )

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
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _check_url(url: str) -> None:
    """Raises StartupError for a URL that is not to be trusted with keys, or holds a secret."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise StartupError(f"--jwks: the URL does not parse: {error}") from error
    if parts.username or parts.password:
        raise StartupError("--jwks: a URL with a password in it would be seen by others")
    if not (parts.scheme == "https" or is_loopback(parts.hostname or "")):
        raise StartupError(f"--jwks {url}: expected https, except on loopback")


def _check_proxy(url: str) -> None:
    """Raises StartupError when it is not http://HOST:PORT."""
    scheme, _, address = url.removesuffix("/").partition("://")
    try:
        split_address(address)
    except StartupError:
        scheme = ""
    if scheme != "http":  # not shown: it may hold a password
        raise StartupError("--jwks-proxy: expected http://HOST:PORT")
