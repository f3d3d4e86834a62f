"""What is read again: what cannot be used stays as it was, and does not keep the rest from being taken."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Semaphore, Thread
from typing import TextIO

import pytest

from opservice.auth.policy import Policy
from opservice.domain.errors import StartupError
from opservice.domain.identity import parse_grant
from opservice.runtime import reload as reload_module
from opservice.runtime.reload import Reload, ReloadableFiles, Reloader, read_files, reload_files
from opservice.runtime.settings.security import SecuritySettings
from support.certificates import Authority, Pair
from support.logs import capture_logs
from support.server import PATIENCE, eventually

HASH = "0123456789abcdef" * 4
KEPT = "SIGHUP: the previous content stays in use"


@dataclass(frozen=True)
class Site:
    """Settings that name every kind of file, and what the next of each is."""

    settings: SecuritySettings
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
    made = SecuritySettings(
        tls_cert=tmp_path / "server.pem",
        tls_key=tmp_path / "server.key",
        tokens=tmp_path / "tokens.yaml",
        policy=tmp_path / "policy.yaml",
    )
    site = Site(made, Authority(tmp_path))
    site.write(1)
    return site


def versions(files: ReloadableFiles) -> tuple[str, str]:
    """Of the tokens and the policy."""
    (grant,) = files.policy.everyone
    return files.tokens[HASH].subject, grant.subtree.parent


def test_what_the_settings_name_is_read(site: Site) -> None:
    files = read_files(site.settings)

    assert files.tls is not None
    assert files.tokens[HASH].subject == "v1"
    assert files.policy.grants_of("anybody") == (parse_grant("viewer:v1"),)


def test_without_files_there_is_nothing() -> None:
    assert read_files(SecuritySettings()) == ReloadableFiles()


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
        after = reload_files(site.settings, before).files

    assert versions(after) == ("v2", "v2")
    assert after.tls != before.tls
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
        after = reload_files(site.settings, before).files

    kept = "tls" if what == "TLS files" else what
    assert after == replace(good, **{kept: getattr(before, kept)})
    (line,) = logged
    assert (line["event"], line["log_level"], line["of"]) == (KEPT, "error", what)
    assert line["cause"]


def test_what_is_good_again_is_taken(site: Site) -> None:
    files = read_files(site.settings)
    assert site.settings.policy
    site.settings.policy.write_text("{")
    files = reload_files(site.settings, files).files
    assert versions(files) == ("v1", "v1")

    site.write(3)

    assert versions(reload_files(site.settings, files).files) == ("v3", "v3")


def test_a_file_that_now_grants_nothing_is_taken(site: Site) -> None:
    files = read_files(site.settings)
    assert site.settings.policy
    assert site.settings.tokens
    site.settings.policy.write_text("{}")
    site.settings.tokens.write_text("[]")

    after = reload_files(site.settings, files).files

    assert after.policy.everyone == ()
    assert after.tokens == {}


async def test_where_no_files_are_it_is_said() -> None:
    with capture_logs() as logged:
        reloader = Reloader(SecuritySettings(), ReloadableFiles(), lambda _: None)
        reloader.request()

    assert [line["event"] for line in logged] == ["SIGHUP: there are no files to reload"]


async def test_where_keys_alone_are_read_again_it_is_not_said() -> None:
    settings = SecuritySettings(jwks="keys.json", jwt_issuer="issuer", jwt_audience=("audience",))

    with capture_logs() as logged:
        Reloader(settings, ReloadableFiles(), lambda _: None).request()

    assert logged == []


# What changed


def test_what_changed_is_counted_and_no_secret_is_among_it(site: Site) -> None:
    assert site.settings.tokens
    assert site.settings.policy
    hashes = [f"{number:064x}" for number in range(4)]

    def write(*entries: tuple[str, str]) -> None:
        assert site.settings.tokens
        lines = [f"- {{subject: {subject}, sha256: '{hash_}'}}" for subject, hash_ in entries]
        site.settings.tokens.write_text("\n".join(lines))

    write(("ann", hashes[0]), ("bob", hashes[1]), ("eve", hashes[2]))
    site.settings.policy.write_text("subjects: {ann: [viewer:*], bob: [viewer:*]}")
    before = read_files(site.settings)
    write(("ann", hashes[0]), ("rob", hashes[1]), ("sue", hashes[3]))
    site.settings.policy.write_text("{everyone: [viewer:*], subjects: {ann: [admin:*], tom: []}}")
    pair = site.authority.issue("renewed")
    assert site.settings.tls_cert
    assert site.settings.tls_key
    pair.certificate.replace(site.settings.tls_cert)
    pair.key.replace(site.settings.tls_key)

    reading = reload_files(site.settings, before)

    assert reading.files.tls is not None
    assert reading.changes == {
        "certificate_sha256": reading.files.tls.fingerprint,
        "tokens": 3,
        "tokens_added": 1,
        "tokens_removed": 1,
        "tokens_changed": 1,
        "policy_subjects": 2,
        "policy_subjects_added": 1,
        "policy_subjects_removed": 1,
        "policy_subjects_changed": 1,
        "policy_everyone": "changed",
    }


def test_what_is_the_same_as_before_is_the_same_object(site: Site) -> None:
    """The event loop need not compare thousands of tokens."""
    before = read_files(site.settings)

    reading = reload_files(site.settings, before)

    assert reading.changes == {}
    assert reading.files.tokens is before.tokens
    assert reading.files.policy is before.policy
    with capture_logs() as logged:
        reading.log()
    assert [line["event"] for line in logged] == [
        "SIGHUP: the files were reloaded, and nothing has changed"
    ]


def test_it_is_not_said_that_nothing_changed_when_a_file_could_not_be_used(site: Site) -> None:
    before = read_files(site.settings)
    assert site.settings.tokens
    site.settings.tokens.write_text("no tokens")

    with capture_logs() as logged:
        reading = reload_files(site.settings, before)
        reading.log()

    assert [(line["event"], line["of"]) for line in logged] == [
        ("SIGHUP: the previous content stays in use", "tokens")
    ]


# When it is read


class Reads:
    """Readings that the test holds up, as `reload_files` would make them."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = Semaphore(0)

    def __call__(self, _settings: SecuritySettings, _before: ReloadableFiles) -> Reload:
        self.begun += 1
        number = self.begun
        assert self.go_on.acquire(timeout=PATIENCE)
        if number == 2:
            raise RuntimeError("unexpected")
        return Reload(ReloadableFiles(policy=Policy({f"reading-{number}": ()})), {})


