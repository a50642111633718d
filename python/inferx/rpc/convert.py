"""Objects and manifests from and to `ixmeta.Obj` messages, without loss.

Must never check more or less than the manifest codec does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from inferx.domain.codec import dump_manifest, parse_json, read_manifest
from inferx.domain.meta import Object
from inferx.errors import BadRequest
from inferx.rpc import ixmeta_pb2

EXTRA_ANNOTATION = "inferx/envelope-extra"
_ENVELOPE = {
    "type", "tenant", "namespace", "name", "labels", "annotations", "revision", "object",
}  # fmt: skip


def to_proto(obj: Object[Any]) -> ixmeta_pb2.Obj:
    """The object as a message."""
    return message_of(dump_manifest(obj))


def message_of(manifest: Mapping[str, Any], revision: int | None = None) -> ixmeta_pb2.Obj:
    """A manifest as a message; unknown members of the envelope travel in an annotation.

    `revision` replaces the manifest's own.
    """
    annotations = dict(manifest.get("annotations") or {})
    extra = {name: value for name, value in manifest.items() if name not in _ENVELOPE}
    if extra:
        annotations[EXTRA_ANNOTATION] = _dumps(extra)
    at = manifest.get("revision", 0) if revision is None else revision
    return ixmeta_pb2.Obj(
        kind=manifest["type"],
        tenant=manifest["tenant"],
        namespace=manifest["namespace"],
        name=manifest["name"],
        revision=at,
        channel_rev=at,
        labels=[ixmeta_pb2.KV(key=k, val=v) for k, v in (manifest.get("labels") or {}).items()],
        annotations=[ixmeta_pb2.KV(key=k, val=v) for k, v in annotations.items()],
        data=_dumps(manifest["object"]),
    )


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def manifest_of(message: ixmeta_pb2.Obj) -> dict[str, Any]:
    """The manifest (unchecked) that a message carries; `BadRequest` when its data is not JSON."""
    annotations = {item.key: item.val for item in message.annotations}
    extra = annotations.pop(EXTRA_ANNOTATION, None)
    manifest: dict[str, Any] = {}
    if extra is not None:
        manifest = parse_json(extra)
        if not isinstance(manifest, dict):
            raise BadRequest(f"annotations.{EXTRA_ANNOTATION}: expected object")
    manifest.update(
        type=message.kind,
        tenant=message.tenant,
        namespace=message.namespace,
        name=message.name,
        labels={item.key: item.val for item in message.labels},
        annotations=annotations,
        revision=message.revision,
        object=parse_json(message.data) if message.data else {},
    )
    return manifest


def from_proto(message: ixmeta_pb2.Obj) -> Object[Any]:
    """The object of a message; `BadRequest` names the path of what is wrong in it."""
    return read_manifest(manifest_of(message))[0]
