"""The command `inferx doctor`: runs the checks and prints what they found.

Must never end with success when something does not work.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from inferx import config
from inferx.cli.client import Gateway
from inferx.cli.doctor import cluster, gpu, kernel, runtime, storage
from inferx.cli.doctor.machine import Finding, Machine, warn
from inferx.cli.options import output_option, server_option
from inferx.cli.output import emit

SHOWN = {"ok": "ok", "warn": "WARN", "fail": "FAIL", "none": "-"}


@click.command()
@click.argument("what", type=click.Choice(["node", "cluster", "all"]), default="node")
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="node.json of this node; without it defaults and the environment.",
)
@output_option
@server_option
@click.pass_context
def doctor(
    ctx: click.Context, what: str, config_file: Path | None, output: str, gateway: Gateway
) -> None:
    """Check this NODE, a running CLUSTER (its gateway, nodes and etcd), or ALL of it.

    Says for each finding what to do. Ends with 1 when something does not work; warnings do not
    count.
    """
    settings = config.load(config_file)
    found: list[Finding] = []
    if what in ("node", "all"):
        found += node(Machine(), settings)
    if what in ("cluster", "all"):
        found += cluster.check(settings, gateway)
    rows = [(SHOWN[one.level], one.check, one.found, one.advice) for one in found]
    emit(output, [one.to_dict() for one in found], ("", "CHECK", "FOUND", "WHAT TO DO"), rows, "")
    if any(one.level == "fail" for one in found):
        ctx.exit(1)


def node(machine: Machine, settings: config.NodeConfig) -> Iterator[Finding]:
    """All findings about one machine, in the order in which they should be dealt with."""
    for warning in settings.warnings:
        yield warn("configuration", warning, "correct the entry, or leave it out")
    yield from kernel.check(machine, settings)
    yield from gpu.check(machine)
    yield from runtime.check(machine, settings)
    yield from storage.check(settings)
