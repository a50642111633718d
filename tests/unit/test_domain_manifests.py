"""Manifests load, keep everything, and say exactly what is wrong with them."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferx._ext import SchedulerCore
from inferx.domain import codec, references
from inferx.domain.function import Mount
from inferx.domain.meta import Key, Object, check_name
from inferx.domain.objects import (
    Alloc,
    FuncPolicy,
    FunctionSpec,
    GpuAlloc,
    GpuRequest,
    Node,
    Pod,
    PodStatus,
    Standby,
    TenantLimit,
)
from inferx.domain.policy import WAIT_RATIO_MAX
from inferx.domain.reader import COUNT_MAX, SECONDS_MAX
from inferx.errors import BadRequest
from inferx.rpc import convert
from inferx.rpc import na_pb2 as pb
from inferx.scheduler import facts

ROOT = Path(__file__).resolve().parent.parent.parent
OWN = ROOT / "tests" / "data" / "manifests"
REAL = Path(os.environ.get("INFERX_MANIFESTS", ROOT.parent / "shared" / "data" / "manifests"))
FILES = sorted(OWN.glob("*.json")) + sorted(REAL.glob("*.json"))

FUNCTION: dict[str, Any] = {
    "type": "function", "tenant": "t", "namespace": "n", "name": "f",
    "object": {"spec": {"image": "i", "resources": {"CPU": 1, "Mem": 2}}},
}  # fmt: skip


def canonical(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with `spec` where it belongs."""
    moved = dict(manifest)
    if "object" not in moved:
        moved["object"] = {name: moved.pop(name) for name in ("spec", "status") if name in moved}
    return moved


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_manifest_is_kept_as_it_was_written(path: Path) -> None:
    data = path.read_bytes()
    obj, _ = codec.parse_manifest(data)
    written = canonical(json.loads(data))
    assert codec.dump_manifest(obj) == written
    assert codec.parse_manifest(written)[0] == obj
    message = convert.to_proto(obj)
    assert convert.from_proto(message) == obj
    assert codec.dump_manifest(convert.from_proto(message)) == written


def own(name: str) -> tuple[Any, list[str]]:
    return codec.parse_manifest((OWN / name).read_bytes())


def test_a_function_is_read_in_full() -> None:
    obj, warnings = own("function_full.json")
    spec: FunctionSpec = obj.spec
    assert warnings == ["object.spec.endpoint.schema: Https is for the probe; calls are HTTP"]
    assert obj.meta.labels == {"team": "search"}
    assert spec.resources.gpu == GpuRequest("H100", 2, 14200, 1)
    assert (spec.resources.cpu_millis, spec.resources.mem_mb) == (4000, 16000)
    assert (spec.endpoint.port, spec.endpoint.schema) == (8080, "Https")
    assert (spec.endpoint.probe_timeout_ms, spec.endpoint.probe_type) == (2500, "Prompt")
    assert spec.envs == (("MODE", "fast"), ("EMPTY", ""))
    assert spec.mounts == (Mount("/srv/models", "/models"),)
    assert spec.standby == Standby("Mem", "File", "Blob")
    assert spec.sample_query is not None
    assert spec.sample_query.loading_timeout_s == 120
    assert spec.served_model == "acme/small"
    assert spec.policy is not None
    assert spec.policy.obj == FuncPolicy(1, 3, parallel=8, queue_timeout_ms=2500)


def test_the_older_form_is_read_and_says_what_has_no_effect() -> None:
    obj, warnings = own("function_older_form.json")
    assert obj.spec.endpoint.probe == "/alive"
    assert obj.spec.served_model == "acme/older"
    assert [warning.split(":")[0] for warning in warnings] == [
        "spec.endpoint.path",
        "spec.api_type",
    ]


def test_unknown_fields_are_named_with_their_path() -> None:
    _, warnings = own("function_unknown_fields.json")
    assert {warning.split(":")[0] for warning in warnings} == {
        "owner",
        "object.note",
        "object.spec.resources.parallel",
        "object.spec.endpoint.sub_svcs",
    }


