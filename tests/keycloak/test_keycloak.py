"""Tokens, logins and rotating keys of a real Keycloak: `make keycloak-test`."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from click.testing import CliRunner

from inferx.auth import Grant, Role
from inferx.auth.authenticator import now_ms
from inferx.auth.jwks import ASK_EVERY_S, Jwks
from inferx.auth.oidc import Oidc
from inferx.cli import main
from inferx.errors import Unauthenticated
from tests.helpers.gateway_kit import Platform, bearer, platform

from .server import CLIENT, REALM, USER, Keycloak

ROTATED_S = 60.0


@pytest.fixture(scope="module")
def keycloak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keycloak]:
    with Keycloak(tmp_path_factory.mktemp("keycloak")) as found:
        yield found


@pytest_asyncio.fixture
async def up(
    keycloak: Keycloak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Platform]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("INFERX_API_KEY", raising=False)
    provider = {"url": keycloak.url, "realm": REALM, "clientId": CLIENT}
    async with platform(tmp_path, auth=True, keycloakconfig=provider) as found:
        await found.put("tenant", "system", "system", "acme", spec={})
        await found.put("namespace", "acme", "system", "n", spec={})
        await found.put("namespace", "acme", "system", "other", spec={})
        yield found


def verifier(keycloak: Keycloak, **options: object) -> Oidc:
    return Oidc(Jwks(keycloak.issuer), keycloak.issuer, CLIENT, **options)  # type: ignore[arg-type]


async def test_a_token_stands_for_a_person_with_the_roles_of_realm_and_client(
    keycloak: Keycloak,
) -> None:
    found = await verifier(keycloak).verify(keycloak.tokens()["access_token"])
    assert found.name == f"user:{keycloak.user}"
    assert set(found.grants) == {Grant(Role.USER, "acme"), Grant(Role.ADMIN, "acme", "n")}


async def test_other_tokens_of_the_same_server_are_refused(keycloak: Keycloak) -> None:
    oidc, ours = verifier(keycloak), keycloak.tokens()
    head, body, signature = ours["access_token"].split(".")
    wrong = {
        "an id token": ours["id_token"],
        "a refresh token": ours["refresh_token"],
        "of a client that is not told of us": keycloak.tokens("other")["access_token"],
        "without signature": f"{head}.{body}.",
        "with another's signature": f"{head}.{body}.{ours['id_token'].split('.')[2]}",
        "cut": f"{head}.{body}.{signature[:-8]}",
    }
    taken = []
    for what, token in wrong.items():
        try:
            taken.append((what, await oidc.verify(token)))
        except Unauthenticated:
            continue
    assert taken == []
    late = verifier(keycloak, clock_ms=lambda: now_ms() + 3_600_000)
    with pytest.raises(Unauthenticated):
        await late.verify(ours["access_token"])
    master = Oidc(Jwks(keycloak.issuer), keycloak.issuer.replace(REALM, "master"), CLIENT)
    with pytest.raises(Unauthenticated):
        await master.verify(ours["access_token"])


async def inferx(up: Platform, *arguments: str, typed: str = "") -> str:
    """The output of a command, typed in a terminal."""
    server = ["--server", str(up.http.base_url).rstrip("/")]
    done = await asyncio.to_thread(
        lambda: CliRunner().invoke(main, [*arguments, *server], input=typed)
    )
    assert done.exit_code == 0, done.output
    return done.output


async def test_login_by_password_gives_the_rights_of_the_roles(
    keycloak: Keycloak, up: Platform
) -> None:
    await inferx(up, "login", "--user", USER, typed=f"{keycloak.password}\n")
    shown = await inferx(up, "whoami")
    assert all(word in shown for word in (keycloak.user, "acme", "admin", "user"))
    headers = bearer(keycloak.tokens()["access_token"])
    manifest = {
        "type": "function", "tenant": "acme", "namespace": "n", "name": "f",
        "object": {"spec": {"image": "x", "resources": {"CPU": 100, "Mem": 100}}},
    }  # fmt: skip
    # Admin of acme/n, user of the rest of acme, nobody elsewhere.
    for place, name, expected in (
        ({}, "f", 201), ({"namespace": "other"}, "f", 403),
        ({"tenant": "public", "namespace": "demo"}, "f", 403),
    ):  # fmt: skip
        made = await up.http.put("/object/", json={**manifest, **place, "name": name},
                                 headers=headers)  # fmt: skip
        assert made.status_code == expected, made.text
    assert (await up.http.get("/nodes/", headers=headers)).status_code == 403


async def test_login_by_device(keycloak: Keycloak, up: Platform) -> None:
    server = ["--server", str(up.http.base_url).rstrip("/")]
    printed: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def echo(text: str, err: bool = False) -> None:
        if found := re.search(r"open (\S+) and enter (\S+)", text):
            loop.call_soon_threadsafe(printed.set_result, (found[1], found[2]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inferx.cli.login.click.echo", echo)
        patch.setattr("inferx.cli.login.WAIT_S_MAX", 120.0)
        logging_in = asyncio.create_task(
            asyncio.to_thread(lambda: CliRunner().invoke(main, ["login", *server]))
        )
        address, code = await asyncio.wait_for(printed, 30)
        await asyncio.to_thread(keycloak.approve, address, code)
        done = await asyncio.wait_for(logging_in, 60)
    assert done.exit_code == 0, done.output
    assert keycloak.user in await inferx(up, "whoami")


async def test_keys_rotate_and_a_withdrawn_one_is_trusted_no_longer(keycloak: Keycloak) -> None:
    oidc = verifier(keycloak)
    before = keycloak.tokens()["access_token"]
    await oidc.verify(before)
    withdraw = keycloak.rotate()
    after = keycloak.tokens()["access_token"]
    assert before.split(".")[0] != after.split(".")[0], "signed with another key"
    deadline = time.monotonic() + ASK_EVERY_S + ROTATED_S
    while True:
        try:
            await oidc.verify(after)
            break
        except Unauthenticated:
            assert time.monotonic() < deadline, "the new key was not taken up"
            await asyncio.sleep(0.5)
    await oidc.verify(before)
    withdraw()
    # As a gateway does that starts now, or whose keys are ten minutes old.
    fresh = verifier(keycloak)
    await fresh.verify(after)
    with pytest.raises(Unauthenticated):
        await fresh.verify(before)
