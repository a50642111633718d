"""The keys of an OpenID provider: found by discovery, kept, and fetched again when they rotate.

Must never be made to ask the provider faster than its limit, whatever tokens come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from inferx.domain.codec import parse_json
from inferx.errors import BadRequest, ConfigError, Unauthenticated, Unavailable

REFRESH_S = 600.0
"""Age at which keys are fetched again: what the provider withdrew is trusted no longer."""
STALE_S = 3600.0
"""Age up to which keys are used while the provider does not answer."""
ASK_EVERY_S = 10.0
"""How often an unknown key id may make us ask; a made-up one costs the provider nothing."""
TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 1 << 20
KEYS_MAX = 64
RSA_BITS_MIN = 2048
_log = logging.getLogger(__name__)

PublicKey = RSAKey | ECKey | OKPKey
_KINDS: dict[str, type[RSAKey] | type[ECKey] | type[OKPKey]] = {
    "RSA": RSAKey,
    "EC": ECKey,
    "OKP": OKPKey,
}


class KeySource(Protocol):
    """Where keys come from."""

    async def find(self, kid: str) -> PublicKey:
        """The key of that id; `Unauthenticated` when the provider has none."""
        ...


class Jwks:
    """The key set of one issuer."""

    def __init__(
        self,
        issuer: str,
        *,
        allow_http: bool = False,
        ask_every_s: float = ASK_EVERY_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        check_url(issuer, "keycloakconfig", allow_http)
        self._issuer = issuer
        self._allow_http = allow_http
        self._ask_every_s = ask_every_s
        self._clock_s = clock_s
        self._keys: dict[str, PublicKey] = {}
        self._fetched: float | None = None
        self._asked: float | None = None
        self._asking = asyncio.Lock()
        self.fetches = 0

    async def find(self, kid: str) -> PublicKey:
        """The key of that id, of a key set that is fresh enough."""
        if kid not in self._keys or self._age() > REFRESH_S:
            await self._refresh(kid)
        if self._age() > STALE_S:
            raise Unavailable("the identity provider does not answer", retry_after_ms=2000)
        found = self._keys.get(kid)
        if found is None:
            raise Unauthenticated("the credential is not valid, or not any more")
        return found

    def _age(self) -> float:
        return float("inf") if self._fetched is None else self._clock_s() - self._fetched

    async def _refresh(self, kid: str) -> None:
        """Fetch the keys, unless that was tried a moment ago; one fetch serves all who wait."""
        async with self._asking:
            if kid in self._keys and self._age() <= REFRESH_S:
                return
            if self._asked is not None and self._clock_s() - self._asked < self._ask_every_s:
                return
            self._asked = self._clock_s()
            self.fetches += 1
            try:
                self._keys = await self._fetch()
            except (httpx.HTTPError, BadRequest, ConfigError, Unavailable) as error:
                _log.warning("the keys of %s were not fetched: %s", self._issuer, error)
                return
            self._fetched = self._clock_s()

    async def _fetch(self) -> dict[str, PublicKey]:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
            found = await discover(http, self._issuer)
            url = check_url(found["jwks_uri"], "jwks_uri", self._allow_http)
            document = await fetch_json(http, url)
        listed = document.get("keys") if isinstance(document, dict) else None
        keys: dict[str, PublicKey] = {}
        for entry in listed[:KEYS_MAX] if isinstance(listed, list) else ():
            key = _read_key(entry)
            if key is not None:
                keys[str(entry["kid"])] = key
        return keys


def _read_key(entry: Any) -> PublicKey | None:
    """A public key for signatures; None for what is none, such as the realm's encryption key."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
        return None
    kind = _KINDS.get(entry.get("kty", ""))
    if kind is None or entry.get("use", "sig") != "sig":
        return None
    public = {name: value for name, value in entry.items() if name not in ("d", "key_ops", "x5c")}
    try:
        key = kind.import_key(public)
        if isinstance(key, RSAKey) and key.public_key.key_size < RSA_BITS_MIN:
            return None
    except (JoseError, ValueError, KeyError, TypeError) as error:
        _log.warning("a key of the identity provider cannot be read: %s", type(error).__name__)
        return None
    return key


async def discover(http: httpx.AsyncClient, issuer: str) -> dict[str, Any]:
    """The provider's own description, which has to be of this very issuer."""
    found = await fetch_json(http, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if not isinstance(found, dict) or found.get("issuer") != issuer:
        raise Unavailable(f"the identity provider at {issuer} says it is another issuer")
    if not isinstance(found.get("jwks_uri"), str):
        raise Unavailable(f"the identity provider at {issuer} names no keys")
    return found


async def fetch_json(http: httpx.AsyncClient, url: str) -> Any:
    """A document, bounded and without following a redirect to somewhere else."""
    async with http.stream("GET", url) as answer:
        answer.raise_for_status()
        if answer.status_code != 200:
            raise Unavailable(f"{url} answered {answer.status_code}")
        data = b""
        async for piece in answer.aiter_bytes():
            data += piece
            if len(data) > ANSWER_BYTES_MAX:
                raise Unavailable(f"{url} answered more than {ANSWER_BYTES_MAX} bytes")
    return parse_json(data)


def check_url(url: str, what: str, allow_http: bool) -> str:
    """`url` when keys may be fetched from it: over TLS, or from this very machine, or allowed."""
    parts = urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if parts.scheme == "https" or (parts.scheme == "http" and (local or allow_http)):
        return url
    raise ConfigError(
        f"{what}: expected an https URL, or allowHttp, got {parts.scheme}://{parts.hostname}"
    )
