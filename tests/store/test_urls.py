"""What a database URL may say, and that no password comes out of it."""

from __future__ import annotations

import traceback
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from opservice.domain.errors import StartupError
from opservice.store.engine import open_database
from opservice.store.urls import parse_database_url

SECRET = "swordfish"

UNDERSTOOD: dict[str, tuple[str, dict[str, Any]]] = {
    "postgresql:///": ("postgresql:///", {}),
    "postgres://h/d": ("postgresql://h/d", {"host": "h", "dbname": "d"}),
    "POSTGRESQL://h/d": ("postgresql://h/d", {"host": "h", "dbname": "d"}),
    "postgresql+psycopg://u@h:1/d": (
        "postgresql://h:1/d",
        {"user": "u", "host": "h", "port": "1", "dbname": "d"},
    ),
    f"postgresql://u:{SECRET}@h/d": (
        "postgresql://h/d",
        {"user": "u", "password": SECRET, "host": "h", "dbname": "d"},
    ),
    "postgresql://a%40b:p%2F%3F%23%40%25%3A+:@h/d%2Fe": (
        "postgresql://h/d%2Fe",
        {"user": "a@b", "password": "p/?#@%:+:", "host": "h", "dbname": "d/e"},
    ),
    "postgresql://[::1]:5433,b,[fe80::1%25eth0]:7/d": (
        "postgresql://[::1]:5433,b,[fe80::1%25eth0]:7/d",
        {"host": "::1,b,fe80::1%eth0", "port": "5433,,7", "dbname": "d"},
    ),
    "postgresql:///d?host=a,b&port=1,2": (
        "postgresql://a:1,b:2/d",
        {"host": "a,b", "port": "1,2", "dbname": "d"},
    ),
    "postgresql://a,b/d?port=1": (
        "postgresql://a:1,b:1/d",
        {"host": "a,b", "port": "1", "dbname": "d"},
    ),
    "postgresql://:5432/d": ("postgresql://:5432/d", {"port": "5432", "dbname": "d"}),
    "postgresql:///d?host=,": ("postgresql://,/d", {"host": ",", "dbname": "d"}),
    "postgresql://,/d": ("postgresql://,/d", {"host": ",", "dbname": "d"}),
    "postgresql://%2Fvar%2Frun/d": (
        "postgresql://%2Fvar%2Frun/d",
        {"host": "/var/run", "dbname": "d"},
    ),
    "postgresql:///d?host=/var/run": (
        "postgresql://%2Fvar%2Frun/d",
        {"host": "/var/run", "dbname": "d"},
    ),
    "postgresql:///d?hostaddr=127.0.0.1": (
        "postgresql://127.0.0.1/d",
        {"hostaddr": "127.0.0.1", "dbname": "d"},
    ),
    "postgresql://?dbname=d&user=u": ("postgresql:///d", {"dbname": "d", "user": "u"}),
    "postgresql://h/d?options=-c%20lock_timeout=1s&sslmode=require&passfile=/f&connect_timeout=3": (
        "postgresql://h/d",
        {
            "host": "h",
            "dbname": "d",
            "options": "-c lock_timeout=1s",
            "sslmode": "require",
            "passfile": "/f",
            "connect_timeout": 3,
        },
    ),
    "postgresql://h/d?options=": ("postgresql://h/d", {"host": "h", "dbname": "d", "options": ""}),
    "postgresql:///?prepare_threshold=0": ("postgresql:///", {"prepare_threshold": 0}),
    "postgresql:///?prepare_threshold=none": ("postgresql:///", {"prepare_threshold": None}),
}


@pytest.mark.parametrize("url", UNDERSTOOD)
def test_a_url_of_postgresql_is_understood(url: str) -> None:
    shown, parameters = UNDERSTOOD[url]

    parsed = parse_database_url(url)

    assert parsed.parameters == parameters
    assert parsed.shown == shown
    assert not parsed.is_sqlite


@pytest.mark.parametrize(
    ("url", "file", "shown"),
    [
        ("sqlite:///a.db", "a.db", "sqlite:///a.db"),
        ("sqlite:////var/lib/a.db", "/var/lib/a.db", "sqlite:////var/lib/a.db"),
        ("sqlite+pysqlite:///a b@c:d#e.db", "a b@c:d#e.db", "sqlite:///a b@c:d#e.db"),
        ("sqlite:///q%3Fx/%23/100%25.db", "q?x/#/100%.db", "sqlite:///q%3Fx/#/100%25.db"),
        ("sqlite:///%D0%B0.db", "а.db", "sqlite:///а.db"),  # noqa: RUF001 - Cyrillic is meant
    ],
)
def test_a_url_of_sqlite_names_a_file(url: str, file: str, shown: str) -> None:
    parsed = parse_database_url(url)

    assert (parsed.file, parsed.shown) == (file, shown)
    assert parse_database_url(shown).file == file


