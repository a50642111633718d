"""Backup and restore of what people made and the snapshot catalogue: one file, verified.

Must never write a file that was not read back, nor restore from one that does not check out.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferx.domain.codec import read_manifest
from inferx.errors import AlreadyExists, BadRequest, Conflict, InferxError, NotFound
from inferx.rpc import client, convert, ixmeta_pb2_grpc
from inferx.rpc import ixmeta_pb2 as pb

MAGIC = "inferx-backup"
VERSION = 1
# In the order in which they can be created. What living processes say of themselves (nodes, pods,
# gateways, the leader) is not kept: restored, it would be a lie.
KINDS = ("tenant", "namespace", "funcpolicy", "function", "apikey", "snapshot")
LINE_BYTES_MAX = 4 << 20
FILE_BYTES_MAX = 4 << 30
_stub: Any = ixmeta_pb2_grpc.IxMetaServiceStub


@dataclass
class Summary:
    """What was done, by kind."""

    revision: int = 0
    objects: dict[str, int] = field(default_factory=dict)
    created: int = 0
    unchanged: int = 0
    replaced: int = 0


async def backup(addrs: Sequence[str], path: Path) -> Summary:
    """Write all objects as of one revision into `path`, which is replaced only when complete.

    `Unavailable` when the state service does not answer, `Compacted` when the store forgot the
    revision meanwhile: try again.
    """
    channel = client.channel(addrs)
    summary = Summary()
    lines: list[bytes] = []
    try:
        for kind in KINDS:
            request = pb.ListRequestMessage(obj_type=kind, revision=summary.revision)
            answer = await client.call(_stub(channel).List, request, 60.0)
            summary.revision = summary.revision or int(answer.revision)
            found = [convert.manifest_of(obj) for obj in answer.objs]
            summary.objects[kind] = len(found)
            lines += [_line(manifest) for manifest in found]
    finally:
        await channel.close(None)
    header = {
        "magic": MAGIC, "version": VERSION, "revision": summary.revision,
        "created_unix_ms": time.time_ns() // 1_000_000, "objects": summary.objects,
    }  # fmt: skip
    body = b"".join([_line(header), *lines])
    footer = _line({"lines": len(lines) + 1, "sha256": hashlib.sha256(body).hexdigest()})
    _write(path, body + footer)
    read(path)
    return summary


async def restore(addrs: Sequence[str], path: Path, replace: bool = False) -> Summary:
    """Create what is in `path` and read it back; what exists unchanged is left alone.

    `BadRequest` for a file that does not check out, before anything is written. `Conflict` names
    an object that exists with another content, unless `replace`.
    """
    header, manifests = read(path)
    summary = Summary(revision=int(header["revision"]))
    channel = client.channel(addrs)
    try:
        stub = _stub(channel)
        for manifest in manifests:
            kind = manifest["type"]
            summary.objects[kind] = summary.objects.get(kind, 0) + 1
            done = await _put(stub, manifest, replace)
            setattr(summary, done, getattr(summary, done) + 1)
        for manifest in manifests:
            found = await _get(stub, manifest)
            if found is None or _content(found) != _content(manifest):
                raise InferxError(f"{_title(manifest)} was restored but reads back differently")
    finally:
        await channel.close(None)
    return summary


async def _put(stub: Any, manifest: dict[str, Any], replace: bool) -> str:
    message = convert.message_of({**manifest, "revision": 0})
    try:
        await client.call(stub.Create, pb.CreateRequestMessage(obj=message))
        return "created"
    except AlreadyExists:
        found = await _get(stub, manifest)
    if found is not None and _content(found) == _content(manifest):
        return "unchanged"
    if not replace:
        raise Conflict(f"{_title(manifest)} exists with another content; --replace overwrites it")
    await client.call(stub.Update, pb.UpdateRequestMessage(obj=message))
    return "replaced"


async def _get(stub: Any, manifest: dict[str, Any]) -> dict[str, Any] | None:
    request = pb.GetRequestMessage(
        obj_type=manifest["type"],
        tenant=manifest["tenant"],
        namespace=manifest["namespace"],
        name=manifest["name"],
    )
    try:
        answer = await client.call(stub.Get, request)
    except NotFound:
        return None
    return convert.manifest_of(answer.obj)


def _content(manifest: dict[str, Any]) -> Any:
    kept = ("type", "tenant", "namespace", "name", "labels", "annotations", "object")
    return {name: manifest.get(name) or {} for name in kept}


def _title(manifest: dict[str, Any]) -> str:
    return "{type} {tenant}/{namespace}/{name}".format(**manifest)


# ---- the file ----


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and manifests of a backup, all of it checked; `BadRequest` says what is wrong."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise BadRequest(f"{path}: larger than a backup can be")
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise BadRequest(f"{path}: cannot be read: {error.strerror}") from error
    if len(lines) < 2:
        raise BadRequest(f"{path}: not a backup, or cut off")
    footer = _parse(lines[-1], path, len(lines))
    digest = hashlib.sha256(b"".join(lines[:-1])).hexdigest()
    if footer.get("sha256") != digest or footer.get("lines") != len(lines) - 1:
        raise BadRequest(f"{path}: damaged or cut off: its checksum does not fit")
    header = _parse(lines[0], path, 1)
    if header.get("magic") != MAGIC:
        raise BadRequest(f"{path}: not a backup of InferX")
    if header.get("version") != VERSION:
        raise BadRequest(
            f"{path}: a backup of version {header.get('version')}; this one reads {VERSION}"
        )
    manifests = list(_manifests(lines[1:-1], path))
    return header, manifests


def _manifests(lines: list[bytes], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 2):
        manifest = _parse(line, path, number)
        try:
            if read_manifest({**manifest, "revision": 0})[0].kind not in KINDS:
                raise BadRequest(f"type: {manifest['type']!r} is not one of {', '.join(KINDS)}")
        except BadRequest as error:
            raise BadRequest(f"{path}: line {number}: {error.message}") from error
        yield manifest


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    if len(line) > LINE_BYTES_MAX:
        raise BadRequest(f"{path}: line {number} is too long")
    try:
        found = json.loads(line)
    except ValueError as error:
        raise BadRequest(f"{path}: line {number}: damaged or not a backup: {error}") from error
    if not isinstance(found, dict):
        raise BadRequest(f"{path}: line {number}: expected a JSON object")
    return found


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def _write(path: Path, content: bytes) -> None:
    """Complete and on the disk, or not there; only its owner may read it (keys are inside)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InferxError(f"{path}: cannot be written: {error.strerror}") from error
