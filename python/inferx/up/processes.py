"""Process ids that survive a restart of the supervisor without meaning somebody else.

Must never signal a process whose start time is not the recorded one.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from inferx.errors import InvalidState

POLL_SECONDS = 0.02
KILL_SECONDS = 10.0  # a killed process can still be writing out its memory or waiting for a disk


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it is gone or a zombie.

    Together with the id it names a process for good: ids are used again, start times are not.
    """
    fields = _stat(Path(f"/proc/{pid}/stat"))
    if fields is None:
        return None
    # The first thread can be a zombie while others still hold the process's ports and files.
    if fields[0] in "ZX" and not _has_live_thread(pid):
        return None
    return int(fields[19])


def _has_live_thread(pid: int) -> bool:
    threads = (_stat(task) for task in Path(f"/proc/{pid}/task").glob("*/stat"))
    return any(fields is not None and fields[0] not in "ZX" for fields in threads)


def _stat(file: Path) -> list[str] | None:
    """The fields after the name, state first (proc(5)); None when the process is gone."""
    try:
        text = file.read_text()
    except OSError:
        return None
    # The name in parentheses may hold anything, so the fields are counted from its end.
    return text.rpartition(")")[2].split()


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