async def test_however_often_it_is_asked_for_during_a_reading_one_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads, taken = Reads(), list[Reload]()
    monkeypatch.setattr(reload_module, "reload_files", reads)
    settings = SecuritySettings(jwks="keys.json", jwt_issuer="issuer", jwt_audience=("audience",))
    reloader = Reloader(settings, ReloadableFiles(), taken.append)

    async def until(look: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not look():  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.005)

    reloader.request()
    await until(lambda: reads.begun == 1)  # the event loop goes on meanwhile
    with capture_logs() as logged:
        for _ in range(60):
            reloader.request()
    still = "SIGHUP: a reload is in progress, and another one will follow"
    assert [line["event"] for line in logged] == [still] * 60
    reads.go_on.release(2)  # of which the second fails
    await until(lambda: reads.begun == 2)
    task = reloader._task
    assert task is not None
    await task
    assert [list(reading.files.policy.subjects) for reading in taken] == [["reading-1"]]

    reads.go_on.release()
    reloader.request()
    await until(lambda: len(taken) == 2)
    assert reads.begun == 3
    assert list(taken[-1].files.policy.subjects) == ["reading-3"]


def test_a_file_that_hangs_does_not_keep_garbage_from_being_collected(tmp_path: Path) -> None:
    pipe = tmp_path / "tokens.yaml"
    os.mkfifo(pipe)
    reading = Thread(target=reload_files, args=(SecuritySettings(tokens=pipe), ReloadableFiles()))
    reading.start()
    # Can be opened so only once somebody reads it, who then waits for what is written.
    with eventually(lambda: opened_for_writing(pipe)) as file:
        enabled = gc.isenabled()
        file.write("[]")
    reading.join()

    assert enabled


def opened_for_writing(pipe: Path) -> TextIO | None:
    try:
        return os.fdopen(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), "w")
    except OSError:
        return None
