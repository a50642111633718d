"""The file of the embedded store: schema, transactions and reads, all synchronous.

Must never be called from an event loop; `embedded.EmbeddedStore` owns the one thread that does.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from inferx.errors import (
    BadRequest,
    Compacted,
    ConfigError,
    InferxError,
    InvalidState,
    NotFound,
    Unavailable,
)
from inferx.store.protocol import OPS_MAX, At, Delete, Empty, Entry, Event, Guard, GuardFailed, Op

_FORMAT = 1
_HISTORY_REVISIONS = 10_000  # kept for watchers that are behind and for reads at a revision
_COMPACT_EVERY = 1_000
_EVENTS_PER_READ = 500
_log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (
    key TEXT NOT NULL, revision INTEGER NOT NULL, create_revision INTEGER NOT NULL,
    value BLOB, lease INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (key, revision)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS history_revision ON history (revision);
CREATE TABLE IF NOT EXISTS current (key TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lease (id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL);
"""


def _end_of(prefix: str) -> str:
    """The first key after all that start with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else "\U0010ffff"


class SqliteFile:
    """One open store file; only one process at a time has it open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd = _take_lock(path)
        try:
            self._open()
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _open(self) -> None:
        with self._errors():
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            verdict = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise ConfigError(f"store file {self.path} is damaged: {verdict}")
            self._db.executescript(_SCHEMA)
            found = self._state("format", _FORMAT)
            if found != _FORMAT:
                raise ConfigError(
                    f"store file {self.path} has format {found}; this version reads {_FORMAT}"
                )
            self.revision = self._state("revision", 1)
            self.compacted = self._state("compacted", 0)
            self.uid = self._state("uid", secrets.randbits(62))

    def _state(self, name: str, default: int) -> int:
        self._db.execute("INSERT OR IGNORE INTO state VALUES (?, ?)", (name, default))
        row = self._db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return int(row[0])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as ours: a damaged file is final, a full or failing disk may pass."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise Unavailable(f"store file {self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"store file {self.path} is damaged: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file and let another process have it."""
        self._db.close()
        os.close(self._lock_fd)

    # ---- reads ----

    def get(self, key: str, revision: int) -> Entry | None:
        """The key as of `revision`, 0 = now."""
        at = self._readable(revision)
        with self._errors():
            row = self._db.execute(
                "SELECT key, value, revision, create_revision, lease FROM history"
                " WHERE key = ? AND revision <= ? ORDER BY revision DESC LIMIT 1",
                (key, at),
            ).fetchone()
        return None if row is None or row[1] is None else Entry(*row)

    def scan(self, prefix: str, revision: int) -> tuple[list[Entry], int]:
        """Keys under `prefix` as of `revision`, 0 = now."""
        at = self._readable(revision)
        if at == self.revision:
            query = (
                "SELECT h.key, h.value, h.revision, h.create_revision, h.lease"
                " FROM current c JOIN history h ON h.key = c.key AND h.revision = c.revision"
                " WHERE c.key >= ? AND c.key < ? ORDER BY c.key"
            )
            arguments: tuple[str | int, ...] = (prefix, _end_of(prefix))
        else:
            query = (
                "SELECT key, value, revision, create_revision, lease FROM history h"
                " WHERE key >= ? AND key < ? AND value IS NOT NULL AND revision ="
                " (SELECT max(revision) FROM history WHERE key = h.key AND revision <= ?)"
                " ORDER BY key"
            )
            arguments = (prefix, _end_of(prefix), at)
        with self._errors():
            return [Entry(*row) for row in self._db.execute(query, arguments)], at

    def _readable(self, revision: int) -> int:
        if revision > self.revision:
            raise Unavailable(f"revision {revision} is not written yet, now {self.revision}")
        if 0 < revision < self.compacted:
            raise Compacted(f"revision {revision} is compacted; kept from {self.compacted}")
        return revision or self.revision

    def changes(self, prefix: str, after: int) -> tuple[list[Event], int]:
        """Changes after revision `after`, whole revisions only, and the revision reached."""
        if after < self.compacted:
            raise Compacted(f"changes after {after} are compacted; kept from {self.compacted}")
        with self._errors():
            rows = self._db.execute(
                "SELECT key, value, revision, create_revision, lease FROM history"
                " WHERE revision > ? AND key >= ? AND key < ? ORDER BY revision, key LIMIT ?",
                (after, prefix, _end_of(prefix), _EVENTS_PER_READ),
            ).fetchall()
            reached = max(after, self.revision)
            if len(rows) == _EVENTS_PER_READ:
                reached = rows[-1][2]
                whole = [row for row in rows if row[2] < reached]
                if whole:  # the last revision may be cut; it comes with the next read
                    rows, reached = whole, whole[-1][2]
            return [self._event(row) for row in rows], reached

    def _event(self, row: tuple[str, bytes | None, int, int, int]) -> Event:
        key, value, revision, create_revision, lease = row
        before = self._db.execute(
            "SELECT key, value, revision, create_revision, lease FROM history"
            " WHERE key = ? AND revision < ? ORDER BY revision DESC LIMIT 1",
            (key, revision),
        ).fetchone()
        previous = None if before is None or before[1] is None else Entry(*before)
        entry = None if value is None else Entry(key, value, revision, create_revision, lease)
        return Event(key, revision, entry, previous)

    # ---- writes ----

    def commit(self, guards: Sequence[Guard], ops: Sequence[Op]) -> tuple[int, list[str]]:
        """Apply `ops` if `guards` hold; the revision, and the keys that changed."""
        if len(ops) > OPS_MAX:
            raise BadRequest(f"a transaction of {len(ops)} operations; at most {OPS_MAX}")
        with self._transaction():
            for guard in guards:
                self._check(guard)
            revision = self.revision + 1
            changed = [op.key for op in ops if self._apply(op, revision)]
            if not changed:
                return self.revision, []
            self._db.execute("UPDATE state SET value = ? WHERE name = 'revision'", (revision,))
        self.revision = revision
        if revision % _COMPACT_EVERY == 0 and revision > _HISTORY_REVISIONS:
            self._compact_history()
        return revision, changed

    def _compact_history(self) -> None:
        """The commit before it stands, whatever becomes of this."""
        try:
            self.compact(max(self.revision - _HISTORY_REVISIONS, self.compacted))
        except InferxError as error:
            _log.warning("history is not compacted for now: %s", error.message)

    def _check(self, guard: Guard) -> None:
        if isinstance(guard, At):
            row = self._db.execute(
                "SELECT revision FROM current WHERE key = ?", (guard.key,)
            ).fetchone()
            found = 0 if row is None else int(row[0])
            if found != guard.revision:
                raise GuardFailed(f"{guard.key} is at revision {found}, not {guard.revision}")
            return
        after = 0 if isinstance(guard, Empty) else guard.revision
        row = self._db.execute(
            "SELECT key FROM current WHERE key >= ? AND key < ? AND revision > ? LIMIT 1",
            (guard.prefix, _end_of(guard.prefix), after),
        ).fetchone()
        if row is not None:
            raise GuardFailed(f"{row[0]} exists or changed after revision {after}")

    def _apply(self, op: Op, revision: int) -> bool:
        row = self._db.execute(
            "SELECT h.create_revision FROM current c JOIN history h"
            " ON h.key = c.key AND h.revision = c.revision WHERE c.key = ?",
            (op.key,),
        ).fetchone()
        if isinstance(op, Delete):
            if row is None:
                return False
            self._db.execute("DELETE FROM current WHERE key = ?", (op.key,))
            self._db.execute(
                "INSERT INTO history VALUES (?, ?, ?, NULL, 0)", (op.key, revision, row[0])
            )
            return True
        if op.lease and not self._ttl_ms(op.lease):
            raise NotFound(f"lease {op.lease} has ended")
        created = revision if row is None else row[0]
        self._db.execute("INSERT OR REPLACE INTO current VALUES (?, ?)", (op.key, revision))
        self._db.execute(
            "INSERT INTO history VALUES (?, ?, ?, ?, ?)",
            (op.key, revision, created, op.value, op.lease),
        )
        return True

    def compact(self, revision: int) -> None:
        """Forget what no read at `revision` or later can see."""
        if revision > self.revision:
            raise Unavailable(f"revision {revision} is not written yet, now {self.revision}")
        if revision <= self.compacted:
            raise Compacted(f"compacted up to {self.compacted} already")
        with self._transaction():
            self._db.execute(
                "DELETE FROM history AS old WHERE revision <= ?1 AND (value IS NULL OR EXISTS"
                " (SELECT 1 FROM history WHERE key = old.key AND revision > old.revision"
                "  AND revision <= ?1))",
                (revision,),
            )
            self._db.execute("UPDATE state SET value = ? WHERE name = 'compacted'", (revision,))
        self.compacted = revision

    # ---- leases ----

    def _ttl_ms(self, lease: int) -> int:
        row = self._db.execute("SELECT ttl_ms FROM lease WHERE id = ?", (lease,)).fetchone()
        return 0 if row is None else int(row[0])

    def leases(self) -> dict[int, int]:
        """Lease id -> time to live in milliseconds."""
        with self._errors():
            return dict(self._db.execute("SELECT id, ttl_ms FROM lease").fetchall())

    def grant(self, ttl_ms: int) -> int:
        """A new lease."""
        with self._transaction():
            lease = secrets.randbits(62) | 1
            self._db.execute("INSERT INTO lease VALUES (?, ?)", (lease, ttl_ms))
        return lease

    def revoke(self, lease: int) -> tuple[int, list[str]]:
        """End a lease; like `commit` of deletes of its keys."""
        with self._errors():
            rows = self._db.execute(
                "SELECT c.key FROM current c JOIN history h"
                " ON h.key = c.key AND h.revision = c.revision WHERE h.lease = ?",
                (lease,),
            ).fetchall()
        keys: list[str] = []
        revision = self.revision
        for start in range(0, len(rows), OPS_MAX):
            part = [Delete(row[0]) for row in rows[start : start + OPS_MAX]]
            revision, changed = self.commit((), part)
            keys += changed
        with self._transaction():
            self._db.execute("DELETE FROM lease WHERE id = ?", (lease,))
        return revision, keys


def _take_lock(path: Path) -> int:
    """An exclusive lock that dies with this process, so that a crash leaves nothing stale."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # functions' secrets are in it; its -wal and -shm get the same mode
        fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"store file {path}: {error.strerror}: {error.filename}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise InvalidState(
            f"store file {path} is in use by another process (pid {owner}); "
            "only one state service may open it"
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
