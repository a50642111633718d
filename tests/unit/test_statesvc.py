"""The state service over gRPC: writes with admission, reads, watches, and what watchers see."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from inferx import telemetry
from inferx.domain import codec
from inferx.domain.meta import Key
from inferx.errors import (
    AlreadyExists,
    BadRequest,
    Conflict,
    Disabled,
    Forbidden,
    InferxError,
    InvalidState,
    NotFound,
    StaleEpoch,
    TenantLimit,
)
from inferx.rpc import client, convert, ixmeta_pb2
from tests.helpers.state_client import Client

ROOT = Path(__file__).resolve().parent.parent.parent
OWN = ROOT / "tests" / "data" / "manifests"
REAL = Path(os.environ.get("INFERX_MANIFESTS", ROOT.parent / "shared" / "data" / "manifests"))
ADDED, MODIFIED, DELETED = ixmeta_pb2.ADDED, ixmeta_pb2.MODIFIED, ixmeta_pb2.DELETED
FUNCTION = {"spec": {"image": "i", "resources": {"CPU": 1, "Mem": 2}}}


F: Key = ("t", "n", "f")


async def test_objects_are_written_and_read_with_revisions(home: Client) -> None:
    first, warnings = await home.create("function", F, FUNCTION, labels={"a": "1"})
    assert warnings == []
    found = await home.get("function", F)
    assert (found.revision, json.loads(found.data)) == (first, FUNCTION)
    changed = {"spec": {**FUNCTION["spec"], "image": "j"}}
    second = await home.update("function", F, changed, expect_rev=first)
    assert second > first
    assert json.loads((await home.get("function", F)).data) == changed
    assert json.loads((await home.get("function", F, first)).data) == FUNCTION
    third = await home.update("function", F, FUNCTION)
    with pytest.raises(Conflict, match=f"is at revision {third}, not at the expected {first}"):
        await home.update("function", F, FUNCTION, expect_rev=first)
    with pytest.raises(Conflict):
        await home.delete("function", F, expect_rev=second)
    await home.delete("function", F, expect_rev=third)
    for missing in (home.get("function", F), home.delete("function", F)):
        with pytest.raises(NotFound, match="t/n/f does not exist"):
            await missing
    with pytest.raises(NotFound):
        await home.update("function", F, FUNCTION)


async def test_a_name_is_taken_once(home: Client) -> None:
    results = await asyncio.gather(
        *(home.create("function", F, FUNCTION) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(result, AlreadyExists) for result in results) == 9


async def test_concurrent_blind_updates_all_land(home: Client) -> None:
    await home.create("function", F, FUNCTION)
    revisions = await asyncio.gather(*(home.update("function", F, FUNCTION) for _ in range(5)))
    assert len(set(revisions)) == 5


@pytest.mark.parametrize(
    ("kind", "key", "raw", "error", "text"),
    [
        ("widget", F, {}, BadRequest, "unknown type 'widget'"),
        ("function", ("x", "n", "f"), FUNCTION, NotFound, "tenant 'x' does not exist"),
        ("function", ("t", "x", "f"), FUNCTION, NotFound, "namespace 'x' does not exist"),
        ("function", ("t", "system", "f"), FUNCTION, NotFound, "namespace 'system' does not"),
        ("namespace", ("x", "system", "n"), {}, NotFound, "tenant 'x' does not exist"),
        ("funcpolicy", ("x", "system", "p"), {}, NotFound, "tenant 'x' does not exist"),
        ("funcpolicy", ("t", "x", "p"), {}, NotFound, "namespace 'x' does not exist"),
        ("function", ("t", "n", "a/b"), FUNCTION, BadRequest, "name: 'a/b'"),
        ("function", ("t", "n", "f\n"), FUNCTION, BadRequest, r"name: 'f\n'"),
        ("function", F, {"spec": {"image": 1}}, BadRequest, "object.spec.image: expected string"),
        ("tenant", ("t", "system", "x"), {}, BadRequest, "lives in tenant 'system'"),
    ],
)
async def test_what_admission_refuses(
    home: Client, kind: str, key: Key, raw: Any, error: type[InferxError], text: str
) -> None:
    with pytest.raises(error) as caught:
        await home.create(kind, key, raw)
    assert text in caught.value.message


async def test_unknown_types_are_refused_everywhere(home: Client) -> None:
    for refused in (
        home.get("uid", ("system", "system", "last")),
        home.names("widget"),
        home.watch(1, "widget"),
        home.delete("widget", F),
        home.update("widget", F, {}),
    ):
        with pytest.raises(BadRequest, match="unknown type"):
            await refused


async def test_warnings_reach_the_writer(home: Client) -> None:
    link = {"Link": {"objType": "funcpolicy", "namespace": "system", "name": "p"}}
    raw = {"spec": {**FUNCTION["spec"], "policy": link, "colour": "red"}}
    _, warnings = await home.create("function", F, raw)
    assert [warning.split(":")[0] for warning in warnings] == [
        "object.spec.colour",
        "object.spec.policy.Link",
    ]
    await home.create("tenant", ("system", "system", "public"))
    await home.create("funcpolicy", ("public", "system", "p"), {"parallel": 2})
    _, warnings = await home.create("function", ("t", "n", "g"), raw)
    assert [warning.split(":")[0] for warning in warnings] == ["object.spec.colour"]


async def test_a_tenant_has_no_more_functions_than_allowed(home: Client) -> None:
    limit = {"spec": {"limit": {"max_funccount": 3}}}
    await home.update("tenant", ("system", "system", "t"), limit)
    keys: list[Key] = [("t", "n", f"f{number}") for number in range(10)]
    results = await asyncio.gather(
        *(home.create("function", key, FUNCTION) for key in keys), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, TenantLimit)]
    assert len(refused) == 7
    assert "max_funccount" in refused[0].message
    names = await home.names("function")
    assert len(names) == 3
    await home.update("function", ("t", "n", names[0]), FUNCTION)  # a change is no new function


async def test_nothing_is_written_below_what_is_disabled(home: Client) -> None:
    await home.create("function", F, FUNCTION)
    off, on = {"status": {"disable": True}}, {"status": {"disable": False}}
    for kind, key in (("namespace", ("t", "system", "n")), ("tenant", ("system", "system", "t"))):
        await home.update(kind, key, off)
        with pytest.raises(Disabled, match=f"{kind} '{key[2]}' is disabled"):
            await home.create("function", ("t", "n", "g"), FUNCTION)
        with pytest.raises(Disabled):
            await home.update("function", F, FUNCTION)
        await home.update(kind, key, on)
    await home.update("tenant", ("system", "system", "t"), off)
    await home.delete("function", F)


async def test_parents_go_after_their_children(home: Client) -> None:
    await home.create("function", F, FUNCTION)
    with pytest.raises(InvalidState, match="still has 1 namespace, 1 function; delete them first"):
        await home.delete("tenant", ("system", "system", "t"))
    with pytest.raises(InvalidState, match="still has 1 function"):
        await home.delete("namespace", ("t", "system", "n"))
    await home.delete("function", F)
    await home.delete("namespace", ("t", "system", "n"))
    await home.delete("tenant", ("system", "system", "t"))


async def test_a_child_never_outlives_its_parent(home: Client) -> None:
    """Creating below a namespace that is being deleted: one of the two fails, never neither."""
    for number in range(20):
        name = f"n{number}"
        await home.create("namespace", ("t", "system", name))
        await asyncio.gather(
            home.create("function", ("t", name, "f"), FUNCTION),
            home.delete("namespace", ("t", "system", name)),
            return_exceptions=True,
        )
        functions = await home.names("function", tenant="t", namespace=name)
        assert not functions or name in await home.names("namespace", tenant="t")


async def test_the_system_tenant_makes_itself_and_stays(api: Client) -> None:
    for kind in ("tenant", "namespace"):
        assert (await api.get(kind, ("system", "system", "system"))).name == "system"
        with pytest.raises(Forbidden):
            await api.delete(kind, ("system", "system", "system"))


async def test_lists_select(home: Client) -> None:
    for name, team in (("a", "x"), ("b", "y"), ("c", "x")):
        await home.create("function", ("t", "n", name), FUNCTION, labels={"team": team})
    assert await home.names("function", tenant="t", namespace="n") == ["a", "b", "c"]
    assert await home.names("function", tenant="t2") == []
    assert await home.names("function", label_selector="team=x") == ["a", "c"]
    assert await home.names("function", label_selector="team!=x") == ["b"]
    assert await home.names("function", field_selector="name=c,spec.image=i") == ["c"]
    assert await home.names("function", label_selector="!team") == []
    with pytest.raises(BadRequest, match="label_selector"):
        await home.names("function", label_selector="a b")
    with pytest.raises(BadRequest, match="give the tenant"):
        await home.names("function", namespace="n")


async def test_a_watch_from_zero_lists_then_follows(home: Client) -> None:
    revision, _ = await home.create("function", F, FUNCTION)
    call = home.stub.Watch(ixmeta_pb2.ListRequestMessage(obj_type="function"))
    first, done = await call.read(), await call.read()
    assert (first.event_type, first.obj.name) == (ADDED, "f")
    assert (done.event_type, done.obj.revision) == (ixmeta_pb2.INIT_DONE, revision)
    await home.update("function", F, FUNCTION)
    await home.delete("function", F)
    await home.create("function", ("t", "n", "g"), FUNCTION)
    events = [await call.read() for _ in range(3)]
    changes = [(MODIFIED, "f"), (DELETED, "f"), (ADDED, "g")]
    assert [(event.event_type, event.obj.name) for event in events] == changes
    assert json.loads(events[1].obj.data) == FUNCTION  # the last known content
    call.cancel()
    later = await home.watch(3, "function", revision=revision)
    assert later == changes


async def test_a_watch_follows_its_selection(home: Client) -> None:
    raw = {"spec": {**FUNCTION["spec"], "model_type": "llm"}}
    start, _ = await home.create("function", F, FUNCTION)
    await home.update("function", F, raw)
    await home.update("function", F, raw)
    await home.update("function", F, FUNCTION)
    await home.delete("function", F)
    await home.create("function", ("t", "n", "g"), raw)
    events = await home.watch(4, "function", revision=start, field_selector="spec.model_type=llm")
    assert events == [(ADDED, "f"), (MODIFIED, "f"), (DELETED, "f"), (ADDED, "g")]


async def test_a_scheduler_that_no_longer_leads_cannot_write(home: Client) -> None:
    leader: Key = ("system", "system", "scheduler")
    first, _ = await home.create("scheduler", leader, {"spec": {"address": "a:1"}})
    pod = {"spec": {"funcname": "f", "fprevision": 1, "node": "n1"}}

    async def place(name: str, epoch: int) -> None:
        manifest = {"type": "pod", "tenant": "t", "namespace": "n", "name": name, "object": pod}
        message = convert.message_of(manifest)
        message.src_epoch = epoch
        await client.call(home.stub.Create, ixmeta_pb2.CreateRequestMessage(obj=message))

    await place("p1", first)
    second = await home.update("scheduler", leader, {"spec": {"address": "b:1"}})
    with pytest.raises(StaleEpoch, match=f"epoch {first} is over; the current one is {second}"):
        await place("p2", first)
    await place("p2", second)
    assert await home.names("pod") == ["p1", "p2"]


async def test_an_object_too_large_to_keep_is_refused(home: Client) -> None:
    with pytest.raises(BadRequest, match="larger than"):
        await home.create("function", F, FUNCTION, labels={"a": "x" * (1 << 20)})


async def test_the_request_id_reaches_the_log_of_the_service(
    home: Client, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    class Catch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(telemetry.bound().get("request_id", ""))

    handler = Catch()
    caplog.set_level(logging.INFO)
    logging.getLogger("inferx.statesvc").addHandler(handler)
    with telemetry.bind(request_id="req-7"):
        await home.create("function", F, FUNCTION)
    logging.getLogger("inferx.statesvc").removeHandler(handler)
    assert seen == ["req-7"]


async def test_uids_grow(api: Client) -> None:
    uids = [(await client.call(api.stub.Uid, ixmeta_pb2.UidRequestMessage())).uid for _ in range(3)]
    assert uids == sorted(set(uids))
    answer = await client.call(api.stub.Version, ixmeta_pb2.VersionRequestMessage())
    assert answer.version.startswith("inferx")


def read_all(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("*.json"))
    return [codec.dump_manifest(codec.parse_manifest(path.read_bytes())[0]) for path in paths]


@pytest.mark.parametrize("folder", [OWN, *([REAL] if REAL.is_dir() else [])], ids=str)
async def test_real_manifests_deploy(api: Client, folder: Path) -> None:
    """Every manifest becomes an object and reads back as it was written.

    Limits come last: they hold for what is created after them.
    """
    order = {"tenant": 0, "namespace": 1, "funcpolicy": 2, "function": 3}
    manifests = read_all(folder)
    limits = {}
    for manifest in sorted(manifests, key=lambda one: order[one["type"]]):
        tenant, namespace, kind = manifest["tenant"], manifest["namespace"], manifest["type"]
        for missing in (
            ("tenant", ("system", "system", tenant)),
            ("namespace", (tenant, "system", namespace)),
        ):
            if kind in ("function", "funcpolicy", "namespace"):
                with_errors = await asyncio.gather(api.create(*missing), return_exceptions=True)
                assert isinstance(with_errors[0], tuple | AlreadyExists)
        if kind == "tenant":
            limits[manifest["name"]] = manifest
            manifest = {**manifest, "object": {}}
        await api.create_manifest(manifest)
    for manifest in limits.values():
        await api.update("tenant", ("system", "system", manifest["name"]), manifest["object"])
    for manifest in manifests:
        key = (manifest["tenant"], manifest["namespace"], manifest["name"])
        stored = convert.manifest_of(await api.get(manifest["type"], key))
        kept = {name: stored[name] for name in manifest}
        assert kept == manifest
