"""The versions of the PostgreSQL schema, in order.

Must never change a version that was released; add the next one.
"""

from __future__ import annotations

from inferx.audit.tables import COMMON, TABLES

_TYPES = {"text": "text", "integer": "bigint", "real": "double precision"}


def _first() -> list[str]:
    made = ["CREATE SEQUENCE audit_n"]
    for table in TABLES.values():
        columns = ", ".join(
            f"{name} {_TYPES[kind]}{' NOT NULL' if name in COMMON else ''}"
            for name, kind in table.all_columns.items()
        )
        made.append(
            f"CREATE TABLE {table.name} (n bigint NOT NULL DEFAULT nextval('audit_n'), {columns}, "
            f"PRIMARY KEY ({', '.join(COMMON)})) PARTITION BY RANGE (at_ms)"
        )
        made.append(f"CREATE INDEX ON {table.name} (n)")
        if "tenant" in table.columns:
            made.append(f"CREATE INDEX ON {table.name} (tenant, at_ms DESC)")
    return made


MIGRATIONS: dict[int, list[str]] = {1: _first()}
"""version -> statements that lead to it from the one before."""
