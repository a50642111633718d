"""CRIU: which one to use, what would make it fail, and the daemon that serves a restore's pages.

Must never freeze a worker before it is known that its image can be written.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from inferx import procfs
from inferx.errors import InvalidState, StartFailed, Unavailable

# Older ones cannot save a process that has a socket, on kernels from 6.16 on.
VERSION_MIN = (4, 2)
INSTALLED = Path("/opt/inferx/criu/bin")  # where scripts/install-criu puts one
SOCKET_BOUND_S = 10.0
POLL_S = 0.002
REASON_LINES = 3
# Unlinked files that are still open are stored up to this size.
GHOST_LIMIT = "256M"
# The image is written beside the running worker: keep some of the disk for everybody else.
DISK_RESERVE_BYTES = 256 << 20


@dataclass(frozen=True)
class Criu:
    """A usable CRIU: `path` is what PATH must be for tools that look for it themselves."""

    program: str
    version: str
    path: str


def find(path: str) -> Criu | None:
    """The first on `path` (a list of folders) that is new enough, else the installer's, or None."""
    for folder in (*path.split(os.pathsep), str(INSTALLED)):
        program = Path(folder) / "criu"
        if not os.access(program, os.X_OK):
            continue
        version = _version(program)
        if version and tuple(int(part) for part in version.split(".")[:2]) >= VERSION_MIN:
            return Criu(str(program), version, os.pathsep.join((folder, path)))
    return None


def _version(program: Path) -> str:
    try:
        shown = subprocess.run(  # noqa: S603 - a program found on this machine's own path
            [str(program), "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"^Version: (\d+\.\d+(\.\d+)?)", shown, re.MULTILINE)
    return found[1] if found else ""


def configuration(hook: Path | None = None) -> str:
    """CRIU's options that runc has no flag for; `hook` is run at each stage.

    No lock of the network: it would leave packet filter rules behind, and nothing is sent to a
    worker that is not ready. Connections are closed in the image, its listeners are kept.
    """
    lines = ["network-lock skip", "tcp-close", f"ghost-limit {GHOST_LIMIT}"]
    if hook is not None:
        lines.append(f"action-script {hook}")
    return "\n".join(lines) + "\n"


def check_saveable(pids: Iterable[int]) -> None:
    """Raise InvalidState, naming the process, for what CRIU cannot save."""
    for pid in pids:
        folder = procfs.PROC / str(pid) / "fd"
        try:
            targets = {entry.name: os.readlink(entry) for entry in folder.iterdir()}
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        for number, target in targets.items():
            if "io_uring" in target:
                raise InvalidState(
                    f"process {pid} uses io_uring (descriptor {number}), which cannot be saved"
                )
            if target.startswith("/dev/nvidia"):
                raise InvalidState(
                    f"process {pid} holds {target} (descriptor {number}); its GPU state has to be"
                    " checkpointed by the driver first"
                )


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise Unavailable when the folder's disk has no room for an image of that size."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < needed_bytes + DISK_RESERVE_BYTES:
        raise Unavailable(
            f"no room for a snapshot in {folder}: {free >> 20} MiB free,"
            f" {(needed_bytes + DISK_RESERVE_BYTES) >> 20} MiB needed"
        )


def reason(log: Path) -> str:
    """The errors in a log of CRIU, shortened; empty when there are none."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    errors = [line.split(") ", 1)[-1] for line in lines if "Error (" in line]
    return "; ".join(dict.fromkeys(errors[-REASON_LINES:]))


class LazyPages:
    """The daemon that gives a restored worker its memory as it touches it.

    It ends by itself when all pages are there. If it dies before that, the worker would find
    zeros instead of its memory: whoever holds this must kill the worker at once.
    """

    def __init__(self, pid: int, pidfd: int, popen: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._popen = popen
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[bool] = self._loop.create_future()  # whether all pages came
        self._loop.add_reader(pidfd, self._on_exit)

    @classmethod
    async def start(cls, criu: Criu, image: Path, work: Path) -> LazyPages:
        """Start it and wait until it can be asked; raises StartFailed."""
        socket = work / "lazy-pages.socket"
        socket.unlink(missing_ok=True)
        argv = [criu.program, "lazy-pages", "-D", str(image), "-W", str(work), "-o", "lazy.log"]
        popen = await asyncio.to_thread(
            subprocess.Popen,
            [*argv, "-v1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        daemon = cls(popen.pid, os.pidfd_open(popen.pid), popen)
        deadline = time.monotonic() + SOCKET_BOUND_S
        while not socket.exists():
            if daemon.ended.done() or time.monotonic() > deadline:
                await daemon.stop()
                raise StartFailed(f"no pages can be served: {reason(work / 'lazy.log')}")
            await asyncio.sleep(POLL_S)
        return daemon

    @classmethod
    def adopt(cls, work: Path) -> LazyPages | None:
        """The daemon that a former agent started for this work folder, if it still runs."""
        for pid in procfs.find_argument("-W", str(work)):
            try:
                return cls(pid, os.pidfd_open(pid), None)
            except ProcessLookupError:
                continue
        return None

    @property
    def record(self) -> Mapping[str, int]:
        """For whoever looks at a pod's record."""
        return {"lazy_pages_pid": self.pid}

    async def stop(self) -> None:
        """End it. Its worker must have ended before."""
        if self._pidfd < 0:
            return
        if not self.ended.done():
            try:
                os.kill(self.pid, 9)
            except ProcessLookupError:
                self._on_exit()
            await asyncio.wait([self.ended], timeout=SOCKET_BOUND_S)
        self.let_go()

    def let_go(self) -> None:
        """Forget it without ending it."""
        if self._pidfd < 0:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._popen is not None and self._popen.returncode is None:
            self._popen.returncode = 0  # it is meant to outlive us

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        code = 0  # of an adopted one only its end can be seen; a worker without pages shows itself
        if self._popen is not None:
            code = self._popen.wait()
        if not self.ended.done():
            self.ended.set_result(code == 0)
