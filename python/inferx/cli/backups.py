"""backup and restore: the objects of a platform in one file.

Must never go through a gateway: a backup has to work when nothing but the state service does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from inferx import backup as backups
from inferx.cli.client import running_here
from inferx.config import load
from inferx.errors import Unavailable

_config = click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The node.json that names the state services; without it that of the `inferx up` that "
    "runs in this folder, else the environment's.",
)
_state = click.option(
    "--state", "addrs", multiple=True, metavar="HOST:PORT", help="A state service instead of that."
)
_file = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


_T = TypeVar("_T")


def _addresses(config_file: Path | None, addrs: tuple[str, ...]) -> tuple[str, ...]:
    if addrs:
        return addrs
    state = running_here(Path.cwd())
    if config_file is None and state is not None:
        config_file = state.with_name("node.json")
    return load(config_file).state_svc_addrs


def _run(work: Coroutine[Any, Any, _T], addrs: tuple[str, ...]) -> _T:
    try:
        return asyncio.run(work)
    except Unavailable as error:
        raise Unavailable(
            f"no state service answers at {', '.join(addrs)}; name one with --state or --config "
            f"({error.message})"
        ) from error


@click.command()
@_file
@_config
@_state
def backup(file: Path, config_file: Path | None, addrs: tuple[str, ...]) -> None:
    """Write all objects and the snapshot catalogue into FILE, and read it back.

    Tenants, namespaces, policies, functions, API keys (as hashes) and the snapshot catalogue, all
    as of one moment. FILE is for its owner's eyes only.
    """
    addrs = _addresses(config_file, addrs)
    done = _run(backups.backup(addrs, file), addrs)
    counts = ", ".join(f"{count} {kind}" for kind, count in done.objects.items() if count)
    click.echo(f"{file}: {counts or 'nothing'}, as of revision {done.revision}; verified")


@click.command()
@_file
@_config
@_state
@click.option("--replace", is_flag=True, help="Overwrite objects that exist with another content.")
def restore(file: Path, config_file: Path | None, addrs: tuple[str, ...], replace: bool) -> None:
    """Create the objects of FILE that are not there, after checking all of it.

    Objects get new revisions: workers and snapshots of before belong to the old ones.
    """
    addrs = _addresses(config_file, addrs)
    done = _run(backups.restore(addrs, file, replace), addrs)
    click.echo(
        f"{file}: {done.created} created, {done.replaced} replaced, {done.unchanged} unchanged; "
        "verified"
    )
