"""What a node's configuration says about who may come in: secrets, providers, certificates.

Must never show a secret.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from inferx.domain.reader import Fields

KEY_SECRET_CHARS_MIN = 32


class Secret:
    """A string that shows itself only to who asks for it by `reveal`."""

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself; never pass it to a log or an error."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(***)" if self._value else "Secret()"


@dataclass(frozen=True)
class ServiceTls:
    """Files of the certificates between services; without them they speak in clear."""

    ca: str = ""
    cert: str = ""
    key: str = ""


@dataclass(frozen=True)
class KeycloakConfig:
    """Identity provider: a Keycloak realm, or any OpenID provider by its `issuer`."""

    url: str = ""
    realm: str = ""
    issuer: str = ""
    client_id: str = "inferx"
    audience: str = ""
    allow_http: bool = False

    @property
    def issuer_url(self) -> str:
        """Who has to have issued a token; "" when there is no provider."""
        if self.issuer:
            return self.issuer
        return f"{self.url.rstrip('/')}/realms/{self.realm}" if self.url and self.realm else ""


@dataclass(frozen=True)
class AuthConfig:
    """Whether callers are asked who they are; `key_secret` is what keys are hashed under."""

    enable: bool = False
    key_secret: Secret = field(default_factory=Secret)


def read_keycloak(fields: Fields) -> KeycloakConfig:
    """`keycloakconfig`."""
    return KeycloakConfig(
        url=fields.string("url", ""),
        realm=fields.string("realm", ""),
        issuer=fields.string("issuer", ""),
        client_id=fields.string("clientId", "inferx"),
        audience=fields.string("audience", ""),
        allow_http=fields.boolean("allowHttp", False),
    )


def read_auth(fields: Fields, host_ip: str) -> AuthConfig:
    """`auth` and the key secret: off by default on the loopback, and nowhere else."""
    loopback = ipaddress.ip_address(host_ip).is_loopback
    section = fields.child("auth")
    enable = not loopback
    if section is not None:
        enable = section.boolean("enable", enable)
        section.finish()
    if not enable and not loopback:
        fields.fail("auth.enable", f"may be false on the loopback only, not on {host_ip}")
    secret = fields.string("keySecret_", "")
    if secret and len(secret) < KEY_SECRET_CHARS_MIN:
        fields.fail("keySecret_", f"must have at least {KEY_SECRET_CHARS_MIN} characters")
    return AuthConfig(enable, Secret(secret))


def read_service_tls(fields: Fields) -> ServiceTls:
    """`servicetls`: all three files or none."""
    found = ServiceTls(fields.string("ca"), fields.string("cert"), fields.string("key"))
    for name in ("ca", "cert", "key"):
        if not getattr(found, name):
            fields.fail(name, "must name a file")
    return found
