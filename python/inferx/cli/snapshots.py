"""snapshot fsck: read every byte of a directory of snapshots and say what is wrong.

Must never change anything: the directory may be in use by a node agent.
"""

from __future__ import annotations

from pathlib import Path

import click

from inferx._ext import fsck_snapshots


@click.group()
def snapshot() -> None:
    """Check a node's snapshots."""


@snapshot.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
def fsck(directory: Path) -> None:
    """Check the snapshots in DIRECTORY; exits with 1 when one of them is not sound."""
    try:
        found = fsck_snapshots(directory)
    except OSError as error:
        raise click.ClickException(f"{directory}: {error}") from error
    for id, wrong in sorted(found.items()):
        click.echo(f"{id}: {wrong or 'sound'}")
    damaged = sum(wrong is not None for wrong in found.values())
    click.echo(f"{len(found)} snapshots, {damaged} damaged")
    if damaged:
        raise SystemExit(1)
