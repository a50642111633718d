"""The embedded store's file: durable, exclusive, and honest about damage."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from inferx.errors import ConfigError, InvalidState, Unavailable
from inferx.store.embedded import EmbeddedStore
from inferx.store.protocol import Put

WRITER = """
import asyncio, pathlib, sys
from inferx.store.embedded import EmbeddedStore
from inferx.store.protocol import Put

async def main():
    store = await EmbeddedStore.open(pathlib.Path(sys.argv[1]))
    number = 0
    while True:
        number += 1
        await store.commit((), [Put("/k", b"%d" % number), Put(f"/n/{number:08}", b"x" * 500)])
        print(number, flush=True)

asyncio.run(main())
"""


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.db"
    store = await EmbeddedStore.open(path)
    uid = await store.uid()
    lease = await store.grant(60)
    first = await store.commit((), [Put("/a", b"1"), Put("/l", b"", lease)])
    second = await store.commit((), [Put("/a", b"2")])
    kept = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert kept == dict.fromkeys(
        ("state.db", "state.db-wal", "state.db-shm", "state.db.lock"), 0o600
    ), "nobody else reads the secrets of functions"
    await store.close()
    store = await EmbeddedStore.open(path)
    assert await store.uid() == uid
    entry = await store.get("/a")
    assert entry is not None
    assert (entry.value, entry.create_revision, entry.revision) == (b"2", first, second)
    assert await store.keep_alive(lease) == 60
    events = await anext(store.watch("/a", first))
    assert [event.revision for event in events] == [second]
    assert await store.commit((), [Put("/a", b"3")]) == second + 1
    await store.close()


def test_an_acknowledged_write_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    acknowledged = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(40):
                acknowledged = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)

        async def check(count: int) -> None:
            store = await EmbeddedStore.open(path)
            entry = await store.get("/k")
            assert entry is not None
            assert int(entry.value) >= count
            numbers, revision = await store.scan("/n/")
            assert len(numbers) >= count
            assert revision == entry.revision
            await store.close()

        asyncio.run(check(acknowledged))


async def test_a_second_opener_is_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    with pytest.raises(InvalidState, match=rf"state\.db is in use .*pid {process.pid}"):
        await EmbeddedStore.open(path)
    process.kill()
    await process.communicate()
    store = await EmbeddedStore.open(path)  # the dead process's lock file does not matter
    await store.close()


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"this is not a database, it is a sentence " * 200)
    with pytest.raises(ConfigError, match=r"state\.db is damaged"):
        await EmbeddedStore.open(path)
    path.unlink()
    await (await EmbeddedStore.open(path)).close()  # and the lock was given back


async def test_a_file_of_the_future_is_refused(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "state.db"
    await (await EmbeddedStore.open(path)).close()
    database = sqlite3.connect(path)
    database.execute("UPDATE state SET value = 99 WHERE name = 'format'")
    database.commit()
    database.close()
    with pytest.raises(ConfigError, match="format 99; this version reads 1"):
        await EmbeddedStore.open(path)


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        await EmbeddedStore.open(tmp_path / "file" / "state.db")


async def test_a_full_disk_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "state.db")
    await store.commit((), [Put("/a", b"1")])
    database = store._file._db
    pages = await store._do(lambda: database.execute("PRAGMA page_count").fetchone()[0])
    await store._do(lambda: database.execute(f"PRAGMA max_page_count = {pages + 2}"))
    with pytest.raises(Unavailable, match="full"):
        await store.commit((), [Put("/big", b"x" * 1_000_000)])
    entry = await store.get("/a")
    assert entry is not None
    assert await store.get("/big") is None
    await store._do(lambda: database.execute("PRAGMA max_page_count = 1000000"))
    assert await store.commit((), [Put("/big", b"x" * 1_000_000)]) == entry.revision + 1
    await store.close()


async def test_a_cancelled_write_still_reaches_the_watchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await EmbeddedStore.open(tmp_path / "state.db")
    start = await store.commit((), [Put("/a", b"1")])
    watch = store.watch("/a", start)
    started, cancelled = threading.Event(), threading.Event()
    commit = store._file.commit

    def slow_commit(*arguments: Any) -> tuple[int, list[str]]:
        started.set()
        cancelled.wait(10)
        return commit(*arguments)

    monkeypatch.setattr(store._file, "commit", slow_commit)
    task = asyncio.create_task(store.commit((), [Put("/a", b"2")]))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    cancelled.set()
    async with asyncio.timeout(10):
        assert (await anext(watch))[0].entry is not None
    await store.close()


async def test_history_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inferx.store import sqlite_file

    monkeypatch.setattr(sqlite_file, "_HISTORY_REVISIONS", 50)
    monkeypatch.setattr(sqlite_file, "_COMPACT_EVERY", 10)
    store = await EmbeddedStore.open(tmp_path / "state.db")
    for number in range(300):
        await store.commit((), [Put("/a", b"%d" % number)])
    rows = await store._do(
        lambda: store._file._db.execute("SELECT count(*) FROM history").fetchone()[0]
    )
    assert rows <= 61
    await store.close()


async def test_watchers_hear_of_a_commit_whatever_fails_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await EmbeddedStore.open(tmp_path / "state.db")
    lease = await store.grant(60)
    made = await store.commit((), [Put("/a/x", b"", lease)])
    events = store.watch("/a/", made)
    waiting = asyncio.ensure_future(anext(events))
    await store.commit((), [Put("/b/y", b"")])  # the watcher has nothing to read and is idle
    commit = store._file.commit

    def full(*parts: Any) -> Any:
        commit(*parts)
        raise Unavailable("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(store._file, "commit", full)
        with pytest.raises(Unavailable, match="the disk is full"):
            await store.revoke(lease)
    await store.commit((), [Put("/b/y", b"again")])
    async with asyncio.timeout(10):
        (event,) = await waiting
    assert (event.key, event.entry) == ("/a/x", None)
    await store.close()


async def test_a_commit_stands_when_history_cannot_be_compacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await EmbeddedStore.open(tmp_path / "state.db")
    monkeypatch.setattr("inferx.store.sqlite_file._COMPACT_EVERY", 1)
    monkeypatch.setattr("inferx.store.sqlite_file._HISTORY_REVISIONS", 1)

    def full(revision: int) -> None:
        raise Unavailable("the disk is full")

    monkeypatch.setattr(store._file, "compact", full)
    revision = await store.commit((), [Put("/a", b"1")])
    entry = await store.get("/a")
    assert entry is not None
    assert entry.revision == revision
    await store.close()
