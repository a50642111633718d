"""The machine as the checks see it: files below a root, programs, and what a check found.

Must never be used for anything but reading.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "warn", "fail", "none"]
PROGRAM_SECONDS_MAX = 20.0
Version = tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """What one check found; `advice` says what to do, and is empty when all is well.

    `none` means that the check does not apply here, such as GPUs on a machine without any.
    """

    check: str
    level: Level
    found: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", found)


def none(check: str, found: str) -> Finding:
    """Nothing to check here."""
    return Finding(check, "none", found)


def warn(check: str, found: str, advice: str) -> Finding:
    """It works, but not as well as it could."""
    return Finding(check, "warn", found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    """It does not work, or is not safe."""
    return Finding(check, "fail", found, advice)


class Machine:
    """Files are looked up below `root` and programs in `path`, which tests replace."""

    def __init__(self, root: Path = Path("/"), path: str | None = None) -> None:
        self.root = root
        self.path = path

    def file(self, name: str) -> Path:
        """The file at an absolute path."""
        return self.root / name.lstrip("/")

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return self.file(name).exists()

    def text(self, name: str) -> str | None:
        """The file's text; None when it is not there or may not be read."""
        try:
            return self.file(name).read_text(errors="replace").strip()
        except OSError:
            return None

    def program(self, *names: str) -> str | None:
        """The first of these programs (or absolute paths) that is installed."""
        for name in names:
            if name.startswith("/"):
                if self.file(name).is_file():
                    return str(self.file(name))
            elif found := shutil.which(name, path=self.path):
                return found
        return None

    def output(self, command: Sequence[str]) -> tuple[int, str]:
        """Exit code and output of a program that only shows something; 127 when it cannot run."""
        try:
            done = subprocess.run(  # noqa: S603 - programs found on this machine's own path
                command, capture_output=True, text=True, timeout=PROGRAM_SECONDS_MAX, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return 127, str(error)
        return done.returncode, done.stdout + done.stderr


def version_in(text: str) -> Version | None:
    """The first version number in a text: (1, 2, 3)."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups() if part is not None) if found else None


def dotted(version: Version) -> str:
    """1.2.3"""
    return ".".join(map(str, version))
