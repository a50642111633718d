"""API keys: how one is made, recognised and found again without being kept.

Must never store or show a key; its keyed hash is stored, under the key's first digits.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator

from inferx.auth.principal import Grant, Principal, Role, Scope
from inferx.domain.apikey import ApiKey
from inferx.domain.meta import SYSTEM, Key, Object

PREFIX = "ix_"
KEY_BYTES = 32
ID_DIGITS = 12
SECRET_BYTES_MIN = 32
CHAIN_MAX = 8
"""How many keys may have minted each other in a row."""
_FORM = re.compile(r"ix_[0-9a-f]{64}")


def mint() -> str:
    """A new key: 256 random bits."""
    return PREFIX + secrets.token_hex(KEY_BYTES)


def looks_like_key(token: str) -> bool:
    """Whether the whole text has the form of a key."""
    return _FORM.fullmatch(token) is not None


def key_id(token: str) -> str:
    """The digits under which a key is looked up: 48 of its 256 bits."""
    return token[len(PREFIX) : len(PREFIX) + ID_DIGITS]


class Hasher:
    """Hashes keys under a secret that the store does not know."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SECRET_BYTES_MIN:
            raise ValueError(f"the secret must have at least {SECRET_BYTES_MIN} bytes")
        self._secret = hashlib.sha256(secret).digest()

    def digest(self, token: str) -> str:
        """The keyed hash of a key, 64 hexadecimal digits."""
        return hashlib.blake2b(token.encode(), key=self._secret, digest_size=32).hexdigest()


def place_of(key: Key) -> tuple[str, str]:
    """(tenant, namespace) that a key's object restricts it to; "" = all of them.

    Keys of a whole tenant live in its namespace `system`, those of the platform in tenant `system`.
    """
    tenant, namespace, _ = key
    if (tenant, namespace) == (SYSTEM, SYSTEM):
        return ("", "")
    return (tenant, "" if namespace == SYSTEM else namespace)


def home_of(tenant: str, namespace: str) -> tuple[str, str]:
    """The inverse of `place_of`: where the object of a key for that place lives."""
    return (tenant or SYSTEM, namespace or SYSTEM)


class KeyTable:
    """The keys that there are, by id, fed by whoever watches their objects."""

    def __init__(self, hasher: Hasher) -> None:
        self._hasher = hasher
        self._by_id: dict[str, dict[Key, Object[ApiKey]]] = {}

    def put(self, obj: Object[ApiKey]) -> None:
        """A key is there or has changed."""
        self._by_id.setdefault(obj.meta.name, {})[obj.key] = obj

    def drop(self, obj: Object[ApiKey]) -> None:
        """A key was revoked."""
        same_id = self._by_id.get(obj.meta.name, {})
        same_id.pop(obj.key, None)
        if not same_id:
            self._by_id.pop(obj.meta.name, None)

    def all(self) -> Iterator[Object[ApiKey]]:
        """Every key."""
        for same_id in self._by_id.values():
            yield from same_id.values()

    def get(self, key_id: str) -> Object[ApiKey] | None:
        """The key of that id."""
        return next(iter(self._by_id.get(key_id, {}).values()), None)

    def descendants(self, key_id: str) -> set[str]:
        """The ids of all keys that the key minted, directly or not."""
        found: set[str] = set()
        level = {key_id}
        while level:
            level = {
                obj.meta.name
                for obj in self.all()
                if obj.spec.parent in level and obj.meta.name not in found
            }
            found |= level
        return found

    def find(self, token: str, now_ms: int) -> Principal | None:
        """Who a key stands for; None for one that is unknown, over, or whose minter is gone."""
        if not looks_like_key(token):
            return None
        digest = self._hasher.digest(token)
        for obj in self._by_id.get(key_id(token), {}).values():
            if hmac.compare_digest(obj.spec.digest, digest) and self._alive(obj, now_ms):
                return principal_of(obj)
        return None

    def _alive(self, obj: Object[ApiKey], now_ms: int) -> bool:
        current: Object[ApiKey] | None = obj
        for _ in range(CHAIN_MAX):
            if current is None or 0 < current.spec.expires_ms <= now_ms:
                return False
            if not current.spec.parent:
                return True
            current = self.get(current.spec.parent)
        return False


def principal_of(obj: Object[ApiKey]) -> Principal:
    """The caller that a key stands for."""
    tenant, namespace = place_of(obj.key)
    return Principal(
        name=f"key:{obj.meta.name}",
        grants=(Grant(Role[obj.spec.role.upper()], tenant, namespace),),
        scope=Scope[obj.spec.scope.upper()],
        key_id=obj.meta.name,
        expires_ms=obj.spec.expires_ms,
    )
