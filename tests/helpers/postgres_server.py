"""A real PostgreSQL on a loopback port, which a test may stop and start. It refuses to run as root,
so that root hands it to the system's user `postgres`.
"""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.helpers.ports import free_ports

USER = "postgres"
START_S = 60


def _program(name: str) -> str:
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    program = found[-1] if found else shutil.which(name)
    assert program is not None, "PostgreSQL is not installed: scripts/test-deps"
    return program


class Postgres:
    """One server with its own folder; `url` is the address of its database."""

    def __init__(self) -> None:
        # Not pytest's folder: the server's user may not enter that.
        self.folder = Path(tempfile.mkdtemp(prefix="inferx-pg-"))
        self._as: dict[str, int] = {}
        if os.getuid() == 0:
            user = pwd.getpwnam(USER)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid}
        (self.port,) = free_ports(1)
        self.url = f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"
        self._data = self.folder / "data"
        self._run("initdb", "-D", str(self._data), "-U", USER, "-A", "trust", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [_program(program), *arguments],
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            timeout=START_S * 2, check=False, env={"PATH": os.defpath, "LC_ALL": "C"}, **self._as,
        )  # fmt: skip
        if done.returncode != 0:
            log = self.folder / "log"
            said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise AssertionError(f"{program} {arguments}: {done.stderr}\n{said}")

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-t", str(START_S), *arguments)

    def start(self) -> None:
        """Start it; returns when it accepts connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -F"
        self._control("-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """End it at once, as a crash would, so that nobody is waited for."""
        self._control("-m", "immediate", "stop")

    def pause(self) -> None:
        """It hangs: connections are taken and statements sent, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on where it was."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        # Every process of the server is the leader of a session of its own.
        server = int((self._data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        for pid in (server, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def __enter__(self) -> Postgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Stop it, if it runs, and remove its folder."""
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder)
