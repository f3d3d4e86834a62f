"""The files that the server reads when it starts, and again on SIGHUP: TLS, static tokens, policy.

At the start one that cannot be used is a refusal. Later it leaves what was read of it before in use, said in
the log, and does not keep the others from being taken.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import structlog

from opservice.auth.policy import Policy, StaticTokens, read_policy, read_tokens
from opservice.common.threads import OneThread, no_garbage_collection
from opservice.domain.errors import StartupError
from opservice.runtime.settings import Settings
from opservice.runtime.tls import Credentials, server_credentials

Read = TypeVar("Read")

log = structlog.stdlib.get_logger("opservice.files")


@dataclass(frozen=True, slots=True)
class Files:
    """What was in them."""

    credentials: Credentials | None = None
    tokens: StaticTokens = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)


def read_files(settings: Settings) -> Files:
    """Raises StartupError when one of those that the settings name cannot be used."""
    return Files(server_credentials(settings), _read_tokens(settings), _read_policy(settings))


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read again, and how it differs from what was read before; nothing in `changes` is secret.

    What is equal to what was there before is the same object.
    """

    files: Files
    changes: Mapping[str, int | str]
    all_used: bool = True
    """Whether none of the files was left out because it could not be used, which was logged then."""

    @classmethod
    def of(cls, new: Files, before: Files, *, all_used: bool = True) -> Reading:
        """Compares them. Takes its time for thousands of tokens."""
        files = Files(
            before.credentials if new.credentials == before.credentials else new.credentials,
            before.tokens if new.tokens == before.tokens else new.tokens,
            before.policy if new.policy == before.policy else new.policy,
        )
        return cls(files, _changes(files, before), all_used)

    def log(self) -> None:
        if self.changes:
            log.info("SIGHUP: the files were read again, what changed is in use", **self.changes)
        elif self.all_used:
            log.info("SIGHUP: the files were read again, nothing changed")


def _changes(new: Files, before: Files) -> dict[str, int | str]:
    found: dict[str, int | str] = {}
    if new.credentials is not None and new.credentials is not before.credentials:
        found["certificate_sha256"] = new.credentials.fingerprint
    if new.tokens is not before.tokens:
        found |= _counts("tokens", new.tokens, before.tokens)
    if new.policy is not before.policy:
        found |= _counts("policy_subjects", new.policy.subjects, before.policy.subjects)
        if new.policy.everyone != before.policy.everyone:
            found["policy_everyone"] = "changed"
    return found


def _counts(what: str, new: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, int | str]:
    return {
        what: len(new),
        f"{what}_added": len(new.keys() - before.keys()),
        f"{what}_removed": len(before.keys() - new.keys()),
        f"{what}_changed": sum(new[key] != before[key] for key in new.keys() & before.keys()),
    }


def read_again(settings: Settings, before: Files) -> Reading:
    """What SIGHUP asks for. What cannot be used stays as it was before. May block."""
    failed: list[str] = []

    def again(what: str, read: Callable[[Settings], Read], known: Read) -> Read:
        try:
            return read(settings)
        except StartupError as error:
            failed.append(what)
            log.error("SIGHUP: what was read before stays in use", of=what, cause=error.message)  # noqa: TRY400 - no more to say
            return known

    new = Files(
        again("TLS files", server_credentials, before.credentials),
        again("tokens", _read_tokens, before.tokens),
        again("policy", _read_policy, before.policy),
    )
    with no_garbage_collection():
        return Reading.of(new, before, all_used=not failed)


class Reloader:
    """Reads the files again when asked, on a thread, one reading after the other.

    `take` is called with each on the event loop. However often it is asked while one is under way, one more
    follows, so that what is taken last was read after it was asked for last.
    """

    def __init__(self, settings: Settings, files: Files, take: Callable[[Reading], None]) -> None:
        self._settings = settings
        self._files = files
        self._take = take
        self._wanted = False
        self._began = 0.0
        self._task: asyncio.Task[None] | None = None
        self._thread: OneThread[Reading] = OneThread("files")

    def request(self) -> None:
        if self._files == Files() and not self._settings.authenticates:
            log.info("SIGHUP: there is nothing to read again")
        reading = self._task is not None and not self._task.done()
        if reading:
            log.info(
                "SIGHUP: the files are still being read, and will be read once more after that",
                seconds=round(time.monotonic() - self._began, 1),
            )
        self._wanted = True
        if not reading:
            self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while self._wanted:
            self._wanted = False
            self._began = time.monotonic()
            try:
                reading = await self._thread.run(partial(read_again, self._settings, self._files))
                self._files = reading.files
                self._take(reading)
            except Exception:  # whatever it is, the next SIGHUP must find a reader
                log.exception("SIGHUP: what was read before stays in use")


def _read_tokens(settings: Settings) -> StaticTokens:
    return {} if settings.tokens is None else read_tokens(settings.tokens)


def _read_policy(settings: Settings) -> Policy:
    return Policy() if settings.policy is None else read_policy(settings.policy)
