"""The options that several commands share, and how names are written on the command line.

Must never talk to the gateway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from inferx.cli.client import Gateway, find_server
from inferx.domain.meta import PUBLIC, SYSTEM, Key, check_name

_F = TypeVar("_F", bound=Callable[..., Any])

DEFAULT_NAMESPACE = "default"
TYPES = {
    "tenant": "tenant", "tenants": "tenant",
    "namespace": "namespace", "namespaces": "namespace", "ns": "namespace",
    "function": "function", "functions": "function", "func": "function", "fn": "function",
    "funcpolicy": "funcpolicy", "policy": "funcpolicy", "policies": "funcpolicy",
    "pod": "pod", "pods": "pod", "node": "node", "nodes": "node",
    "snapshot": "snapshot", "snapshots": "snapshot",
}  # fmt: skip


@dataclass(frozen=True)
class Scope:
    """Tenant and namespace of the command; `namespace` is None when not given."""

    tenant: str
    namespace: str | None


def server_option(command: _F) -> _F:
    """--server, handed to the command as an open `Gateway` named `gateway`."""

    def opened(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> Gateway:
        gateway = Gateway(*find_server(value, Path.cwd()))
        ctx.call_on_close(gateway.close)
        return gateway

    return click.option(
        "--server",
        "gateway",
        metavar="URL",
        callback=opened,
        help="The gateway, such as http://127.0.0.1:4000.",
    )(command)


def scope_options(command: _F) -> _F:
    """-t and -n, checked."""

    def name(_ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        return None if value is None else check_name(value, f"--{parameter.name}")

    tenant = click.option(
        "-t", "--tenant", default=PUBLIC, show_default=True, callback=name, help="The tenant."
    )
    namespace = click.option("-n", "--namespace", callback=name, help="The namespace.")
    return tenant(namespace(command))


def output_option(command: _F) -> _F:
    """-o json|yaml|table."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", "yaml"]),
        default="table",
        show_default=True,
        help="How the result is printed.",
    )(command)


def object_type(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """The one name of a type given in singular or plural; a usage error that lists them."""
    if value is not None and value.lower() not in TYPES:
        known = ", ".join(dict.fromkeys(TYPES.values()))
        raise click.BadParameter(f"{value!r} is not a type; there are {known}")
    return None if value is None else TYPES[value.lower()]


def function_key(text: str, scope: Scope) -> Key:
    """`func`, `namespace/func` or `tenant/namespace/func` as a key."""
    parts = text.strip("/").split("/")
    if len(parts) > 3:
        raise click.UsageError(
            f"{text!r}: write a function as NAME, NAMESPACE/NAME or TENANT/NAMESPACE/NAME"
        )
    checked = [check_name(part, f"name {text!r}") for part in parts]
    defaults = [scope.tenant, scope.namespace or DEFAULT_NAMESPACE]
    tenant, namespace, name = [*defaults[: 3 - len(checked)], *checked]
    return tenant, namespace, name


def object_key(kind: str, text: str, scope: Scope) -> Key:
    """The key of an object written as for `function_key`; tenants and such know their home."""
    if kind in ("tenant", "node"):
        return SYSTEM, SYSTEM, check_name(text, "name")
    if kind == "namespace":
        tenant, slash, name = text.rpartition("/")
        return tenant if slash else scope.tenant, SYSTEM, check_name(name, "name")
    return function_key(text, scope)
