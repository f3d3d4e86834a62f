"""Database URLs, and that nobody is told the passwords in them."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

import atheris

from opservice.domain.errors import StartupError
from opservice.store.urls import SECRETS, parse_database_url
from shapes import database_url, text

_PASSWORD = "swordfish"  # noqa: S105 - it is nobody's


def fuzz_database_urls(data: bytes) -> None:
    """A database URL is read or refused, and what is said of it has nothing of a password."""
    provider = atheris.FuzzedDataProvider(data)
    before, after = text(provider), text(provider)
    if re.search("&(host|hostaddr|port|dbname)=", unquote(before)):
        return  # nobody can know that this is a part of the password
    password = before + _PASSWORD + after
    is_encoded = provider.ConsumeBool()
    if is_encoded:
        password = password.encode(errors="replace").decode()
    url = database_url(provider, quote(password, safe="") if is_encoded else password, [*SECRETS])
    try:
        parsed = parse_database_url(url)
    except StartupError as error:
        told, cause = str(error), error.__cause__ or error.__context__
        assert cause is None or _PASSWORD not in str(cause)
    else:
        told = parsed.shown + repr(parsed) + parsed.database
        assert parse_database_url(parsed.shown).shown == parsed.shown
        assert parsed.holds_secret or parsed.is_sqlite
        if is_encoded and parsed.holds_secret:
            assert any(password in str(value) for value in parsed.parameters.values())
    if not url.startswith("sqlite:"):  # whose file has no password
        assert _PASSWORD not in told
