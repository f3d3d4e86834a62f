"""Settings: what they may be."""

from pathlib import Path
from typing import Any

import pytest

from opservice.common.addresses import socket_path
from opservice.common.durations import parse_duration
from opservice.domain.errors import StartupError
from opservice.runtime.settings import GROUPS, SETTINGS, Settings
from opservice.runtime.settings.setting import Setting, settings_of

BOUNDED = [each for each in SETTINGS.values() if each.least is not None]


def test_the_defaults_are_valid() -> None:
    assert Settings() == Settings.of(**{name: each.default for name, each in SETTINGS.items()})


def test_no_two_groups_have_a_setting_of_the_same_name() -> None:
    assert len(SETTINGS) == sum(len(settings_of(group)) for group in GROUPS.values())


def test_every_group_is_titled_and_explained() -> None:
    assert all(group.TITLE and group.__doc__.endswith(".") for group in GROUPS.values())


def test_a_setting_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(TypeError, match="no such settings: dran, lisen"):
        Settings.of(lisen="127.0.0.1:0", drain=0, dran=0)


def test_settings_go_to_their_groups() -> None:
    settings = Settings.of(workers=2, log_level="debug")

    assert (settings.processes.workers, settings.logging.log_level) == (2, "debug")


def test_the_database_url_which_may_have_a_password_is_not_in_the_repr() -> None:
    assert "planted" not in repr(Settings.of(database="postgresql://u:planted@h/d"))


def test_the_defaults_that_the_documentation_promises() -> None:
    settings = Settings()

    assert settings.listening.listen == "127.0.0.1:50051"
    assert settings.storage.database == "sqlite:///opservice.db"
    assert settings.operations.retention == parse_duration("30d")
    assert settings.operations.max_lease == parse_duration("24h")
    assert settings.operations.max_payload_bytes == 1 << 20


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_says_what_it_means_and_when_to_change_it(setting: Setting) -> None:
    assert setting.meaning[0].isupper()
    assert setting.meaning.endswith(".")
    assert setting.change_when.endswith(".")
    assert not setting.change_when.startswith(("when", "you want"))


def test_nine_settings_are_those_that_everybody_needs() -> None:
    assert sum(each.essential for each in SETTINGS.values()) == 9


@pytest.mark.parametrize("setting", BOUNDED, ids=lambda setting: setting.name)
def test_a_setting_below_its_bound_is_named(setting: Setting) -> None:
    assert setting.least is not None
    with pytest.raises(StartupError, match=f"^{setting.flag} is .+, but must be at least .+"):
        Settings.of(**{setting.name: setting.least - 1})


