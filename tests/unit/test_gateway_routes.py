"""The control routes of a whole gateway: objects, pods, nodes, logs, models, metrics, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferx.errors import StartFailed
from inferx.rpc import client, ixmeta_pb2, ixmeta_pb2_grpc, na_pb2_grpc
from inferx.rpc import na_pb2 as pb
from inferx.rpc.server import serve
from services import gateway
from tests.helpers.gateway_kit import Platform, platform
from tests.helpers.proxy_kit import RawWorker, echo


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(tmp_path) as up:
        yield up


async def test_the_life_of_an_object(up: Platform) -> None:
    manifest = {
        "type": "function", "tenant": "public", "namespace": "demo", "name": "f",
        "labels": {"a": "b"},
        "object": {"spec": {"image": "x", "resources": {"CPU": 1, "Mem": 1}, "odd": {"k": [1]}}},
    }  # fmt: skip
    created = await up.http.put("/object/", json=manifest)
    assert created.status_code == 201
    assert created.json()["warnings"] == ["object.spec.odd: unknown field, kept but without effect"]
    revision = created.json()["revision"]
    again = await up.http.put("/object/", json=manifest)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "already_exists")
    read = (await up.http.get("/object/function/public/demo/f/")).json()
    assert (read["object"], read["revision"]) == (manifest["object"], revision)
    stale = await up.http.post("/object/", json={**manifest, "revision": revision - 1})
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "conflict")
    same = await up.http.post("/object/function/public/demo/f", json=read)
    assert (same.status_code, same.json()["revision"]) == (200, revision), "nothing has changed"
    read["labels"] = {"a": "c"}
    updated = await up.http.post("/object/function/public/demo/f", json=read)
    assert (updated.status_code, updated.json()["revision"] > revision) == (200, True)
    listed = (await up.http.get("/objects/function/public/demo/")).json()
    assert [each["name"] for each in listed] == ["f"]
    assert (await up.http.get("/objects/function/public/other/")).json() == []
    deleted = await up.http.delete(f"/object/function/public/demo/f?revision={revision}")
    assert deleted.status_code == 409
    assert (await up.http.delete("/object/function/public/demo/f/")).status_code == 200
    gone = await up.http.get("/object/function/public/demo/f/")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


async def test_a_new_function_can_be_called_at_once(up: Platform) -> None:
    async with RawWorker(echo) as worker:
        up.scheduler.worker_port = worker.port
        for number in range(5):
            await up.function(f"f{number}")
            answer = await up.http.get(f"/funccall/public/demo/f{number}/x")
            assert answer.status_code == 200
            await up.http.delete(f"/object/function/public/demo/f{number}/")
            answer = await up.http.get(f"/funccall/public/demo/f{number}/x")
            assert answer.json()["error"]["code"] == "function_not_found"


BAD = [
    ("PUT", "/object/", "{", "not JSON"),
    ("PUT", "/object/", '{"type":"widget"}', "unknown type 'widget'"),
    ("PUT", "/object/", '{"type":"tenant","name":"a/b","object":{}}', "'a/b'"),
    ("PUT", "/object/", '{"type":"tenant","name":5,"object":{}}', "name: expected"),
    ("PUT", "/object/tenant/x", '{"type":"tenant","name":"a","object":{}}', "the path names"),
    ("GET", "/object/widget/a/b/c/", None, "unknown type 'widget'"),
    ("GET", "/object/function/a/b/c%2Fd/", None, "'c/d'"),
    ("GET", "/object/function/a/b/c%0Ad/", None, "control character"),
    ("GET", "/objects/widget/a/b/", None, "unknown type 'widget'"),
    ("GET", "/object/function/a/b/c/?revision=x", None, "revision: expected a number"),
    ("GET", "/podlog/a/b/c/one/p/", None, "revision: expected a number"),
]


@pytest.mark.parametrize(("method", "path", "body", "what"), BAD)
async def test_bad_input_is_named(
    up: Platform, method: str, path: str, body: str | None, what: str
) -> None:
    pod(up)
    if path.startswith("/podlog"):
        path = path.replace("/p/", "/pod1/")
    answer = await up.http.request(method, path, content=body, headers={"X-Request-Id": "r7"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["request_id"]) == (400, "bad_request", "r7")
    assert what in error["message"]


async def test_what_users_may_not_write(up: Platform) -> None:
    for kind in ("node", "pod", "snapshot", "scheduler"):
        answer = await up.http.delete(f"/object/{kind}/system/system/x/")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


async def test_unknown_paths_and_methods(up: Platform) -> None:
    for path in ("/nothing", "/object/", "/object/function/a/b", "/objects/", "/pod/a"):
        answer = await up.http.get(path)
        assert answer.status_code in (400, 404), path
        assert (
            path.strip("/").split("/")[0] in answer.json()["error"]["message"]
            or path == "/objects/"
        )
    answer = await up.http.patch("/object/x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    large = await up.http.put("/object/", content=b"x" * (1 << 20 | 1))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")


async def test_disabled_tenants_and_namespaces_refuse_calls(up: Platform) -> None:
    await up.function()
    async with RawWorker(echo) as worker:
        up.scheduler.worker_port = worker.port
        assert (await up.http.get("/funccall/public/demo/f/x")).status_code == 200
        for path, what in [
            ("/object/namespace/public/system/demo", "namespace public/demo is disabled"),
            ("/object/tenant/system/system/public", "tenant public is disabled"),
        ]:
            stored = (await up.http.get(path)).json()
            stored["object"]["status"] = {"disable": True}
            stored = (await up.http.post(path, json=stored)).json()
            answer = await up.http.get("/funccall/public/demo/f/x")
            error = answer.json()["error"]
            assert (answer.status_code, error["message"]) == (403, what)
            assert (await up.http.get("/v1/models")).json()["data"] == []
            stored.pop("warnings", None)
            stored["object"]["status"] = {"disable": False}
            assert (await up.http.post(path, json=stored)).status_code == 200
            assert (await up.http.get("/funccall/public/demo/f/x")).status_code == 200


async def test_models(up: Platform) -> None:
    await up.function("f")
    await up.put("tenant", "system", "system", "acme", spec={})
    await up.put("namespace", "acme", "system", "n", spec={})
    spec = {"image": "x", "resources": {"CPU": 1, "Mem": 1}}
    await up.put("function", "acme", "n", "g", spec=spec)
    models = (await up.http.get("/v1/models")).json()
    assert models["object"] == "list"
    assert [(model["id"], model["owned_by"]) for model in models["data"]] == [
        ("acme/n/g", "acme"), ("demo/f", "public"),
    ]  # fmt: skip
    assert (await up.http.get("/v1/models/demo/f")).json()["id"] == "demo/f"
    missing = await up.http.get("/v1/models/demo/g")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert missing.json()["error"]["request_id"]


async def test_a_policy_changes_a_function(up: Platform) -> None:
    await up.function()
    up.scheduler.granting.clear()
    policy = {"queue_timeout": 0.05}
    await up.put("funcpolicy", "public", "demo", "f", **policy)
    answer = await up.http.get("/funccall/public/demo/f/x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "queue_timeout")
    up.scheduler.granting.set()


def pod(up: Platform, node: str = "n1") -> dict[str, Any]:
    """Puts one pod into the scheduler's view."""
    raw = {"spec": {"funcname": "f", "fprevision": 3, "node": node}, "status": {"state": "Idle"}}
    up.scheduler.pods = [
        ixmeta_pb2.Obj(
            kind="pod", tenant="public", namespace="demo", name="pod1", data=json.dumps(raw)
        )
    ]
    return raw


