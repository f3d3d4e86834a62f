"""What the supervisor and its workers tell each other, over a MessageConnection.

The first message goes down to the worker: its Assignment. Later ones are ReloadedFiles, and the end of the
connection, which means: drain. So one rule suffices for SIGTERM and for a supervisor that was killed.
Up come Alive, again and again, and Ready, Announcement or Failure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from opservice.runtime.settings import Settings

SIGNS_OF_LIFE = 6
"""How often a worker says Alive within --worker-timeout."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the worker is to do; `files` is as those of ReloadedFiles."""

    settings: Settings
    number: int
    files: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ReloadedFiles:
    """ReloadableFiles, and whether all were usable, as a pickled pair: a worker unpacks them on a thread."""

    files: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Alive:
    """The worker's event loop runs."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker serves; `line` says where."""

    line: str


@dataclass(frozen=True, slots=True)
class Announcement:
    """A line to print."""

    line: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the worker cannot serve, or has stopped."""

    reason: str
