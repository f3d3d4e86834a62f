"""The files that the server reads at its start, and reloads on SIGHUP: TLS, static tokens, policy.

At the start, a file that cannot be used is a refusal to start. On a reload, the previous content of such a
file stays in use, the log says why, and the other files are replaced all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from opservice.auth.policy import Policy, StaticTokens, read_policy, read_tokens
from opservice.common.loggers import get_logger
from opservice.common.threads import OneThread, no_garbage_collection
from opservice.domain.errors import StartupError
from opservice.runtime.settings.security import SecuritySettings
from opservice.runtime.tls import TlsFiles, read_tls_files

Content = TypeVar("Content")

log = get_logger("opservice.reload")


@dataclass(frozen=True, slots=True)
class ReloadableFiles:
    """The content of the files; empty for those that the settings do not name."""

    tls: TlsFiles | None = None
    tokens: StaticTokens = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)


def read_files(settings: SecuritySettings) -> ReloadableFiles:
    """Reads what the settings name. May block. Raises StartupError when one of the files cannot be used."""
    return ReloadableFiles(read_tls_files(settings), _read_tokens(settings), _read_policy(settings))


@dataclass(frozen=True, slots=True)
class Reload:
    """The files after a reload, and what differs from before.

    Content that is equal to the content before is the same object.
    """

    files: ReloadableFiles
    changes: Mapping[str, int | str]
    """Counts for the log; nothing in them is secret."""

    all_usable: bool = True
    """False when a file could not be used. The log has then said which, and why."""

    @classmethod
    def compare(
        cls, new: ReloadableFiles, before: ReloadableFiles, *, all_usable: bool = True
    ) -> Reload:
        """Finds what has changed. Takes a while for thousands of tokens."""
        files = ReloadableFiles(
            before.tls if new.tls == before.tls else new.tls,
            before.tokens if new.tokens == before.tokens else new.tokens,
            before.policy if new.policy == before.policy else new.policy,
        )
        return cls(files, _changes(files, before), all_usable)

    def log(self) -> None:
        """Says in the log what has changed. Unusable files were logged when they were read."""
        if self.changes:
            log.info("SIGHUP: the files were reloaded, and the changes are in use", **self.changes)
        elif self.all_usable:
            log.info("SIGHUP: the files were reloaded, and nothing has changed")


def _changes(new: ReloadableFiles, before: ReloadableFiles) -> dict[str, int | str]:
    found: dict[str, int | str] = {}
    if new.tls is not None and new.tls is not before.tls:
        found["certificate_sha256"] = new.tls.fingerprint
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


def reload_files(settings: SecuritySettings, before: ReloadableFiles) -> Reload:
    """Reads the files again. The previous content of a file that cannot be used stays. May block."""
    unusable: list[str] = []

    def reload(
        what: str, read: Callable[[SecuritySettings], Content], previous: Content
    ) -> Content:
        try:
            return read(settings)
        except StartupError as error:
            unusable.append(what)
            log.error("SIGHUP: the previous content stays in use", of=what, cause=error.message)  # noqa: TRY400 - no more to say
            return previous

    new = ReloadableFiles(
        reload("TLS files", read_tls_files, before.tls),
        reload("tokens", _read_tokens, before.tokens),
        reload("policy", _read_policy, before.policy),
    )
    with no_garbage_collection():
        return Reload.compare(new, before, all_usable=not unusable)


class Reloader:
    """Reloads the files when asked, on a thread, one reload after the other.

    Calls `on_reload` with each reload, on the event loop. Requests that arrive during a reload lead to one
    more reload after it, so the files in use at the end were read after the last request.
    """

    def __init__(
        self,
        settings: SecuritySettings,
        files: ReloadableFiles,
        on_reload: Callable[[Reload], None],
    ) -> None:
        self._settings = settings
        self._files = files
        self._on_reload = on_reload
        self._requested = False
        self._began = 0.0
        self._task: asyncio.Task[None] | None = None
        self._thread: OneThread[Reload] = OneThread("reload")

    def request(self) -> None:
        """Asks for a reload. To be called on the event loop."""
        if self._files == ReloadableFiles() and not self._settings.authenticates:
            log.info("SIGHUP: there are no files to reload")
        in_progress = self._task is not None and not self._task.done()
        if in_progress:
            log.info(
                "SIGHUP: a reload is in progress, and another one will follow",
                seconds=round(time.monotonic() - self._began, 1),
            )
        self._requested = True
        if not in_progress:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._requested:
            self._requested = False
            self._began = time.monotonic()
            try:
                reload = await self._thread.run(partial(reload_files, self._settings, self._files))
                self._files = reload.files
                self._on_reload(reload)
            except Exception:  # whatever it is, the next SIGHUP must still work
                log.exception("SIGHUP: the reload failed, and the previous content stays in use")


def _read_tokens(settings: SecuritySettings) -> StaticTokens:
    return {} if settings.tokens is None else read_tokens(settings.tokens)


def _read_policy(settings: SecuritySettings) -> Policy:
    return Policy() if settings.policy is None else read_policy(settings.policy)
