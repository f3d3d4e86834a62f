"""What decides who gets in: TLS and authentication. Both can be reloaded while the server runs."""

from __future__ import annotations

from opservice.auth.authenticator import Authenticator, JwtRules
from opservice.auth.keys import KeySource
from opservice.runtime.reload import Reload, ReloadableFiles
from opservice.runtime.settings.security import SecuritySettings
from opservice.runtime.tls import ReloadableTls


class Security:
    """TLS and authentication as the settings ask for them; `tls` or `authenticator` is None without."""

    def __init__(self, settings: SecuritySettings, files: ReloadableFiles) -> None:
        self.tls = None if files.tls is None else ReloadableTls(files.tls)
        self.authenticator: Authenticator | None = None
        self.keys: KeySource | None = None
        if not settings.authenticates:
            return
        rules = JwtRules(
            settings.jwt_issuer,
            settings.jwt_audience,
            settings.jwt_algorithm,
            settings.jwt_grants_claim,
        )
        self.authenticator = Authenticator(
            files.policy, files.tokens, rules if settings.jwks else None
        )
        if settings.jwks:
            self.keys = KeySource(
                settings.jwks,
                settings.jwks_refresh,
                on_change=self.authenticator.forget,
                proxy=settings.jwks_proxy,
            )
            self.authenticator.keys = self.keys

    async def start(self, *, strict: bool = True) -> None:
        """Reads the keys. When `strict`, raises StartupError if their file cannot be used."""
        if self.keys is not None:
            await self.keys.start(strict=strict)

    def replace(self, reload: Reload) -> None:
        """Uses the reloaded files, and says in the log what has changed."""
        files = reload.files
        if self.tls is not None and files.tls is not None:
            self.tls.replace(files.tls)
        if self.authenticator is not None:
            self.authenticator.replace(files.policy, files.tokens)
        if self.tls is not None or self.authenticator is not None:
            reload.log()

    def warnings(self, *, is_local: bool) -> list[str]:
        """What the log should warn the operator of. Nothing when only this machine can reach the server."""
        if is_local:
            return []
        if self.authenticator is None:
            return [
                "--allow-anonymous: everybody who can connect may see and change every operation"
            ]
        if self.tls is None:
            return ["without TLS, others can read tokens on their way to this server"]
        return []
