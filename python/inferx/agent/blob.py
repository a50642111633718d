"""The tier behind the disk: whole snapshots in a bucket, or in a folder that nodes share.

Must never let one tenant's snapshots serve another, and never show one that is not there whole:
COMMIT is put last and removed first.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, S3Store

from inferx._ext import SnapshotError, SnapshotImport, SnapshotStore
from inferx.domain.meta import check_name
from inferx.domain.nodeconfig import BlobConfig
from inferx.errors import ConfigError, NotFound, StartFailed, Unavailable

if TYPE_CHECKING:
    from obstore.store import S3Config

COMMIT, MANIFEST, TABLE = "COMMIT", "manifest.json", "chunks.tbl"
# What arrives is handed on in pieces of about this size: a chunk of weights.
PIECE_BYTES = 8 << 20
PART_BYTES = 16 << 20  # of an upload
PARTS_AT_ONCE = 4


def open_blob_store(config: BlobConfig) -> BlobStore | None:
    """The blob store of a node's configuration; None when it is not enabled.

    S3 options are those of the protocol: bucket, region, endpoint, access_key_id, ... A folder has
    one: path. Raises ConfigError for what is missing or unknown.
    """
    if not config.enable:
        return None
    options = {str(key): str(value) for key, value in config.options.items()}
    if config.type == "nfs":
        path = options.pop("path", "")
        if not path or options:
            raise ConfigError("blobStoreConfig: a folder needs `path` and nothing else")
        return BlobStore(_folder(Path(path)))
    if config.type != "s3":
        raise ConfigError("blobStoreType: s3 or nfs is needed when enableBlobStore is true")
    prefix = options.pop("prefix", None)
    if "bucket" not in options:
        raise ConfigError("blobStoreConfig.bucket is missing")
    plain = options.get("endpoint", "").startswith("http://")
    try:
        s3 = S3Store(
            prefix=prefix, client_options={"allow_http": plain}, config=cast("S3Config", options)
        )
        return BlobStore(s3)
    except (BaseError, ValueError, TypeError) as error:
        raise ConfigError(f"blobStoreConfig: {error}") from error


def _folder(path: Path) -> LocalStore:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return LocalStore(path)


class BlobStore:
    """Snapshots by tenant and id. Every method raises Unavailable when the store cannot be had."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def upload(self, snapshots: SnapshotStore, id: str) -> None:
        """Put a local snapshot there, after every byte of it was checked; one that is there stays.

        Raises SnapshotError for a damaged one, with nothing put.
        """
        await asyncio.to_thread(snapshots.verify, id)
        manifest = json.loads(await asyncio.to_thread(snapshots.manifest, id))
        tenant = _tenant(manifest["identity"].get("tenant", ""))
        folder = snapshots.path(id)
        if await self._has(_path(tenant, id, COMMIT)):
            return
        names = [
            path.relative_to(folder).as_posix()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != COMMIT
        ]
        try:
            for name in (*names, COMMIT):
                await obstore.put_async(
                    self._store,
                    _path(tenant, id, name),
                    folder / name,
                    chunk_size=PART_BYTES,
                    max_concurrency=PARTS_AT_ONCE,
                )
        except (BaseError, OSError) as error:
            raise Unavailable(f"blob store: upload of snapshot {id}: {error}") from error

    async def download(
        self,
        snapshots: SnapshotStore,
        tenant: str,
        id: str,
        host: Mapping[str, Any] | None = None,
    ) -> None:
        """Publish a snapshot from there in the local store, each chunk checked as it comes.

        `host` is what this machine is, as in `SnapshotStore.restore`. Raises NotFound, and
        StartFailed with the reason for one that is torn, damaged or not of `host` or `tenant`;
        then nothing of it is kept.
        """
        metadata = [await self._read(_path(tenant, id, name)) for name in (COMMIT, MANIFEST, TABLE)]
        try:
            incoming = await asyncio.to_thread(
                snapshots.start_import, *metadata, host=json.dumps(host) if host else None
            )
        except (SnapshotError, ValueError) as error:
            raise StartFailed(f"snapshot {id} of the blob store is refused: {error}") from error
        try:
            found = json.loads(metadata[1])
            if incoming.id != id or found["identity"].get("tenant", "") != tenant:
                raise StartFailed(f"snapshot {id} of tenant {tenant} is another one: {incoming.id}")
            for name, _ in incoming.files():
                await self._bring(incoming, _path(tenant, id, name), name)
            await asyncio.to_thread(incoming.publish)
        except SnapshotError as error:
            raise StartFailed(f"snapshot {id} of the blob store is refused: {error}") from error
        finally:
            await asyncio.to_thread(incoming.abandon)

    async def ids(self, tenant: str) -> list[str]:
        """Ids of the tenant's snapshots that are there whole."""
        prefix = f"{_tenant(tenant)}/"
        found = []
        try:
            async for page in obstore.list(self._store, prefix=prefix):
                found += [entry["path"] for entry in page]
        except BaseError as error:
            raise Unavailable(f"blob store: list of {prefix}: {error}") from error
        whole = [path.removesuffix(f"/{COMMIT}") for path in found if path.endswith(f"/{COMMIT}")]
        return sorted(path.rpartition("/snap-")[2] for path in whole)

    async def remove(self, tenant: str, id: str) -> None:
        """Remove a snapshot, COMMIT first; one that is not there is fine."""
        prefix = _path(tenant, id, "")
        try:
            await self._delete(prefix + COMMIT)
            async for page in obstore.list(self._store, prefix=prefix):
                for entry in page:
                    await self._delete(entry["path"])
        except BaseError as error:
            raise Unavailable(f"blob store: removal of snapshot {id}: {error}") from error

    # ---- inside ----

    async def _has(self, path: str) -> bool:
        try:
            await obstore.head_async(self._store, path)
        except (NotFoundError, FileNotFoundError):
            return False
        except BaseError as error:
            raise Unavailable(f"blob store: {path}: {error}") from error
        return True

    async def _read(self, path: str) -> bytes:
        try:
            answer = await obstore.get_async(self._store, path)
            return bytes(await answer.bytes_async())
        except (NotFoundError, FileNotFoundError) as error:
            raise NotFound(f"blob store: there is no {path}") from error
        except BaseError as error:
            raise Unavailable(f"blob store: {path}: {error}") from error

    async def _bring(self, incoming: SnapshotImport, path: str, name: str) -> None:
        try:
            answer = await obstore.get_async(self._store, path)
            async for piece in answer.stream(min_chunk_size=PIECE_BYTES):
                await asyncio.to_thread(incoming.feed, name, bytes(piece))
        except (NotFoundError, FileNotFoundError) as error:
            raise StartFailed(f"snapshot {incoming.id} is torn: there is no {path}") from error
        except BaseError as error:
            raise Unavailable(f"blob store: {path}: {error}") from error

    async def _delete(self, path: str) -> None:
        try:
            await obstore.delete_async(self._store, path)
        except (NotFoundError, FileNotFoundError):
            return


def _tenant(name: str) -> str:
    check_name(name, "tenant")
    return name


def _path(tenant: str, id: str, name: str) -> str:
    check_name(id, "snapshot id")
    return f"{_tenant(tenant)}/snap-{id}/{name}"
