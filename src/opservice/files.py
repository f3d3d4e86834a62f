"""The files that the server reads when it starts, and again on SIGHUP: TLS, static tokens, policy.

At the start one that cannot be used is a refusal. Later it leaves what was read of it before in use, said in
the log, and does not keep the others from being taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from opservice.errors import StartupError
from opservice.policy import Policy, StaticTokens, read_policy, read_tokens
from opservice.settings import Settings
from opservice.tls import Credentials, server_credentials

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


def read_again(settings: Settings, before: Files) -> Files:
    """What SIGHUP asks for. What cannot be used stays as it was before."""
    if before == Files() and not settings.authenticates:
        log.info("SIGHUP: there is nothing to read again")
    return Files(
        _again("TLS files", lambda: server_credentials(settings), before.credentials),
        _again("tokens", lambda: _read_tokens(settings), before.tokens),
        _again("policy", lambda: _read_policy(settings), before.policy),
    )


def _again(what: str, read: Callable[[], Read], before: Read) -> Read:
    try:
        return read()
    except StartupError as error:
        log.error("SIGHUP: what was read before stays in use", of=what, cause=error.message)  # noqa: TRY400 - no more to say
        return before


def _read_tokens(settings: Settings) -> StaticTokens:
    return {} if settings.tokens is None else read_tokens(settings.tokens)


def _read_policy(settings: Settings) -> Policy:
    return Policy() if settings.policy is None else read_policy(settings.policy)
