"""The audit of one machine in an SQLite file.

Must never be written by two processes that do not belong to the same machine.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from inferx.audit.sink import Query
from inferx.audit.tables import COMMON, TABLES, Row
from inferx.errors import Unavailable

VERSION = 1
BUSY_S = 5.0
_T = TypeVar("_T")


class SqliteSink:
    """Rows in `path`; all work is done by one thread of its own."""

    def __init__(self, path: Path) -> None:
        self.changed = asyncio.Event()
        self._path = path
        self._thread = ThreadPoolExecutor(1, "audit")
        self._database: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open the file and make the tables."""
        await self._run(self._open)

    async def write(self, rows: Sequence[tuple[str, Row]]) -> None:
        """Store rows, all or none."""
        await self._opened()
        await self._run(lambda: self._write(rows))
        self.changed.set()

    async def read(self, query: Query) -> list[Row]:
        """The rows asked for."""
        await self._opened()
        return await self._run(lambda: self._read(query))

    async def last(self, table: str) -> int:
        """The highest number of a row."""
        await self._opened()
        text = f"SELECT coalesce(max(n), 0) FROM {TABLES[table].name}"  # noqa: S608 (our names)
        return int(await self._run(lambda: self._connection().execute(text).fetchone()[0]))

    async def retire(self, before_ms: int) -> int:
        """Delete what is older."""
        await self._opened()
        return await self._run(lambda: self._retire(before_ms))

    async def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            await self._run(self._database.close)
            self._database = None
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise Unavailable(f"the audit in {self._path}: {error}") from error

    async def _opened(self) -> None:
        if self._database is None:
            await self.open()

    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            raise Unavailable("the audit is not open")
        return self._database

    def _open(self) -> None:
        if self._database is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch(mode=0o600)
        database = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        for table in TABLES.values():
            columns = ", ".join(f"{name} {kind}" for name, kind in table.all_columns.items())
            database.execute(
                f"CREATE TABLE IF NOT EXISTS {table.name} "
                f"(n INTEGER PRIMARY KEY AUTOINCREMENT, {columns}, UNIQUE ({', '.join(COMMON)}))"
            )
        database.execute(f"PRAGMA user_version={VERSION}")
        self._database = database

    def _write(self, rows: Sequence[tuple[str, Row]]) -> None:
        database = self._connection()
        database.execute("BEGIN IMMEDIATE")
        try:
            for name, row in rows:
                table = TABLES[name]
                marks = ", ".join("?" * len(table.all_columns))
                columns = ", ".join(table.all_columns)
                database.execute(
                    f"INSERT OR IGNORE INTO {name} ({columns}) VALUES ({marks})",  # noqa: S608
                    table.values(row),
                )
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise

    def _read(self, query: Query) -> list[Row]:
        where, values = ["1"], []
        for name, value in query.equal.items():
            where.append(f"{name} = ?")
            values.append(value)
        bounds: tuple[tuple[str, Any], ...] = (
            ("at_ms >= ?", query.since_ms), ("at_ms < ?", query.until_ms), ("n > ?", query.after),
        )  # fmt: skip
        for text, value in bounds:
            if value is not None:
                where.append(text)
                values.append(value)
        order = "at_ms DESC, n DESC" if query.after is None else "n"
        # Names come from our tables; values are bound.
        text = (
            f"SELECT * FROM {query.table} WHERE {' AND '.join(where)} "  # noqa: S608
            f"ORDER BY {order} LIMIT ?"
        )
        cursor = self._connection().execute(text, [*values, query.limit])
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, found, strict=True)) for found in cursor]

    def _retire(self, before_ms: int) -> int:
        gone = 0
        for name in TABLES:
            text = f"DELETE FROM {name} WHERE at_ms < ?"  # noqa: S608 (our names)
            gone += self._connection().execute(text, (before_ms,)).rowcount
        return gone
