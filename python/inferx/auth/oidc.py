"""Tokens of an OpenID provider such as Keycloak: verified offline with the provider's keys.

Must never take from a token which algorithm or which key is to be trusted.
"""

from __future__ import annotations

import base64
import binascii
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey

from inferx.auth.authenticator import now_ms
from inferx.auth.jwks import Jwks, KeySource
from inferx.auth.principal import Grant, Principal, Scope, parse_role
from inferx.config import KeycloakConfig
from inferx.domain.codec import parse_json
from inferx.errors import BadRequest, Unauthenticated

SKEW_S = 60
"""How far the clocks of two machines may be apart."""
ROLES_MAX = 512
KID_CHARS_MAX = 256
NAME_CHARS_MAX = 128
_INVALID = "the credential is not valid, or not any more"

# algorithm -> (type of key, its curve); nothing symmetric, nothing without a signature
ALGORITHMS: dict[str, tuple[type[RSAKey | ECKey | OKPKey], str]] = {
    "RS256": (RSAKey, ""), "RS384": (RSAKey, ""), "RS512": (RSAKey, ""),
    "PS256": (RSAKey, ""), "PS384": (RSAKey, ""), "PS512": (RSAKey, ""),
    "ES256": (ECKey, "P-256"), "ES384": (ECKey, "P-384"), "ES512": (ECKey, "P-521"),
    "EdDSA": (OKPKey, "Ed25519"), "Ed25519": (OKPKey, "Ed25519"),
}  # fmt: skip
# Fields by which a token would bring its own key, or change what the others mean.
_FORBIDDEN_HEADERS = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc"})
_TYPES = ("jwt", "at+jwt", "application/at+jwt")


class Oidc:
    """Verifies the access tokens of one issuer for one audience."""

    def __init__(
        self,
        keys: KeySource,
        issuer: str,
        client_id: str,
        audience: str = "",
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._client_id = client_id
        self._audience = audience or client_id
        self._clock_ms = clock_ms
        self._registry = jws.JWSRegistry(algorithms=[*ALGORITHMS])

    async def verify(self, token: str) -> Principal:
        """Who the token stands for.

        In this order: (1) the header says an allowed algorithm and nothing that is forbidden,
        (2) the provider has a key of that id, whose type fits the algorithm, (3) the signature
        holds, (4) the claims are for us and for now, (5) the roles are InferX's.
        """
        algorithm, kid = _header(token)
        key = await self._keys.find(kid)
        kind, curve = ALGORITHMS[algorithm]
        if not isinstance(key, kind) or (curve and key.as_dict().get("crv") != curve):
            raise Unauthenticated(_INVALID)
        if key.as_dict().get("use", "sig") != "sig" or key.as_dict().get("alg") not in (
            None,
            algorithm,
        ):
            raise Unauthenticated(_INVALID)
        try:
            with warnings.catch_warnings():
                # Providers still say EdDSA, the older name of what is Ed25519 here.
                warnings.simplefilter("ignore", SecurityWarning)
                signed = jws.deserialize_compact(token, key, registry=self._registry)
            claims = parse_json(signed.payload)
        except (JoseError, BadRequest, ValueError) as error:
            raise Unauthenticated(_INVALID) from error
        if not isinstance(claims, dict):
            raise Unauthenticated(_INVALID)
        return self._principal(claims)

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        expires_ms = self._check_times(claims)
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        party = claims.get("azp")
        subject = claims.get("sub")
        if (
            claims.get("iss") != self._issuer
            or self._audience not in audiences
            or party not in (None, self._client_id)
            or (party is None and len(audiences) > 1)
            or claims.get("typ", "Bearer") not in ("Bearer", "JWT")
            or not isinstance(subject, str)
            or not _is_name(subject)
        ):
            raise Unauthenticated(_INVALID)
        # The subject is the provider's and never used again; names of people are.
        return Principal(
            name=f"user:{subject}",
            grants=self._grants(claims),
            scope=Scope.FULL,
            expires_ms=expires_ms,
        )

    def _check_times(self, claims: Mapping[str, Any]) -> int:
        """The end of the token in unix milliseconds."""
        now_s = self._clock_ms() / 1000
        times = {name: claims.get(name) for name in ("exp", "nbf", "iat")}
        for name, value in times.items():
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise Unauthenticated(_INVALID)
            if value is not None and not 0 <= value < 1e11:
                raise Unauthenticated(_INVALID)
            if name != "exp" and value is not None and value > now_s + SKEW_S:
                raise Unauthenticated(_INVALID)
        end = times["exp"]
        if end is None or end + SKEW_S <= now_s:
            raise Unauthenticated(_INVALID)
        return int((end + SKEW_S) * 1000)

    def _grants(self, claims: Mapping[str, Any]) -> tuple[Grant, ...]:
        """The roles of the realm and of our client that are InferX's; others mean nothing here."""
        clients = claims.get("resource_access")
        of_client = clients.get(self._client_id) if isinstance(clients, dict) else None
        found: dict[Grant, None] = {}
        for source in (claims.get("realm_access"), of_client):
            roles = source.get("roles") if isinstance(source, dict) else None
            for role in roles[:ROLES_MAX] if isinstance(roles, list) else ():
                grant = parse_role(role) if isinstance(role, str) else None
                if grant is not None:
                    found[grant] = None
        return tuple(found)


def _is_name(text: str) -> bool:
    return 0 < len(text) <= NAME_CHARS_MAX and text.isascii() and text.isprintable()


def _header(token: str) -> tuple[str, str]:
    """Algorithm and key id of a token that has the right form; nothing in it is trusted yet."""
    head = token.split(".", 1)[0]
    try:
        header = parse_json(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (BadRequest, binascii.Error, ValueError) as error:
        raise Unauthenticated(_INVALID) from error
    if not isinstance(header, dict) or _FORBIDDEN_HEADERS & header.keys():
        raise Unauthenticated(_INVALID)
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if (
        not isinstance(algorithm, str)
        or algorithm not in ALGORITHMS
        or not isinstance(kid, str)
        or not 0 < len(kid) <= KID_CHARS_MAX
        or not isinstance(kind, str)
        or kind.lower() not in _TYPES
    ):
        raise Unauthenticated(_INVALID)
    return algorithm, kid


def token_verifier(config: KeycloakConfig) -> Oidc | None:
    """The verifier of the configured provider, None without one."""
    issuer = config.issuer_url
    if not issuer:
        return None
    keys = Jwks(issuer, allow_http=config.allow_http)
    return Oidc(keys, issuer, config.client_id, config.audience)
