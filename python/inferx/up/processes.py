"""Process ids that survive a restart of the supervisor without meaning somebody else.

Must never signal a process whose start time is not the recorded one.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

POLL_SECONDS = 0.02


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it is gone or a zombie.

    Together with the id it names a process for good: ids are used again, start times are not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold anything, so the fields are counted from its end.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def is_same(pid: int, ticks: int) -> bool:
    """Whether the process that had this id and start time still runs."""
    return start_ticks(pid) == ticks


def end(pid: int, ticks: int, grace_seconds: float) -> None:
    """Ends a process of ours: SIGTERM, then SIGKILL for its whole group after the grace time."""
    if not is_same(pid, ticks):
        return
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGCONT)  # a stopped process would not see the first one
    deadline = time.monotonic() + grace_seconds
    while is_same(pid, ticks) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if is_same(pid, ticks):
        kill_group(pid)


def kill_group(pid: int) -> None:
    """SIGKILL for the process group that `pid` leads or led; nothing when it is empty."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
