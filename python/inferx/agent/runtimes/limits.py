"""CPU and memory limits of one worker by control groups, where this node lets the agent use them.

Must never fail a start because a limit cannot be set: what is not enforced is said in `notes`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger("inferx.agent.limits")

ROOT = Path("/sys/fs/cgroup")
REMOVE_TRIES = 100
REMOVE_RETRY_S = 0.01
# An address space limit (RLIMIT_AS) is no substitute: CUDA reserves far more than it uses.
UNENFORCED = "{} limit of {} not enforced: no writable control group"


class Limits:
    """The control groups of one worker, in the agent's own ones; empty when none can be made."""

    def __init__(self, folders: Iterable[str] = (), notes: Iterable[str] = ()) -> None:
        self.folders = [Path(folder) for folder in folders]
        self.notes = tuple(notes)

    @classmethod
    def create(cls, name: str, cpu_millis: int, mem_mb: int) -> Limits:
        """Make the groups for these limits; 0 means no limit.

        Memory is a hard limit. CPU is a share: what is idle may be used, so that loading a model
        is not slowed down, and under contention each worker gets its part.
        """
        limits = cls()
        notes = []
        if cpu_millis:
            v2 = {"cpu.weight": str(_clamp(cpu_millis * 100 // 1000, 1, 10_000))}
            v1 = {"cpu.shares": str(_clamp(cpu_millis * 1024 // 1000, 2, 262_144))}
            if not limits._add("cpu", name, v2, v1):
                notes.append(UNENFORCED.format("CPU", f"{cpu_millis} millicores"))
        if mem_mb:
            size = str(mem_mb << 20)
            if not limits._add(
                "memory", name, {"memory.max": size}, {"memory.limit_in_bytes": size}
            ):
                notes.append(UNENFORCED.format("memory", f"{mem_mb} MB"))
        limits.notes = tuple(notes)
        return limits

    @classmethod
    def existing(cls, name: str) -> Limits:
        """The groups of that name which an earlier agent made."""
        parents = {_own_group(controller)[0] for controller in ("cpu", "memory")} - {None}
        folders = [parent / name for parent in parents if parent is not None]
        return cls(str(folder) for folder in folders if folder.is_dir())

    def add(self, pid: int) -> None:
        """Put a process (and what it starts from now on) under the limits."""
        for folder in list(self.folders):
            try:
                (folder / "cgroup.procs").write_text(str(pid))
            except ProcessLookupError:
                return  # it has ended already; its exit is reported on its own
            except OSError as error:
                self.notes += (f"limits of {folder} not enforced: {error.strerror}",)

    def pids(self) -> set[int]:
        """Processes under the limits, those included that left the worker's process group."""
        found: set[int] = set()
        for folder in self.folders:
            found.update(int(pid) for pid in (read_group(folder / "cgroup.procs") or "").split())
        return found

    def out_of_memory(self) -> str:
        """A sentence when the kernel killed something for the memory limit, else nothing."""
        return out_of_memory(self.folders)

    async def remove(self) -> None:
        """Remove the groups; their processes must be gone."""
        for folder in self.folders:
            # The kernel lets go of a dead process a moment after it has told of its death.
            for _ in range(REMOVE_TRIES):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    await asyncio.sleep(REMOVE_RETRY_S)
            else:
                log.warning("control group %s is still in use and stays behind", folder)
        self.folders = []

    def _add(self, controller: str, name: str, v2: dict[str, str], v1: dict[str, str]) -> bool:
        parent, is_v2 = _own_group(controller)
        if parent is None:
            return False
        folder = parent / name
        try:
            folder.mkdir(exist_ok=True)
            for file, value in (v2 if is_v2 else v1).items():
                (folder / file).write_text(value)
        except OSError:
            # Read-only, no permission, or the controller is not delegated: all the same to us.
            _rmdir(folder)
            return False
        if folder not in self.folders:
            self.folders.append(folder)
        return True


def out_of_memory(groups: Iterable[Path]) -> str:
    """A sentence when the kernel killed something of these groups for their memory limit."""
    for group in groups:
        for name in ("memory.events", "memory.oom_control"):
            lines = (read_group(group / name) or "").splitlines()
            if any(line.startswith("oom_kill ") and line[9:] != "0" for line in lines):
                return "over its memory limit, resources.Mem"
    return ""


def read_group(file: Path) -> str | None:
    """What a file of a control group says; None when the group is not there, or is just going."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENODEV:  # it was removed between the opening and the reading
            return None
        raise


def _own_group(controller: str) -> tuple[Path | None, bool]:
    """The agent's own group for a controller and whether it is of the unified hierarchy."""
    unified = None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return _inside(ROOT / names, path) or _inside(ROOT / controller, path), False
        if not names:
            unified = path
    return (_inside(ROOT, unified), True) if unified is not None else (None, True)


def _inside(mount: Path, path: str) -> Path | None:
    # In a container the path may be the host's; the mount itself is then the own group.
    for folder in (mount / path.lstrip("/"), mount):
        if (folder / "cgroup.procs").exists():
            return folder
    return None


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def _rmdir(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # it was never made, which is the usual reason to be here