async def test_pods(up: Platform) -> None:
    pod(up)
    for path in ("/pods/", "/pods/public/", "/pods/public/demo/", "/pods/public/demo/f/"):
        assert [each["name"] for each in (await up.http.get(path)).json()] == ["pod1"], path
    assert (await up.http.get("/pods/public/demo/f-large/")).json() == []
    assert (await up.http.get("/pods/other/")).json() == []
    for path in ("/pod/public/demo/pod1/", "/pod/public/demo/f/3/pod1/"):
        assert (await up.http.get(path)).json()["object"]["status"]["state"] == "Idle"
    assert (await up.http.get("/object/pod/public/demo/pod1/")).status_code == 200
    assert (await up.http.get("/pod/public/demo/other/")).status_code == 404
    assert (await up.http.delete("/pod/public/demo/pod1/")).status_code == 200
    (kill,) = up.scheduler.kills
    assert (kill.funcname, kill.fprevision, kill.id) == ("f", 3, "pod1")
    assert (await up.http.delete("/pod/public/demo/other/")).status_code == 404


class FakeAgent(na_pb2_grpc.NodeAgentServiceServicer):
    """Has one log, and notices when its reader leaves."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.more: asyncio.Queue[str] = asyncio.Queue()

    async def StreamPodLog(
        self, request: pb.ReadPodLogReq, context: Any
    ) -> AsyncIterator[pb.ReadPodLogResp]:
        if request.tail == 99:
            raise StartFailed("no log was kept")
        try:
            empty = request.tail == 98
            yield pb.ReadPodLogResp(log="" if empty else f"{request.id} tail {request.tail}\n")
            while request.follow:
                yield pb.ReadPodLogResp(log=await self.more.get())
        finally:
            self.left.set()


async def test_logs_are_streamed_from_the_node(up: Platform, tmp_path: Path) -> None:
    agent = FakeAgent()
    server = await serve(
        "127.0.0.1:0", [lambda s: na_pb2_grpc.add_NodeAgentServiceServicer_to_server(agent, s)]
    )
    pod(up)
    path = "/podlog/public/demo/f/3/pod1"
    lost = await up.http.get(path)
    assert (lost.status_code, "n1" in lost.json()["error"]["message"]) == (404, True)
    spec = {"address": "127.0.0.1", "podmgr_port": server.port, "state_port": 1}
    await add_node(up, {"spec": spec, "status": {"state": "Ready"}})
    assert [node["name"] for node in (await up.http.get("/nodes/")).json()] == ["n1"]
    assert (await up.http.get("/node/n1/")).json()["object"]["spec"]["podmgr_port"] == server.port
    assert (await up.http.get(f"{path}?tail=5")).text == "pod1 tail 5\n"
    failed = await up.http.get(f"{path}?tail=99")
    assert (failed.status_code, failed.json()["error"]["message"]) == (502, "no log was kept")
    other = await up.http.get(path.replace("/f/", "/g/"))
    assert other.status_code == 404
    agent.left.clear()
    async with up.http.stream("GET", f"{path}?follow=true") as stream:
        lines = stream.aiter_text()
        assert await anext(lines) == "pod1 tail 0\n"
        agent.more.put_nowait("later\n")
        assert await anext(lines) == "later\n"
    async with asyncio.timeout(10):
        await agent.left.wait()
    agent.left.clear()
    async with asyncio.timeout(10), up.http.stream("GET", f"{path}?follow=true&tail=98") as empty:
        assert empty.status_code == 200, "the answer begins before there is anything in it"
    async with asyncio.timeout(10):
        await agent.left.wait()
    await server.stop(0)


async def add_node(up: Platform, raw: dict[str, Any]) -> None:
    """Writes a node as its agent does."""
    channel = client.channel(up.config.state_svc_addrs[0])
    stub = ixmeta_pb2_grpc.IxMetaServiceStub(channel)  # type: ignore[no-untyped-call]
    node = ixmeta_pb2.Obj(
        kind="node", tenant="system", namespace="system", name="n1", data=json.dumps(raw)
    )
    await client.call(stub.Create, ixmeta_pb2.CreateRequestMessage(obj=node))
    await channel.close(None)


async def test_metrics(up: Platform) -> None:
    await up.function()
    up.scheduler.refusal = StartFailed("boom")
    await up.http.get("/funccall/public/demo/f/x")
    text = (await up.http.get("/metrics")).text
    labels = 'function="f",namespace="demo",tenant="public"'
    assert (
        'inferx_calls_total{function="f",namespace="demo",status="502",tenant="public"} 1.0' in text
    )
    assert f"inferx_call_wait_seconds_count{{{labels}}} 1.0" in text
    assert f"inferx_function_slots{{{labels}}} 0.0" in text


async def test_services_that_are_down_are_named(up: Platform) -> None:
    await up.stop_scheduler()
    answer = await up.http.get("/pods/")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert (await up.http.get("/readyz")).status_code == 200, "warm calls still work"


@pytest.mark.parametrize("listener", ["rust", "granian"])
async def test_a_taken_port_ends_the_gateway_with_its_name(
    up: Platform, tmp_path: Path, listener: str
) -> None:
    other = replace(up.config, data_dir=tmp_path / "other", listener=listener)
    with pytest.raises(OSError, match=str(up.config.gateway_port)):
        await gateway.main(other, asyncio.Event())
