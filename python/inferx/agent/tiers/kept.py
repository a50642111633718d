"""What is known of one worker's saved GPU memory, and the words for its pieces.

Must never move a byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from inferx._ext import Gpu, ResidentSnapshot
from inferx.agent.tiers.accountant import Tier
from inferx.agent.tiers.jobs import Job
from inferx.errors import Unavailable

SLOT_MIB = 8  # of the pool
_MIB = 1 << 20


class Damaged(Unavailable):
    """A copy is not what was saved, or not for this machine."""


@dataclass(frozen=True)
class Region:
    """One piece of a worker's GPU memory."""

    handle: int
    mib: int


Regions = Mapping[str, Region]


@dataclass(frozen=True)
class Restored:
    """GPU memory that is back, and the tier that it came from."""

    regions: Regions
    tier: Tier


@dataclass
class Kept:
    """What is known of one worker's saved memory."""

    tenant: str
    identity: str  # JSON
    mib: dict[str, int]  # by name of region
    resident: ResidentSnapshot | None = None
    sinking: asyncio.Task[None] | None = None  # that gives hot copies up
    job: Job[None] | None = None  # that writes the file
    writing: asyncio.Task[None] | None = None  # that counts its outcome; never cancelled itself
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def size_bytes(self) -> int:
        """What it takes as a file at most."""
        return sum(self.mib.values()) * _MIB

    @property
    def pinned_bytes(self) -> int:
        """What it takes in the pool at most: whole slots."""
        return sum(-(-mib // SLOT_MIB) for mib in self.mib.values()) * SLOT_MIB * _MIB


async def cancelled(task: asyncio.Task[None] | None) -> None:
    """End a task, if there is one, and wait for its end."""
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task])


def free_all(gpu: Gpu, handles: Iterable[int]) -> None:
    """Give device memory back."""
    for handle in handles:
        gpu.free(handle)


def handles_of(regions: Regions) -> dict[str, int]:
    """Device handles by name of region."""
    return {name: region.handle for name, region in regions.items()}
