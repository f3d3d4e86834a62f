"""The settings of the server but for those that `listening.py` and `security.py` have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from opservice.common.addresses import split_address
from opservice.common.durations import HOUR, MINUTE
from opservice.domain.errors import StartupError
from opservice.domain.operation import DAY, SECOND
from opservice.runtime.settings.setting import check_bounds, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """Where operations are stored. docs/databases.md has what a database URL may say."""

    TITLE: ClassVar = "Database"

    database: str = setting(
        "text",
        "sqlite:///opservice.db",
        "URL of the database: sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/NAME. A URL with a"
        " password belongs in the environment variable or in a private configuration file; the command"
        " line refuses it.",
        change_when="the file should be elsewhere, or several servers share a PostgreSQL database.",
        essential=True,
        secret=True,
    )
    migrate: bool = setting(
        "flag",
        False,
        "Bring the schema of a PostgreSQL database up to date at the start. The server always does so with"
        " SQLite.",
        change_when="you do not run `opservice migrate` before you deploy a new version.",
        essential=True,
    )
    file_group: str = setting(
        "text",
        "",
        "Group that may also read and write the files of SQLite, and read the audit log. Without it only the"
        " server's user may.",
        change_when="backups or log shippers run as another user.",
    )
    poll_interval: int = setting(
        "duration",
        SECOND // 2,
        "How often the server reads the operations that callers wait for. Most changes are noticed sooner,"
        " by notifications.",
        change_when="notifications are off (--no-notify) and callers should learn of changes sooner.",
        least=SECOND // 100,
    )
    no_notify: bool = setting(
        "flag",
        False,
        "Neither send nor receive notifications of changes (LISTEN and NOTIFY of PostgreSQL). The server"
        " then notices changes by other replicas only when it polls.",
        change_when="a connection pooler that does not support LISTEN is in front of PostgreSQL.",
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """The processes of the server, and how they start and stop."""

    TITLE: ClassVar = "Processes"

    workers: int = setting(
        "count",
        1,
        "Number of processes that serve on the port. Each has its own connections to the database.",
        change_when="one process uses a whole core, and other cores are free.",
        least=1,
        most=256,
        essential=True,
    )
    worker_timeout: int = setting(
        "duration",
        30 * SECOND,
        "A worker whose event loop shows no sign of life for so long is killed and replaced.",
        change_when="workers hang and should be replaced sooner.",
        least=SECOND,
    )
    drain: int = setting(
        "duration",
        20 * SECOND,
        "How long calls in progress may continue after SIGTERM.",
        change_when="your platform kills processes sooner (keep it below that time), or calls need longer.",
        least=0,
    )
    demo: bool = setting(
        "flag",
        False,
        "Start a few operations of an imaginary container registry, which run and end.",
        change_when="you try opservice out.",
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationSettings:
    """How long operations, leases and waits last."""

    TITLE: ClassVar = "Operations: retention, leases, waits"

    retention: int = setting(
        "duration",
        30 * DAY,
        "How long an operation is kept after it is done, unless its Start asks for another time.",
        change_when="clients ask for results later than that, or the database grows too large.",
        least=SECOND // 1000,
        essential=True,
    )
    max_retention: int = setting(
        "duration",
        365 * DAY,
        "The longest retention that a Start may ask for.",
        change_when="producers ask for more than you want to store.",
        least=SECOND // 1000,
    )
    max_lease: int = setting(
        "duration",
        DAY,
        "The longest lease that a Start may ask for.",
        change_when="the work of a dead producer must be noticed sooner, whatever producers ask for.",
        least=SECOND,
    )
    cancel_grace: int = setting(
        "duration",
        MINUTE,
        "How long a producer may take to end a cooperative operation after a Cancel. After that the server"
        " ends it.",
        change_when="producers need longer to clean up.",
        least=0,
    )
    max_payload_bytes: int = setting(
        "bytes",
        1 << 20,
        "The largest metadata, response or error of an operation, in bytes.",
        change_when="results are larger. Raise --max-message-bytes with it.",
        least=1 << 10,
    )
    max_running_per_parent: int = setting(
        "count",
        0,
        "Operations of one parent that may run at the same time, in all workers and replicas; 0 is no limit."
        " The server refuses a further Start with RESOURCE_EXHAUSTED. On PostgreSQL, Starts at the same"
        " moment may exceed the limit by at most the limit, or 500, for each further worker.",
        change_when="one tenant must not take all the capacity of your producers.",
        least=0,
    )
    housekeeping_interval: int = setting(
        "duration",
        SECOND,
        "How often the server looks for lapsed leases, timeouts, cancel grace periods that are over, and"
        " operations to delete.",
        change_when="leases should lapse sooner after their time, or these reads cost the database too much.",
        least=SECOND // 100,
    )
    restart_grace: int = setting(
        "duration",
        10 * SECOND,
        "How long the server ends no operation because of a lease, a timeout or a cancel grace period, after"
        " its start and after each time when it could not take renewals. Producers may have been unable to"
        " reach it.",
        change_when="producers need longer to reconnect after a restart.",
        least=0,
    )
    max_wait: int = setting(
        "duration",
        50 * SECOND,
        "The longest that one Wait takes. A Wait that asks for longer ends then, and the client calls again."
        " Keep it below the timeouts of proxies (nginx: grpc_read_timeout, 60 s).",
        change_when="a proxy ends calls sooner.",
        least=SECOND // 1000,
        most=DAY,
    )
    watch_repeat: int = setting(
        "duration",
        30 * SECOND,
        "A Watch that had nothing to send for so long sends the unchanged record again, and a BatchWatch"
        " `caught_up`, so that proxies do not end the stream; 0s is never.",
        change_when="a proxy ends silent streams sooner.",
        least=0,
        most=DAY,
    )
    resume_window: int = setting(
        "duration",
        600 * SECOND,
        "How long the database keeps an operation that was deleted or has expired. Nobody sees it any more,"
        " but each BatchWatch can learn that it is gone. A BatchWatch that broke off can be continued for two"
        " minutes less than this.",
        change_when="streams should be continued after longer breaks, or space should be free sooner. With 0s"
        " operations are deleted at once: then streams cannot be continued, and some of them do not learn"
        " what is deleted.",
        least=0,
        most=DAY,
    )
    hide_error_until_done: bool = setting(
        "flag",
        False,
        "Show the error of an operation that is being cancelled only once it is done.",
        change_when="clients take an error for the end, as the Yandex Cloud SDK for Node.js does.",
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.retention > self.max_retention:
            raise StartupError("--retention is longer than --max-retention")
        if 0 < self.watch_repeat < SECOND // 10:
            raise StartupError("--watch-repeat must be at least 100ms, or 0s for never")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """How much callers may ask for. Each limit holds for each worker."""

    TITLE: ClassVar = "Limits on callers"

    max_calls: int = setting(
        "count",
        12_000,
        "Calls in progress in a worker, not counting those that wait or watch. The worker refuses further"
        " calls with RESOURCE_EXHAUSTED.",
        change_when="memory is short.",
        least=1,
    )
    max_waits: int = setting(
        "count",
        20_000,
        "Calls that wait or watch in a worker at the same time. The worker refuses further ones with"
        " RESOURCE_EXHAUSTED.",
        change_when="more clients than that follow operations, or memory is short.",
        least=1,
    )
    max_waits_per_caller: int = setting(
        "count",
        2_000,
        "Calls of one caller that wait or watch in a worker at the same time. With --workers, or several"
        " servers, a caller may have that many in each.",
        change_when="one trusted caller follows more operations than that.",
        least=1,
    )
    rate_limit: int = setting(
        "count",
        0,
        "Rate limit: calls a second that a worker takes from one caller on average; 0 is no limit. The"
        " worker refuses further calls with RESOURCE_EXHAUSTED, and says when to try again.",
        change_when="you do not trust all callers to call sparingly.",
        least=0,
    )
    rate_burst: int = setting(
        "count",
        0,
        "Calls that a caller may make at once, within --rate-limit; 0 is as many as in one second.",
        change_when="callers make many calls at once and few on average.",
        least=0,
    )
    failed_auth_rate: int = setting(
        "count",
        100,
        "Calls a second with invalid credentials that a worker checks from one address on average, and ten"
        " times as many at once; 0 is no limit. Beyond it the worker refuses credentials from that address"
        " unchecked, with RESOURCE_EXHAUSTED, unless it knows them already. All callers on a Unix socket"
        " count as one address.",
        change_when="all calls come through one proxy (0), or attackers guess tokens.",
        least=0,
    )
    max_unsent_bytes: int = setting(
        "bytes",
        128 << 20,
        "Memory in a worker for responses of 32 KiB or more that clients have not read yet. One connection"
        " may have an eighth of it. Beyond that the worker refuses further calls with RESOURCE_EXHAUSTED."
        " Once a connection has used a quarter of its eighth, its reads begin later.",
        change_when="memory is short, or many clients read large lists slowly.",
        least=1 << 20,
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """What a connection may cost, before it is known who calls. Each limit holds for each worker."""

    TITLE: ClassVar = "Connections"

    max_connections: int = setting(
        "count",
        20_000,
        "Connections to a worker: at most so many by gRPC, and as many by HTTP. The worker closes further"
        " ones at once. In all there are never more than the files that the process may open, less 256."
        " A third of these are for gRPC, the rest for HTTP.",
        change_when="memory is short, or more clients than that connect.",
        least=1,
    )
    max_concurrent_streams: int = setting(
        "count",
        100,
        "Calls in progress on one connection by gRPC, including those that wait or watch. Clients hold back"
        " further calls.",
        change_when="clients that you trust follow more operations on one connection.",
        least=1,
    )
    max_pending_requests: int = setting(
        "count",
        20_000,
        "Calls by gRPC that may wait until a worker accepts them. Beyond that it begins to refuse calls, and"
        " at twice as many it refuses all.",
        change_when="memory is short, or more calls than that arrive at once.",
        least=1,
    )
    max_message_bytes: int = setting(
        "bytes",
        4 << 20,
        "The largest request by gRPC, in bytes. It must hold two payloads (--max-payload-bytes). As JSON, by"
        " HTTP, a request may have three times as many.",
        change_when="you raise --max-payload-bytes.",
        least=1 << 14,
    )
    handshake_timeout: int = setting(
        "duration",
        20 * SECOND,
        "How long a new connection may take until gRPC has begun on it, including TLS. By HTTP: until the"
        " headers of a request have arrived.",
        change_when="many connections that never speak take up places.",
        least=SECOND // 10,
        most=HOUR,
    )
    keepalive: int = setting(
        "duration",
        MINUTE,
        "How long a connection by gRPC may be silent before the server pings it.",
        change_when="a load balancer or firewall drops silent connections sooner.",
        least=SECOND,
        most=DAY,
    )
    no_compression: bool = setting(
        "flag",
        False,
        "Refuse calls by gRPC with compressed requests with UNIMPLEMENTED (streams: sometimes INTERNAL). gRPC"
        " decompresses requests before the server knows who calls. Clients compress only when they are told"
        " to.",
        change_when="untrusted machines can connect.",
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoverySettings:
    """What clients are told of this server and of others."""

    TITLE: ClassVar = "Discovery and reflection"

    advertise: str = setting(
        "text",
        "",
        "Address of this server, HOST:PORT, that ApiEndpointService tells clients. Without it that is the"
        " address that the server listens on.",
        change_when="Yandex Cloud SDKs discover this server, and reach it by another address.",
    )
    endpoint: tuple[str, ...] = setting(
        "texts",
        (),
        "Another service that ApiEndpointService lists, as ID=HOST:PORT, such as"
        " container-registry=10.0.0.7:443. May be repeated.",
        change_when="Yandex Cloud SDKs should discover your services through this server.",
    )
    descriptor_set: tuple[Path, ...] = setting(
        "files",
        (),
        "File with a FileDescriptorSet (protoc --include_imports -o FILE). Reflection then knows its types,"
        " so that grpcurl shows them inside Any. May be repeated.",
        change_when="people look at operations of your own types with grpcurl.",
    )

    def __post_init__(self) -> None:
        if self.advertise:
            split_address(self.advertise, "--advertise")
        self.endpoints()

    def endpoints(self) -> dict[str, str]:
        """The addresses of `endpoint` by id. Raises StartupError when one is malformed."""
        listed = {}
        for item in self.endpoint:
            id_, equals, address = item.partition("=")
            if not (id_ and equals):
                raise StartupError(f"--endpoint {item}: expected ID=HOST:PORT")
            split_address(address, "--endpoint")
            listed[id_] = address
        return listed


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingSettings:
    """What is logged, and where."""

    TITLE: ClassVar = "Logs"

    log_level: str = setting(
        "choice",
        "info",
        "The least level that is logged. Successful reads are logged at debug.",
        change_when="you look for a fault (debug), or logs cost too much (warning).",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: str = setting(
        "choice",
        "auto",
        "Form of the log: json, or console for people. auto is console on a terminal, else json.",
        change_when="you read the log in a terminal through a pipe, or collect it from one.",
        choices=("auto", "json", "console"),
    )
    audit_log: Path | None = setting(
        "file",
        None,
        "File to which the audit log is also written, as lines of JSON. It is part of the log in any case.",
        change_when="the audit log is kept apart from the rest.",
    )