@pytest.mark.parametrize("name", ["drain", "keepalive", "cancel_grace", "max_lease"])
def test_a_duration_of_a_century_is_named(name: str) -> None:
    century: dict[str, Any] = {name: parse_duration("36500d")}

    with pytest.raises(StartupError, match=f"^--{name.replace('_', '-')} is .+ be at most "):
        Settings.of(**century)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"tls_cert": Path("c")}, "--tls-cert and --tls-key belong together"),
        ({"tls_key": Path("k")}, "--tls-cert and --tls-key belong together"),
        ({"tls_client_ca": Path("a")}, "--tls-client-ca needs --tls-cert and --tls-key"),
        ({"retention": parse_duration("366d")}, "--retention is longer than --max-retention"),
        ({"max_message_bytes": 1 << 20}, "--max-message-bytes must hold two payloads"),
        ({"watch_repeat": parse_duration("99ms")}, "--watch-repeat must be at least 100ms, or 0s"),
        ({"listen": "localhost"}, "--listen localhost: expected HOST:PORT"),
        ({"listen": "localhost", "advertise": "h:1"}, "--listen localhost: expected HOST:PORT"),
        ({"listen": "unix:a b"}, "--listen unix:a b: expected unix:PATH, of letters"),
        ({"http_listen": "localhost"}, "--http-listen localhost: expected HOST:PORT"),
        ({"metrics_listen": "h:99999"}, "--metrics-listen h:99999: expected HOST:PORT"),
        (
            {"http_listen": "127.0.0.1:50051"},
            "--listen 127.0.0.1:50051 and --http-listen 127.0.0.1:50051 are one port",
        ),
        (
            {"metrics_listen": "localhost:50080"},
            "--http-listen 127.0.0.1:50080 and --metrics-listen localhost:50080 are one port",
        ),
        ({"advertise": "host:port"}, "--advertise host:port: expected HOST:PORT"),
        ({"endpoint": ("compute",)}, "--endpoint compute: expected ID=HOST:PORT"),
        ({"endpoint": ("=h:1",)}, "--endpoint =h:1: expected ID=HOST:PORT"),
        ({"endpoint": ("compute=h",)}, "--endpoint h: expected HOST:PORT"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(StartupError) as caught:
        Settings.of(**settings)

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
        (POLICY, "--policy says what callers may do, but no setting says how they authenticate"),
        (
            {**POLICY, "tls_cert": Path("c"), "tls_key": Path("k")},
            "no setting says how they authenticate",
        ),
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
        Settings.of(**settings)

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
    assert Settings.of(**{**WITH_JWT, "jwks": jwks}).security.authenticates


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
    assert Settings.of(**settings).security.authenticates


@pytest.mark.parametrize("settings", NOT_ASKING.values(), ids=NOT_ASKING)
def test_callers_are_not_asked_who_they_are(settings: dict[str, Any]) -> None:
    """A certificate alone says that its holder may connect, and not what they may do."""
    assert not Settings.of(**settings).security.authenticates


@pytest.mark.parametrize("settings", NOT_ASKING.values(), ids=NOT_ASKING)
@pytest.mark.parametrize("listen", OPEN)
def test_who_asks_nobody_listens_to_this_machine_alone(
    listen: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(StartupError) as caught:
        Settings.of(listen=listen, **settings)

    assert caught.value.message.startswith(f"--listen {listen} can be reached from other machines")
    assert "--allow-anonymous to let everybody who can connect" in caught.value.message


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:1", "127.0.0.2:1", "127.255.255.254:1", "[::1]:1", "localhost:1"]
)
def test_this_machine_alone_needs_not_be_asked(listen: str) -> None:
    assert not Settings.of(listen=listen).security.authenticates


@pytest.mark.parametrize("listen", OPEN)
def test_whoever_asks_may_listen_to_other_machines(listen: str) -> None:
    for settings in ASKING.values():
        assert Settings.of(listen=listen, **settings).security.authenticates


@pytest.mark.parametrize("listen", [*OPEN, "127.0.0.1:1"])
def test_other_machines_need_not_be_asked_when_that_is_said(listen: str) -> None:
    assert not Settings.of(listen=listen, allow_anonymous=True).security.authenticates


def test_endpoints_are_told_apart_by_their_ids() -> None:
    settings = Settings.of(endpoint=("compute=c.example:443", "iam=[::1]:443"))

    assert settings.discovery.endpoints() == {"compute": "c.example:443", "iam": "[::1]:443"}


def test_the_names_of_a_setting() -> None:
    setting = SETTINGS["max_payload_bytes"]

    assert setting.flag == "--max-payload-bytes"
    assert setting.variable == "OPSERVICE_MAX_PAYLOAD_BYTES"
    assert setting.key == "max-payload-bytes"
    assert setting.format(1024) == "1024"


def test_a_unix_socket_is_local_and_needs_no_authentication() -> None:
    settings = Settings.of(listen="unix:/run/opservice/a.sock", unix_socket_mode="660")

    assert settings.listening.is_local
    assert socket_path(settings.listening.listen) == Path("/run/opservice/a.sock")


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
        Settings.of(**settings)
