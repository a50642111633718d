"""key create, list and revoke.

Must never print a key but the one that was just made.
"""

from __future__ import annotations

import re
import time
from typing import Any

import click

from inferx.cli.client import Gateway, path
from inferx.cli.options import output_option, server_option
from inferx.cli.output import age, emit
from inferx.domain.apikey import ROLES, SCOPES

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _seconds(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int:
    if value is None:
        return 0
    match = re.fullmatch(r"(\d{1,9})([smhd])", value)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter(f"{value!r}: expected a time such as 30d, 12h or 90m")
    return int(match[1]) * _UNITS_S[match[2]]


@click.group()
def key() -> None:
    """Make, list and revoke API keys."""


@key.command()
@click.option("-t", "--tenant", default="", help="Restrict it to this tenant.")
@click.option("-n", "--namespace", default="", help="Restrict it to this namespace of the tenant.")
@click.option("--scope", type=click.Choice(SCOPES), default="inference", show_default=True)
@click.option("--role", type=click.Choice(ROLES), default="user", show_default=True)
@click.option("--expires-in", "expires_in_s", callback=_seconds, help="Such as 30d; else never.")
@click.option("--note", default="", help="What it is for.")
@output_option
@server_option
def create(
    tenant: str,
    namespace: str,
    scope: str,
    role: str,
    expires_in_s: int,
    note: str,
    output: str,
    gateway: Gateway,
) -> None:
    """Make a key and print it: the only time that it is shown."""
    body = {
        "tenant": tenant,
        "namespace": namespace,
        "scope": scope,
        "role": role,
        "expires_in_s": expires_in_s,
        "note": note,
    }
    made = gateway.json("POST", "/apikeys/", body)
    if output == "table":
        click.echo(made["key"])
        click.echo(f"key {made['id']}: {_rights(made)}; it is not shown again", err=True)
    else:
        emit(output, made, (), [], "")


@key.command(name="list")
@output_option
@server_option
def list_(output: str, gateway: Gateway) -> None:
    """List the keys that you may see."""
    found = gateway.json("GET", "/apikeys/")
    headers = ("ID", "RIGHTS", "BY", "AGE", "USED", "EXPIRES", "NOTE")
    emit(output, found, headers, [_row(each) for each in found], "no keys")


def _rights(each: dict[str, Any]) -> str:
    place = "/".join(filter(None, (each["tenant"], each["namespace"]))) or "everywhere"
    return f"{each['scope']}, {each['role']} of {place}"


def _row(each: dict[str, Any]) -> tuple[object, ...]:
    expires = each["expires_ms"]
    if not expires:
        ends = "never"
    elif expires <= time.time() * 1000:
        ends = "over"
    else:
        ends = time.strftime("%Y-%m-%d %H:%M", time.localtime(expires / 1000))
    now_ms = time.time() * 1000
    used = f"{age(now_ms - each['last_used_ms'])} ago" if each["last_used_ms"] else "never"
    made = age(now_ms - each["created_ms"])
    return (each["id"], _rights(each), each["created_by"], made, used, ends, each["note"])


@key.command()
@click.argument("key_id")
@server_option
def revoke(key_id: str, gateway: Gateway) -> None:
    """Revoke the key KEY_ID and all that it made."""
    ended = gateway.json("DELETE", path("apikey", key_id))["revoked"]
    click.echo(f"revoked {', '.join(ended)}")
