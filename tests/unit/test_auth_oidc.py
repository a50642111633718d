"""Tokens of an OpenID provider that the test runs: what is accepted, and everything that is not."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterator
from typing import Any

import pytest
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from inferx.auth import Grant, Role, Scope
from inferx.auth.jwks import Jwks
from inferx.auth.oidc import Oidc
from inferx.errors import ConfigError, Unauthenticated, Unavailable
from tests.helpers.oidc_provider import CLIENT, Provider, part

ROLE = "/tenant/user/acme"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as found:
        yield found


@pytest.fixture(scope="module")
def oidc(provider: Provider) -> Oidc:
    return Oidc(Jwks(provider.issuer), provider.issuer, CLIENT)


@pytest.mark.parametrize(
    ("alg", "kid"),
    [("RS256", "rsa"), ("PS256", "rsa"), ("RS512", "rsa"), ("ES256", "ec"), ("EdDSA", "ed")],
)
async def test_a_good_token_is_a_person_with_roles(
    provider: Provider, oidc: Oidc, alg: str, kid: str
) -> None:
    claims = provider.claims(
        ROLE, "offline_access", "/tenant/owner/x",
        resource_access={
            CLIENT: {"roles": ["/namespace/admin/acme/n"]}, "other": {"roles": ["/platform/admin"]},
        },
    )  # fmt: skip
    found = await oidc.verify(provider.sign(claims, alg, kid))
    assert found.name == "user:alice"
    assert found.scope is Scope.FULL
    assert set(found.grants) == {Grant(Role.USER, "acme"), Grant(Role.ADMIN, "acme", "n")}
    assert abs(found.expires_ms / 1000 - claims["exp"]) <= 60


NOW = int(time.time())  # when the tests are collected: long before some of them run
WRONG_CLAIMS: dict[str, dict[str, Any]] = {
    "expired": {"exp": NOW - 61},
    "without an end": {"exp": None},
    "an end as text": {"exp": str(NOW + 60)},
    "an end that is true": {"exp": True},
    "an endless end": {"exp": 1e300},
    "not yet valid": {"nbf": NOW + 86_400},
    "issued in the future": {"iat": NOW + 86_400},
    "another issuer": {"iss": "https://evil.example/realms/test"},
    "an issuer with the same beginning": {"iss": "ISSUER/x"},
    "another audience": {"aud": ["account"]},
    "an audience with the same beginning": {"aud": "inferx-admin"},
    "an audience in an object": {"aud": {"inferx": 1}},
    "without audience": {"aud": None},
    "another party": {"azp": "other"},
    "several audiences and no party": {"aud": [CLIENT, "x"], "azp": None},
    "without subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject with a line break": {"sub": "alice\nadmin"},
    "a subject that looks like another": {"sub": "аlice"},  # noqa: RUF001 (a Cyrillic letter)
    "a subject without end": {"sub": "a" * 5000},
    "a refresh token": {"typ": "Refresh"},
    "an id token": {"typ": "ID"},
}


@pytest.mark.parametrize("changes", WRONG_CLAIMS.values(), ids=WRONG_CLAIMS)
async def test_wrong_claims_are_refused(
    provider: Provider, oidc: Oidc, changes: dict[str, Any]
) -> None:
    changes = dict(changes)
    if changes.get("iss") == "ISSUER/x":
        changes["iss"] = f"{provider.issuer}/x"
    with pytest.raises(Unauthenticated):
        await oidc.verify(provider.sign(provider.claims(ROLE, **changes)))


def confused(provider: Provider) -> str:
    """Signed with HMAC under the public key, as if it were a password."""
    head, body = part({"alg": "HS256", "kid": "rsa", "typ": "JWT"}), part(provider.claims(ROLE))
    secret = provider.keys["rsa"].as_pem(private=False)
    mac = hmac.new(secret, f"{head}.{body}".encode(), hashlib.sha256).digest()
    return f"{head}.{body}.{part(mac)}"


def unsigned(provider: Provider, alg: str) -> str:
    head = part({"alg": alg, "kid": "rsa", "typ": "JWT"})
    return f"{head}.{part(provider.claims('/platform/admin'))}."


def tampered(provider: Provider) -> str:
    head, _, signature = provider.token(ROLE).split(".")
    return f"{head}.{part(provider.claims('/platform/admin'))}.{signature}"


def own_key(provider: Provider, **header: Any) -> str:
    """Signed with the attacker's own key, which the header offers."""
    mine = RSAKey.generate_key(2048, private=True)
    if "jwk" in header:
        header["jwk"] = mine.as_dict(private=False)
    return provider.sign(provider.claims("/platform/admin"), key=mine, **header)


def shaped(provider: Provider, head: Any) -> str:
    _, body, signature = provider.token(ROLE).split(".")
    return f"{head if isinstance(head, str) else part(head)}.{body}.{signature}"


