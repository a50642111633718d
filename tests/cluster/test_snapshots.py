"""Snapshots on a node with runc or containerd: taken, restored, shared, refused, removed."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inferx.errors import InferxError, NotSupported
from inferx.rpc import ixmeta_pb2
from inferx.rpc import na_pb2 as pb
from inferx.rpc.client import call
from tests.helpers.agent_node import Node, create_request, named, until_shown
from tests.helpers.containerd_daemon import ON_BOTH
from tests.helpers.runtime_kit import leftovers

PATH = os.environ["PATH"]


def entries(runtime: dict[str, Any]) -> dict[str, Any]:
    """The entries of node.json as arguments of a Node."""
    socket = runtime.get("containerSocket")
    return {"runtime": runtime["runtime"], "container_socket": Path(socket) if socket else None}


@pytest.fixture
async def node(tmp_path: Path, runtime: dict[str, Any]) -> AsyncIterator[Node]:
    async with Node(tmp_path, path=PATH, **entries(runtime)) as node:
        yield node
    assert leftovers(tmp_path) == []


async def snapshots(node: Node) -> dict[str, dict[str, Any]]:
    """The node's snapshots by function, as it shows them."""
    listed = await call(node.state.List, ixmeta_pb2.ListRequestMessage(obj_type="snapshot"))
    shown = {obj.name: json.loads(obj.data) for obj in listed.objs}
    return {name: {**each["spec"], **each["status"]} for name, each in shown.items()}


async def published(node: Node, function: str = "f", revision: int = 3) -> Path:
    """The folder of the function's snapshot, once the node shows it."""
    await until_shown(node.state, function, revision)
    (folder,) = [each for each in _folders(node.folder) if _identity(each)["function"] == function]
    return folder


async def first_start(node: Node, *mode: str) -> Path:
    """Start p0 from nothing, have its snapshot and end it; the snapshot's folder."""
    answer = await node.create("p0", *mode)
    assert answer.start == "cold"
    folder = await published(node)
    await call(node.pods.TerminatePod, pb.TerminatePodReq(**named("p0")))
    return folder


@ON_BOTH
async def test_the_second_start_comes_from_the_snapshot_of_the_first(node: Node) -> None:
    first = await node.create("p0", "count")
    assert first.start == "cold"
    assert [(await node.worker("p0", "/count")).json()["count"] for _ in range(3)] == [1, 2, 3]
    await published(node)
    assert (await snapshots(node))["f"]["state"] == "Ready"
    second = await node.create("p1", "count")
    assert second.start == "snapshot"
    status = await node.status("p1")
    assert (status["state"], status["start"], status["reason"]) == ("Ready", "snapshot", "")
    # Taken before the first call, so it knows nothing of the calls that p0 served.
    assert (await node.worker("p1", "/count")).json()["count"] == 1
    assert (await node.worker("p0", "/count")).json()["count"] == 4
    assert second.ipaddress != first.ipaddress
    assert (await snapshots(node))["f"]["restores"] == 1


async def test_the_scheduler_says_whether_a_worker_may_be_saved(node: Node) -> None:
    for pod_id, permitted in (("p0", False), ("p1", True)):
        request = create_request(pod_id, "ok")
        request.save_snapshot = permitted
        assert (await call(node.pods.CreateFuncPod, request, 60)).start == "cold"
        assert (await snapshots(node) == {}) or permitted
    await published(node)


@ON_BOTH
async def test_one_snapshot_runs_as_three_at_once(node: Node) -> None:
    await first_start(node, "count")
    ids = ("a", "b", "c")
    answers = await asyncio.gather(*(node.create(pod_id, "count", vram_mb=1000) for pod_id in ids))
    assert [answer.start for answer in answers] == ["snapshot"] * 3
    assert len({answer.ipaddress for answer in answers}) == 3
    for calls, pod_id in enumerate(ids, 1):
        counts = [(await node.worker(pod_id, "/count")).json()["count"] for _ in range(calls)]
        assert counts == list(range(1, calls + 1)), "each goes on from the image on its own"


