"""The configuration file: what it may say, and what a refusal names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opservice.common.durations import parse_duration
from opservice.domain.errors import StartupError
from opservice.runtime.settings import SETTINGS
from opservice.runtime.settings.config_file import MAX_BYTES, format_config, read_config
from opservice.runtime.settings.setting import Setting

SECRET = "planted-secret"
WITH_PASSWORD = f'database = "postgresql://u:{SECRET}@h/d"'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "opservice.toml"


def read(file: Path, content: str | bytes, mode: int = 0o600) -> dict[str, Any]:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    file.chmod(mode)
    return read_config(file)


def refusal(file: Path, content: str | bytes, mode: int = 0o600) -> str:
    with pytest.raises(StartupError) as caught:
        read(file, content, mode)
    assert str(file) in caught.value.message
    assert SECRET not in caught.value.message
    return caught.value.message.replace(str(file), "FILE")


def test_values_of_every_kind_are_read(file: Path) -> None:
    content = """
        listen = "0.0.0.0:443"
        demo = true
        workers = 4
        max-payload-bytes = 2048
        drain = "1.5s"
        log-level = "debug"
        tokens = "tokens.yaml"
        descriptor-set = ["a.bin", "b.bin"]
        jwt-audience = ["a", "b"]
    """

    assert read(file, content) == {
        "listen": "0.0.0.0:443",
        "demo": True,
        "workers": 4,
        "max_payload_bytes": 2048,
        "drain": parse_duration("1.5s"),
        "log_level": "debug",
        "tokens": Path("tokens.yaml"),
        "descriptor_set": (Path("a.bin"), Path("b.bin")),
        "jwt_audience": ("a", "b"),
    }


def test_an_empty_file_gives_nothing(file: Path) -> None:
    assert read(file, "# nothing\n") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lisen = 1", "FILE: unknown key 'lisen'; did you mean 'listen'?"),
        ("tls_cert = 'a'", "FILE: unknown key 'tls_cert'; did you mean 'tls-cert'?"),
        ("DRAIN = '1s'", "FILE: unknown key 'DRAIN'; did you mean 'drain'?"),
        ("xyzzy = 1", "FILE: unknown key 'xyzzy'"),
        ("[server]\nlisten = 'h:1'", "FILE: unknown key 'server'; settings stand at the top"),
        (f"'{'k' * 40}{SECRET}' = 1", f"FILE: unknown key '{'k' * 40}'"),
        ("listen = 1", "FILE: listen: expected text in quotes"),
        ("drain = 5", 'FILE: drain: expected a duration in quotes, such as "30s"'),
        ("drain = '5'", "FILE: drain: expected a number and a unit"),
        ("workers = true", "FILE: workers: expected a whole number"),
        ("workers = 1.0", "FILE: workers: expected a whole number"),
        ("workers = '4'", "FILE: workers: expected a whole number"),
        ("demo = 1", "FILE: demo: expected true or false"),
        ("log-level = 'loud'", "FILE: log-level: expected one of debug, info, warning, error"),
        ("jwt-audience = 'a'", "FILE: jwt-audience: expected a list of texts"),
        ("jwt-audience = ['a', 1]", "FILE: jwt-audience: expected a list of texts"),
        ("descriptor-set = [['a']]", "FILE: descriptor-set: expected a list of paths"),
        (f"database = ['{SECRET}']", "FILE: database: expected text in quotes"),
        (r'tokens = "a\u0000b"', "FILE: tokens: a NUL character is not allowed"),
        ("workers = 0", "FILE: workers: is 0, but must be at least 1"),
        ("workers = 257", "FILE: workers: is 257, but must be at most 256"),
        ("drain = '4000000d'", "FILE: drain: is 4000000d, but must be at most 10000d"),
        (f"drain = '{'9' * 400}d'", "FILE: drain: the number is too large"),
        (f"database = 'mysql://u:{SECRET}@h/d'", "FILE: database: the database URL"),
        ("listen", "the configuration FILE is not TOML: "),
        (f"tokens = '{SECRET}", "the configuration FILE is not TOML: "),
        ("drain = '1s'\ndrain = '2s'", "the configuration FILE is not TOML: "),
        (b"listen = '\xff'", "the configuration FILE is not TOML: it is not UTF-8"),
        ("a = " + "[" * 5_000, "the configuration FILE is not TOML: "),
        ("workers = " + "9" * 5_000, "the configuration FILE is not TOML: "),
        ("#" * (MAX_BYTES + 1), f"the configuration FILE is longer than {MAX_BYTES} bytes"),
    ],
    ids=lambda text: text[:30] if isinstance(text, str) else "not UTF-8",
)
def test_what_it_may_not_say_is_named(file: Path, content: str | bytes, message: str) -> None:
    assert refusal(file, content).startswith(message)


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(
        StartupError, match=r"cannot read the configuration .+opservice\.toml: No such"
    ):
        read_config(file)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o400])
def test_a_password_may_stand_in_a_private_file(file: Path, mode: int) -> None:
    assert SECRET in read(file, WITH_PASSWORD, mode)["database"]


@pytest.mark.parametrize("mode", [0o644, 0o604])
def test_a_password_that_everybody_may_read_is_refused(file: Path, mode: int) -> None:
    assert "run 'chmod o-r FILE'" in refusal(file, WITH_PASSWORD, mode)


def test_a_file_without_a_password_may_be_read_by_everybody(file: Path) -> None:
    assert read(file, 'database = "postgresql://u@h/d"', 0o644)


def test_a_file_that_everybody_may_write_is_refused(file: Path) -> None:
    assert "run 'chmod o-w FILE'" in refusal(file, "workers = 1", 0o602)


def test_a_pipe_may_be_read() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as sink:
        sink.write(b"workers = 3")
    try:
        assert read_config(Path(f"/dev/fd/{reading}")) == {"workers": 3}
    finally:
        os.close(reading)


def printed(values: dict[str, Any], origin: str = "a test") -> str:
    defaults = {name: each.default for name, each in SETTINGS.items()}
    return format_config(defaults | values, dict.fromkeys(SETTINGS, origin))


def test_what_is_printed_is_read_as_it_was(file: Path) -> None:
    values = read(file, printed({"tokens": Path("t.yaml"), "jwt_audience": ("a", "b")}))

    unset = {name for name, each in SETTINGS.items() if each.default is None} - {"tokens"}
    assert values == {
        name: each.default for name, each in SETTINGS.items() if name not in unset
    } | {
        "tokens": Path("t.yaml"),
        "jwt_audience": ("a", "b"),
    }


def test_a_database_url_with_a_password_is_left_out(file: Path) -> None:
    text = printed({"database": f"postgresql://u:{SECRET}@h/d"})

    assert SECRET not in text
    assert "# database is left out, as it has a password: postgresql://h/d (a test)" in text
    assert "database" not in read(file, text)


def test_an_origin_cannot_end_its_comment(file: Path) -> None:
    assert "demo" in read(file, printed({}, "from a\ndemo = true"))


TEXT = SETTINGS["advertise"]
LIST = SETTINGS["endpoint"]


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_is_written_as_it_is_read(tmp_path_factory: Any, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"

    def round_trip(setting: Setting, value: Any) -> Any:
        return read(file, f"{setting.key} = {setting.to_toml(value)}")[setting.name]

    assert round_trip(TEXT, text) == text
    assert round_trip(LIST, (text, "b")) == (text, "b")
