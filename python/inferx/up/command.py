"""The command `inferx up`.

Must never do more than turn a command line into a call of the supervisor.
"""

from __future__ import annotations

from pathlib import Path

import click

from inferx import config
from inferx.up import supervisor
from inferx.up.settings import SIMULATED_DEFAULT, Settings

# Of the configuration's runtimes, those that the node agent has.
AVAILABLE_RUNTIMES = ("process", "runc", "containerd", "docker")


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".inferx"),
    show_default=True,
    help="Where store, logs and workers are kept.",
)
@click.option("--port", type=int, default=4000, show_default=True, help="Of the gateway.")
@click.option(
    "--gpus",
    default="auto",
    show_default=True,
    help=f"auto, real, or COUNTxMB for simulated ones, such as {SIMULATED_DEFAULT}.",
)
@click.option(
    "--runtime",
    type=click.Choice(AVAILABLE_RUNTIMES),
    default="process",
    show_default=True,
    help="How workers are run: as processes, or in containers: of runc or containerd, as root, or "
    "of Docker.",
)
@click.option(
    "--idle-park-ms",
    type=click.IntRange(min=0),
    default=None,
    help="An idle worker gives its GPU back after this time; without it what is known of each "
    "function's calls decides.",
)
@click.option(
    "--listener",
    type=click.Choice(config.LISTENERS),
    default="rust",
    show_default=True,
    help="Who reads the clients' requests: the data plane itself, or Granian for it.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option("--auth", is_flag=True, help="Ask callers for a key; see .inferx/admin-key.")
@click.option("-v", "--verbose", is_flag=True, help="Show the logs of the services here, too.")
def up(
    directory: Path,
    port: int,
    gpus: str,
    runtime: str,
    idle_park_ms: int | None,
    listener: str,
    log_level: str,
    log_format: str,
    auth: bool,
    verbose: bool,
) -> None:
    """Run the whole platform on this machine until Ctrl-C.

    Starts the state service, the scheduler, the node agent and the gateway, starts them again when
    they fail, and stops all of them and every worker at the end. Objects are kept in --dir.
    """
    settings = Settings(
        directory,
        port,
        gpus,
        runtime,
        idle_park_ms,
        log_level,
        log_format,
        verbose,
        auth,
        listener,
    )
    supervisor.run(settings, lambda line: click.echo(f"inferx: {line}", err=True))
