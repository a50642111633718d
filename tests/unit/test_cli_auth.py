"""Keys and logins on the command line, against a real gateway and a real provider."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from inferx.cli import main, session
from tests.helpers.gateway_kit import ADMIN_KEY, Platform, platform
from tests.helpers.oidc_provider import Provider

Run = Callable[..., "asyncio.Future[Result]"]


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[Provider]:
    with Provider() as found:
        yield found


@pytest_asyncio.fixture
async def up(
    tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Platform]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("INFERX_API_KEY", raising=False)
    async with platform(tmp_path, auth=True, keycloakconfig={"issuer": provider.issuer}) as found:
        yield found


async def run(up: Platform, *arguments: str, key: str = "", typed: str = "") -> Result:
    """Run `inferx` in a thread, as if typed in a terminal."""
    server = ["--server", str(up.http.base_url).rstrip("/")]
    env = {"INFERX_API_KEY": key} if key else {}
    return await asyncio.to_thread(
        lambda: CliRunner().invoke(main, [*arguments, *server], env=env, input=typed)
    )


async def test_a_key_is_made_used_listed_and_revoked(up: Platform) -> None:
    made = await run(
        up, "key", "create", "-t", "public", "-n", "demo", "--scope", "read", "--note", "n",
        "--expires-in", "30d", key=ADMIN_KEY,
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    assert token.startswith("ix_")
    assert (await run(up, "list", "functions", "-n", "demo", key=token)).exit_code == 0
    refused = await run(up, "nodes", key=token)
    assert (refused.exit_code, "forbidden" in refused.stderr) == (1, True)
    listed = await run(up, "key", "list", key=ADMIN_KEY)
    assert "read, user of public/demo" in listed.stdout
    assert token not in listed.stdout
    key_id = listed.stdout.splitlines()[1].split()[0]
    assert (await run(up, "key", "revoke", key_id, key=ADMIN_KEY)).exit_code == 0
    refused = await run(up, "list", "functions", "-n", "demo", key=token)
    assert (refused.exit_code, "unauthenticated" in refused.stderr) == (1, True)
    assert token not in refused.output


async def test_login_with_a_password_is_kept_privately_and_renewed(
    up: Platform, provider: Provider
) -> None:
    provider.passwords["bob"] = "secret"
    provider.roles = ["/namespace/admin/public/demo"]
    provider.lifetime_s = 1
    wrong = await run(up, "login", "-u", "bob", typed="wrong\n")
    assert (wrong.exit_code, "Invalid credentials" in wrong.stderr) == (1, True)
    right = await run(up, "login", "-u", "bob", typed="secret\n")
    assert right.exit_code == 0, right.output
    assert "secret" not in right.output
    file = session.file()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (before,) = json.loads(file.read_text()).values()
    shown = await run(up, "whoami", "-o", "json")
    assert json.loads(shown.stdout)["grants"] == [
        {"role": "admin", "tenant": "public", "namespace": "demo"}
    ]
    (after,) = json.loads(file.read_text()).values()
    assert after["refresh_token"] != before["refresh_token"], "the short token was renewed"
    assert (await run(up, "logout")).exit_code == 0
    refused = await run(up, "whoami")
    assert (refused.exit_code, "unauthenticated" in refused.stderr) == (1, True)
    assert "set INFERX_API_KEY, or run `inferx login`" in refused.stderr


async def test_login_by_device_waits_for_the_person(up: Platform, provider: Provider) -> None:
    provider.roles = ["/platform/admin"]
    provider.approved.set()
    done = await run(up, "login")
    assert done.exit_code == 0, done.output
    assert "ABCD-EFGH" in done.stderr
    assert (await run(up, "nodes")).exit_code == 0