def test_policy_aliases_and_seconds() -> None:
    policy = own("funcpolicy_aliases.json")[0].spec
    assert policy == FuncPolicy(
        min_replica=1, max_replica=4, standby_per_node=2, parallel=20, queue_len=10,
        queue_timeout_ms=1500, wait_ratio=0.5, scalein_timeout_ms=10, graph_sync=True,
    )  # fmt: skip
    again, warnings = codec.parse_manifest(
        {**codec.dump_manifest(own("funcpolicy_aliases.json")[0]), "object": policy.to_raw()}
    )
    assert again.spec == policy
    assert warnings == []


def changed(path: str, value: object) -> dict[str, Any]:
    """FUNCTION with one entry replaced; `...` removes it."""
    manifest = copy.deepcopy(FUNCTION)
    *parents, last = path.split(".")
    target = manifest
    for name in parents:
        target = target.setdefault(name, {})
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return manifest


S = "object.spec"
GPU = f"{S}.resources.GPU"


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("type", "widget", "type: unknown type 'widget'; known are apikey, funcpolicy, function"),
        ("type", ..., "type: required (string)"),
        ("tenant", ..., "tenant: required"),
        ("name", "a/b", "name: 'a/b' is not a legal name"),
        ("name", "a\n", r"name: 'a\n' is not a legal name"),
        ("name", "", "name: must not be empty"),
        ("name", "x" * 254, "name: longer than 253 characters"),
        ("name", 5, "name: expected string, got integer"),
        ("labels", {"a": 1}, "labels.a: expected string, got integer"),
        ("object", ..., "object: required (object)"),
        ("object", [], "object: expected object, got array"),
        (f"{S}", ..., "object.spec: required (object)"),
        (f"{S}.image", 7, "object.spec.image: expected string, got integer"),
        (f"{S}.image", ..., "object.spec.image: required (string) unless"),
        (f"{S}.resources", ..., "object.spec.resources: required (object)"),
        (f"{S}.resources.CPU", ..., "object.spec.resources.CPU: required (integer millicores)"),
        (f"{S}.resources.CPU", "4", "CPU: expected integer millicores, got string"),
        (f"{S}.resources.Mem", -1, "Mem: expected integer MB within 0..9007199254740991, got -1"),
        (f"{S}.resources.Mem", True, "Mem: expected integer MB, got boolean"),
        (f"{S}.resources.Mem", 2.5, "Mem: expected integer MB, got number"),
        (GPU, {"Count": 1, "vRam": "14200"}, f"{GPU}.vRam: expected integer MB, got string"),
        (GPU, {"Count": 1}, f"{GPU}.vRam: required (integer MB)"),
        (GPU, {"vRam": 1}, f"{GPU}.Count: required (integer)"),
        (f"{S}.commands", "serve", "object.spec.commands: expected array, got string"),
        (f"{S}.commands", ["a", 1], "object.spec.commands[1]: expected string, got integer"),
        (f"{S}.envs", [["A"]], "object.spec.envs[0]: expected [name, value]"),
        (f"{S}.envs", [["A=B", "c"]], "object.spec.envs[0]: 'A=B' is not a legal name"),
        (f"{S}.mounts", [{"hostpath": "/a"}], "object.spec.mounts[0].mountpath: required (path)"),
        (f"{S}.endpoint", {"port": 70000}, "endpoint.port: expected integer within 1..65535"),
        (f"{S}.endpoint", {"schema": "Ftp"}, "endpoint.schema: expected one of Http, Https"),
        (f"{S}.standby", {"gpu": "Tape"}, "standby.gpu: expected one of File, Mem, Blob"),
        (f"{S}.policy", {}, 'object.spec.policy.Obj: give exactly one of "Obj" and "Link"'),
        (f"{S}.policy", {"Obj": {"parallel": 0}}, "policy.Obj.parallel: expected integer within 1"),
        (f"{S}.policy", {"Obj": {"queue_timeout": "30"}}, "queue_timeout: expected number of sec"),
        (f"{S}.policy", {"Obj": {"min_replica": 2}}, "min_replica: 2 is more than max_replica 1"),
        (f"{S}.policy", {"Obj": {"parallel": 1, "maxConcurrency": 2}}, "is another name of paral"),
        (f"{S}.policy", {"Link": {"name": "p"}}, "object.spec.policy.Link.namespace: required"),
        (f"{S}.policy", {"Obj": {"parallel": 2**31}}, "integer within 1..2147483647, got"),
        (f"{S}.policy", {"Obj": {"queue_len": 2**32}}, "integer within 0..2147483647, got"),
        (f"{S}.policy", {"Obj": {"queue_timeout": 1e9}}, "0.001 and at most 2592000, got"),
        (f"{GPU}", {"Count": 1, "vRam": 1, "contextCount": 1025}, "contextCount: expected inte"),
        (f"{S}.sample_query", {"body": []}, "sample_query.body: expected object, got array"),
    ],
)  # fmt: skip
def test_an_error_names_what_is_wrong(path: str, value: object, error: str) -> None:
    with pytest.raises(BadRequest) as caught:
        codec.parse_manifest(changed(path, value))
    assert error in caught.value.message


