"""login, logout and whoami.

Must never take a password from the command line, nor print a token.
"""

from __future__ import annotations

import time
from typing import Any

import click

from inferx.cli import session
from inferx.cli.client import Gateway
from inferx.cli.options import output_option, server_option
from inferx.cli.output import emit
from inferx.errors import NotSupported, Unauthenticated, Unavailable

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
WAIT_S_MAX = 600.0
INTERVAL_S_MAX = 30.0


@click.command()
@click.option("-u", "--user", help="Log in with this name and a password, which is asked for.")
@server_option
def login(user: str | None, gateway: Gateway) -> None:
    """Log in at the platform's identity provider.

    Without --user in a browser, here or on another device; the code to enter is printed.
    """
    found = gateway.json("GET", "/login")
    if not found["issuer"]:
        raise NotSupported(f"{gateway.url} has no identity provider; use an API key")
    described = session.describe(found["issuer"])
    endpoint, client_id = str(described["token_endpoint"]), str(found["client_id"])
    if user is None:
        answer = _by_device(described, endpoint, client_id)
    else:
        password = click.prompt("Password", hide_input=True, err=True)
        answer = _by_password(endpoint, client_id, user, password)
    session.keep(gateway.url, session.login_of(answer, endpoint, client_id))
    click.echo(f"logged in at {gateway.url}", err=True)


def _by_password(endpoint: str, client_id: str, user: str, password: str) -> dict[str, Any]:
    form = {
        "grant_type": "password",
        "client_id": client_id,
        "username": user,
        "password": password,
        "scope": "openid",
    }
    status, answer = session.post(endpoint, form)
    if status != 200:
        why = answer.get("error_description") or answer.get("error") or f"HTTP {status}"
        raise Unauthenticated(f"the login failed: {why}")
    return answer


def _by_device(described: dict[str, Any], endpoint: str, client_id: str) -> dict[str, Any]:
    url = described.get("device_authorization_endpoint")
    if not isinstance(url, str):
        raise NotSupported("the identity provider has no login by device; use --user")
    status, begun = session.post(url, {"client_id": client_id, "scope": "openid"})
    if status != 200:
        raise Unavailable(f"the login could not begin: {begun.get('error', f'HTTP {status}')}")
    click.echo(f"open {begun['verification_uri']} and enter {begun['user_code']}", err=True)
    interval_s = float(begun.get("interval", 5))
    deadline = time.monotonic() + min(float(begun.get("expires_in", 300)), WAIT_S_MAX)
    form = {"grant_type": DEVICE_GRANT, "client_id": client_id, "device_code": begun["device_code"]}
    while time.monotonic() < deadline:
        time.sleep(interval_s)
        status, answer = session.post(endpoint, form)
        if status == 200:
            return answer
        problem = answer.get("error")
        if problem == "slow_down":
            interval_s = min(interval_s + 5, INTERVAL_S_MAX)
        elif problem != "authorization_pending":
            raise Unauthenticated(f"the login failed: {problem or f'HTTP {status}'}")
    raise Unauthenticated("nobody entered the code in time")


@click.command()
@server_option
def logout(gateway: Gateway) -> None:
    """Forget the login at this gateway."""
    session.keep(gateway.url, None)
    click.echo(f"logged out of {gateway.url}", err=True)


@click.command()
@output_option
@server_option
def whoami(output: str, gateway: Gateway) -> None:
    """Show who the platform takes you for, and your roles."""
    found = gateway.json("GET", "/whoami")
    rows = [
        (found["name"], found["scope"], it["role"], it["tenant"] or "*", it["namespace"] or "*")
        for it in found["grants"]
    ]
    emit(output, found, ("NAME", "SCOPE", "ROLE", "TENANT", "NAMESPACE"), rows, found["name"])
