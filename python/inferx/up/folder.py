"""The folder of one `inferx up`: its lock, its configuration, and the record of what runs.

Must never let two supervisors work in one folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from inferx.errors import ConfigError, InvalidState
from inferx.up import processes

LEFTOVER_GRACE_SECONDS = 10.0


@dataclass
class Folder:
    """A locked folder; made by `claim`, freed by `release`."""

    path: Path
    lock: IO[str] = field(repr=False)

    @property
    def state_file(self) -> Path:
        """What runs here now: URL, pids. Exists only while it runs."""
        return self.path / "up.json"

    @property
    def config_file(self) -> Path:
        """The configuration of all services."""
        return self.path / "node.json"

    def log_file(self, service: str) -> Path:
        """The log of one service."""
        return self.path / "logs" / f"{service}.log"

    def write_state(self, state: dict[str, Any]) -> None:
        """Replaces the record in one step, so that a reader never sees half of it."""
        _write(self.state_file, state)

    def write_config(self, document: dict[str, Any]) -> None:
        """Replaces the configuration."""
        _write(self.config_file, document)

    def admin_key(self) -> tuple[Path, str]:
        """The file with this platform's first key, and the key; made when it is not there."""
        file = self.path / "admin-key"
        if not file.exists():
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w") as out:
                out.write(f"admin-{secrets.token_hex(32)}")
        return file, file.read_text().strip()

    def rotate_logs(self) -> None:
        """Keeps the logs of the run before under `.1`."""
        (self.path / "logs").mkdir(exist_ok=True)
        for log in (self.path / "logs").glob("*.log"):
            log.replace(log.with_suffix(".log.1"))

    def release(self) -> None:
        """The platform has stopped: no record, no sockets of services that were killed, no lock."""
        self.state_file.unlink(missing_ok=True)
        for left in self.path.glob("*.sock"):
            left.unlink(missing_ok=True)
        self.lock.close()


def claim(path: Path, say: Callable[[str], None]) -> Folder:
    """The folder, made when missing, locked for this process; leftovers of a killed run are ended.

    Raises `InvalidState` naming the running platform when there is one, `ConfigError` when the
    folder cannot be used.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "up.lock").open("a")
    except OSError as error:
        raise ConfigError(f"--dir {path}: {error.strerror}") from error
    folder = Folder(path.resolve(), lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        state = _read(folder.state_file)
        running = f"process {state['pid']}, {state['url']}" if state else "still starting"
        raise InvalidState(
            f"InferX runs in {folder.path} already ({running}); "
            "stop it with Ctrl-C there, or use another folder with --dir"
        ) from None
    _end_leftovers(folder, say)
    return folder


def _end_leftovers(folder: Folder, say: Callable[[str], None]) -> None:
    """Ends services whose supervisor was killed; the workers of the node agent are adopted."""
    state = _read(folder.state_file)
    for name, ticks in (state.get("start_ticks") or {}).items():
        pid = state["pids"][name]
        if processes.is_same(pid, ticks):
            say(f"ending {name} (process {pid}), left over from a run that was killed")
            processes.end(pid, ticks, LEFTOVER_GRACE_SECONDS)
    folder.state_file.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        state = json.loads(file.read_text())
        if isinstance(state, dict) and {"pid", "url", "pids"} <= state.keys():
            return state
    return {}


def _write(file: Path, document: dict[str, Any]) -> None:
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps(document, indent=2) + "\n")
    os.replace(temporary, file)
