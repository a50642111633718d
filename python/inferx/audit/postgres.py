"""The audit in PostgreSQL: batches by COPY, monthly partitions, LISTEN/NOTIFY. The only user of its
driver.

Must never put a value into the text of a statement.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import asyncpg

from inferx.audit.migrations import MIGRATIONS
from inferx.audit.sink import Query
from inferx.audit.tables import TABLES, Row
from inferx.config import Secret
from inferx.errors import Unavailable

CONNECT_S = 3.0
STATEMENT_S = 10.0
CHANNEL = "inferx_audit"
_LOCK = 0x1F3A  # any number that only this program uses as an advisory lock
_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class PostgresSink:
    """Rows in the database at a URL; connections are made when needed and again after a loss."""

    def __init__(self, address: Secret) -> None:
        self.changed = asyncio.Event()
        self._address = address
        self._pool: Any = None
        self._opening = asyncio.Lock()
        self._listener: asyncio.Task[None] | None = None
        self._partitions: set[str] = set()

    async def open(self) -> None:
        """Connect, migrate, and begin to listen."""
        async with self._opening:
            if self._pool is None:
                self._pool = await self._migrated_pool()
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen(), name="audit-listen")

    async def _migrated_pool(self) -> Any:
        """Connections to a database that has our tables; nothing is kept of one that has not."""
        try:
            pool = await asyncio.wait_for(
                asyncpg.create_pool(
                    self._address.reveal(),
                    min_size=1,
                    max_size=4,
                    timeout=CONNECT_S,
                    command_timeout=STATEMENT_S,
                    server_settings={"application_name": "inferx-audit"},
                ),
                CONNECT_S * 2,
            )
        except (*_ERRORS, ValueError) as error:
            raise Unavailable(_safe(error)) from None
        try:
            async with pool.acquire(timeout=CONNECT_S) as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
                await _migrate(connection)
        except BaseException as error:
            pool.terminate()
            if isinstance(error, _ERRORS):
                raise Unavailable(_safe(error)) from None
            raise
        return pool

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        if self._pool is None:
            await self.open()
        try:
            async with self._pool.acquire(timeout=CONNECT_S) as connection:
                yield connection
        except _ERRORS as error:
            raise Unavailable(_safe(error)) from None

    async def write(self, rows: Sequence[tuple[str, Row]]) -> None:
        """Store rows, all or none: COPY into a table of the session, from there what is new."""
        by_table: dict[str, list[tuple[Any, ...]]] = {}
        for name, row in rows:
            by_table.setdefault(name, []).append(TABLES[name].values(row))
        partitions: set[str] = set()
        async with self._connection() as connection, connection.transaction():
            for name, values in by_table.items():
                columns = list(TABLES[name].all_columns)
                partitions |= await self._ensure_partitions(
                    connection, name, {each[0] for each in values}
                )
                listed = ", ".join(columns)
                await connection.execute(
                    f"CREATE TEMP TABLE new_{name} ON COMMIT DROP AS "  # noqa: S608 (our names)
                    f"SELECT {listed} FROM {name} WITH NO DATA"
                )
                await connection.copy_records_to_table(
                    f"new_{name}", records=values, columns=columns
                )
                await connection.execute(
                    f"INSERT INTO {name} ({listed}) SELECT {listed} FROM new_{name} "  # noqa: S608
                    "ON CONFLICT DO NOTHING"
                )
            await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, " ".join(by_table))
        self._partitions |= partitions  # not before: a rollback takes them back
        self.changed.set()

    async def _ensure_partitions(self, connection: Any, name: str, times: set[int]) -> set[str]:
        """Makes the partitions of these times that are not known to be there; returns those."""
        made: set[str] = set()
        for month in sorted({_month(at_ms) for at_ms in times}):
            partition = f"{name}_{month:%Y%m}"
            if partition in self._partitions:
                continue
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            await connection.execute(
                f"CREATE TABLE IF NOT EXISTS {partition} PARTITION OF {name} "
                f"FOR VALUES FROM ({_ms(month)}) TO ({_ms(_next(month))})"
            )
            made.add(partition)
        return made

    async def read(self, query: Query) -> list[Row]:
        """The rows asked for."""
        where, values = ["true"], []
        bounds: tuple[tuple[str, Any], ...] = (
            *((f"{name} =", value) for name, value in query.equal.items()),
            ("at_ms >=", query.since_ms),
            ("at_ms <", query.until_ms),
            ("n >", query.after),
        )
        for text, value in bounds:
            if value is not None:
                values.append(value)
                where.append(f"{text} ${len(values)}")
        order = "at_ms DESC, n DESC" if query.after is None else "n"
        values.append(query.limit)
        # Names come from our tables; values are bound.
        text = (
            f"SELECT * FROM {query.table} WHERE {' AND '.join(where)} "  # noqa: S608
            f"ORDER BY {order} LIMIT ${len(values)}"
        )
        async with self._connection() as connection:
            return [dict(found) for found in await connection.fetch(text, *values)]

    async def last(self, table: str) -> int:
        """The highest number of a row."""
        text = f"SELECT coalesce(max(n), 0) FROM {TABLES[table].name}"  # noqa: S608 (our names)
        async with self._connection() as connection:
            return int(await connection.fetchval(text))

    async def retire(self, before_ms: int) -> int:
        """Drop the partitions of months that are over and older."""
        oldest = _month(before_ms)
        gone = 0
        async with self._connection() as connection:
            for name in TABLES:
                found = await connection.fetch(
                    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
                    "WHERE i.inhparent = $1::regclass",
                    name,
                )
                for (partition,) in found:
                    month = datetime.strptime(partition[-6:], "%Y%m").replace(tzinfo=UTC)
                    if month < oldest:
                        await connection.execute(f"DROP TABLE IF EXISTS {partition}")
                        self._partitions.discard(partition)
                        gone += 1
        return gone

    async def _listen(self) -> None:
        """Hear of the rows that other processes write; connect again after a loss."""

        def heard(*_: object) -> None:
            self.changed.set()

        while True:
            connection = None
            try:
                connection = await asyncpg.connect(self._address.reveal(), timeout=CONNECT_S)
                await connection.add_listener(CHANNEL, heard)
                lost = asyncio.Event()
                connection.add_termination_listener(lambda _, lost=lost: lost.set())
                await lost.wait()
            except _ERRORS:
                pass  # the writer says that the database is away; here it is only tried again
            finally:
                if connection is not None:
                    connection.terminate()
            await asyncio.sleep(1.0)

    async def close(self) -> None:
        """Close the connections."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        if self._pool is not None:
            with suppress(*_ERRORS):
                await asyncio.wait_for(self._pool.close(), CONNECT_S)
            self._pool.terminate()
            self._pool = None


async def _migrate(connection: Any) -> None:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS audit_version (version integer PRIMARY KEY)"
    )
    current = await connection.fetchval("SELECT coalesce(max(version), 0) FROM audit_version")
    if current > max(MIGRATIONS):
        raise Unavailable(f"the audit database is of version {current}, newer than this program")
    for version in sorted(MIGRATIONS):
        if version > current:
            for statement in MIGRATIONS[version]:
                await connection.execute(statement)
            await connection.execute("INSERT INTO audit_version VALUES ($1)", version)


def _month(at_ms: int) -> datetime:
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return datetime(at.year, at.month, 1, tzinfo=UTC)


def _next(month: datetime) -> datetime:
    return datetime(month.year + month.month // 12, month.month % 12 + 1, 1, tzinfo=UTC)


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def _safe(error: BaseException) -> str:
    """The error without what it may quote of the address and its password."""
    return f"the audit database does not answer ({type(error).__name__})"