REFUSED = [
    ("", "does not parse"),
    ("operations.db", "does not parse"),
    (f"user:{SECRET}@host/database", "does not parse"),
    (f"postgresql:user:{SECRET}@host/database", "does not parse"),
    (f"postgresql://user:{SECRET}@host/database\n", "does not parse"),
    (f"postgresql://user:{SECRET}@host:port/database", "does not parse"),
    (f"postgresql://user:{SECRET}@[]:1/database", "does not parse"),
    (f"postgresql://user:{SECRET}@host:65536/database", "a number from 1 to 65535"),
    (f"postgresql://user:1@{SECRET}:{SECRET}@host/database", "does not parse"),
    (f"postgresql://user:1/{SECRET}@host/database", "written %2F"),
    (f"postgresql://password=@{SECRET}", "written %2F"),
    (f"postgresql://password={SECRET}/database", "written %2F"),
    (f"postgresql://host/database&password={SECRET}", "written %2F"),
    (f"postgresql://host/database password={SECRET}", "written %2F"),
    (f"postgresql://host/?dbname=database?password={SECRET}", "write = as %3D"),
    (f"postgresql://host/database?user=user;password={SECRET}", "write = as %3D"),
    (f"postgresql://host/database?user=user;password=a&{SECRET}", "write = as %3D"),
    (f"postgresql://user:1?{SECRET}@host/database", "written %2F"),
    (f"postgresql://user:1#{SECRET}@host/database", "written %2F"),
    (f"postgresql://user:1?host={SECRET}@host/database", "written %2F"),
    (f"postgresql://user:1?{SECRET}=@host/database", "written %2F"),
    (f"postgresql://us/er:{SECRET}@host/database", "written %2F"),
    (f"postgresql://host/user:{SECRET}", "written %2F"),
    (f"postgresql://host/{SECRET}#x", "written %2F"),
    (f"postgresql://user:{SECRET}%@host/database", "a % is written %25"),
    (f"postgresql://user:{SECRET}%ff@host/database", "must be UTF-8"),
    (f"postgresql://user:{SECRET}%00@host/database", "control characters"),
    (f"postgresql://user:{SECRET}\udcff@host/database", "does not parse"),
    (f"postgresql://user:{SECRET}/database", "does not parse"),
    (f"postgresql://host/name?password=a&{SECRET}", "written %26"),
    (f"postgresql://host/name?password=a&{SECRET}=b", "written %26"),
    (f"postgresql://host/name?sslpassword=a&{SECRET}=b+c", "written %26"),
    (f"postgresql://[{SECRET}/database", "does not parse"),
    (f"postgresql://h%20{SECRET}/database", "neither a name nor an address"),
    ("postgresql://a,b/d?port=1,2,3", "one port, or one for each host"),
    (f"postgresql://h/d?{SECRET}%21=1", "has a parameter, which is not known"),
    (f"postgresql://h/d?%21{SECRET}", "expected a parameter as NAME=VALUE"),
    ("postgresql://h/d?sslmode", "expected the parameter sslmode as NAME=VALUE"),
    ("postgresql://h/d?pool_size=7", "has the parameter pool_size, which is not known"),
    ("postgresql://h/d?SSLMODE=require", "has the parameter SSLMODE, which is not known"),
    ("postgresql://h/d?host=a", "gives host twice"),
    (f"postgresql://:x@h/d?password={SECRET}", "gives password twice"),
    ("postgresql://h/d?sslmode=require&sslmode=disable", "gives sslmode twice"),
    ("postgresql://h/d?connect_timeout=soon", "connect_timeout must be a number"),
    ("postgresql://h/d?keepalives_idle=-1", "keepalives_idle must be a number"),
    ("postgresql://h/d?prepare_threshold=", "prepare_threshold must be a number"),
    (
        "postgresql://h/d?options=-c+lock_timeout=1s",
        "in the parameter options write a space as %20",
    ),
    ("postgresql://h/d?target_session_attrs=standby", "target_session_attrs must be read-write"),
    *(
        (f"postgresql://h/d?{name}=1", f"has {name}, which cannot be set")
        for name in (
            "autocommit",
            "client_encoding",
            "context",
            "cursor_factory",
            "replication",
            "row_factory",
            "sslkeylogfile",
        )
    ),
    (f"mysql://user:{SECRET}@host/database", "begins with mysql://; supported are sqlite://"),
    (f"postgresql+asyncpg://user:{SECRET}@host/d", "begins with postgresql+asyncpg://"),
    ("sqlite+aiosqlite:///operations.db", "begins with sqlite+aiosqlite://"),
    ("sqlite://", "names no file"),
    ("sqlite:///", "names no file"),
    ("sqlite:///:memory:", "names no file"),
    ("sqlite:///file:/operations.db", "has a file: URI"),
    (f"sqlite://user:{SECRET}@host/operations.db", "names a host"),
    ("sqlite:///100%.db", "a % is written %25"),
    ("sqlite:///a%0A.db", "control characters"),
    ("sqlite:///q?x/z.db", "takes no parameters; in a file's name ? is written %3F"),
    ("sqlite:///q?", "takes no parameters"),
    *(
        (
            f"sqlite:///f.db?{name}=1",
            f"has the parameter {name}, but sqlite:/// takes no parameters",
        )
        for name in (
            "mode",
            "cache",
            "immutable",
            "nolock",
            "vfs",
            "psow",
            "uri",
            "timeout",
            "isolation_level",
            "check_same_thread",
            "cached_statements",
            "detect_types",
        )
    ),
]