def test_the_largest_legal_numbers_are_understood_by_scheduler_and_gateway() -> None:
    """Otherwise one function's manifest is refused where its author does not hear of it."""
    most = codec.parse_manifest(
        changed(
            f"{S}.policy",
            {
                "Obj": {
                    **dict.fromkeys(("min_replica", "max_replica", "standby_per_node"), COUNT_MAX),
                    **dict.fromkeys(("parallel", "queue_len"), COUNT_MAX),
                    **dict.fromkeys(("queue_timeout", "scalein_timeout"), SECONDS_MAX),
                    "scaleout_policy": {"WaitQueueRatio": {"wait_ratio": WAIT_RATIO_MAX}},
                }
            },
        )
    )[0]
    policy = codec.resolve_policy(most, lambda _: None)
    core = SchedulerCore("test")
    core.observe(1, facts.function_fact(most, policy))
    limits = dict.fromkeys(
        ("min_replica_cap", "max_replica", "max_gpu", "max_standby", "max_queue_len"), COUNT_MAX
    )
    tenant = {"type": "tenant", "name": "t", "object": {"spec": {"limit": limits}}}
    core.observe(1, facts.tenant_fact(codec.parse_manifest(tenant)[0]))
    request = pb.LeaseWorkerReq(deadline_ms=policy.queue_timeout_ms, slots=policy.parallel)
    assert request.deadline_ms == SECONDS_MAX * 1000
    core.check(1)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8 text (byte 0)"),
        (b"[]", "manifest: expected object, got array"),
        (b'{"type": "tenant", "type": "node"}', "'type' is given twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1e999}', "1e999 is too large a number"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 101 + b"]" * 101, "nested too deeply, more than 100 levels"),
        (b" " * (codec.MANIFEST_BYTES_MAX + 1), "larger than"),
    ],
    ids=[
        "cut",
        "encoding",
        "array",
        "twice",
        "nan",
        "infinity",
        "surrogate",
        "deep",
        "deeper",
        "large",
    ],
)
def test_what_is_not_json_is_refused(data: bytes, error: str) -> None:
    with pytest.raises(BadRequest) as caught:
        codec.parse_manifest(data)
    assert error in caught.value.message


@pytest.mark.parametrize(
    ("kind", "tenant", "namespace"),
    [("tenant", "other", "system"), ("namespace", "t", "other"), ("node", "system", "other")],
)
def test_objects_have_a_home(kind: str, tenant: str, namespace: str) -> None:
    manifest = {"type": kind, "tenant": tenant, "namespace": namespace, "name": "x", "object": {}}
    with pytest.raises(BadRequest, match="lives in"):
        codec.parse_manifest(manifest)


@given(st.text(max_size=20))
def test_names_are_all_or_nothing(text: str) -> None:
    legal = bool(text) and text[0].isalnum() and all(c.isalnum() or c in "._-" for c in text)
    if legal and text.isascii():
        assert check_name(text, "name") == text
    else:
        with pytest.raises(BadRequest):
            check_name(text, "name")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_anything_read_is_either_refused_by_name_or_kept(extra: dict[str, Any]) -> None:
    manifest = copy.deepcopy(FUNCTION)
    manifest["object"]["spec"].update(extra)
    try:
        obj, _ = codec.parse_manifest(manifest)
    except BadRequest as error:
        assert error.message.startswith(("object.spec", "manifest: cannot be"))  # noqa: PT017
        return
    assert convert.from_proto(convert.to_proto(obj)).raw == manifest["object"]


