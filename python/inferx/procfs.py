"""Facts about processes from /proc: when one started, who is in a group, whether it still lives.

Must never signal or change a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Stat:
    """The fields of /proc/PID/stat that are needed here; `start_ticks` counts from boot."""

    pid: int
    state: str
    pgid: int
    session: int
    start_ticks: int

    @property
    def is_live(self) -> bool:
        """Whether it still holds ports, files or locks.

        The first thread can be a zombie while others run on, and with them all that they share.
        """
        return self.state not in "ZX" or _has_live_thread(self.pid)


def stat(pid: int) -> Stat | None:
    """The process as the kernel describes it now; None when there is none."""
    return _read(pid, PROC / str(pid) / "stat")


def _has_live_thread(pid: int) -> bool:
    threads = (_read(pid, task) for task in (PROC / str(pid) / "task").glob("*/stat"))
    return any(thread is not None and thread.state not in "ZX" for thread in threads)


def _read(pid: int, file: Path) -> Stat | None:
    try:
        text = file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(pid, fields[0], int(fields[2]), int(fields[3]), int(fields[19]))


def group_members(pgid: int) -> list[Stat]:
    """Processes of a group that is its own session, those that have ended left out."""
    members = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        found = stat(int(entry.name))
        if found and found.pgid == pgid and found.session == pgid and found.is_live:
            members.append(found)
    return members


def find_leader(variable: str) -> Stat | None:
    """The session leader that was started with `NAME=value` in its environment, if there is one."""
    wanted = variable.encode()
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        found = stat(int(entry.name)) if wanted in environment else None
        if found and found.session == found.pid and found.is_live:
            return found
    return None


def boot_id() -> str:
    """The kernel's id of this boot; start times are comparable only within one."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def find_argument(name: str, value: str) -> list[int]:
    """Processes whose command line has the argument `name` followed by `value`."""
    wanted = f"\0{name}\0{value}\0".encode()
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if wanted in line:
            found.append(int(entry.name))
    return found


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal; False when it is gone."""
    try:
        text = (PROC / str(pid) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    mask = next((line for line in text.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(mask.split()[1], 16) & (1 << (number - 1)))


def descendants(pid: int) -> list[int]:
    """A process and all that it has started, as far as their parents still live."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parent = int(text[text.rindex(")") + 2 :].split()[1])
        children.setdefault(parent, []).append(int(entry.name))
    found, rest = [], [pid]
    while rest:
        found.append(one := rest.pop())
        rest += children.get(one, [])
    return sorted(found)
