"""What every store offers: ordered revisions, reads at a revision, watches, guarded transactions.

Must never know about objects; keys are text, values are bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from inferx.errors import Conflict

OPS_MAX = 128  # operations of one transaction; etcd's own default


@dataclass(frozen=True)
class Entry:
    """One key as of a revision; `revision` is that of its last write."""

    key: str
    value: bytes
    revision: int
    create_revision: int
    lease: int = 0


@dataclass(frozen=True)
class Event:
    """One change. `entry` is None for a delete; `previous` is None for a creation or when the
    history before the change is no longer kept.
    """

    key: str
    revision: int
    entry: Entry | None
    previous: Entry | None


@dataclass(frozen=True)
class At:
    """Guard: the key was last written at `revision`; 0 = it does not exist."""

    key: str
    revision: int


@dataclass(frozen=True)
class Empty:
    """Guard: no key starts with `prefix`."""

    prefix: str


@dataclass(frozen=True)
class Quiet:
    """Guard: no key that starts with `prefix` was written after `revision`."""

    prefix: str
    revision: int


Guard = At | Empty | Quiet


@dataclass(frozen=True)
class Put:
    """Write `value`; with a `lease` the key disappears when the lease ends."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True)
class Delete:
    """Remove the key; no error when it does not exist."""

    key: str


Op = Put | Delete


class GuardFailed(Conflict):
    """A guard of a transaction did not hold; nothing was written."""


class Store(Protocol):
    """A store. Every method raises `Unavailable` when the store cannot be reached or written."""

    async def get(self, key: str, revision: int = 0) -> Entry | None:
        """The key now, or as of `revision` (`Compacted` when that is no longer kept)."""
        ...

    async def scan(self, prefix: str, revision: int = 0) -> tuple[list[Entry], int]:
        """Keys that start with `prefix`, sorted, all as of one revision, and that revision."""
        ...

    def watch(self, prefix: str, revision: int) -> AsyncIterator[list[Event]]:
        """Every change after `revision`, in order, in batches of whole revisions.

        Ends with `Compacted` when changes after `revision` are no longer kept: list again.
        """
        ...

    async def commit(self, guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        """Apply all `ops` as one revision, which is returned, if all `guards` hold.

        Raises `GuardFailed` otherwise. Never repeated by itself: after `Unavailable` the outcome
        is unknown and the caller has to look.
        """
        ...

    async def grant(self, ttl_s: float) -> int:
        """A new lease that lives for `ttl_s` seconds unless kept alive."""
        ...

    async def keep_alive(self, lease: int) -> float:
        """Renew; the seconds it now lives. `NotFound` when it has ended already."""
        ...

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget what was before `revision`."""
        ...

    async def uid(self) -> int:
        """A number that identifies this store for its whole life."""
        ...

    async def close(self) -> None:
        """Give everything back; running watches end with `Unavailable`."""
        ...
