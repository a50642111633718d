"""One snapshot of a node: what is known of it, and how it is shown.

Must never touch the disk or the tiers; `Snapshots` does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from inferx.agent.gpuside import Saved
from inferx.agent.identity import Subject
from inferx.agent.vram import item_id
from inferx.domain.cluster import Snapshot
from inferx.errors import NotSupported

_MIB = 1 << 20

Function = tuple[str, str, str]


@dataclass
class Entry:
    """One published snapshot."""

    id: str
    function: Function
    revision: int
    size_bytes: int
    created_ms: int
    restores: int = 0
    failures: int = 0
    reason: str = ""
    memory: Saved | None = None
    # What its files looked like when every byte of them was last checked.
    checked: tuple[tuple[str, int, int, int], ...] = ()

    def memory_ids(self) -> dict[str, dict[str, int]]:
        """Ids in the tiers, each with its regions' sizes in MiB."""
        return memory_ids(self.memory) if self.memory is not None else {}

    @property
    def memory_mib(self) -> int:
        """What its GPU memory takes as files at most."""
        return sum(sum(mib.values()) for mib in self.memory_ids().values())


@dataclass(frozen=True)
class Draft:
    """What was saved and is not published yet."""

    id: str
    identity: dict[str, Any]
    memory: Saved | None
    save_ms: int

    @property
    def extra(self) -> dict[str, Any]:
        """What the manifest says besides the identity."""
        gpu = {"gpu_memory": asdict(self.memory)} if self.memory is not None else {}
        return {"save_ms": self.save_ms, **gpu}


def memory_ids(memory: Saved) -> dict[str, dict[str, int]]:
    """Ids in the tiers, each with its regions' sizes in MiB."""
    found: dict[str, dict[str, int]] = {}
    for region in memory.regions:
        if region["saved"]:
            id = item_id(memory.base, region["device"])
            found.setdefault(id, {})[region["name"]] = region["mib"]
    return found


def describe(entry: Entry, node: str) -> Snapshot:
    """The snapshot as it is shown."""
    return Snapshot(
        funcname=entry.function[2],
        fprevision=entry.revision,
        node=node,
        state="Ready",
        size_mb=entry.size_bytes // _MIB + entry.memory_mib,
        restores=entry.restores,
        failures=entry.failures,
        reason=entry.reason,
    )


def describe_failure(subject: Subject, node: str, tries: int, error: Exception) -> Snapshot:
    """That there is none of this revision, how often it was tried, and why."""
    return Snapshot(
        funcname=subject.key.funcname,
        fprevision=subject.key.fprevision,
        node=node,
        state="Cannot" if isinstance(error, NotSupported) else "Failed",
        failures=tries,
        reason=str(error).partition("\n")[0],
    )
