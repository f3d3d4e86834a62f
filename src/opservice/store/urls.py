"""Database URLs: what they may say, and how they are shown.

    sqlite:///FILE
    postgresql://USER:PASSWORD@HOST:PORT,HOST:PORT/DATABASE?PARAMETER=VALUE&...

Those of PostgreSQL are as libpq reads them (https://www.postgresql.org/docs/current/libpq-connect.html,
"Connection URIs"), but stricter: what could be read in two ways is refused, because a part of a password
could be taken for something that may be shown. No message quotes a URL, a value, or a name that may be none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn
from urllib.parse import quote, unquote_to_bytes

from opservice.domain.errors import StartupError

SECRETS: Final = frozenset(
    {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
)
"""Parameters whose values nobody may see."""

_NUMBERS: Final = frozenset(
    {
        "connect_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
    }
)
_TEXTS: Final = frozenset(
    {
        "application_name",
        "channel_binding",
        "dbname",
        "fallback_application_name",
        "gssdelegation",
        "gssencmode",
        "gsslib",
        "host",
        "hostaddr",
        "krbsrvname",
        "load_balance_hosts",
        "max_protocol_version",
        "min_protocol_version",
        "oauth_client_id",
        "oauth_issuer",
        "oauth_scope",
        "options",
        "passfile",
        "port",
        "require_auth",
        "requirepeer",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcertmode",
        "sslcompression",
        "sslcrl",
        "sslcrldir",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslrootcert",
        "sslsni",
        "target_session_attrs",
        "user",
    }
)
_NOT_OURS: Final = {
    "autocommit": "the server decides that itself",
    "client_encoding": "the server speaks UTF-8",
    "context": "it is an object of Python",
    "cursor_factory": "it is an object of Python",
    "replication": "the server does not replicate",
    "row_factory": "it is an object of Python",
    "sslkeylogfile": "it would write the keys of the connections to a file",
}
"""Parameters of libpq and psycopg that would break the server, and why."""

_WRITABLE: Final = frozenset({"any", "primary", "read-write"})

_FORMS = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_ENCODING = "/ ? # @ : % = in a user, password or name are written %2F %3F %23 %40 %3A %25 %3D"
_UNNAMED = "a parameter after a password, in which & is written %26,"
_PREFIX = "the database URL"


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """What a database URL says: a file of SQLite, or parameters of PostgreSQL."""

    shown: str
    """The URL with host, port and database, or the file, and nothing else: fit for a log."""
    file: str = ""
    """Of SQLite; empty for PostgreSQL."""
    parameters: Mapping[str, str | int | None] = field(default_factory=dict, repr=False)
    """For psycopg, under its names: `host`, `user`, `password`, `dbname` are among them."""

    @property
    def database(self) -> str:
        """The file, or the name of PostgreSQL's database; empty where it is left to libpq."""
        return self.file or str(self.parameters.get("dbname") or "")

    @property
    def is_sqlite(self) -> bool:
        """Only drivers ask this; everything else asks the driver for what it needs."""
        return bool(self.file)

    @property
    def holds_secret(self) -> bool:
        """One of SECRETS is among the parameters."""
        return not SECRETS.isdisjoint(self.parameters)


def parse_database_url(text: str) -> DatabaseUrl:
    """Reads a database URL. Touches nothing.

    Raises StartupError, which quotes no part of the URL that may be secret.
    """
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", text)
    if match is None or not text.isprintable():
        raise StartupError(f"{_PREFIX} does not parse: give {_FORMS}")
    match match[1].lower():
        case "sqlite" | "sqlite+pysqlite":
            return _parse_sqlite(match[2])
        case "postgres" | "postgresql" | "postgresql+psycopg":
            return _parse_postgresql(match[2])
        case other:
            raise StartupError(
                f"{_PREFIX} begins with {other}://; supported are sqlite:// and postgresql://"
            )


def _parse_sqlite(rest: str) -> DatabaseUrl:
    place, question, query = rest.partition("?")
    host, slash, path = place.partition("/")
    if host:
        raise StartupError(f"{_PREFIX} names a host: give sqlite:///FILE, with three slashes")
    if question:
        raise StartupError(
            f"{_PREFIX} has {_name(query.partition('&')[0].partition('=')[0])}, but sqlite:/// takes no"
            " parameters; in a file's name ? is written %3F"
        )
    file = _decode(path)
    if file.startswith("file:"):
        raise StartupError(
            f"{_PREFIX} has a file: URI of SQLite: give sqlite:///FILE with a path alone"
        )
    if not slash or not file or ":memory:" in file:
        raise StartupError(
            f"{_PREFIX} names no file: an in-memory SQLite would lose every operation; give sqlite:///FILE"
        )
    return DatabaseUrl(f"sqlite:///{_encode_file(file)}", file=file)


def _encode_file(file: str) -> str:
    return file.replace("%", "%25").replace("?", "%3F")


