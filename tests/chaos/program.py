"""What the programs of the chaos cluster do alike: a folder, one JSON line, the exit code.

Must never judge anything.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, Protocol


class Judged(Protocol):
    """A run that is over, or to come; without `problems` all went well."""

    report: dict[str, Any]
    problems: list[str]

    async def go(self) -> None:
        """Start, break, judge, stop."""


def add_keep(parser: ArgumentParser) -> None:
    """The option of `folder_of`."""
    parser.add_argument("--keep", type=Path, help="a folder for logs, which stays")


def folder_of(keep: Path | None, name: str) -> Path:
    """Where the cluster lives; a folder with logs of another run is refused."""
    folder = keep or Path(tempfile.mkdtemp(prefix=f"inferx-{name}-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"--keep {folder}: not empty")
    return folder


def carry_out(run: Judged, folder: Path, keep: Path | None) -> int:
    """The exit code; the folder goes unless it is to be kept."""
    try:
        asyncio.run(run.go())
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(run.report))
    for problem in run.problems:
        print(problem, file=sys.stderr)
    return 1 if run.problems else 0