def policies(**named: FuncPolicy) -> codec.Lookup:
    objects: dict[Key, Object[Any]] = {}
    for joined, policy in named.items():
        tenant, namespace, name = joined.split("__")
        obj = codec.new("funcpolicy", (tenant, namespace, name), policy.to_raw())
        objects[obj.key] = obj
    return objects.get


def test_the_order_in_which_a_policy_is_found() -> None:
    link = {"Link": {"objType": "funcpolicy", "namespace": "system", "name": "p"}}
    linked = codec.parse_manifest(changed(f"{S}.policy", link))[0]
    inline = codec.parse_manifest(changed(f"{S}.policy", {"Obj": {"parallel": 3}}))[0]
    plain = codec.parse_manifest(FUNCTION)[0]
    a, b, c = FuncPolicy(parallel=11), FuncPolicy(parallel=12), FuncPolicy(parallel=13)
    everything = policies(t__n__f=a, t__system__p=b, public__system__p=c)
    assert codec.resolve_policy(linked, everything) == a
    assert codec.resolve_policy(inline, policies(t__system__p=b)).parallel == 3
    assert codec.resolve_policy(linked, policies(t__system__p=b, public__system__p=c)) == b
    assert codec.resolve_policy(linked, policies(public__system__p=c)) == c
    assert codec.resolve_policy(linked, policies()) == FuncPolicy()
    assert codec.resolve_policy(plain, policies(public__system__p=c)) == FuncPolicy()
    keys: list[Key] = [("t", "n", "f"), ("t", "system", "p"), ("public", "system", "p")]
    others: list[Key] = [("t", "n", "g"), ("t", "n", "p"), ("u", "system", "p")]
    assert [key for key in [*keys, *others] if references.may_follow(linked, key)] == keys
    assert [key for key in [*keys, *others] if references.may_follow(inline, key)] == keys[:1]


def test_a_tenant_limit_cuts_a_policy_down() -> None:
    limit = own("tenant.json")[0].spec.limit
    assert limit.max_gpu == 4
    assert not limit.allow_mem_standby
    manifest = {
        "type": "tenant", "name": "x",
        "object": {"spec": {"limit": {"max_replica": 1, "max_queue_len": 5, "max_standby": 0}}},
    }  # fmt: skip
    cut = codec.parse_manifest(manifest)[0].spec.limit.apply(FuncPolicy(2, 8, 3, queue_len=100))
    assert cut == FuncPolicy(1, 1, 0, queue_len=5)


def test_a_tenant_has_a_priority_and_a_weight() -> None:
    def limit(**given: int) -> TenantLimit:
        manifest = {"type": "tenant", "name": "x", "object": {"spec": {"limit": given}}}
        read: TenantLimit = codec.parse_manifest(manifest)[0].spec.limit
        return read

    assert (limit().priority, limit().weight) == (0, 1)
    assert (limit(priority=-5).priority, limit(weight=3).weight) == (-5, 3)
    with pytest.raises(BadRequest, match=r"spec\.limit\.priority: .* within -1000\.\.1000"):
        limit(priority=1001)
    with pytest.raises(BadRequest, match=r"spec\.limit\.weight: .* within 1\.\.1000000, got 0"):
        limit(weight=0)


def test_pods_and_nodes_travel_unchanged() -> None:
    alloc = Alloc(1000, 2000, 10, GpuAlloc("H100", 14200, 450, (0, 3)))
    status = PodStatus("Ready", "probed", 5, "127.0.0.1", 99, (0, 3), 29300, "resume", 1, "late")
    pod = Pod("f", 7, "node1", alloc, status)
    assert codec.new("pod", ("t", "n", "abc"), pod.to_raw()).spec == pod
    assert alloc.vram_mb_per_device == 14650
    node = Node("10.0.0.1", 1233, 1236, boot_id="b")
    assert codec.new("node", ("system", "system", "node1"), node.to_raw()).spec == node
