"""GPU memory of workers and snapshots, found again by the next agent after the first was killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferx.rpc import na_pb2 as pb
from inferx.rpc.client import call
from tests.cluster.test_agent_restart import AgentProcess
from tests.helpers.agent_node import create_request, named, until_shown
from tests.helpers.faulty_tools import FaultyTools
from tests.helpers.runtime_kit import leftovers, until


@pytest.fixture
def tools(tmp_path: Path) -> FaultyTools:
    return FaultyTools(tmp_path / "tools")


@pytest.fixture(params=["process", "runc"])
async def agent(
    request: pytest.FixtureRequest, tmp_path: Path, tools: FaultyTools
) -> AsyncIterator[AgentProcess]:
    process = AgentProcess(tmp_path)
    config = json.loads((tmp_path / "node.json").read_text())
    config |= {"runtime": request.param, "sharemem": {"sizeMB": 48}}
    config |= {"enableBlobStore": True, "blobStoreType": "nfs"}
    config["blobStoreConfig"] = {"path": str(tmp_path / "shared")}
    (tmp_path / "node.json").write_text(json.dumps(config))
    await process.start(PATH=tools.path)
    yield process
    tools.heal()
    for pod in (tmp_path / "data/pods").glob("*/pod.json"):
        await call(process.pods.TerminatePod, pb.TerminatePodReq(**named(pod.parent.name)), 60)
    assert await process.end(signal.SIGTERM) == 0
    assert leftovers(tmp_path / "data") == []


async def create(agent: AgentProcess, pod_id: str, seed: str, **more: Any) -> str:
    """How it was started."""
    request = create_request(pod_id, "vram", seed, vram_mb=2000, **more)
    return str((await call(agent.pods.CreateFuncPod, request, 60)).start)


async def content(agent: AgentProcess, pod_id: str) -> dict[str, str]:
    status = await agent.status(pod_id)
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(f"http://{status['ip']}:{status['port']}/vram")
    return dict(answer.json()["digests"])


async def resume(agent: AgentProcess, pod_id: str) -> str:
    await call(agent.pods.ResumePod, pb.ResumePodReq(**named(pod_id)), 60)
    return str((await agent.status(pod_id))["reason"])


def files(agent: AgentProcess) -> list[Path]:
    return sorted((agent.folder / "data/snapshots/gpu").glob("snap-*"))


async def killed_and_replaced(agent: AgentProcess) -> None:
    await agent.end(signal.SIGKILL)
    await agent.start(PATH=os.environ["PATH"])


async def test_workers_keep_their_memory_over_the_agent_s_death(agent: AgentProcess) -> None:
    before = {}
    for pod_id, seed in (("p1", "7"), ("p2", "8")):
        await create(agent, pod_id, seed, standby={"gpu": "File"})
        before[pod_id] = await content(agent, pod_id)
    await call(agent.pods.ParkPod, pb.ParkPodReq(**named("p1")), 60)
    await until(lambda: any(path.name.startswith("snap-pod-") for path in files(agent)), "a file")
    await killed_and_replaced(agent)
    await agent.until("p2", "Ready")
    await call(agent.pods.ParkPod, pb.ParkPodReq(**named("p2")), 60)
    for pod_id in ("p2", "p1"):
        assert (await resume(agent, pod_id)).startswith("GPU memory from tier"), pod_id
        assert await content(agent, pod_id) == before[pod_id]


@pytest.mark.parametrize("agent", ["process"], indirect=True)
async def test_memory_that_died_with_the_agent_costs_a_start(agent: AgentProcess) -> None:
    await create(agent, "p1", "7")
    before = await content(agent, "p1")
    await call(agent.pods.ParkPod, pb.ParkPodReq(**named("p1")), 60)
    await agent.end(signal.SIGKILL)
    for folder in files(agent):
        (folder / "COMMIT").unlink()
    await agent.start(PATH=os.environ["PATH"])
    status = await agent.until("p1", "Failed")
    assert "went with the former agent" in status["error"]
    await create(agent, "p2", "7")
    assert await content(agent, "p2") == before


@pytest.mark.parametrize("agent", ["runc"], indirect=True)
async def test_a_snapshot_and_its_memory_are_found_again(agent: AgentProcess) -> None:
    assert await create(agent, "p0", "7") == "cold"
    before = await content(agent, "p0")
    await until_shown(agent.state)
    await until(lambda: files(agent), "the memory has its file")
    await killed_and_replaced(agent)
    assert await create(agent, "p1", "7") == "snapshot"
    assert (await agent.status("p1"))["reason"] == "GPU memory from tier file"
    assert await content(agent, "p1") == before
    await agent.end(signal.SIGKILL)
    (folder,) = [path for path in files(agent) if path.name.startswith("snap-snap-")]
    (folder / "COMMIT").unlink()
    await agent.start(PATH=os.environ["PATH"])
    assert await create(agent, "p2", "7") == "cold", "the image alone is of no use"
    assert await content(agent, "p2") == before


@pytest.mark.parametrize("agent", ["runc"], indirect=True)
@pytest.mark.parametrize("step", ["runc-checkpoint", "runc-pause"])
async def test_killed_while_a_worker_is_off_its_gpu(
    agent: AgentProcess, tools: FaultyTools, step: str
) -> None:
    """Its memory died with the agent: it must not run on without."""
    if step == "runc-checkpoint":
        order = create(agent, "p1", "7")
    else:
        await create(agent, "p1", "7")
        order = call(agent.pods.ParkPod, pb.ParkPodReq(**named("p1")), 60)
    await agent.restart_during(tools, step, order)
    status = await agent.until("p1", "Failed")
    assert "had left its GPU when the former agent ended" in status["error"]
    await create(agent, "p2", "7")
    assert await content(agent, "p2")
