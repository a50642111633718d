"""The `process` runtime: a worker is a process group of this machine, in its own session.

Must never signal a process unless its pid and start time prove that it is the agent's own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from inferx import procfs
from inferx.agent.runtimes import processes
from inferx.agent.runtimes.command import FOLDER, INHERITED, command_of
from inferx.agent.runtimes.limits import Limits
from inferx.agent.runtimes.protocol import Checkpoints, Exit, WorkerSpec
from inferx.domain.function import FunctionSpec
from inferx.errors import BadRequest, InferxError, StartFailed

KILL_BOUND_S = 10.0
FREEZE_BOUND_S = 10.0
GONE_POLL_S = 0.01
LOOPBACK = "127.0.0.1"


class ProcessWorker:
    """A process group: its leader is watched through a pidfd, ours or adopted alike."""

    def __init__(
        self,
        pid: int,
        start_ticks: int,
        pidfd: int,
        limits: Limits,
        popen: subprocess.Popen[bytes] | None = None,
        host: str = LOOPBACK,
    ) -> None:
        self.pid = pid
        self._start_ticks = start_ticks
        self._pidfd = pidfd
        self._limits = limits
        self._popen = popen
        self.host = host
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[Exit] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._on_exit)

    @property
    def notes(self) -> tuple[str, ...]:
        return self._limits.notes

    @property
    def record(self) -> Mapping[str, Any]:
        return {
            "pid": self.pid,
            "pgid": self.pid,
            "start_ticks": self._start_ticks,
            "boot_id": procfs.boot_id(),
            "cgroups": [str(folder) for folder in self._limits.folders],
            "notes": list(self.notes),
        }

    def pids(self) -> list[int]:
        group = {found.pid for found in procfs.group_members(self.pid)}
        return sorted(group | self._limits.pids())

    async def freeze(self) -> None:
        self._signal_group(signal.SIGSTOP)
        # The signal is only a request: what still runs may still use what is about to be released.
        deadline = time.monotonic() + FREEZE_BOUND_S
        while running := self._running():
            if time.monotonic() > deadline:
                raise InferxError(f"processes {running} of group {self.pid} do not stop")
            await asyncio.sleep(GONE_POLL_S)

    async def thaw(self) -> None:
        self._signal_group(signal.SIGCONT)

    async def stop(self, grace_s: float) -> None:
        if self._pidfd < 0:
            return
        self._signal_group(signal.SIGTERM)
        self._signal_group(signal.SIGCONT)  # a frozen group could not act on SIGTERM
        if not await self._gone_within(grace_s):
            self._signal_group(signal.SIGKILL)
            self._kill_escaped()
            if not await self._gone_within(KILL_BOUND_S):
                raise InferxError(f"process group {self.pid} survives SIGKILL")
        self._close(reap=True)
        await self._limits.remove()

    def let_go(self) -> None:
        self._close(reap=False)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        # The leader stays a zombie until its group is gone: that keeps its number from being
        # given to somebody else while signals may still be sent to the group.
        try:
            info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            info = None  # adopted: its end is visible, its code only to its parent
        if self.exited.done():
            return
        note = self._limits.out_of_memory()
        if info is None:
            self.exited.set_result(Exit(note=note))
        elif info.si_code == os.CLD_EXITED:
            self.exited.set_result(Exit(code=info.si_status, note=note))
        else:
            self.exited.set_result(Exit(signal=info.si_status, note=note))

    def _signal_group(self, number: signal.Signals) -> None:
        if not self._owned():
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def _owned(self) -> bool:
        leader = procfs.stat(self.pid)
        if leader is not None:
            return leader.start_ticks == self._start_ticks
        # The leader was reaped by another parent; what is left of its session is still ours.
        return bool(self._members())

    def _running(self) -> list[int]:
        members = procfs.group_members(self.pid)
        return [found.pid for found in members if found.state not in "Tt"]

    def _members(self) -> set[int]:
        return _orphans(self.pid, self._start_ticks)

    def _kill_escaped(self) -> None:
        processes.kill_each(self._limits.pids())

    async def _gone_within(self, bound_s: float) -> bool:
        deadline = time.monotonic() + bound_s
        while True:
            if self.exited.done():
                alive = self._members() if self._owned() else set()
                if not alive and not (self._limits.pids() - {self.pid}):
                    return True
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            if self.exited.done():
                await asyncio.sleep(min(GONE_POLL_S, left_s))
            else:
                await asyncio.wait([self.exited], timeout=left_s)

    def _close(self, *, reap: bool) -> None:
        if self._pidfd < 0:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._popen is not None:
            if reap:
                self._popen.wait()
            elif self._popen.returncode is None:
                # It is meant to outlive us; without this Popen warns that it still runs.
                self._popen.returncode = 0


class ProcessRuntime:
    """Starts and adopts workers in the given folder; `host` is the address of this machine that
    they have to listen on."""

    name = "process"
    checkpoints: Checkpoints | None = None  # needs namespaces of its own: see the runc runtime

    def __init__(
        self, work_dir: Path, environment: Mapping[str, str], host: str = LOOPBACK
    ) -> None:
        self._work_dir = work_dir
        self.listen_host = host
        self._inherited = {name: environment[name] for name in INHERITED if name in environment}
        self._inherited.setdefault("PATH", os.defpath)

    def check(self, launch: FunctionSpec) -> None:
        if not launch.entrypoint:
            image = f" (image {launch.image!r} has no meaning here)" if launch.image else ""
            raise BadRequest(
                f"spec.entrypoint: needed on a node with the process runtime{image}; name a"
                " program of this machine, for example $(INFERX_PYTHON), or use a container runtime"
            )

    def port_for(self, launch: FunctionSpec, taken: Container[int]) -> int:
        while True:
            with socket.socket() as probe:
                probe.bind((self.listen_host, 0))
                port = int(probe.getsockname()[1])
            if port not in taken:
                return port

    async def start(self, spec: WorkerSpec) -> ProcessWorker:
        argv, environment = command_of(spec, self._inherited)
        limits = await asyncio.to_thread(
            Limits.create, _group_name(spec.folder), spec.alloc.cpu_millis, spec.alloc.mem_mb
        )
        try:
            popen = await asyncio.to_thread(
                processes.spawn, argv, environment, self._work_dir, spec.folder
            )
        except OSError as error:
            await limits.remove()
            raise StartFailed(
                f"cannot run {argv[0]!r} in {self._work_dir}: {error.strerror}"
            ) from error
        limits.add(popen.pid)
        pidfd = os.pidfd_open(popen.pid)
        # Not reaped by anybody else, so even an early end leaves its entry in /proc.
        found = procfs.stat(popen.pid)
        if found is None:
            raise StartFailed(f"process {popen.pid} was reaped by somebody else")
        return ProcessWorker(popen.pid, found.start_ticks, pidfd, limits, popen, self.listen_host)

    async def adopt(self, folder: Path, record: Mapping[str, Any]) -> ProcessWorker | None:
        limits = Limits(record.get("cgroups", ()), record.get("notes", ()))
        if not record:
            limits = Limits.existing(_group_name(folder))
            started = await asyncio.to_thread(procfs.find_leader, f"{FOLDER}={folder}")
            if started is None:
                await limits.remove()
                return None
            record = {"pid": started.pid, "start_ticks": started.start_ticks}
        elif record.get("boot_id") != procfs.boot_id():
            return None
        pid, start_ticks = int(record["pid"]), int(record["start_ticks"])
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            await _end_orphans(pid, start_ticks, limits)
            return None
        # The descriptor is taken first: what it names cannot change after this comparison.
        found = procfs.stat(pid)
        if found is not None and found.start_ticks == start_ticks and found.is_live:
            return ProcessWorker(pid, start_ticks, pidfd, limits, host=self.listen_host)
        os.close(pidfd)
        # With the number given to a foreign process, nothing of our session can be left.
        reused = found is not None and found.start_ticks != start_ticks
        await _end_orphans(None if reused else pid, start_ticks, limits)
        return None

    async def close(self) -> None:
        """Nothing is held."""


def _group_name(folder: Path) -> str:
    """The same for every agent that uses this folder, and for no other folder."""
    return f"inferx-{folder.name}-{folder.stat().st_ino:x}"


async def _end_orphans(pgid: int | None, start_ticks: int, limits: Limits) -> None:
    """End what a leader that died unseen left behind in its own session."""
    deadline = time.monotonic() + KILL_BOUND_S
    while left := _orphans(pgid, start_ticks) | limits.pids():
        if time.monotonic() > deadline:
            raise InferxError(f"processes of group {pgid} survive SIGKILL: {sorted(left)}")
        processes.kill_each(left)
        await asyncio.sleep(GONE_POLL_S)
    await limits.remove()


def _orphans(pgid: int | None, start_ticks: int) -> set[int]:
    members = procfs.group_members(pgid) if pgid is not None else []
    return {found.pid for found in members if found.start_ticks >= start_ticks}
