"""Process ids that survive a restart of the supervisor without meaning somebody else.

Must never signal a process whose start time is not the recorded one.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from inferx import procfs
from inferx.errors import InvalidState

POLL_SECONDS = 0.02
KILL_SECONDS = 10.0  # a killed process can still be writing out its memory or waiting for a disk


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it has ended.

    Together with the id it names a process for good: ids are used again, start times are not.
    """
    found = procfs.stat(pid)
    return found.start_ticks if found is not None and found.is_live else None


def is_same(pid: int, ticks: int) -> bool:
    """Whether the process that had this id and start time still runs."""
    return start_ticks(pid) == ticks


def end(pid: int, ticks: int, grace_seconds: float) -> None:
    """Ends a process of ours: SIGTERM, then SIGKILL for its whole group after the grace time.

    When it returns the process holds nothing any more: no port, no file, no lock.
    """
    if not is_same(pid, ticks):
        return
    with suppress(ProcessLookupError):  # it ends by itself meanwhile
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)  # a stopped process would not see the first one
    if _gone(pid, ticks, grace_seconds):
        return
    kill_group(pid)
    if not _gone(pid, ticks, KILL_SECONDS):
        raise InvalidState(f"process {pid} does not end; the kernel holds it")


def _gone(pid: int, ticks: int, seconds: float) -> bool:
    """Waits until the process is gone; False when it still is there after so long."""
    deadline = time.monotonic() + seconds
    while is_same(pid, ticks):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def kill_group(pid: int) -> None:
    """SIGKILL for the process group that `pid` leads or led; nothing when it is empty."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
