"""audit: who did what, and when.

Must never change anything.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.parse import urlencode

import click

from inferx.cli.client import Gateway, error_of, path
from inferx.cli.options import output_option, server_option
from inferx.cli.output import emit

TABLES = ("requests", "changes", "pods", "failures", "snapshots", "logins")
_COLUMNS = {
    "requests": ("principal", "method", "function", "status", "start", "wait_ms", "total_ms"),
    "changes": ("principal", "action", "kind", "name", "revision", "diff"),
    "pods": ("function", "revision", "pod", "node", "state", "reason"),
    "snapshots": ("function", "revision", "snapshot", "node", "state", "reason"),
    "logins": ("principal", "action", "target", "outcome"),
}
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
CELL_CHARS_MAX = 80


def _ago(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,9})([smhd])", value)
    if match is None:
        raise click.BadParameter(f"{value!r}: expected a time such as 30m, 12h or 7d")
    return int(time.time() * 1000) - int(match[1]) * _UNITS_MS[match[2]]


@click.command()
@click.argument("table", type=click.Choice(TABLES))
@click.option("-t", "--tenant", default="", help="Of this tenant.")
@click.option("-n", "--namespace", default="", help="Of this namespace.")
@click.option("--function", default="", help="Of this function.")
@click.option("--principal", help="Of this caller, such as key:0123456789ab.")
@click.option("--status", type=int, help="With this HTTP status.")
@click.option("--since", callback=_ago, help="Not older than this, such as 2h.")
@click.option("--until", callback=_ago, help="Older than this.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("-f", "--follow", is_flag=True, help="Show new rows as they come, as JSON lines.")
@output_option
@server_option
def audit(
    table: str,
    tenant: str,
    namespace: str,
    function: str,
    follow: bool,
    output: str,
    gateway: Gateway,
    **filters: Any,
) -> None:
    """Show the audit of TABLE, newest first."""
    if (namespace and not tenant) or (function and not namespace):
        raise click.UsageError("give the tenant with a namespace, and both with a function")
    chosen = {name: value for name, value in filters.items() if value is not None}
    if table == "failures":
        table, chosen["state"] = "pods", "Failed"
    route = path("audit", table, *filter(None, (tenant, namespace, function)))
    if follow:
        _follow(gateway, f"{route}?{urlencode({**chosen, 'follow': 'true'})}")
        return
    found = gateway.json("GET", f"{route}?{urlencode(chosen)}")
    columns = _COLUMNS[table]
    headers = ("TIME", *(column.upper() for column in columns))
    emit(output, found, headers, [_row(each, columns) for each in found], "nothing")


def _row(each: dict[str, Any], columns: tuple[str, ...]) -> tuple[str, ...]:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["at_ms"] / 1000))
    cells = []
    for column in columns:
        value = each.get(column, "")
        text = json.dumps(value) if isinstance(value, list) else str(value)
        text = " ".join(text.split())
        cells.append(text if len(text) <= CELL_CHARS_MAX else f"{text[: CELL_CHARS_MAX - 1]}…")
    return (at, *cells)


def _follow(gateway: Gateway, route: str) -> None:
    with gateway.stream("GET", route) as answer:
        if answer.is_error:
            answer.read()
            raise error_of(answer)
        for line in answer.iter_lines():
            if line:
                click.echo(line)
