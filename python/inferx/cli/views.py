"""pods, nodes and version: what is there and what it is doing.

Must never change anything.
"""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any

import click

from inferx.cli.client import Gateway, path
from inferx.cli.objects import find
from inferx.cli.options import Scope, function_key, output_option, scope_options, server_option
from inferx.cli.output import age, emit


@click.command()
@click.argument("function", required=False)
@click.option("-a", "--all", "everything", is_flag=True, help="Ended workers too.")
@scope_options
@output_option
@server_option
def pods(
    function: str | None,
    everything: bool,
    tenant: str,
    namespace: str | None,
    output: str,
    gateway: Gateway,
) -> None:
    """List workers: of one FUNCTION, of a namespace (-n), or of the whole tenant."""
    scope = Scope(tenant, namespace)
    if function is None:
        found = find(gateway, "pod", scope)
    else:
        key = function_key(function, scope)
        found = gateway.json("GET", path("pods", *key))
        if not found:  # says so when there is no such function
            gateway.json("GET", path("object", "function", *key))
    if not everything:
        found = [pod for pod in found if _status(pod).get("state") not in ("Terminated", "Failed")]
    headers = ("POD", "FUNCTION", "STATE", "FOR", "START", "NODE", "GPUS", "VRAM MB", "REASON")
    emit(output, found, headers, [_pod_row(pod) for pod in found], "no worker is running")


def _status(document: dict[str, Any]) -> dict[str, Any]:
    status: dict[str, Any] = document["object"].get("status") or {}
    return status


def _pod_row(pod: dict[str, Any]) -> tuple[object, ...]:
    spec, status = pod["object"].get("spec") or {}, _status(pod)
    since = status.get("since_ms")
    gpus = status.get("gpus") or []
    return (
        pod["name"],
        f"{pod['namespace']}/{spec.get('funcname', '-')}",
        status.get("state", "-"),
        age(time.time() * 1000 - since) if since else "-",
        status.get("start") or "-",
        spec.get("node", "-"),
        ",".join(str(index) for index in gpus) or "-",
        status.get("vram_mb", "-"),
        status.get("error") or status.get("reason") or "-",
    )


@click.command()
@output_option
@server_option
def nodes(output: str, gateway: Gateway) -> None:
    """List nodes, what they have, and what it is called."""
    found = gateway.json("GET", path("nodes"))
    headers = ("NODE", "STATE", "ADDRESS", "RUNTIME", "CPU", "MEM MB", "GPUS")
    emit(output, found, headers, [_node_row(node) for node in found], "no node is known")


def _node_row(node: dict[str, Any]) -> tuple[object, ...]:
    spec = node["object"].get("spec") or {}
    resources = spec.get("resources") or {}
    kinds: dict[tuple[object, object], int] = {}
    for gpu in resources.get("GPUs") or []:
        kind = (gpu.get("type", "GPU"), gpu.get("vram_mb", 0))
        kinds[kind] = kinds.get(kind, 0) + 1
    gpus = ", ".join(f"{count} x {kind} {vram} MB" for (kind, vram), count in kinds.items())
    return (
        node["name"],
        _status(node).get("state", "-"),
        f"{spec.get('address', '-')}:{spec.get('podmgr_port', '-')}",
        spec.get("runtime", "-"),
        resources.get("CPU", "-"),
        resources.get("Mem", "-"),
        gpus or "none",
    )


@click.command()
@output_option
def version(output: str) -> None:
    """Print the version of InferX and of the Python that runs it."""
    try:
        number = installed_version("inferx")
    except PackageNotFoundError:
        number = "0 (not installed, running from the sources)"
    value = {"inferx": number, "python": platform.python_version()}
    emit(output, value, ("NAME", "VERSION"), list(value.items()), "")
