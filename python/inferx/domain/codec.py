"""Objects from and to JSON manifests, without loss (`rpc.convert` does the same for messages).

Must never accept a wrong type, and never drop what it does not know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from inferx.domain.meta import Key, Meta, Object, check_name
from inferx.domain.objects import KINDS, FuncPolicy, FunctionSpec
from inferx.domain.reader import Fields
from inferx.domain.references import linked_policies
from inferx.errors import BadRequest

MANIFEST_BYTES_MAX = 1 << 20
DEPTH_MAX = 100

Lookup = Callable[[Key], "Object[Any] | None"]


def parse_json(data: bytes | str, what: str = "manifest") -> Any:
    """`data` as JSON; duplicate keys, NaN and over-long input are refused with `BadRequest`, which
    names `what` it was."""
    if len(data) > MANIFEST_BYTES_MAX:
        raise BadRequest(f"{what}: larger than {MANIFEST_BYTES_MAX} bytes")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in items:
            if name in found:
                raise BadRequest(f"{what}: field {name!r} is given twice in one object")
            found[name] = value
        return found

    def constant(name: str) -> None:
        raise BadRequest(f"{what}: {name} is not JSON")

    def number(text: str) -> float:
        value = float(text)
        if math.isinf(value):
            raise BadRequest(f"{what}: {text} is too large a number")
        return value

    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        value = json.loads(
            text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number
        )
        _check_depth(text, value, what)
        if "\\ud" in text.lower():  # an escape may stand for half a character, which is no text
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as error:
        raise BadRequest(f"{what}: a \\u escape is half of a surrogate pair") from error
    except UnicodeDecodeError as error:
        raise BadRequest(f"{what}: not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise BadRequest(f"{what}: nested too deeply") from error
    except ValueError as error:
        raise BadRequest(f"{what}: not JSON: {error}") from error


def _check_depth(text: str, value: Any, what: str) -> None:
    """Refuse what nests so deeply that later steps could not walk it."""
    if text.count("{") + text.count("[") <= DEPTH_MAX:
        return
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise BadRequest(f"{what}: nested too deeply, more than {DEPTH_MAX} levels")


def parse_manifest(data: bytes | str | Mapping[str, Any]) -> tuple[Object[Any], list[str]]:
    """An object and warnings (unknown fields with their path) from a manifest.

    Raises `BadRequest` naming the path of a wrong or missing field. The older form with `spec`
    beside the envelope is accepted and read as `object.spec`.
    """
    if not isinstance(data, bytes | str):
        try:  # what came from YAML or from code may hold what JSON has not: dates, infinity, ...
            data = json.dumps(data, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRequest(f"manifest: cannot be written as JSON: {error}") from error
    return read_manifest(parse_json(data))


def read_manifest(value: Any) -> tuple[Object[Any], list[str]]:
    """Like `parse_manifest`, of a value that `parse_json` made."""
    warnings: list[str] = []
    envelope = Fields(value, "", warnings)
    kind_name = envelope.string("type")
    kind = KINDS.get(kind_name)
    if kind is None:
        envelope.fail("type", f"unknown type {kind_name!r}; known are {', '.join(sorted(KINDS))}")
    meta = Meta(
        kind=kind_name,
        tenant=check_name(envelope.string("tenant", kind.tenant or None), "tenant"),
        namespace=check_name(envelope.string("namespace", kind.namespace or None), "namespace"),
        name=check_name(envelope.string("name"), "name"),
        labels=envelope.string_map("labels"),
        annotations=envelope.string_map("annotations"),
        revision=envelope.integer("revision", 0),
    )
    _check_home(meta)
    raw, path = _content(envelope)
    spec = kind.read(Fields(raw, path, warnings))
    extra = {name: envelope.value[name] for name in envelope.unknown()}
    envelope.finish()
    return Object(meta, spec, raw, extra), warnings


def _content(envelope: Fields) -> tuple[dict[str, Any], str]:
    if envelope.has("object"):
        return envelope.mapping("object"), "object"
    beside = {name: envelope.take(name) for name in ("spec", "status") if envelope.has(name)}
    if not beside:
        envelope.fail("object", "required (object)")
    return beside, ""


def _check_home(meta: Meta) -> None:
    kind = KINDS[meta.kind]
    if kind.tenant and meta.tenant != kind.tenant:
        raise BadRequest(f"tenant: a {meta.kind} lives in tenant {kind.tenant!r}")
    if kind.namespace and meta.namespace != kind.namespace:
        raise BadRequest(f"namespace: a {meta.kind} lives in namespace {kind.namespace!r}")


def dump_manifest(obj: Object[Any]) -> dict[str, Any]:
    """The manifest of an object, everything that was given included; `revision` when stored."""
    meta = obj.meta
    manifest: dict[str, Any] = {
        "type": meta.kind,
        "tenant": meta.tenant,
        "namespace": meta.namespace,
        "name": meta.name,
    }
    if meta.revision:
        manifest["revision"] = meta.revision
    if meta.labels:
        manifest["labels"] = dict(meta.labels)
    if meta.annotations:
        manifest["annotations"] = dict(meta.annotations)
    manifest.update(obj.extra)
    manifest["object"] = obj.raw
    return manifest


def new(
    kind: str,
    key: Key,
    raw: dict[str, Any],
    *,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    revision: int = 0,
) -> Object[Any]:
    """An object from its parts, checked like a manifest."""
    tenant, namespace, name = key
    obj, _ = parse_manifest(
        {
            "type": kind,
            "tenant": tenant,
            "namespace": namespace,
            "name": name,
            "labels": labels or {},
            "annotations": annotations or {},
            "revision": revision,
            "object": raw,
        }
    )
    return obj


def resolve_policy(function: Object[FunctionSpec], lookup: Lookup) -> FuncPolicy:
    """The policy in force for `function`.

    `lookup` finds a stored funcpolicy by (tenant, namespace, name). Order: (1) a policy named like
    the function beside it, (2) its own `policy.Obj`, (3) its `policy.Link`, in the function's
    tenant and then in `public`, (4) the defaults.
    """
    named = lookup(function.key)
    if named is not None:
        return _policy_of(named)
    ref = function.spec.policy
    if ref is not None and ref.obj is not None:
        return ref.obj
    for key in linked_policies(function):
        linked = lookup(key)
        if linked is not None:
            return _policy_of(linked)
    return FuncPolicy()


def _policy_of(obj: Object[Any]) -> FuncPolicy:
    if not isinstance(obj.spec, FuncPolicy):
        raise BadRequest(f"{obj.meta} is not a funcpolicy")
    return obj.spec
