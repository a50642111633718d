"""Objects in a store: their keys, their JSON, and the four writes with expected revisions.

Must never check what an object says; admission in the state service does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from inferx.domain.codec import read_manifest
from inferx.domain.meta import Key, Object
from inferx.errors import AlreadyExists, Conflict, NotFound
from inferx.rpc import convert, ixmeta_pb2
from inferx.store.protocol import At, Delete, Entry, Guard, GuardFailed, Put, Store
from inferx.store.select import Selector

_CLUSTER = ("node", "gateway")
ADDED = ixmeta_pb2.ADDED
MODIFIED = ixmeta_pb2.MODIFIED
DELETED = ixmeta_pb2.DELETED


@dataclass(frozen=True)
class Stored:
    """One stored object: its manifest (without revision) and its revision."""

    manifest: dict[str, Any]
    revision: int

    def message(self) -> ixmeta_pb2.Obj:
        """As a message."""
        return convert.message_of(self.manifest, self.revision)

    def object(self) -> Object[Any]:
        """As a typed object."""
        return read_manifest({**self.manifest, "revision": self.revision})[0]


@dataclass(frozen=True)
class Change:
    """One change of an object; a deleted one carries its last content where it is still known."""

    type: ixmeta_pb2.EventType
    stored: Stored


class ObjectStore:
    """The objects of one platform, under `prefix` in a store."""

    def __init__(self, store: Store, prefix: str = "") -> None:
        self.store = store
        self._root = f"{prefix.rstrip('/')}/registry/"

    def key(self, kind: str, key: Key) -> str:
        """Where an object lives; nodes and gateways belong to no tenant."""
        tenant, namespace, name = key
        return (
            f"{self._root}{kind}/{name}"
            if kind in _CLUSTER
            else (f"{self._root}{kind}/{tenant}/{namespace}/{name}")
        )

    def prefix(self, kind: str, tenant: str = "", namespace: str = "") -> str:
        """What the keys of a kind, a tenant or a namespace start with."""
        prefix = f"{self._root}{kind}/"
        if tenant and kind not in _CLUSTER:
            prefix += f"{tenant}/"
            if namespace:
                prefix += f"{namespace}/"
        return prefix

    def _identity(self, key: str) -> dict[str, Any]:
        parts = key.removeprefix(self._root).split("/")
        if len(parts) == 2:
            parts[1:1] = ["system", "system"]
        kind, tenant, namespace, name = parts
        return {"type": kind, "tenant": tenant, "namespace": namespace, "name": name, "object": {}}

    async def get(self, kind: str, key: Key, revision: int = 0) -> Stored | None:
        """One object, or None."""
        entry = await self.store.get(self.key(kind, key), revision)
        return None if entry is None else _stored(entry)

    async def list(
        self,
        kind: str,
        tenant: str = "",
        namespace: str = "",
        revision: int = 0,
        selector: Selector | None = None,
    ) -> tuple[Sequence[Stored], int]:
        """Objects of a kind as of one revision, and that revision."""
        entries, at = await self.store.scan(self.prefix(kind, tenant, namespace), revision)
        found = [_stored(entry) for entry in entries]
        if selector:
            found = [stored for stored in found if selector.matches(stored.manifest)]
        return found, at

    async def watch(
        self,
        kind: str,
        tenant: str = "",
        namespace: str = "",
        revision: int = 0,
        selector: Selector | None = None,
    ) -> AsyncIterator[Change]:
        """Changes after `revision`; one that leaves the selection is reported as deleted."""
        batches = self.store.watch(self.prefix(kind, tenant, namespace), revision)
        async for events in batches:
            for event in events:
                now = None if event.entry is None else _stored(event.entry)
                before = None if event.previous is None else _stored(event.previous)
                last = before or Stored(self._identity(event.key), 0)
                gone = Change(DELETED, Stored(last.manifest, event.revision))
                if selector:
                    now = now if now is not None and selector.matches(now.manifest) else None
                    if before is None or not selector.matches(before.manifest):
                        before = None
                        if now is None:
                            continue
                    new = before is None
                else:
                    new = event.entry is not None and event.entry.create_revision == event.revision
                if now is None:
                    yield gone
                else:
                    yield Change(ADDED if new else MODIFIED, now)

    async def create(
        self, manifest: dict[str, Any], guards: Sequence[Guard] = (), lease: int = 0
    ) -> int:
        """Write a new object; `AlreadyExists` when it is there, `GuardFailed` for `guards`.

        With a `lease` the object disappears when that ends; `NotFound` when it has ended.
        """
        key = self._key_of(manifest)
        try:
            return await self.store.commit(
                [At(key, 0), *guards], [Put(key, _encode(manifest), lease)]
            )
        except GuardFailed:
            if await self.store.get(key) is None:
                raise
            raise AlreadyExists(f"{_title(manifest)} exists already") from None

    async def update(
        self,
        manifest: dict[str, Any],
        expect_rev: int,
        guards: Sequence[Guard] = (),
        lease: int = 0,
    ) -> int:
        """Replace an object last written at `expect_rev` (0 = whatever it is now)."""
        key = self._key_of(manifest)
        seen = await self._expected(key, _title(manifest), expect_rev)
        return await self.store.commit(
            [At(key, seen), *guards], [Put(key, _encode(manifest), lease)]
        )

    async def delete(
        self, kind: str, key: Key, expect_rev: int, guards: Sequence[Guard] = ()
    ) -> int:
        """Remove an object last written at `expect_rev` (0 = whatever it is now)."""
        path = self.key(kind, key)
        seen = await self._expected(path, f"{kind} {'/'.join(key)}", expect_rev)
        return await self.store.commit([At(path, seen), *guards], [Delete(path)])

    async def _expected(self, key: str, title: str, expect_rev: int) -> int:
        entry = await self.store.get(key)
        if entry is None:
            raise NotFound(f"{title} does not exist")
        if expect_rev not in (0, entry.revision):
            raise Conflict(
                f"{title} is at revision {entry.revision}, not at the expected {expect_rev}",
                details={"revision": entry.revision},
            )
        return entry.revision

    def _key_of(self, manifest: dict[str, Any]) -> str:
        return self.key(
            manifest["type"], (manifest["tenant"], manifest["namespace"], manifest["name"])
        )


def _title(manifest: dict[str, Any]) -> str:
    return "{type} {tenant}/{namespace}/{name}".format(**manifest)


def _encode(manifest: dict[str, Any]) -> bytes:
    kept = {name: value for name, value in manifest.items() if name != "revision"}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()


def _stored(entry: Entry) -> Stored:
    return Stored(json.loads(entry.value), entry.revision)