FORGED: dict[str, Any] = {
    "algorithm confusion": confused,
    "no algorithm": lambda p: unsigned(p, "none"),
    "None in capitals": lambda p: unsigned(p, "nOnE"),
    "another body under the signature": tampered,
    "own key under a known id": own_key,
    "own key by address": lambda p: own_key(p, jku="http://127.0.0.1:1/keys"),
    "own key in the header": lambda p: own_key(p, jwk=True),
    "own certificate by address": lambda p: own_key(p, x5u="http://127.0.0.1:1/"),
    "a critical extension": lambda p: own_key(p, crit=["kid"]),
    "an id that is a path": lambda p: p.sign(
        p.claims(ROLE), kid="../../dev/null", key=p.keys["rsa"]
    ),
    "an id with SQL": lambda p: p.sign(p.claims(ROLE), kid="' OR 1=1 --", key=p.keys["rsa"]),
    "an id that is a list": lambda p: shaped(p, {"alg": "RS256", "kid": ["rsa"]}),
    "an id in an object": lambda p: shaped(p, {"alg": "RS256", "kid": {"$ne": ""}}),
    "without id": lambda p: p.sign(p.claims(ROLE), kid=None, key=p.keys["rsa"]),
    "an endless id": lambda p: p.sign(p.claims(ROLE), kid="k" * 5000, key=p.keys["rsa"]),
    "the id of a key of another kind": lambda p: p.sign(
        p.claims(ROLE), kid="ec", key=p.keys["rsa"]
    ),
    "an EC algorithm on an RSA key": lambda p: p.sign(
        p.claims(ROLE), "ES256", "rsa", key=ECKey.generate_key("P-256", private=True)
    ),
    "another curve": lambda p: p.sign(
        p.claims(ROLE), "ES384", "ec", key=ECKey.generate_key("P-384", private=True)
    ),
    "another Ed25519 key": lambda p: p.sign(
        p.claims(ROLE), "EdDSA", "ed", key=OKPKey.generate_key("Ed25519", private=True)
    ),
    "a symmetric key": lambda p: p.sign(
        p.claims(ROLE), "HS256", "rsa", key=OctKey.import_key("x" * 32)
    ),
    "another type": lambda p: p.sign(p.claims(ROLE), typ="secevent+jwt"),
    "a duplicate algorithm": lambda p: shaped(p, part(b'{"alg":"RS256","alg":"none","kid":"rsa"}')),
    "a header that is no JSON": lambda p: shaped(p, "AAAA"),
    "a header that is a list": lambda p: shaped(p, ["RS256"]),
    "a header that is nested deeply": lambda p: shaped(p, part(b"[" * 50_000)),
    "claims given twice": lambda p: p.sign(b'{"sub":"a","sub":"b"}'),
    "claims that are a list": lambda p: p.sign(b"[]"),
    "a cut signature": lambda p: p.token(ROLE)[:-8],
    "an empty signature": lambda p: p.token(ROLE).rsplit(".", 1)[0] + ".",
    "five parts": lambda p: p.token(ROLE) + ".a.b",
    "nothing": lambda p: "..",
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
async def test_forged_tokens_are_refused(provider: Provider, oidc: Oidc, forge: Any) -> None:
    before = len([path for path in provider.requests if "keys" not in path and "well" not in path])
    with pytest.raises(Unauthenticated) as refused:
        await oidc.verify(forge(provider))
    assert "valid" in refused.value.message, "which part was wrong is not told"
    after = len([path for path in provider.requests if "keys" not in path and "well" not in path])
    assert after == before, "a token cannot make the platform fetch something"


async def test_keys_rotate_and_withdrawn_ones_end() -> None:
    now = [1000.0]
    with Provider() as provider:
        keys = Jwks(provider.issuer, clock_s=lambda: now[0])
        oidc = Oidc(keys, provider.issuer, CLIENT)
        old = provider.token(ROLE)
        await oidc.verify(old)
        provider.keys["rsa2"] = RSAKey.generate_key(2048, private=True)
        new = provider.sign(provider.claims(ROLE), kid="rsa2")
        with pytest.raises(Unauthenticated):
            await oidc.verify(new)
        now[0] += 11
        await oidc.verify(new)
        del provider.keys["rsa"]
        now[0] += 601
        with pytest.raises(Unauthenticated):
            await oidc.verify(old)
        await oidc.verify(new)


async def test_made_up_ids_do_not_make_us_ask_again_and_again() -> None:
    with Provider() as provider:
        keys = Jwks(provider.issuer)
        oidc = Oidc(keys, provider.issuer, CLIENT)
        await oidc.verify(provider.token(ROLE))
        for number in range(50):
            forged = provider.sign(
                provider.claims(ROLE), kid=f"k{number}", key=provider.keys["rsa"]
            )
            with pytest.raises(Unauthenticated):
                await oidc.verify(forged)
        assert keys.fetches == 1


async def test_a_provider_that_is_away_is_missed_only_after_a_while() -> None:
    now = [1000.0]
    with Provider() as provider:
        keys = Jwks(provider.issuer, clock_s=lambda: now[0])
        oidc = Oidc(keys, provider.issuer, CLIENT)
        token = provider.token(ROLE)
        provider.broken = True
        with pytest.raises(Unavailable):
            await oidc.verify(token)
        provider.broken = False
        now[0] += 11
        await oidc.verify(token)
        provider.broken = True
        now[0] += 700
        await oidc.verify(token)
        now[0] += 3600
        with pytest.raises(Unavailable):
            await oidc.verify(token)


def test_keys_are_fetched_over_tls_only() -> None:
    with pytest.raises(ConfigError, match="https"):
        Jwks("http://keycloak:8080/realms/x")
    Jwks("http://keycloak:8080/realms/x", allow_http=True)
