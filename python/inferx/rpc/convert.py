"""Objects from and to `ixmeta.Obj` messages, without loss.

Must never check more or less than the manifest codec does.
"""

from __future__ import annotations

import json
from typing import Any

from inferx.domain.codec import parse_json, parse_manifest
from inferx.domain.meta import Object
from inferx.rpc import ixmeta_pb2

EXTRA_ANNOTATION = "inferx/envelope-extra"


def to_proto(obj: Object[Any]) -> ixmeta_pb2.Obj:
    """The object as a message; unknown envelope members travel in an annotation."""
    meta = obj.meta
    annotations = dict(meta.annotations)
    if obj.extra:
        annotations[EXTRA_ANNOTATION] = _dumps(obj.extra)
    return ixmeta_pb2.Obj(
        kind=meta.kind,
        tenant=meta.tenant,
        namespace=meta.namespace,
        name=meta.name,
        revision=meta.revision,
        channel_rev=meta.revision,
        labels=[ixmeta_pb2.KV(key=k, val=v) for k, v in meta.labels.items()],
        annotations=[ixmeta_pb2.KV(key=k, val=v) for k, v in annotations.items()],
        data=_dumps(obj.raw),
    )


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def manifest_of(message: ixmeta_pb2.Obj) -> dict[str, Any]:
    """The manifest (unchecked) that a message carries; `BadRequest` when its data is not JSON."""
    annotations = {item.key: item.val for item in message.annotations}
    extra = annotations.pop(EXTRA_ANNOTATION, None)
    manifest: dict[str, Any] = {} if extra is None else dict(parse_json(extra))
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
    return parse_manifest(manifest_of(message))[0]
