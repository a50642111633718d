"""The audit on SQLite and a real PostgreSQL: stored once, over disk when away, losses counted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from inferx.audit import Audit, Query, Sink, postgres
from inferx.audit.postgres import PostgresSink
from inferx.audit.spill import Spill, portions
from inferx.audit.sqlite import SqliteSink
from inferx.audit.tables import INTEGER_MAX
from inferx.config import Secret
from inferx.errors import BadRequest, Unavailable
from tests.helpers.postgres_server import Postgres

DEADLINE_S = 60.0
NOON_MS = int(time.time() * 1000) - 43_200_000
pytestmark = pytest.mark.xdist_group("postgres")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as found:
        yield found


def names(folder: Path, pattern: str = "*") -> list[str]:
    """What is in a folder."""
    return [path.name for path in folder.glob(pattern)]


def make(kind: str, server: Postgres, folder: Path) -> Sink:
    if kind == "sqlite":
        return SqliteSink(folder / "audit.db")
    return PostgresSink(Secret(server.url))


@pytest.fixture(params=["sqlite", "postgres"])
def sink(request: pytest.FixtureRequest, server: Postgres, tmp_path: Path) -> Sink:
    return make(request.param, server, tmp_path)


async def count(sink: Sink, **equal: Any) -> int:
    return len(await sink.read(Query("requests", equal, limit=1000)))


async def stored(sink: Sink, number: int, **equal: Any) -> None:
    """Wait until so many rows are there."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            found = await count(sink, **equal)
        except Unavailable:
            found = -1
        if found == number:
            return
        assert time.monotonic() < deadline, f"{found} rows of {number}"
        await asyncio.sleep(0.05)


async def test_rows_are_stored_and_chosen(sink: Sink, tmp_path: Path) -> None:
    audit = Audit(sink, tmp_path / "spill")
    audit.start()
    nasty = "x'; DROP TABLE requests;-- \0 \ud800 \u202e"
    for number in range(10):
        audit.record("requests", {
            "at_ms": NOON_MS + number, "tenant": "choose", "status": 200 + number % 2,
            "principal": nasty, "wait_ms": 1.5,
        })  # fmt: skip
    await stored(sink, 10, tenant="choose")
    found = await sink.read(Query("requests", {"tenant": "choose", "status": 201}, limit=3))
    assert [row["at_ms"] - NOON_MS for row in found] == [9, 7, 5]
    assert (found[0]["wait_ms"], found[0]["method"]) == (1.5, None)
    bound = Query("requests", {"tenant": "choose"}, NOON_MS + 2, NOON_MS + 4)
    assert len(await sink.read(bound)) == 2
    assert await count(sink, tenant="x' OR '1'='1") == 0
    newer = await sink.read(Query("requests", {"tenant": "choose"}, after=found[-1]["n"]))
    assert [row["at_ms"] - NOON_MS for row in newer] == [6, 7, 8, 9]
    await audit.stop()
    assert not names(tmp_path / "spill")


async def test_a_row_with_an_identity_is_stored_once(sink: Sink, tmp_path: Path) -> None:
    audit = Audit(sink, tmp_path / "spill")
    audit.start()
    for _ in range(3):
        row = {"at_ms": NOON_MS, "tenant": "once"}
        audit.record("requests", row, identity=(0, 4711))
    audit.record("requests", {"tenant": "once"})
    await stored(sink, 2, tenant="once")
    await audit.stop()


async def test_old_rows_are_retired(sink: Sink, tmp_path: Path) -> None:
    audit = Audit(sink, tmp_path / "spill", retention_days=90)
    old = int(time.time() * 1000) - 200 * 86_400_000
    audit.record("requests", {"at_ms": old, "tenant": "old"})
    audit.record("requests", {"tenant": "old"})
    audit.start()
    await stored(sink, 1, tenant="old")
    await audit.stop()


def test_a_query_names_what_there_is() -> None:
    for wrong in (
        {"table": "passwords"},
        {"table": "requests", "equal": {"1=1 OR tenant": "x"}},
        {"table": "requests", "limit": 0},
        {"table": "pods", "equal": {"status": 1}},
    ):
        with pytest.raises(BadRequest):
            Query(**wrong)  # type: ignore[arg-type]


async def test_the_database_is_away_for_a_while(tmp_path: Path) -> None:
    with Postgres() as server:
        sink = PostgresSink(Secret(server.url))
        audit = Audit(sink, tmp_path)
        audit.start()
        sent = 0

        def send(number: int) -> None:
            nonlocal sent
            begun = time.monotonic()
            for _ in range(number):
                audit.record("requests", {"tenant": "away", "bytes_in": sent})
                sent += 1
            assert time.monotonic() - begun < 5.0, "recording waits for nobody"

        send(50)
        await stored(sink, 50, tenant="away")
        await asyncio.to_thread(server.stop)
        for _ in range(20):
            send(30)
            await asyncio.sleep(0.1)
        assert names(tmp_path, "*.spill"), "the rows are safe on disk"
        await asyncio.to_thread(server.start)
        send(50)
        await stored(sink, 700, tenant="away")
        rows = await sink.read(Query("requests", {"tenant": "away"}, limit=1000))
        assert sorted(row["bytes_in"] for row in rows) == list(range(700)), "each of them once"
        assert audit.dropped == 0
        await audit.stop()


