"""Every setting of the server, in groups. Each part of the server is given the groups that it needs.

Durations are whole microseconds, as everywhere; people write them `30d`, `2m`, `1.5s`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from opservice.common.addresses import socket_path
from opservice.domain.errors import StartupError
from opservice.runtime.settings.groups import (
    ConnectionSettings,
    DiscoverySettings,
    LimitSettings,
    LoggingSettings,
    OperationSettings,
    ProcessSettings,
    StorageSettings,
)
from opservice.runtime.settings.listening import ListeningSettings
from opservice.runtime.settings.security import SecuritySettings
from opservice.runtime.settings.setting import Setting, settings_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All groups, checked against each other. Raises StartupError when they contradict each other."""

    listening: ListeningSettings = field(default_factory=ListeningSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    security: SecuritySettings = field(default_factory=SecuritySettings)
    processes: ProcessSettings = field(default_factory=ProcessSettings)
    operations: OperationSettings = field(default_factory=OperationSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)

    @classmethod
    def of(cls, **values: Any) -> Settings:
        """From values by the names of settings, in whatever group they are.

        Raises StartupError when a value is out of bounds, or values contradict each other.
        """
        unknown = values.keys() - SETTINGS.keys()
        if unknown:
            raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
        return cls(**{
            name: group(**{
                each.name: values[each.name] for each in settings_of(group) if each.name in values
            })
            for name, group in GROUPS.items()
        })  # fmt: skip

    def __post_init__(self) -> None:
        if self.connections.max_message_bytes < 2 * self.operations.max_payload_bytes:
            raise StartupError(
                "--max-message-bytes must hold two payloads: it is less than twice"
                " --max-payload-bytes"
            )
        if self.processes.workers > 1 and socket_path(self.listening.listen) is not None:
            raise StartupError(
                "--workers needs a port: processes cannot share the socket of --listen unix:PATH"
            )
        if not (
            self.security.authenticates or self.security.allow_anonymous or self.listening.is_local
        ):
            exposed = (
                f"--http-listen {self.listening.http_listen}"
                if self.listening.grpc_is_local
                else f"--listen {self.listening.listen}"
            )
            raise StartupError(
                f"{exposed} can be reached from other machines, and authentication is"
                " not configured: give --tokens, --jwks, or --tls-client-ca with --policy; or give"
                " --allow-anonymous to let everybody who can connect see and change every operation"
            )
        if "*" in self.listening.cors_origin and not (
            self.security.authenticates and self.security.tls_client_ca is None
        ):
            raise StartupError(
                "--cors-origin * lets every web page call this server: it needs authentication by tokens,"
                " and no --tls-client-ca, since browsers send certificates by themselves; name the origins"
                " instead"
            )


GROUPS: Mapping[str, Any] = {each.name: each.default_factory for each in fields(Settings)}
"""The class of each group, by its name in Settings."""

SETTINGS: Mapping[str, Setting] = {
    each.name: each for group in GROUPS.values() for each in settings_of(group)
}
"""Every setting by its name, which no other has."""
