"""The `inferx` command line: what there is to call, and how an error reaches the user.

Must never show a traceback for a mistake of the user, nor import a command that is not called.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from inferx.errors import InferxError, Unavailable

EXIT_ERROR, EXIT_USAGE, EXIT_UNREACHABLE = 1, 2, 3

# name -> (module:attribute, one line for the help, so that `inferx --help` imports nothing)
COMMANDS = {
    "up": ("inferx.up.command:up", "Run the whole platform on this machine until Ctrl-C."),
    "apply": ("inferx.cli.objects:apply", "Create or update objects from manifests."),
    "get": ("inferx.cli.objects:get", "Show one object, or all of a type."),
    "list": ("inferx.cli.objects:list_", "List the objects of a type."),
    "delete": ("inferx.cli.objects:delete", "Delete objects by name or by manifest."),
    "call": ("inferx.cli.calls:call", "Call a function and print its answer."),
    "logs": ("inferx.cli.calls:logs", "Print the log of a function's worker."),
    "pods": ("inferx.cli.views:pods", "List workers: state, start, GPU memory."),
    "nodes": ("inferx.cli.views:nodes", "List nodes and their GPUs."),
    "doctor": ("inferx.cli.doctor.command:doctor", "Check a node or a cluster, and what to do."),
    "login": ("inferx.cli.login:login", "Log in at the platform's identity provider."),
    "logout": ("inferx.cli.login:logout", "Forget the login."),
    "whoami": ("inferx.cli.login:whoami", "Show who the platform takes you for."),
    "key": ("inferx.cli.keys:key", "Make, list and revoke API keys."),
    "audit": ("inferx.cli.audit:audit", "Show who did what, and when."),
    "snapshot": ("inferx.cli.snapshots:snapshot", "Check a node's snapshots."),
    "backup": ("inferx.cli.backups:backup", "Write all objects into a file."),
    "restore": ("inferx.cli.backups:restore", "Bring the objects of a backup back."),
    "run": ("inferx.up.run:run", "Run one service of the platform in the foreground."),
    "version": ("inferx.cli.views:version", "Print the version of InferX."),
}


class UserError(click.ClickException):
    """An `InferxError` on its way to the terminal."""

    exit_code = EXIT_ERROR


class UnreachableError(UserError):
    """The platform cannot be reached; programs tell this from a refusal by the exit code."""

    exit_code = EXIT_UNREACHABLE


class Commands(click.Group):
    """A group that imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the known commands in the error."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise click.UsageError(f"no command {args[0]!r}; there are {known}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line for each command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an `InferxError` becomes one line and an exit code."""
        try:
            return super().invoke(ctx)
        except InferxError as error:
            kind = UnreachableError if isinstance(error, Unavailable) else UserError
            raise kind(error.message) from error


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A first try: `inferx up` in one terminal, `inferx apply -f examples/` in another, "
    "then `inferx call demo/minilm`.",
)
def main() -> None:
    """InferX: many models on few GPUs, each answering in about a second.

    Commands find the platform by --server, else the environment's INFERX_SERVER, else the
    `inferx up` that runs in this folder (or one above), else http://127.0.0.1:4000.
    They send the API key in INFERX_API_KEY, else the token of `inferx login`.
    """
