"""One service of the platform as a child process: started, watched, started again, stopped.

Must never outlive its supervisor: the child ends itself when the supervisor's pipe closes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from inferx.errors import StartFailed
from inferx.up import processes

LOG_TAIL_LINES = 15
LOG_TAIL_BYTES = 16_384
STEADY_SECONDS = 10.0  # a child that ran so long has started well; its failures count anew
FAILURES_MAX = 4
BACKOFF_FIRST_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 5.0


@dataclass
class Child:
    """A service and the process that runs it now."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(repr=False)
    log: Path
    stop_seconds: float
    say: Callable[[str], None] = field(repr=False)
    on_start: Callable[[], None] = field(repr=False)
    inherits: tuple[int, ...] = ()  # descriptors that it gets under the same numbers
    process: asyncio.subprocess.Process | None = None
    ticks: int = 0
    stopping: bool = False
    leaving: list[asyncio.subprocess.Process] = field(default_factory=list, repr=False)

    async def spawn(self) -> None:
        """Starts the process; its output goes to the log, its input is the supervisor's pipe."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.environment,
                pass_fds=self.inherits,
                # A Ctrl-C at the terminal must reach the supervisor only: it knows the order.
                start_new_session=True,
            )
        self.ticks = processes.start_ticks(self.process.pid) or 0
        self.on_start()

    async def keep_running(self) -> None:
        """Starts the process again whenever it ends; returns once `stop` was called.

        Raises `StartFailed` with the end of the log when it keeps failing right after its start.
        """
        failures = 0
        while not self.stopping:
            process, started = self._running(), time.monotonic()
            code = await process.wait()
            processes.kill_group(process.pid)  # what the service itself had started
            if self.stopping:
                return
            if process is not self.process:
                continue  # another one has taken over
            ran = time.monotonic() - started
            failures = 1 if ran >= STEADY_SECONDS else failures + 1
            if failures >= FAILURES_MAX:
                raise StartFailed(
                    f"{self.name} failed {failures} times in a row, last {describe(code)}; "
                    f"the end of {self.log}:\n{self.tail()}"
                )
            delay = min(BACKOFF_FIRST_SECONDS * 4 ** (failures - 1), BACKOFF_MAX_SECONDS)
            self.say(f"{self.name} (process {process.pid}) {describe(code)}; starting it again")
            await asyncio.sleep(delay)
            if not self.stopping:
                await self.spawn()

    async def replace(self, ready: Callable[[], Awaitable[bool]]) -> bool:
        """Starts another process beside this one, and ends this one when the other is ready.

        False when the other one does not become ready; it is ended, and this one stays.
        """
        old, ticks = self._running(), self.ticks
        await self.spawn()
        fresh = self._running()
        if not await ready() or fresh.returncode is not None:
            processes.kill_group(fresh.pid)
            await fresh.wait()
            self.process, self.ticks = old, ticks
            self.on_start()
            return False
        if old.returncode is None:
            old.send_signal(signal.SIGTERM)
        await self._see_off(old)
        return True

    async def succeed(self) -> None:
        """The process has begun to stop by itself: starts the next one now, and sees it off."""
        if not self.stopping:
            old = self._running()
            self.say(f"{self.name} (process {old.pid}) is stopping; starting the next one")
            await self.spawn()
            await self._see_off(old)

    async def _see_off(self, process: asyncio.subprocess.Process) -> None:
        """Waits for a process that is stopping, and kills it after `stop_seconds`."""
        self.leaving.append(process)
        try:
            await asyncio.wait_for(process.wait(), self.stop_seconds)
        except TimeoutError:
            self.say(f"{self.name} did not stop in {self.stop_seconds:.0f} s; killing it")
        processes.kill_group(process.pid)
        code = await process.wait()
        self.leaving.remove(process)
        self.say(f"{self.name} (process {process.pid}) {describe(code)}")

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after `stop_seconds`; nothing of it runs when this returns."""
        self.stopping = True
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        running = [asyncio.create_task(process.wait()) for process in self._processes()]
        if running and (await asyncio.wait(running, timeout=self.stop_seconds))[1]:
            self.say(f"{self.name} did not stop in {self.stop_seconds:.0f} s; killing it")
        self.kill()
        await asyncio.gather(*running)

    def kill(self) -> None:
        """SIGKILL for the service and what it started in its own process group."""
        for process in self._processes():
            processes.kill_group(process.pid)

    def _processes(self) -> list[asyncio.subprocess.Process]:
        """The process that serves, and those that are stopping beside it."""
        return [*([] if self.process is None else [self.process]), *self.leaving]

    def tail(self) -> str:
        """The last lines of the log."""
        with self.log.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - LOG_TAIL_BYTES))
            text = log.read().decode(errors="replace")
        return "\n".join(f"  {line}" for line in text.splitlines()[-LOG_TAIL_LINES:])

    def _running(self) -> asyncio.subprocess.Process:
        if self.process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.process


def service_command(service: str, config_file: Path) -> list[str]:
    """The command line of one service; -P keeps modules of the current folder out of it."""
    return [
        sys.executable, "-P", "-m", "inferx", "run", service,
        "--config", str(config_file), "--supervised",
    ]  # fmt: skip


def describe(code: int) -> str:
    """`was killed by SIGKILL` or `ended with exit code 1`."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
