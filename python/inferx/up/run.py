"""The command `inferx run`.

Must never do more than turn a command line into a call of a service, nor import what no service
needs: each of its imports is waited for at every start.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import click

from inferx import config
from inferx.errors import ConfigError


@click.command()
@click.argument("service", required=False)
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="node.json; without it defaults and the environment.",
)
@click.option(
    "--listener", type=click.Choice(config.LISTENERS), help="Of the gateway; overrides node.json."
)
@click.option("--supervised", is_flag=True, hidden=True, help="End when standard input closes.")
def run(
    service: str | None, config_file: Path | None, listener: str | None, supervised: bool
) -> None:
    """Run one SERVICE in the foreground: statesvc, scheduler, nodeagent or gateway.

    Without SERVICE the environment's RUN_SERVICE says which.
    """
    if supervised:
        _end_with_supervisor()
    settings = config.load(config_file)
    if listener is not None:
        settings = replace(settings, listener=listener)
    name = config.service_name(service) if service else settings.run_service
    if not name:
        raise ConfigError(f"say which service: {', '.join(config.SERVICES)}, or set RUN_SERVICE")
    sys.exit(import_module(f"services.{name}").run(settings))


def _end_with_supervisor() -> None:
    """The supervisor holds the other end of standard input: end of file means that it died."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()
