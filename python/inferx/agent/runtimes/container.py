"""A container in the hand: what it consists of on this machine, and the worker that it is.

Must never be waited for by its process id alone: ids are used again.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inferx import procfs
from inferx.agent.logs import PodLog
from inferx.agent.runtimes import criu, processes, tools
from inferx.agent.runtimes.criu import LazyPages
from inferx.agent.runtimes.engine import Engine
from inferx.agent.runtimes.limits import out_of_memory, read_group
from inferx.agent.runtimes.network import PodNetwork, PodNetworks
from inferx.agent.runtimes.protocol import Exit
from inferx.agent.runtimes.rootfs import RootFs
from inferx.errors import InferxError

CGROUPS = Path("/sys/fs/cgroup")
KILL_BOUND_S = 10.0
GONE_POLL_S = 0.01
_SIGNAL_BASE = 128


class Container:
    """Everything that belongs to one container, found by its pod's folder alone."""

    def __init__(
        self,
        pod_folder: Path,
        engine: Engine,
        networks: PodNetworks,
    ) -> None:
        self.pod_folder = pod_folder
        self.folder = pod_folder / "box"
        self.criu_work = self.folder / "criu"
        self.criu_config = self.folder / "criu.conf"
        # The same for every agent that uses this folder, and for no other folder.
        self.name = f"inferx-{pod_folder.name}-{pod_folder.stat().st_ino:x}"
        self.network: PodNetwork | None = None
        self.lazy: LazyPages | None = None
        self.engine = engine
        self._networks = networks

    @property
    def mark(self) -> tuple[str, str]:
        """Two words that stand one after the other in its supervisor's command line only."""
        return ("--pid-file", str(self.folder / "pid"))

    async def running_pid(self) -> int | None:
        """The container's first process; None when the container does not run."""
        state = await self.engine.state(self.name)
        return state.pid if state is not None and state.is_live else None

    def make_folders(self) -> None:
        """Its own folder and CRIU's; they are private to the agent."""
        for folder in (self.folder, self.criu_work):
            folder.mkdir(mode=0o700, exist_ok=True)

    def reason(self) -> str:
        """The last error in the engine's log, or the end of what its command has written."""
        try:
            lines = (self.folder / "runc.log").read_text(errors="replace").splitlines()
        except OSError:
            lines = PodLog(self.pod_folder).tail(3).splitlines()
            return "; ".join(line.removeprefix("ctr: ") for line in lines)
        for line in reversed(lines):
            if "level=error" in line or "level=fatal" in line:
                return line.partition("msg=")[2].strip('"').replace('\\"', '"')
        return ""

    def pids(self) -> list[int]:
        """Its processes, as this machine numbers them."""
        for group in self._groups("freezer"):
            text = read_group(group / "cgroup.procs")
            if text is not None:
                return [int(pid) for pid in text.split()]
        return []

    def memory_bytes(self) -> int:
        """What it holds in memory; 0 when the node does not tell."""
        for group in self._groups("memory"):
            for name in ("memory.current", "memory.usage_in_bytes"):
                text = read_group(group / name)
                if text is not None:
                    return int(text)
        return 0

    def out_of_memory(self) -> str:
        """A sentence when the kernel killed something of it for its memory limit, else nothing."""
        return out_of_memory(self._groups("memory"))

    def configure_criu(self, while_paused: Sequence[str] = ()) -> None:
        """Write CRIU's options: to run the command when it has written the worker's memory and
        the worker is still paused. None for restores: each stage would start a shell."""
        hook = self.folder / "hook"
        if not while_paused:
            hook.unlink(missing_ok=True)
            self.criu_config.write_text(criu.configuration())
            return
        words = " ".join(shlex.quote(word) for word in while_paused)
        script = f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ] || exec {words}\n'
        hook.write_text(script)
        hook.chmod(0o700)
        self.criu_config.write_text(criu.configuration(hook))

    async def remove(self) -> None:
        """End and remove all of it; what is not there is fine. Raises InferxError otherwise."""
        await self._end_supervisors()
        if self.lazy is None:
            self.lazy = LazyPages.adopt(self.criu_work)
        if self.lazy is not None:
            await self.lazy.stop()
            self.lazy = None
        if self.folder.is_dir():
            await RootFs(self.folder).unmount()
        for network in self._networks.of(self.pod_folder):
            await self._networks.remove(network)
        self.network = None
        if self.folder.is_dir():
            await asyncio.to_thread(shutil.rmtree, self.folder)

    async def _end_supervisors(self) -> None:
        """Kill the container and whoever would still start it."""
        deadline = time.monotonic() + KILL_BOUND_S
        while True:
            try:
                await self.engine.delete(self.name)
            except tools.ToolFailed as error:
                if time.monotonic() > deadline:
                    raise InferxError(f"container {self.name} stays: {error.message}") from error
            left = await asyncio.to_thread(procfs.find_argument, *self.mark)
            left = [pid for pid in left if (found := procfs.stat(pid)) and found.is_live]
            if not left and await self._is_gone():
                return
            if time.monotonic() > deadline:
                raise InferxError(f"container {self.name} survives: processes {left}")
            processes.kill_each(left)
            await asyncio.sleep(GONE_POLL_S)

    async def _is_gone(self) -> bool:
        try:
            return await self.engine.state(self.name) is None
        except tools.ToolFailed:
            return False  # for all that is known it may be there

    def _groups(self, controller: str) -> list[Path]:
        below = f"inferx/{self.name}"
        return [CGROUPS / controller / below, CGROUPS / below, CGROUPS / "unified" / below]


