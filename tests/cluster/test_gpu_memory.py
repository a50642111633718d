"""What workers keep on a (simulated) GPU outlives parking and snapshots, from every tier."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inferx import telemetry
from inferx.agent import gpuside
from inferx.agent.pod import Pod
from inferx.agent.tiers.accountant import Tier
from inferx.config import BlobConfig, ShareMemConfig
from inferx.errors import InferxError
from inferx.rpc import na_pb2 as pb
from inferx.rpc.client import call
from tests.cluster.test_snapshots import first_start, published, snapshots
from tests.helpers.agent_node import Node, create_request, named
from tests.helpers.runtime_kit import leftovers

POOL_MB = 48


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    shared = {"path": str(folder / "shared")}
    blob = BlobConfig(enable=True, type="nfs", options=shared)
    return {"sharemem": ShareMemConfig(size_mb=POOL_MB), "blob": blob, **more}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node(tmp_path / "node", **settings(tmp_path)) as node:
        yield node
        await node.agent.manager.stop_all()
        assert used_mib(node) == 0


@pytest.fixture
async def runc(tmp_path: Path) -> AsyncIterator[Node]:
    folder = tmp_path / "node"
    more = settings(tmp_path, runtime="runc", path=os.environ["PATH"])
    async with Node(folder, **more) as node:
        yield node
        await node.agent.manager.stop_all()
        assert used_mib(node) == 0
    assert leftovers(folder) == []


def used_mib(node: Node) -> int:
    """Memory of workers on both devices."""
    gpus = node.agent.ledger.simulated((0, 1))
    return sum(gpu.used_mib for gpu in gpus if gpu is not None)


def pod_of(node: Node, pod_id: str) -> Pod:
    (pod,) = [pod for pod in node.agent.manager.pods if pod.key.id == pod_id]
    return pod


def memory_of(node: Node) -> Any:
    memory = node.agent.manager.memory
    assert memory is not None
    return memory


async def content(node: Node, pod_id: str) -> dict[str, Any]:
    return dict((await node.worker(pod_id, "/vram")).json())


async def park(node: Node, pod_id: str) -> None:
    await call(node.pods.ParkPod, pb.ParkPodReq(**named(pod_id)), 60)


async def resume(node: Node, pod_id: str) -> dict[str, Any]:
    await call(node.pods.ResumePod, pb.ResumePodReq(**named(pod_id)), 60)
    return await node.status(pod_id)


def damage(file: Path) -> None:
    """Flip one bit in the middle."""
    with file.open("r+b") as segment:
        segment.seek(file.stat().st_size // 2)
        byte = segment.read(1)
        segment.seek(-1, os.SEEK_CUR)
        segment.write(bytes([byte[0] ^ 4]))


@pytest.mark.parametrize(
    ("standby", "tier"), [("Mem", Tier.PINNED), ("File", Tier.FILE), ("Blob", Tier.BLOB)]
)
async def test_a_parked_worker_gets_its_memory_back(node: Node, standby: str, tier: Tier) -> None:
    await node.create("p1", "vram", "7", standby={"gpu": standby})
    before = await content(node, "p1")
    assert (used_mib(node), before["events"]) == (22, [])
    await park(node, "p1")
    assert used_mib(node) == 0
    await memory_of(node).settled()
    assert memory_of(node).hottest(f"{pod_of(node, 'p1').gpu.base}-0") is tier
    status = await resume(node, "p1")
    assert (status["state"], status["start"]) == ("Ready", "resume")
    assert status["reason"] == f"GPU memory from tier {tier.name.lower()}"
    after = await content(node, "p1")
    assert after["digests"] == before["digests"]
    assert after["events"] == ["quiesce park", "resume park"]
    sample = f'agent_start_seconds_count{{start="resume",tier="{tier.name.lower()}"}}'
    assert sample in telemetry.metrics_text().decode()


async def test_damage_in_one_tier_is_answered_from_the_next_colder_one(
    node: Node, tmp_path: Path
) -> None:
    await node.create("p1", "vram", "7", standby={"gpu": "Blob"})
    before = await content(node, "p1")
    await park(node, "p1")
    memory = memory_of(node)
    await memory.settled()
    id = f"{pod_of(node, 'p1').gpu.base}-0"
    gpu = pod_of(node, "p1").tools.ledger.simulated((0,))[0]
    assert gpu is not None
    for region in (await memory.restore(id, gpu)).regions.values():  # brings the file back
        gpu.free(region.handle)
    damage(tmp_path / f"node/snapshots/gpu/snap-{id}/data-000.seg")
    status = await resume(node, "p1")
    assert (status["start"], status["reason"]) == ("resume", "GPU memory from tier blob")
    assert (await content(node, "p1"))["digests"] == before["digests"]
    assert 'agent_tier_failures_total{tier="FILE"}' in telemetry.metrics_text().decode()


async def test_without_any_good_copy_the_worker_starts_again(node: Node, tmp_path: Path) -> None:
    await node.create("p1", "vram", "7", standby={"gpu": "File"})
    before = await content(node, "p1")
    await park(node, "p1")
    await memory_of(node).settled()
    (segment,) = (tmp_path / "node/snapshots/gpu").glob("snap-*/data-000.seg")
    damage(segment)
    status = await resume(node, "p1")
    assert (status["state"], status["start"]) == ("Ready", "cold")
    assert "its standby failed: no copy of" in status["reason"]
    after = await content(node, "p1")
    assert (after["digests"], after["events"]) == (before["digests"], [])


async def test_a_worker_gets_its_share_and_no_more(node: Node) -> None:
    with pytest.raises(InferxError, match="1048576 MiB are wanted, the pod has 4000"):
        await node.create("p1", "greedy")
    assert used_mib(node) == 0


async def test_a_worker_that_dies_in_standby_leaves_nothing(node: Node) -> None:
    await node.create("p1", "vram", "7")
    await park(node, "p1")
    os.kill(node.pid("p1"), signal.SIGKILL)
    await node.until("p1", lambda status: status["state"] == "Failed")
    await memory_of(node).settled()
    assert list((node.folder / "snapshots/gpu").glob("snap-*")) == []


async def test_hooks_that_fail_cost_a_worker_without_memory_nothing(node: Node) -> None:
    await node.create("p1", "hooks")
    await park(node, "p1")
    assert "RuntimeError: not now" in (await node.status("p1"))["reason"]
    assert (await resume(node, "p1"))["state"] == "Ready"
    await park(node, "p1")
    await resume(node, "p1")
    told = (await node.worker("p1", "/events")).json()["events"]
    assert told == ["quiesce park", "quiesce park", "resume park"]


async def test_a_server_with_a_sleep_mode_is_put_to_sleep(node: Node) -> None:
    await node.create("p1", "sleepy")
    await park(node, "p1")
    await resume(node, "p1")
    told = (await node.worker("p1", "/events")).json()["events"]
    assert told == ["/sleep?level=1", "/wake_up"]


@pytest.mark.parametrize(("broken", "start"), [("/sleep", "resume"), ("/wake_up", "cold")])
async def test_a_sleep_mode_that_fails_leads_to_the_next_step(
    node: Node, broken: str, start: str
) -> None:
    await node.create("p1", "sleepy", broken)
    await park(node, "p1")
    status = await node.status("p1")
    assert status["state"] == "Standby"
    assert ("/sleep?level=1 of the server answered 500" in status["reason"]) == (broken == "/sleep")
    status = await resume(node, "p1")
    assert (status["state"], status["start"]) == ("Ready", start)


async def test_a_snapshot_has_the_memory_of_its_worker(runc: Node) -> None:
    await first_start(runc, "vram", "7")
    assert used_mib(runc) == 0
    for pod_id in ("p1", "p2"):
        assert (await runc.create(pod_id, "vram", "7", vram_mb=2000)).start == "snapshot"
    first, second = [await content(runc, pod_id) for pod_id in ("p1", "p2")]
    assert first == second
    assert first["events"] == ["quiesce snapshot", "resume snapshot"]
    assert (await runc.status("p1"))["reason"] == "GPU memory from tier pinned"
    await park(runc, "p1")
    await resume(runc, "p1")
    assert (await content(runc, "p1"))["digests"] == first["digests"]
    await call(runc.pods.RemoveSnapshot, pb.RemoveSnapshotReq(funckey="t/n/f"))
    await memory_of(runc).settled()
    assert list((runc.folder / "snapshots/gpu").glob("snap-*")) == []


async def test_a_snapshot_comes_back_from_every_tier(runc: Node) -> None:
    await runc.create("p0", "vram", "7", vram_mb=1000)
    digests = (await content(runc, "p0"))["digests"]
    await published(runc)
    memory = memory_of(runc)
    await memory.settled()
    (folder,) = (runc.folder / "snapshots/gpu").glob("snap-*")
    id = folder.name.removeprefix("snap-")
    for tier, colder in ((Tier.PINNED, "file"), (Tier.FILE, "blob")):
        await memory.demote(id, tier)
        assert (await runc.create(colder, "vram", "7", vram_mb=1000)).start == "snapshot"
        assert (await runc.status(colder))["reason"] == f"GPU memory from tier {colder}"
        assert (await content(runc, colder))["digests"] == digests
    await memory.forget(id)
    answer = await runc.create("none", "vram", "7", vram_mb=1000)
    assert answer.start == "cold", "the image alone is of no use"
    assert (await content(runc, "none"))["digests"] == digests


async def test_a_worker_whose_hook_hangs_makes_room_by_ending(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpuside, "HOOK_TIMEOUT_S", 0.3)
    await node.create("p1", "vram", "7")
    (node.folder / "pods/p1/hang").touch()
    with pytest.raises(InferxError, match="the worker has not answered `quiesce` in"):
        await park(node, "p1")
    status = await node.status("p1")
    assert (status["state"], status["vram_mb"], used_mib(node)) == ("Failed", 0, 0)


@pytest.mark.parametrize("budget_mb", [1, 17])
async def test_memory_that_finds_no_room_ends_its_worker(tmp_path: Path, budget_mb: int) -> None:
    async with Node(tmp_path / "node", snapshot_budget_mb=budget_mb) as node:  # and no pool
        await node.create("p1", "vram", "7")
        with pytest.raises(InferxError, match="tier FILE: 18874368 bytes are needed"):
            await park(node, "p1")
        assert (await node.status("p1"))["state"] == "Failed"
        assert used_mib(node) == 0
        assert list((node.folder / "snapshots/gpu").glob("snap-*")) == []


async def test_the_budget_counts_memory_and_images_together(tmp_path: Path) -> None:
    more = {"runtime": "runc", "path": os.environ["PATH"], "snapshot_budget_mb": 64}
    async with Node(tmp_path / "node", **more) as node:
        for name in ("f1", "f2", "f3"):
            request = create_request(name, "vram", "7")
            request.funcname = name
            await call(node.pods.CreateFuncPod, request, 60)
            await published(node, name)
            ended = pb.TerminatePodReq(**{**named(name), "funcname": name})
            await call(node.pods.TerminatePod, ended)
        shown = await snapshots(node)
        assert "f3" in shown
        assert "f1" not in shown
        assert all(each["size_mb"] > 18 for each in shown.values())
        kept = list((node.folder / "snapshots/gpu").glob("snap-*"))
        assert len(kept) == len(shown)
    assert leftovers(tmp_path / "node") == []