@ON_BOTH
async def test_a_restored_worker_parks_resumes_and_keeps_its_files(node: Node) -> None:
    written = Path("/var/tmp") / f"inferx-{node.folder.name}"  # in the worker's own root
    await first_start(node, "write-file", str(written))
    await node.create("p1", "write-file", str(written))
    assert (await node.worker("p1", "/file")).json() == {"content": "written at the start"}
    assert written.name not in os.listdir(written.parent), (
        "this machine's own root is never written"
    )
    await call(node.pods.ParkPod, pb.ParkPodReq(**named("p1")))
    status = await node.status("p1")
    assert (status["state"], status["vram_mb"]) == ("Standby", 0)
    await call(node.pods.ResumePod, pb.ResumePodReq(**named("p1")))
    assert (await node.status("p1"))["start"] == "resume"
    assert (await node.worker("p1", "/file")).json() == {"content": "written at the start"}


async def test_snapshots_are_private_to_the_agent(node: Node) -> None:
    folder = await first_start(node)
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


async def test_a_pod_made_for_its_snapshot_ends_with_it(node: Node) -> None:
    request = create_request("p0", "ok")
    request.create_type = pb.Snapshot
    await call(node.pods.CreateFuncPod, request, 60)
    await published(node)
    request = create_request("p1", "ok")
    request.create_type = pb.Restore
    assert (await call(node.pods.CreateFuncPod, request, 60)).start == "snapshot"


async def test_another_spec_is_not_restored_from_it(node: Node) -> None:
    folder = await first_start(node, "ok")
    answer = await node.create("p1", "prompt")
    assert answer.start == "cold"
    assert "spec is" in (await node.status("p1"))["reason"]
    assert (await node.worker("p1", "/")).json()["mode"] == "prompt"
    await published(node)
    assert folder not in _folders(node.folder), "the one of the other spec is gone"


async def test_snapshots_of_deleted_and_edited_functions_are_removed(node: Node) -> None:
    await first_start(node)
    request = create_request("p1")
    request.fprevision = 4
    assert (await call(node.pods.CreateFuncPod, request, 60)).start == "cold"
    await published(node, revision=4)
    assert len(_folders(node.folder)) == 1, "the old revision's is gone"
    for wrong in ("t/n", "t/n/f/x", "t//f"):
        with pytest.raises(InferxError, match="funckey"):
            await call(node.pods.RemoveSnapshot, pb.RemoveSnapshotReq(funckey=wrong))
    await call(node.pods.RemoveSnapshot, pb.RemoveSnapshotReq(funckey="t/n/f/3"))  # an old one
    assert await snapshots(node)
    await call(node.pods.RemoveSnapshot, pb.RemoveSnapshotReq(funckey="t/n/f"))
    assert await snapshots(node) == {}
    assert _folders(node.folder) == []
    await call(node.pods.RemoveSnapshot, pb.RemoveSnapshotReq(funckey="t/n/f"))


async def test_the_process_runtime_says_that_it_keeps_none(tmp_path: Path) -> None:
    async with Node(tmp_path) as node:
        request = create_request("p0")
        request.create_type = pb.Snapshot
        with pytest.raises(NotSupported, match="process runtime of this node keeps no snapshots"):
            await call(node.pods.CreateFuncPod, request)
        await call(node.pods.RemoveSnapshot, pb.RemoveSnapshotReq(funckey="t/n/f"))


async def test_the_budget_evicts_the_least_recently_used(tmp_path: Path) -> None:
    async with Node(tmp_path, runtime="runc", path=PATH, snapshot_budget_mb=100) as node:
        for name in ("f1", "f2", "f3"):
            request = create_request(name, "ballast", "30")  # two of them fit
            request.funcname = name
            await call(node.pods.CreateFuncPod, request, 60)
            await published(node, name)
            await call(
                node.pods.TerminatePod, pb.TerminatePodReq(**{**named(name), "funcname": name})
            )
        assert set(await snapshots(node)) == {"f2", "f3"}


def _folders(folder: Path) -> list[Path]:
    return sorted((folder / "snapshots/store").glob("snap-*"))


def _identity(snapshot: Path) -> dict[str, Any]:
    return dict(json.loads((snapshot / "manifest.json").read_text())["identity"])
