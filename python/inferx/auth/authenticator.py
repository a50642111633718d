"""From a credential to a caller: the admin's key, an API key, or a token of the provider.

Must never say which part of a credential was wrong, nor let its text into an error.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from typing import Protocol

from inferx.auth.apikeys import PREFIX, Hasher, KeyTable
from inferx.auth.principal import ANONYMOUS, Grant, Principal, Role, Scope
from inferx.config import Secret
from inferx.errors import BadRequest, ConfigError, Unauthenticated, Unavailable

ADMIN_KEY_CHARS_MIN = 24
CREDENTIAL_BYTES_MAX = 16 << 10
ADMIN = Principal("admin", (Grant(Role.ADMIN),), Scope.FULL)
_UNKNOWN = "the credential is not valid, or not any more"
_EXPECTED = "expected `Authorization: Bearer` and a key or token"


class TokenVerifier(Protocol):
    """What verifies the tokens of an identity provider."""

    async def verify(self, token: str) -> Principal:
        """Who the token stands for; `Unauthenticated` or `Unavailable`."""
        ...


class Authenticator:
    """Knows all credentials of one platform."""

    def __init__(
        self, hasher: Hasher, admin_key: Secret, tokens: TokenVerifier | None = None
    ) -> None:
        self.keys = KeyTable(hasher)
        self.ready = False
        self._tokens = tokens
        self._hasher = hasher
        given = admin_key.reveal()
        if given and len(given) < ADMIN_KEY_CHARS_MIN:
            raise ConfigError(
                f"INFERX_ADMIN_APIKEY: must have at least {ADMIN_KEY_CHARS_MIN} characters"
            )
        self._admin_digest = hasher.digest(given) if given else ""

    def digest(self, token: str) -> str:
        """The keyed hash under which a key is stored."""
        return self._hasher.digest(token)

    async def principal(self, token: str) -> Principal:
        """Who the credential stands for; `Unauthenticated` when nobody, or not any more."""
        if self._admin_digest and hmac.compare_digest(
            self._admin_digest, self._hasher.digest(token)
        ):
            return ADMIN
        if token.startswith(PREFIX):
            if not self.ready:
                raise Unavailable("the keys are not known yet", retry_after_ms=1000)
            found = self.keys.find(token, now_ms())
            if found is None:
                raise Unauthenticated(_UNKNOWN)
            return found
        if self._tokens is None or token.count(".") != 2:
            raise Unauthenticated(_UNKNOWN)
        return await self._tokens.verify(token)

    async def of_headers(self, values: Sequence[str]) -> Principal:
        """Who sent a request with these Authorization fields; nobody is `ANONYMOUS`."""
        if not values:
            return ANONYMOUS
        if len(values) > 1:
            raise BadRequest("Authorization came more than once")
        scheme, _, token = values[0].partition(" ")
        token = token.strip(" ")
        if scheme.lower() != "bearer" or not token or len(token) > CREDENTIAL_BYTES_MAX:
            raise Unauthenticated(_EXPECTED)
        if not token.isascii() or not token.isprintable() or " " in token:
            raise Unauthenticated(_EXPECTED)
        return await self.principal(token)


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
