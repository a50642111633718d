"""Who has how many bytes in which tier, what is in use, and what should leave first.

Must never do I/O, ask a clock, or count a byte twice; moves are other people's, counted here.

The order of leaving is greedy-dual with sizes and frequencies (Cherkasova 1998): the priority of a
copy is the tier's clock at its last use plus hits x seconds that it saves / bytes; the clock rises
to the priority of what left last, so that what nobody uses any more grows old.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from inferx.errors import InvalidState, NoCapacity, NotFound


class Tier(IntEnum):
    """Where bytes can be, from the hottest to the coldest."""

    GPU = 0
    PINNED = 1
    PAGEABLE = 2
    FILE = 3
    BLOB = 4


@dataclass(frozen=True)
class Cost:
    """What it takes to bring memory from a tier to the GPU."""

    fixed_s: float
    bytes_per_s: float

    def seconds(self, size_bytes: int) -> float:
        return self.fixed_s + size_bytes / self.bytes_per_s


@dataclass
class Copy:
    """One item in one tier. While it is `coming` its room is taken, and nobody may use it."""

    size_bytes: int
    coming: bool = True
    pins: int = 0
    clock: float = 0.0  # the tier's when it was last used


@dataclass
class Item:
    """Everything that is kept under one id."""

    copies: dict[Tier, Copy] = field(default_factory=dict)
    hits: int = 0


class Accountant:
    """`limits` are bytes; a tier without one is bounded elsewhere. `cold_s` is what it takes to
    do without any copy."""

    def __init__(
        self, limits: Mapping[Tier, int], costs: Mapping[Tier, Cost], cold_s: float
    ) -> None:
        self._limits = dict(limits)
        self._costs = dict(costs)
        self._cold_s = cold_s
        self._items: dict[str, Item] = {}
        self._used = dict.fromkeys(Tier, 0)
        self._clocks = dict.fromkeys(Tier, 0.0)

    # ---- looking ----

    def used_bytes(self, tier: Tier) -> int:
        """Bytes taken, with those that are still coming."""
        return self._used[tier]

    def free_bytes(self, tier: Tier) -> int | None:
        """Bytes left; None for a tier without a limit."""
        limit = self._limits.get(tier)
        return None if limit is None else limit - self._used[tier]

    def hottest(self, id: str) -> Tier | None:
        """The quickest tier with a usable copy."""
        item = self._items.get(id, Item())
        return min((tier for tier, copy in item.copies.items() if not copy.coming), default=None)

    def has(self, id: str, tier: Tier) -> bool:
        """Whether a usable copy is there."""
        copy = self._items.get(id, Item()).copies.get(tier)
        return copy is not None and not copy.coming

    def value(self, id: str, tier: Tier) -> float:
        """Seconds saved per byte by this copy, times the hits so far."""
        copy = self._copy(id, tier)
        below = [t for t, c in self._items[id].copies.items() if t > tier and not c.coming]
        without_s = self._seconds(id, min(below)) if below else self._cold_s
        saved_s = max(0.0, without_s - self._seconds(id, tier))
        return self._items[id].hits * saved_s / max(1, copy.size_bytes)

    def victims(self, tier: Tier, needed_bytes: int) -> list[str]:
        """Whose copies have to leave so that this many bytes fit; the least worth first.

        Raises NoCapacity when not even all that nobody uses would be enough.
        """
        free = self.free_bytes(tier)
        if free is None:
            return []
        movable = [
            (copy.clock + self.value(id, tier), id, copy.size_bytes)
            for id, item in self._items.items()
            if (copy := item.copies.get(tier)) is not None and not (copy.coming or copy.pins)
        ]
        chosen = []
        for _, id, size_bytes in sorted(movable):
            if free >= needed_bytes:
                break
            chosen.append(id)
            free += size_bytes
        if free < needed_bytes:
            raise NoCapacity(
                f"tier {tier.name}: {needed_bytes} bytes are needed, {free} could be had",
                details={"tier": tier.name, "needed_bytes": needed_bytes, "free_bytes": free},
            )
        return chosen

    # ---- counting ----

    def set_limit(self, tier: Tier, size_bytes: int) -> None:
        """Bound a tier anew; what is there already stays until it has to leave."""
        self._limits[tier] = size_bytes

    def claim(self, id: str, tier: Tier, size_bytes: int) -> None:
        """Take the room of a copy that is about to come; NoCapacity when it is not free."""
        item = self._items.get(id)
        if item is not None and tier in item.copies:
            raise InvalidState(f"{id} is in tier {tier.name} already")
        free = self.free_bytes(tier)
        if free is not None and size_bytes > free:
            raise NoCapacity(f"tier {tier.name}: {size_bytes} bytes are needed, {free} are free")
        self._items.setdefault(id, Item()).copies[tier] = Copy(size_bytes)
        self._used[tier] += size_bytes

    def settle(self, id: str, tier: Tier, size_bytes: int | None = None) -> None:
        """A claimed copy is there and may be used; `size_bytes` if it became smaller."""
        copy = self._copy(id, tier)
        if not copy.coming:
            raise InvalidState(f"{id} is in tier {tier.name} already")
        if size_bytes is not None:
            if size_bytes > copy.size_bytes:
                raise InvalidState(f"{id} was claimed with {copy.size_bytes} bytes")
            self._used[tier] += size_bytes - copy.size_bytes
            copy.size_bytes = size_bytes
        copy.coming = False
        copy.clock = self._clocks[tier]

    def hit(self, id: str) -> None:
        """The item was needed."""
        item = self._item(id)
        item.hits += 1
        for tier, copy in item.copies.items():
            copy.clock = self._clocks[tier]

    def pin(self, id: str, tier: Tier) -> None:
        """A copy is in use; it cannot leave until it is unpinned as often."""
        copy = self._copy(id, tier)
        if copy.coming:
            raise InvalidState(f"{id} is still coming to tier {tier.name}")
        copy.pins += 1

    def unpin(self, id: str, tier: Tier) -> None:
        """Undo one `pin`."""
        copy = self._copy(id, tier)
        if copy.pins == 0:
            raise InvalidState(f"{id} is not pinned in tier {tier.name}")
        copy.pins -= 1

    def drop(self, id: str, tier: Tier, *, evicted: bool = False) -> None:
        """A copy is gone, or is not coming after all; with `evicted` the others grow older."""
        copy = self._copy(id, tier)
        if copy.pins:
            raise InvalidState(f"{id} is in use in tier {tier.name}")
        if evicted and not copy.coming:
            self._clocks[tier] = max(self._clocks[tier], copy.clock + self.value(id, tier))
        self._used[tier] -= copy.size_bytes
        del self._items[id].copies[tier]
        if not self._items[id].copies:
            del self._items[id]

    def check(self) -> None:
        """Raise AssertionError unless the sums are right; for tests."""
        for tier in Tier:
            copies = [item.copies[tier] for item in self._items.values() if tier in item.copies]
            assert self._used[tier] == sum(copy.size_bytes for copy in copies), tier
            assert self._used[tier] <= self._limits.get(tier, self._used[tier]), tier
            assert all(copy.pins >= 0 and not (copy.coming and copy.pins) for copy in copies), tier
        assert all(item.copies for item in self._items.values())

    # ---- inside ----

    def _item(self, id: str) -> Item:
        if id not in self._items:
            raise NotFound(f"nothing is kept as {id}")
        return self._items[id]

    def _copy(self, id: str, tier: Tier) -> Copy:
        copy = self._item(id).copies.get(tier)
        if copy is None:
            raise NotFound(f"{id} is not in tier {tier.name}")
        return copy

    def _seconds(self, id: str, tier: Tier) -> float:
        return self._costs[tier].seconds(self._items[id].copies[tier].size_bytes)
