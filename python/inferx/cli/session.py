"""Logins that the command line keeps for the person at this terminal, one for each gateway.

Must never put a token where others may read it, nor send one to another server.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from inferx import config
from inferx.errors import ConfigError, Unauthenticated, Unavailable

EARLY_S = 30
TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Login:
    """Tokens of a provider; `expires_s` is the unix time at which the access token ends."""

    token_endpoint: str
    client_id: str
    access_token: str
    refresh_token: str
    expires_s: float


def file() -> Path:
    """Where logins are kept."""
    env = config.environment()
    folder = env.get("XDG_CONFIG_HOME") or str(
        Path(env.get("HOME") or "~").expanduser() / ".config"
    )
    return Path(folder) / "inferx" / "logins.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{path}: not readable; remove it and log in again") from error
    return found if isinstance(found, dict) else {}


def keep(server: str, login: Login | None) -> None:
    """Keep a login for a server, or forget it; readable for its owner only."""
    path = file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    logins = _read(path)
    if login is None:
        logins.pop(server, None)
    else:
        logins[server] = asdict(login)
    made = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(made, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        json.dump(logins, out)
    made.replace(path)


def token(server: str) -> str | None:
    """An access token for a server, renewed when it is about to end; None without a login.

    Raises `Unauthenticated` when the login is over.
    """
    entry = _read(file()).get(server)
    if entry is None:
        return None
    login = Login(**entry)
    if login.expires_s - EARLY_S > time.time():
        return login.access_token
    form = {
        "grant_type": "refresh_token",
        "client_id": login.client_id,
        "refresh_token": login.refresh_token,
    }
    status, answer = post(login.token_endpoint, form)
    if status != 200:
        raise Unauthenticated(f"the login at {server} is over; run `inferx login` again")
    renewed = login_of(answer, login.token_endpoint, login.client_id)
    keep(server, renewed)
    return renewed.access_token


def login_of(answer: dict[str, Any], token_endpoint: str, client_id: str) -> Login:
    """The tokens in a provider's answer."""
    try:
        expires_s = time.time() + float(answer.get("expires_in", 60))
        access = str(answer["access_token"])
    except (KeyError, TypeError, ValueError) as error:
        raise Unavailable(f"{token_endpoint} answered no token") from error
    refresh = str(answer.get("refresh_token", ""))
    return Login(token_endpoint, client_id, access, refresh, expires_s)


def post(url: str, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Status and JSON that a provider answers to a form."""
    try:
        answer = httpx.post(url, data=form, timeout=TIMEOUT_S)
        content = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable(f"the identity provider at {url} does not answer as one") from error
    return answer.status_code, content if isinstance(content, dict) else {}


def describe(url: str) -> dict[str, Any]:
    """What a provider says about itself."""
    try:
        answer = httpx.get(f"{url.rstrip('/')}/.well-known/openid-configuration", timeout=TIMEOUT_S)
        answer.raise_for_status()
        content = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable(f"the identity provider at {url} does not answer as one") from error
    if not isinstance(content, dict) or content.get("issuer") != url:
        raise Unavailable(f"the identity provider at {url} says it is another one")
    return content