@pytest.mark.parametrize(("url", "said"), REFUSED)
def test_what_is_not_understood_is_refused_without_a_secret(url: str, said: str) -> None:
    with pytest.raises(StartupError) as refused:
        parse_database_url(url)
    assert said in str(refused.value)
    assert SECRET not in "".join(traceback.format_exception(refused.value))


SECRETS = {
    "with a user": f"postgresql://user:{SECRET}@host/name",
    "alone": f"postgresql://:{SECRET}@host/name",
    "with other characters": f"postgresql://user:%2F%3F%23{SECRET}@host/name",
    "with several hosts": f"postgresql://user:{SECRET}@host:1,other:2/name",
    "as a parameter": f"postgresql://host/name?user=u&password={SECRET}",
    "with its name encoded": f"postgresql://host/name?p%61ssword={SECRET}",
    "of a key": f"postgresql://host/name?sslpassword={SECRET}",
    "of OAuth": f"postgresql://host/name?oauth_client_secret={SECRET}",
    "of SCRAM": f"postgresql://host/name?scram_client_key={SECRET}",
}


@pytest.mark.parametrize("url", SECRETS.values(), ids=SECRETS)
def test_a_secret_is_known_as_one_and_not_shown(url: str) -> None:
    parsed = parse_database_url(url)

    assert parsed.holds_secret
    assert SECRET not in parsed.shown + repr(parsed)


@pytest.mark.parametrize(
    "url",
    ["sqlite:///a:b@c.db", "postgresql://u@h/d?passfile=/secrets/passwords", "postgresql:///"],
)
def test_a_url_without_a_secret_has_none(url: str) -> None:
    assert not parse_database_url(url).holds_secret


MARK = "\N{SNOWMAN}secret"


@given(
    before=st.text("ab:@/?#%=&+,[]", max_size=6),
    after=st.text("ab:@/?#%=&+,[]", max_size=6),
    form=st.sampled_from(
        [
            "postgresql://user:{}@host/name",
            "postgresql://:{}@host:1,other/name?sslmode=require",
            "postgresql://host/name?password={}",
            "postgresql://host/name?p%61ssword={}&sslmode=disable",
            "postgresql:user:{}@host",
        ]
    ),
)
def test_a_password_is_never_told_however_it_is_written(before: str, after: str, form: str) -> None:
    password = f"{before}{MARK}{after}"
    assert (
        parse_database_url(f"postgresql://u:{quote(password, safe='')}@h/d").parameters["password"]
        == password
    )
    try:
        parsed = parse_database_url(form.format(password))
    except StartupError as error:
        told = str(error)
    else:
        told = parsed.shown + repr(parsed)
    assert MARK not in told
    assert quote(MARK) not in told


@given(st.text(), st.sampled_from(["", "sqlite:///", "postgresql://", "postgresql://h/d?"]))
def test_any_text_is_understood_or_refused(text_: str, scheme: str) -> None:
    try:
        parsed = parse_database_url(scheme + text_)
    except StartupError:
        return
    again = parse_database_url(parsed.shown)
    assert again.shown == parsed.shown
    assert again.database == parsed.database


@pytest.mark.parametrize("name", ["what?.db", "a#b.db", "100%.db", "a@b:c.db", "two words.db"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    url = f"sqlite:///{tmp_path}/{name.replace('%', '%25').replace('?', '%3F')}"
    with closing(open_database(url)) as database:
        database.write(lambda connection: connection.execute(text("CREATE TABLE t (i)")))

    assert (tmp_path / name).exists()
    assert all(file.name.startswith(name) for file in tmp_path.iterdir())
