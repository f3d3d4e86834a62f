"""What is read again: what cannot be used stays as it was, and does not keep the rest from being taken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from opservice.errors import StartupError
from opservice.files import Files, read_again, read_files
from opservice.identity import parse_grant
from opservice.settings import Settings
from support.certificates import Authority, Pair

HASH = "0123456789abcdef" * 4
KEPT = "SIGHUP: what was read before stays in use"


@dataclass(frozen=True)
class Site:
    """Settings that name every kind of file, and what the next of each is."""

    settings: Settings
    authority: Authority

    def write(self, version: int) -> None:
        pair = self.authority.issue(f"of-{version}")
        assert self.settings.tls_cert
        assert self.settings.tls_key
        assert self.settings.tokens
        assert self.settings.policy
        Pair(
            pair.certificate.replace(self.settings.tls_cert),
            pair.key.replace(self.settings.tls_key),
        )
        self.settings.tokens.write_text(f"- {{subject: 'v{version}', sha256: {HASH}}}")
        self.settings.policy.write_text(f"everyone: [viewer:v{version}]")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Settings(
        tls_cert=tmp_path / "server.pem",
        tls_key=tmp_path / "server.key",
        tokens=tmp_path / "tokens.yaml",
        policy=tmp_path / "policy.yaml",
    )
    site = Site(made, Authority(tmp_path))
    site.write(1)
    return site


def versions(files: Files) -> tuple[str, str]:
    """Of the tokens and the policy."""
    (grant,) = files.policy.everyone
    return files.tokens[HASH].subject, grant.subtree.parent


def test_what_the_settings_name_is_read(site: Site) -> None:
    files = read_files(site.settings)

    assert files.credentials is not None
    assert files.tokens[HASH].subject == "v1"
    assert files.policy.grants_of("anybody") == (parse_grant("viewer:v1"),)


def test_without_files_there_is_nothing() -> None:
    assert read_files(Settings()) == Files()


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tokens", "policy"])
def test_at_the_start_one_that_cannot_be_used_is_a_refusal(site: Site, name: str) -> None:
    file: Path = getattr(site.settings, name)
    file.write_text("{")

    with pytest.raises(StartupError, match=file.stem):
        read_files(site.settings)


def test_all_that_changed_is_taken(site: Site) -> None:
    before = read_files(site.settings)
    site.write(2)

    with capture_logs() as logged:
        after = read_again(site.settings, before)

    assert versions(after) == ("v2", "v2")
    assert after.credentials != before.credentials
    assert after == read_files(site.settings)
    assert logged == []


BROKEN = {
    "TLS files": "tls_cert",
    "tokens": "tokens",
    "policy": "policy",
}


@pytest.mark.parametrize("content", [b"{", b"\xff", b"- {expires: 2027-13-01}", None])
@pytest.mark.parametrize(("what", "name"), BROKEN.items(), ids=BROKEN)
def test_what_cannot_be_used_stays_as_it_was_and_the_rest_is_taken(
    site: Site, what: str, name: str, content: bytes | None
) -> None:
    before = read_files(site.settings)
    site.write(2)
    good = read_files(site.settings)
    file: Path = getattr(site.settings, name)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)

    with capture_logs() as logged:
        after = read_again(site.settings, before)

    kept = "credentials" if what == "TLS files" else what
    assert after == replace(good, **{kept: getattr(before, kept)})
    (line,) = logged
    assert (line["event"], line["log_level"], line["of"]) == (KEPT, "error", what)
    assert line["cause"]


def test_what_is_good_again_is_taken(site: Site) -> None:
    files = read_files(site.settings)
    assert site.settings.policy
    site.settings.policy.write_text("{")
    files = read_again(site.settings, files)
    assert versions(files) == ("v1", "v1")

    site.write(3)

    assert versions(read_again(site.settings, files)) == ("v3", "v3")


def test_a_file_that_now_grants_nothing_is_taken(site: Site) -> None:
    files = read_files(site.settings)
    assert site.settings.policy
    assert site.settings.tokens
    site.settings.policy.write_text("{}")
    site.settings.tokens.write_text("[]")

    after = read_again(site.settings, files)

    assert after.policy.everyone == ()
    assert after.tokens == {}


def test_where_no_files_are_it_is_said(tmp_path: Path) -> None:
    with capture_logs() as logged:
        assert read_again(Settings(), Files()) == Files()

    assert [line["event"] for line in logged] == ["SIGHUP: there is nothing to read again"]


def test_where_keys_alone_are_read_again_it_is_not_said() -> None:
    settings = Settings(jwks="keys.json", jwt_issuer="issuer", jwt_audience=("audience",))

    with capture_logs() as logged:
        assert read_again(settings, Files()) == Files()

    assert logged == []