class ContainerWorker:
    """A running container. It is watched through the process of its engine that started it, which
    also carries the worker's output into the log and returns its exit code."""

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        container: Container,
        supervisor: int,
        init: int,
        popen: subprocess.Popen[bytes] | None = None,
    ) -> None:
        if container.network is None:
            raise ValueError("a running container has a network")
        self.container = container
        self.host = container.network.address
        self._init = init
        self._supervisor = supervisor
        self._popen = popen
        self._pidfd = os.pidfd_open(supervisor)
        self._loop = asyncio.get_running_loop()
        self._zeros = False
        self.exited: asyncio.Future[Exit] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._on_exit)
        if container.lazy is not None:
            container.lazy.ended.add_done_callback(self._on_pages)

    @property
    def record(self) -> Mapping[str, Any]:
        lazy = self.container.lazy
        return {
            "pid": self._init,
            "supervisor_pid": self._supervisor,
            "container": self.container.name,
            "engine": self.container.engine.name,
            "address": self.host,
            **(lazy.record if lazy is not None and not lazy.ended.done() else {}),
        }

    def pids(self) -> list[int]:
        return self.container.pids()

    async def freeze(self) -> None:
        try:
            await self.container.engine.pause(self.container.name)
        except tools.ToolFailed:
            # It may be frozen already, by the order of an agent that died meanwhile.
            if not await self._is_paused():
                raise

    async def thaw(self) -> None:
        if await self._is_paused():
            await self.container.engine.resume(self.container.name)

    async def stop(self, grace_s: float) -> None:
        if self._pidfd < 0:
            return
        if not self.exited.done():
            await self._ask_to_end(grace_s)
        await self.container.remove()
        await asyncio.wait([self.exited], timeout=KILL_BOUND_S)
        self._close(reap=True)

    def let_go(self) -> None:
        if self.container.lazy is not None:
            self.container.lazy.let_go()
        self._close(reap=False)

    async def _is_paused(self) -> bool:
        state = await self.container.engine.state(self.container.name)
        return state is not None and state.status == "paused"

    async def _ask_to_end(self, grace_s: float) -> None:
        # Number one of a process namespace gets no signal that it has no handler for, although
        # the same program would have died of it outside: no use in waiting for that.
        if not procfs.catches(self._init, signal.SIGTERM):
            return
        try:
            await self.thaw()  # a frozen container could not act on the signal
            await self.container.engine.kill(self.container.name, "TERM")
        except tools.ToolFailed:
            return  # it ended meanwhile, or it will be killed
        await asyncio.wait([self.exited], timeout=grace_s)

    def _on_pages(self, ended: asyncio.Future[bool]) -> None:
        if ended.cancelled() or ended.result() or self.exited.done():
            return
        # Pages that were not there yet would read as zeros: not one more answer may come of it.
        self._zeros = True
        try:
            os.kill(self._init, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if self.exited.done():
            return
        note = self.container.out_of_memory()
        if self._zeros:
            note = "the daemon that restores its memory died"
        if self._popen is None:
            self.exited.set_result(Exit(note=note))
            return
        code = self._popen.wait()
        if code < 0:  # the supervisor itself was killed; the container goes with it in `stop`
            self.exited.set_result(Exit(note=note or f"its runner was killed by signal {-code}"))
        elif code > _SIGNAL_BASE:
            self.exited.set_result(Exit(signal=code - _SIGNAL_BASE, note=note))
        else:
            self.exited.set_result(Exit(code=code, note=note))

    def _close(self, *, reap: bool) -> None:
        if self._pidfd < 0:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._popen is not None and not reap and self._popen.returncode is None:
            self._popen.returncode = 0  # it is meant to outlive us
