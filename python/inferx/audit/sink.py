"""What the writer and the readers need of a database, whichever it is.

Must never contain a word of a database's language.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from inferx.audit.tables import TABLES, Row
from inferx.errors import BadRequest

LIMIT_MAX = 1000
# The columns by which rows may be chosen, besides their time.
FILTERS = (
    "tenant", "namespace", "function", "principal", "request_id", "status", "outcome", "pod",
    "state", "kind", "name", "action", "node", "revision",
)  # fmt: skip


@dataclass(frozen=True)
class Query:
    """Which rows of a table: newest first, or after `after` (a row's number) oldest first."""

    table: str
    equal: dict[str, str | int] = field(default_factory=dict)
    since_ms: int | None = None
    until_ms: int | None = None
    limit: int = 100
    after: int | None = None

    def __post_init__(self) -> None:
        """Raises `BadRequest` for what the table has not."""
        table = TABLES.get(self.table)
        if table is None:
            raise BadRequest(f"there is no audit of {self.table!r}")
        for name in self.equal:
            if name not in table.columns or name not in FILTERS:
                raise BadRequest(f"{name}: {self.table} cannot be chosen by it")
        if not 0 < self.limit <= LIMIT_MAX:
            raise BadRequest(f"limit: expected 1..{LIMIT_MAX}")


class Sink(Protocol):
    """A database. Every method raises `Unavailable` when it cannot be used now."""

    changed: asyncio.Event
    """Set when rows were written, here or by another process."""

    async def open(self) -> None:
        """Connect and bring the tables up to date."""
        ...

    async def write(self, rows: Sequence[tuple[str, Row]]) -> None:
        """Store (table, row) pairs, all or none; a row that is there already is left alone."""
        ...

    async def read(self, query: Query) -> list[Row]:
        """The rows asked for, each with its number `n`."""
        ...

    async def last(self, table: str) -> int:
        """The highest number of a row, 0 for none."""
        ...

    async def retire(self, before_ms: int) -> int:
        """Delete what is older; returns how many rows, or partitions, went."""
        ...

    async def close(self) -> None:
        """Give everything back."""
        ...
