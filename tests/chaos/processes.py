"""Service processes of a chaos cluster, and nodes with network namespaces of their own.

Must never leave a process, a namespace or a mount behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
GRACE_S = 15.0
DISK_MIB = 4


class Service:
    """One `inferx run SERVICE` process, which can be killed, frozen and started again."""

    def __init__(self, name: str, kind: str, folder: Path, document: dict[str, Any]) -> None:
        self.name = name
        self.kind = kind
        self.folder = folder
        self.prefix: list[str] = []
        self.document = document
        self.environment: dict[str, str] = {}
        self.killed_at: list[float] = []
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        self._config = folder / "node.json"
        self._config.write_text(json.dumps({**document, "dataDir": str(folder / "data")}))
        self._log = folder / "log"

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.running():
            return
        self._let_go()
        command = [
            sys.executable, "-P", "-m", "inferx", "run", self.kind,
            "--config", str(self._config), "--supervised",
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.prefix, *command],
                stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
                env={**os.environ, **self.environment},
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """The process's id, 0 when it was never started."""
        return 0 if self._process is None else self._process.pid

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """A signal, if it runs."""
        if self.running():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9."""
        self.killed_at.append(time.monotonic())
        self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(GRACE_S)
            self._let_go()

    def _let_go(self) -> None:
        """Close our end of its standard input, by which it would know that we ended."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def stop(self) -> None:
        """An orderly end; killed when it takes too long."""
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)
        deadline = time.monotonic() + GRACE_S
        while self.running() and time.monotonic() < deadline:  # noqa: ASYNC110 (of a process)
            await asyncio.sleep(0.05)
        if self.running():
            self.kill()
        self._let_go()

    def log_tail(self, chars: int = 3000) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-chars:] if self._log.exists() else ""


class Node:
    """Where a node agent runs: a network namespace where root allows it, else the loopback."""

    def __init__(self, number: int, token: int) -> None:
        self.number = number
        self.host = self.ip = "127.0.0.1"
        self.prefix: list[str] = []
        self._name = f"chaos{token}-{number}"
        self._link = f"ch{token}-{number}"
        self._subnet = f"10.{64 + token % 128}.{number}"

    @property
    def isolated(self) -> bool:
        """Whether it can be cut off."""
        return bool(self.prefix)

    def make(self) -> None:
        """A namespace with one link to this machine; without the right to it, nothing."""
        if os.geteuid() != 0 or not _try("ip", "netns", "add", self._name):
            return
        inside = f"{self._link}n"
        commands = (
            ("ip", "link", "add", self._link, "type", "veth", "peer", "name", inside),
            ("ip", "link", "set", inside, "netns", self._name),
            ("ip", "addr", "add", f"{self._subnet}.1/24", "dev", self._link),
            ("ip", "link", "set", self._link, "up"),
            ("ip", "-n", self._name, "addr", "add", f"{self._subnet}.2/24", "dev", inside),
            ("ip", "-n", self._name, "link", "set", inside, "up"),
            ("ip", "-n", self._name, "link", "set", "lo", "up"),
        )
        if all(_try(*command) for command in commands):
            self.host, self.ip = f"{self._subnet}.1", f"{self._subnet}.2"
            self.prefix = ["ip", "netns", "exec", self._name]
        else:
            self.remove()

    def cut(self) -> None:
        """Nothing gets in or out, and nobody is told."""
        _try("ip", "link", "set", self._link, "down")

    def heal(self) -> None:
        """Connected again."""
        _try("ip", "link", "set", self._link, "up")

    def remove(self) -> None:
        """Take the namespace away."""
        if os.geteuid() == 0:
            _try("ip", "link", "del", self._link)
            _try("ip", "netns", "del", self._name)


class SmallDisk:
    """A file system of its own for one folder, where root allows it: it can be filled up."""

    def __init__(self, folder: Path, mib: int = DISK_MIB) -> None:
        self._folder = folder
        self._ballast = folder / "ballast"
        folder.mkdir(parents=True)
        self.mounted = os.geteuid() == 0 and _try(
            "mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)
        )

    def fill(self) -> None:
        """Not a byte is free from now on."""
        with self._ballast.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while ballast.write(bytes(4096)):
                pass

    def empty(self) -> None:
        """There is room again."""
        self._ballast.unlink(missing_ok=True)

    def remove(self) -> None:
        """Take the file system away."""
        if self.mounted:
            _try("umount", "-l", str(self._folder))


def workers(agent: Service) -> list[int]:
    """Workers of a node: processes with its pods' folders in their environment."""
    mark = f"INFERX_POD_DIR={agent.folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it ended just now
    return found


def _try(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