KILLED = """
import asyncio, sys
from pathlib import Path
from inferx.audit import Audit
from inferx.audit.postgres import PostgresSink
from inferx.config import Secret

async def main():
    audit = Audit(PostgresSink(Secret(sys.argv[1])), Path(sys.argv[2]))
    for number in range(30):
        audit.record("requests", {"tenant": "killed", "bytes_in": number})
    audit._to_disk(audit._take(20))
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_killed_process_loses_what_was_in_memory_and_it_is_counted(
    tmp_path: Path, server: Postgres
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, server.url, str(tmp_path), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    mine = f"audit-{os.getpid()}-"
    # In a container each start has the same process id.
    for path in list(tmp_path.iterdir()):  # noqa: ASYNC240
        path.rename(path.with_name(path.name.replace(f"audit-{process.pid}-", mine)))
    sink = PostgresSink(Secret(server.url))
    audit = Audit(sink, tmp_path)
    audit.start()
    audit.record("requests", {"tenant": "alive"})
    await stored(sink, 1, tenant="alive")
    assert await count(sink, tenant="killed") == 0, "whoever lives keeps its own"
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    await stored(sink, 20, tenant="killed")
    deadline = time.monotonic() + DEADLINE_S
    while not (losses := await sink.read(Query("losses"))):
        assert time.monotonic() < deadline, "the loss was not counted"
        await asyncio.sleep(0.05)
    assert (losses[0]["rows"], "was killed" in losses[0]["reason"]) == (10, True)
    await audit.stop()
    assert not names(tmp_path)


async def test_a_batch_that_was_taken_back_leaves_the_next_one_its_partition(
    server: Postgres,
) -> None:
    sink = PostgresSink(Secret(server.url))
    long_ago = {"at_ms": 946_684_800_000, "tenant": "back", "writer": 1}
    row = ("requests", {**long_ago, "seq": 1})
    with pytest.raises(ValueError, match="year"):
        await sink.write([row, ("pods", {"at_ms": 1 << 60, "writer": 1, "seq": 2})])
    await sink.write([row])
    assert await count(sink, tenant="back") == 1
    await sink.close()


async def test_tables_that_could_not_be_made_are_made_later(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await asyncpg.connect(server.url)
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.execute("SELECT pg_advisory_lock($1)", postgres._LOCK)
    monkeypatch.setattr(postgres, "STATEMENT_S", 0.3)
    sink = PostgresSink(Secret(server.url))
    with pytest.raises(Unavailable):
        await sink.write([("requests", {"at_ms": NOON_MS, "writer": 1, "seq": 1})])
    await connection.close()
    monkeypatch.undo()
    await asyncio.gather(*(sink.last("requests") for _ in range(3)))
    await sink.close()


async def test_without_database_and_room_losses_are_counted(tmp_path: Path) -> None:
    sink = PostgresSink(Secret("postgresql://nobody:secret-word@127.0.0.1:1/x"))
    audit = Audit(sink, tmp_path, queue_max=100, spill_bytes_max=10_000)
    for _ in range(5000):
        audit.record("requests", {"tenant": "t"})
    while audit._queue:
        audit._to_disk(audit._take(1000))
    kept = sum(len(rows) for path in audit._spill.sealed() for rows in portions(path))
    assert kept > 50
    assert audit.dropped == 5000 - kept
    with pytest.raises(Unavailable) as away:
        await sink.open()
    assert "secret-word" not in str(away.value)
    await audit.stop()


async def test_what_comes_while_a_file_is_brought_home_is_kept(tmp_path: Path) -> None:
    """The database is slow: what waits goes to disk beside the file that is being written."""
    sink = SqliteSink(tmp_path / "audit.db")
    audit = Audit(sink, tmp_path / "spill", queue_max=10)
    write = sink.write

    async def slow(rows: Any) -> None:
        await write(rows)
        await asyncio.sleep(1.5)

    sink.write = slow  # type: ignore[method-assign]
    for number in range(15):
        audit.record("requests", {"tenant": "slow", "bytes_in": number})
    assert audit._spill
    audit.start()
    for number in range(15, 200):
        audit.record("requests", {"tenant": "slow", "bytes_in": number})
        await asyncio.sleep(0.01)
    sink.write = write  # type: ignore[method-assign]
    await stored(sink, 200, tenant="slow")
    assert audit._tally.taken == audit._tally.safe
    await audit.stop()
    assert not names(tmp_path / "spill")


async def test_rows_are_on_disk_while_the_database_hangs(tmp_path: Path) -> None:
    class Hanging(SqliteSink):
        async def write(self, rows: Any) -> None:
            await asyncio.Event().wait()

    audit = Audit(Hanging(tmp_path / "audit.db"), tmp_path / "spill")
    audit.start()
    for _ in range(50):
        audit.record("requests", {"tenant": "hangs"})
        await asyncio.sleep(0.02)
    deadline = time.monotonic() + DEADLINE_S
    while audit._tally.safe < 50:
        assert time.monotonic() < deadline, f"{audit._tally.safe} rows are safe"
        await asyncio.sleep(0.05)
    await audit.stop()
    assert sum(len(rows) for path in audit._spill.sealed() for rows in portions(path)) == 50


async def test_a_number_that_no_column_holds_does_not_stop_the_rest(
    sink: Sink, tmp_path: Path
) -> None:
    audit = Audit(sink, tmp_path / "spill")
    audit.start()
    audit.record("requests", {"tenant": "large", "tokens": 2**64 - 1})
    audit.record("requests", {"tenant": "large", "tokens": 5})
    await stored(sink, 2, tenant="large")
    found = await sink.read(Query("requests", {"tenant": "large"}))
    assert {row["tokens"] for row in found} == {INTEGER_MAX, 5}
    await audit.stop()


def test_a_cut_row_does_not_spoil_the_others(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "x.spill")
    row = {"at_ms": 1, "writer": 1, "seq": 1, "tenant": "t"}
    assert spill.append([("requests", {**row, "seq": number}) for number in range(10)]) == 0
    spill.path.write_bytes(spill.path.read_bytes()[:-5])
    assert sum(len(rows) for path in spill.sealed() for rows in portions(path)) == 9