def _parse_postgresql(rest: str) -> DatabaseUrl:
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    path, question, query = rest[len(authority) :].partition("?")
    path = path.removeprefix("/")
    login, at, addresses = authority.rpartition("@")
    # So an unencoded / ? or # in a password cannot move a part of it into the host, the database or a name,
    # nor can a parameter that does not begin with ? or & be taken for the end of what stands before it.
    named = login.partition(":")[0] + addresses + path
    if "@" in login + path + query or "#" in rest or "=" in named or re.search("[/:]", path):
        raise StartupError(f"{_PREFIX} does not parse: {_ENCODING}")
    parameters: dict[str, str | int | None] = {}
    if at:
        user, colon, password = login.partition(":")
        if user:
            parameters["user"] = _decode(user)
        if colon:
            parameters["password"] = _decode(password)
    if addresses:
        parameters |= _parse_addresses(addresses)
    if path:
        parameters["dbname"] = _decode(path)
    for assignment in query.split("&") if question and query else ():
        # What follows a secret may be a part of it, with an & that was not encoded.
        name, value = _parse_parameter(assignment, shown=SECRETS.isdisjoint(parameters))
        if name in parameters:
            raise StartupError(f"{_PREFIX} gives {name} twice")
        parameters[name] = value
    _check_hosts(parameters)
    if parameters.get("target_session_attrs", "any") not in _WRITABLE:
        raise StartupError(
            f"{_PREFIX}: target_session_attrs must be read-write, primary or any, because the server writes"
        )
    return DatabaseUrl(_show_postgresql(parameters), parameters=parameters)


def _parse_addresses(addresses: str) -> dict[str, str | int | None]:
    hosts, ports = [], []
    for address in addresses.split(","):
        match = re.fullmatch(r"(\[[^\[\]]+\]|[^\[\]:]*)(?::([0-9]{1,5}))?", address)
        if match is None:
            raise StartupError(
                f"{_PREFIX} does not parse: expected HOST:PORT, or [IPV6]:PORT, and a port is a number;"
                f" {_ENCODING}"
            )
        hosts.append(_decode(match[1].strip("[]")))
        ports.append(match[2] or "")
    found: dict[str, str | int | None] = {}
    if any(hosts) or len(hosts) > 1:
        found["host"] = ",".join(hosts)
    if any(ports):
        found["port"] = ",".join(ports)
    return found


def _parse_parameter(assignment: str, *, shown: bool) -> tuple[str, str | int | None]:
    encoded, equals, rest = assignment.partition("=")
    name = _decode(encoded)
    said = _name(name) if shown else _UNNAMED
    if not equals:
        raise StartupError(f"{_PREFIX} does not parse: expected {said} as NAME=VALUE")
    if "+" in rest:
        raise StartupError(f"{_PREFIX}: in {said} write a space as %20, and + as %2B")
    if "=" in rest and name != "options" and name not in SECRETS:
        raise StartupError(f"{_PREFIX}: in {said} write = as %3D; & begins a parameter")
    value = _decode(rest)
    if name in _NOT_OURS:
        raise StartupError(f"{_PREFIX} has {name}, which cannot be set: {_NOT_OURS[name]}")
    if name == "prepare_threshold" and value.lower() == "none":
        return name, None
    if name in _NUMBERS or name == "prepare_threshold":
        if not re.fullmatch("[0-9]{1,9}", value):
            raise StartupError(f"{_PREFIX}: {name} must be a number, and not negative")
        return name, int(value)
    if name in _TEXTS or name in SECRETS:
        return name, value
    raise StartupError(f"{_PREFIX} has {said}, which is not known")


def _check_hosts(parameters: Mapping[str, str | int | None]) -> None:
    """Raises StartupError for hosts and ports that are none, or do not match in number."""
    hosts, ports = _listed(parameters, "host"), _listed(parameters, "port")
    of_socket = re.compile(r"[/@][^,]*")
    of_network = re.compile(r"[\w.-]*|[0-9A-Fa-f:.]+(%[\w.-]+)?")
    if not all(
        (of_socket if host[:1] in {"/", "@"} else of_network).fullmatch(host) for host in hosts
    ):
        raise StartupError(f"{_PREFIX} does not parse: a host is neither a name nor an address")
    numbers = re.compile("[0-9]{1,5}")
    if not all(
        port == "" or (numbers.fullmatch(port) and 0 < int(port) <= 65_535) for port in ports
    ):
        raise StartupError(f"{_PREFIX} does not parse: a port is a number from 1 to 65535")
    if len(ports) > 1 and len(ports) != len(hosts or _listed(parameters, "hostaddr")):
        raise StartupError(f"{_PREFIX} does not parse: give one port, or one for each host")


def _show_postgresql(parameters: Mapping[str, str | int | None]) -> str:
    hosts = _listed(parameters, "host") or _listed(parameters, "hostaddr") or [""]
    ports = _listed(parameters, "port") or [""]
    ports = ports if len(ports) == len(hosts) else ports * len(hosts)
    addresses = ",".join(
        (f"[{quote(host, safe=':')}]" if ":" in host else quote(host, safe=""))
        + (f":{port}" if port else "")
        for host, port in zip(hosts, ports, strict=True)
    )
    database = quote(str(parameters.get("dbname") or ""), safe="")
    return f"postgresql://{addresses}/{database}"


def _listed(parameters: Mapping[str, str | int | None], name: str) -> list[str]:
    value = parameters.get(name)
    return str(value).split(",") if value else []


def _decode(encoded: str) -> str:
    """Without percent-encoding. Raises StartupError when it decodes to nothing that can be meant."""
    if re.search("%(?![0-9A-Fa-f]{2})", encoded):
        _refuse("a % is written %25")
    try:
        decoded = unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        _refuse("percent-encoded bytes must be UTF-8")
    if not decoded.isprintable():
        _refuse("it has control characters")
    return decoded


def _refuse(reason: str) -> NoReturn:
    raise StartupError(f"{_PREFIX} does not parse: {reason}") from None


def _name(name: str) -> str:
    """The parameter, unless its name is none: that may be a part of a password."""
    return (
        f"the parameter {name}"
        if re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,40}", name)
        else "a parameter"
    )
