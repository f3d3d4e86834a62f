"""Settings: what they may be, and how durations and addresses are written."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opservice.common.addresses import is_loopback, socket_path, split_address
from opservice.common.durations import format_duration, parse_duration
from opservice.domain.errors import StartupError
from opservice.runtime.settings import (
    Settings,
    default_of,
    environment_variable,
    flag,
    format_value,
)

NAMES = [setting.name for setting in fields(Settings)]
BOUNDED = [setting for setting in fields(Settings) if "least" in setting.metadata]


def test_the_defaults_are_valid() -> None:
    assert Settings() == Settings(**{each.name: default_of(each) for each in fields(Settings)})


def test_the_defaults_that_the_documentation_promises() -> None:
    settings = Settings()

    assert settings.listen == "127.0.0.1:50051"
    assert settings.database == "sqlite:///opservice.db"
    assert settings.retention == parse_duration("30d")
    assert settings.max_lease == parse_duration("24h")
    assert settings.max_payload_bytes == 1 << 20


@pytest.mark.parametrize("setting", fields(Settings), ids=NAMES)
def test_every_setting_has_a_meaning_in_sentences(setting: Any) -> None:
    assert setting.metadata["meaning"].endswith(".")


@pytest.mark.parametrize("setting", BOUNDED, ids=lambda setting: setting.name)
def test_a_setting_below_its_bound_is_named(setting: Any) -> None:
    with pytest.raises(StartupError, match=f"^{flag(setting)} is .+, but must be at least .+"):
        Settings(**{setting.name: setting.metadata["least"] - 1})


@pytest.mark.parametrize("name", ["drain", "keepalive", "cancel_grace", "max_lease"])
def test_a_duration_of_a_century_is_named(name: str) -> None:
    century: dict[str, Any] = {name: parse_duration("36500d")}

    with pytest.raises(StartupError, match=f"^--{name.replace('_', '-')} is .+ be at most "):
        Settings(**century)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"tls_cert": Path("c")}, "--tls-cert and --tls-key belong together"),
        ({"tls_key": Path("k")}, "--tls-cert and --tls-key belong together"),
        ({"tls_client_ca": Path("a")}, "--tls-client-ca needs --tls-cert and --tls-key"),
        ({"retention": parse_duration("366d")}, "--retention is longer than --max-retention"),
        ({"max_message_bytes": 1 << 20}, "--max-message-bytes must hold two payloads"),
        ({"watch_repeat": parse_duration("99ms")}, "--watch-repeat must be at least 100ms, or 0s"),
        ({"listen": "localhost"}, "'localhost' is no address: expected HOST:PORT"),
        ({"listen": "localhost", "advertise": "h:1"}, "'localhost' is no address"),
        ({"advertise": "host:port"}, "'host:port' is no address"),
        ({"endpoint": ("compute",)}, "--endpoint compute: expected ID=HOST:PORT"),
        ({"endpoint": ("=h:1",)}, "--endpoint =h:1: expected ID=HOST:PORT"),
        ({"endpoint": ("compute=h",)}, "'h' is no address"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(StartupError) as caught:
        Settings(**settings)

    assert complaint in caught.value.message


JWT: dict[str, Any] = {"jwt_issuer": "https://issuer.example", "jwt_audience": ("opservice",)}
WITH_JWT: dict[str, Any] = {"jwks": "keys.json", **JWT}
TLS: dict[str, Any] = {"tls_cert": Path("c"), "tls_key": Path("k"), "tls_client_ca": Path("a")}
POLICY: dict[str, Any] = {"policy": Path("p")}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"jwks": "keys.json"}, "--jwks needs --jwt-issuer and --jwt-audience"),
        ({**WITH_JWT, "jwt_issuer": ""}, "--jwks needs --jwt-issuer and --jwt-audience"),
        ({**WITH_JWT, "jwt_audience": ()}, "--jwks needs --jwt-issuer and --jwt-audience"),
        ({"jwt_issuer": "i"}, "--jwt-issuer and --jwt-audience need --jwks"),
        ({"jwt_audience": ("a",)}, "--jwt-issuer and --jwt-audience need --jwks"),
        ({"jwt_algorithm": ("RS256", "none")}, "--jwt-algorithm none: expected one of ES256, "),
        ({"jwt_algorithm": ("HS512", "HS256")}, "--jwt-algorithm HS256 HS512: expected one of"),
        ({"jwt_algorithm": ("rs256",)}, "--jwt-algorithm rs256: expected one of"),
        ({"jwt_algorithm": ()}, "--jwt-algorithm : expected one of"),
        ({**WITH_JWT, "jwks": "http://k.example/"}, "--jwks http://k.example/: expected https"),
        ({**WITH_JWT, "jwks": "http://127.0.0.1.example/"}, "expected https, except on loopback"),
        ({**WITH_JWT, "jwks": "ftp://k.example/"}, "--jwks ftp://k.example/: expected https"),
        ({**WITH_JWT, "jwks": "https://[::1/"}, "--jwks: the URL does not parse"),
        ({**WITH_JWT, "jwks": "https://u:secret@k.example/"}, "a URL with a password in it"),
        ({**WITH_JWT, "jwks": "https://secret@k.example/"}, "a URL with a password in it"),
        (POLICY, "--policy says what callers may do, but nothing says who they are"),
        ({**POLICY, "tls_cert": Path("c"), "tls_key": Path("k")}, "nothing says who they are"),
        ({"allow_anonymous": True, "tokens": Path("t")}, "--allow-anonymous contradicts --tokens"),
        ({"allow_anonymous": True, **WITH_JWT}, "--allow-anonymous contradicts"),
        ({"allow_anonymous": True, **TLS, **POLICY}, "--allow-anonymous contradicts"),
    ],
    ids=str,
)
def test_settings_that_leave_unclear_who_may_do_what_are_refused(
    settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(StartupError) as caught:
        Settings(**settings)

    assert complaint in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "jwks",
    [
        "https://keys.example/jwks.json",
        "http://127.0.0.1:8080/jwks.json",
        "http://[::1]/jwks.json",
        "http://localhost/jwks.json",
        "/etc/opservice/jwks.json",
        "https-keys.json",
    ],
)
def test_keys_come_from_a_file_or_by_https_or_from_this_machine(jwks: str) -> None:
    assert Settings(**{**WITH_JWT, "jwks": jwks}).authenticates


ASKING: dict[str, dict[str, Any]] = {
    "tokens": {"tokens": Path("t")},
    "JWTs": WITH_JWT,
    "client certificates": {**TLS, **POLICY},
}
NOT_ASKING: dict[str, dict[str, Any]] = {
    "nothing": {},
    "client certificates without a policy": TLS,
}
OPEN = ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "host.example:1", "localhost.example:1", "127.1:1"]
"""Of what is not clearly this machine alone."""


@pytest.mark.parametrize("settings", ASKING.values(), ids=ASKING)
def test_callers_are_asked_who_they_are(settings: dict[str, Any]) -> None:
    assert Settings(**settings).authenticates


@pytest.mark.parametrize("settings", NOT_ASKING.values(), ids=NOT_ASKING)
def test_callers_are_not_asked_who_they_are(settings: dict[str, Any]) -> None:
    """A certificate alone says that its holder may connect, and not what they may do."""
    assert not Settings(**settings).authenticates


@pytest.mark.parametrize("settings", NOT_ASKING.values(), ids=NOT_ASKING)
@pytest.mark.parametrize("listen", OPEN)
def test_who_asks_nobody_listens_to_this_machine_alone(
    listen: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(StartupError) as caught:
        Settings(listen=listen, **settings)

    assert caught.value.message.startswith(f"--listen {listen} is open to other machines")
    assert "--allow-anonymous to let everybody who can connect" in caught.value.message


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:1", "127.0.0.2:1", "127.255.255.254:1", "[::1]:1", "localhost:1"]
)
def test_this_machine_alone_needs_not_be_asked(listen: str) -> None:
    assert not Settings(listen=listen).authenticates


@pytest.mark.parametrize("listen", OPEN)
def test_whoever_asks_may_listen_to_other_machines(listen: str) -> None:
    for settings in ASKING.values():
        assert Settings(listen=listen, **settings).authenticates


@pytest.mark.parametrize("listen", [*OPEN, "127.0.0.1:1"])
def test_other_machines_need_not_be_asked_when_that_is_said(listen: str) -> None:
    assert not Settings(listen=listen, allow_anonymous=True).authenticates


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("[::1]", True),
        ("::1", True),
        ("localhost", True),
        ("", False),
        ("0.0.0.0", False),
        ("[::]", False),
        ("128.0.0.1", False),
        ("localhost.example", False),
        ("my-localhost", False),
        ("127.0.0.1.example", False),
        ("2130706433", False),
    ],
)
def test_loopback_is_what_is_clearly_so(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_endpoints_are_told_apart_by_their_ids() -> None:
    settings = Settings(endpoint=("compute=c.example:443", "iam=[::1]:443"))

    assert settings.endpoints() == {"compute": "c.example:443", "iam": "[::1]:443"}


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("500us", 500),
        ("1ms", 1_000),
        ("1.5s", 1_500_000),
        ("2m", 120_000_000),
        ("24h", 86_400_000_000),
        ("30d", 2_592_000_000_000),
        (" 0s ", 0),
    ],
)
def test_a_duration_is_read(text: str, microseconds: int) -> None:
    assert parse_duration(text) == microseconds


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-1s", "1 s", "1e3s", "1w", "1s1s", "1.s", "\u0661s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number and a unit"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=10**15))
def test_a_duration_is_written_as_it_is_read(microseconds: int) -> None:
    assert parse_duration(format_duration(microseconds)) == microseconds


def test_a_duration_is_written_in_its_largest_unit() -> None:
    assert [format_duration(parse_duration(text)) for text in ("24h", "90s", "1000ms")] == [
        "1d",
        "90s",
        "1s",
    ]


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("localhost:65535", "localhost", 65535),
        ("[::1]:443", "[::1]", 443),
        ("[fe80::1%eth0]:443", "[fe80::1%eth0]", 443),
    ],
)
def test_an_address_is_split(address: str, host: str, port: int) -> None:
    assert split_address(address) == (host, port)


@pytest.mark.parametrize(
    "address", ["", "host", ":443", "host:", "host:65536", "::1:443", "h:1:2", "a b:1", "h:\u0661"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(StartupError, match="expected HOST:PORT"):
        split_address(address)


def test_names_on_the_command_line_and_in_the_environment() -> None:
    setting = next(each for each in fields(Settings) if each.name == "max_payload_bytes")

    assert flag(setting) == "--max-payload-bytes"
    assert environment_variable(setting) == "OPSERVICE_MAX_PAYLOAD_BYTES"
    assert format_value(setting, 1024) == "1024"


def test_a_unix_socket_is_local_and_needs_no_authentication() -> None:
    settings = Settings(listen="unix:/run/opservice/a.sock", unix_socket_mode="660")

    assert settings.is_local
    assert socket_path(settings.listen) == Path("/run/opservice/a.sock")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"listen": "unix:"}, "expected unix:PATH"),
        ({"listen": "unix://host/a.sock"}, "expected unix:PATH"),
        ({"listen": "unix:a%20b"}, "expected unix:PATH"),
        ({"listen": "unix:a\n"}, "expected unix:PATH"),
        ({"listen": "unix:/" + "a" * 107}, "more than 107"),
        ({"listen": "unix:/a.sock", "workers": 2}, "--workers"),
        ({"unix_socket_mode": "rw"}, "--unix-socket-mode"),
        ({"unix_socket_mode": "0999"}, "--unix-socket-mode"),
        ({"unix_socket_mode": "4600"}, "--unix-socket-mode"),
    ],
)
def test_a_unix_socket_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        Settings(**settings)
