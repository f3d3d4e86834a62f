"""What decides who gets in: TLS, and who callers are. Either may be replaced while the server runs."""

from __future__ import annotations

from opservice.auth.authenticator import Authenticator, JwtRules
from opservice.auth.keys import KeySource
from opservice.runtime.files import Files, Reading
from opservice.runtime.settings import Settings
from opservice.runtime.tls import CurrentCredentials


class Security:
    """Without `authenticator` nobody is asked who they are."""

    def __init__(self, settings: Settings, files: Files) -> None:
        self._settings = settings
        read = files.credentials
        self.credentials = None if read is None else CurrentCredentials(read)
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

    def replace(self, reading: Reading) -> None:
        """By what was read again."""
        files = reading.files
        if self.credentials is not None and files.credentials is not None:
            self.credentials.replace(files.credentials)
        if self.authenticator is not None:
            self.authenticator.replace(files.policy, files.tokens)
        if self.credentials is not None or self.authenticator is not None:
            reading.log()

    def warnings(self) -> list[str]:
        """What an operator should know of who gets in."""
        if self._settings.is_local:
            return []
        if self.authenticator is None:
            return [
                "--allow-anonymous: everybody who can connect may see and change every operation"
            ]
        if self.credentials is None:
            return ["without TLS tokens can be read by everybody on their way to this server"]
        return []
