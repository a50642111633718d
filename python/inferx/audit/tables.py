"""The tables of the audit and their columns, for both databases.

Must never change a column in place: a new form is a new version in `migrations.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

TEXT, INTEGER, REAL = "text", "integer", "real"

# Every row has these first. (at_ms, writer, seq) tells it from all others, so that a row which is
# written twice after a lost answer is stored once.
COMMON = {"at_ms": INTEGER, "writer": INTEGER, "seq": INTEGER}


@dataclass(frozen=True)
class Table:
    """One table; `columns` are name -> type, without the common ones. Times are milliseconds."""

    name: str
    columns: dict[str, str]

    @property
    def all_columns(self) -> dict[str, str]:
        """Name -> type of every column, in order."""
        return {**COMMON, **self.columns}

    def values(self, row: Row) -> tuple[Any, ...]:
        """The row's values in the order of the columns; what is not given is NULL."""
        return tuple(_fit(row.get(name), kind) for name, kind in self.all_columns.items())


_PLACE = {"tenant": TEXT, "namespace": TEXT, "function": TEXT}

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table("requests", {
            "request_id": TEXT, "principal": TEXT, "method": TEXT, **_PLACE, "status": INTEGER,
            "outcome": TEXT, "pod": TEXT, "start": TEXT, "wait_ms": REAL, "first_byte_ms": REAL,
            "total_ms": REAL, "bytes_in": INTEGER, "bytes_out": INTEGER, "tokens": INTEGER,
        }),
        Table("changes", {
            "request_id": TEXT, "principal": TEXT, "action": TEXT, "kind": TEXT, "tenant": TEXT,
            "namespace": TEXT, "name": TEXT, "revision": INTEGER, "diff": TEXT,
        }),
        Table("pods", {
            **_PLACE, "revision": INTEGER, "pod": TEXT, "node": TEXT, "state": TEXT,
            "start": TEXT, "reason": TEXT,
        }),
        Table("snapshots", {
            **_PLACE, "revision": INTEGER, "snapshot": TEXT, "node": TEXT, "state": TEXT,
            "size_mb": INTEGER, "reason": TEXT,
        }),
        Table("logins", {
            "request_id": TEXT, "principal": TEXT, "action": TEXT, "target": TEXT,
            "outcome": TEXT, "tenant": TEXT, "namespace": TEXT,
        }),
        Table("losses", {"rows": INTEGER, "reason": TEXT}),
    )
}  # fmt: skip

TEXT_CHARS_MAX = 16_384
INTEGER_MAX = 2**63 - 1


def _fit(value: Any, kind: str) -> Any:
    """A value as its column takes it; text is bounded and free of what databases refuse."""
    if value is None:
        return None
    if kind == TEXT:
        text = str(value)[:TEXT_CHARS_MAX]
        return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if kind == INTEGER:
        # Workers say how many tokens they took: what no column holds must not stop the rest.
        return max(-INTEGER_MAX, min(int(value), INTEGER_MAX))
    return float(value)
