"""The agent is killed at each step of a container's life; the next one finds or removes it all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inferx.errors import NotFound
from inferx.rpc import na_pb2 as pb
from inferx.rpc.client import call
from tests.cluster.test_agent_restart import AgentProcess
from tests.helpers.agent_node import Node, alive, create_request, named, until_shown
from tests.helpers.containerd_daemon import CONTAINERD, ON_BOTH
from tests.helpers.faulty_tools import FaultyTools
from tests.helpers.runtime_kit import leftovers

PARK_CYCLES = int(os.environ.get("PARK_CYCLES", "40"))
WARM_UP_CYCLES = 10


@pytest.fixture
def tools(tmp_path: Path) -> FaultyTools:
    return FaultyTools(tmp_path / "tools")


@pytest.fixture
async def agent(
    tmp_path: Path, tools: FaultyTools, runtime: dict[str, Any]
) -> AsyncIterator[AgentProcess]:
    process = AgentProcess(tmp_path)
    config = json.loads((tmp_path / "node.json").read_text())
    (tmp_path / "node.json").write_text(json.dumps({**config, **runtime}))
    await process.start(PATH=tools.path)
    yield process
    tools.heal()
    if process.process.returncode is not None:
        await process.start(PATH=tools.path)
    for pod in (tmp_path / "data/pods").glob("*/pod.json"):
        await call(process.pods.TerminatePod, pb.TerminatePodReq(**named(pod.parent.name)), 60)
    assert await process.end(signal.SIGTERM) == 0
    assert leftovers(tmp_path / "data") == []


async def create(agent: AgentProcess, pod_id: str) -> pb.CreateFuncPodResp:
    return await call(agent.pods.CreateFuncPod, create_request(pod_id, "count", vram_mb=1000), 60)


async def killed_while(agent: AgentProcess, tools: FaultyTools, what: str, request: str) -> None:
    """Give the order, kill the agent as soon as it waits for that tool, and start the next one."""
    orders = {
        "create": lambda: create(agent, "p1"),
        "park": lambda: call(agent.pods.ParkPod, pb.ParkPodReq(**named("p1")), 60),
        "resume": lambda: call(agent.pods.ResumePod, pb.ResumePodReq(**named("p1")), 60),
    }
    await agent.restart_during(tools, what, orders[request]())


async def serves_again(agent: AgentProcess) -> None:
    """p1 is Ready, or it has ended and another one can be made."""
    status = await settled(agent, "p1")
    if status != "Ready":
        assert status in ("Failed", "Terminated"), status
        await create(agent, "p2")


async def settled(agent: AgentProcess, pod_id: str) -> str:
    """The state that the pod is left in."""
    try:
        for _ in range(600):
            state = str((await agent.status(pod_id))["state"])
            if state in ("Ready", "Standby", "Failed", "Terminated"):
                return state
            await asyncio.sleep(0.05)
    except NotFound:
        return "Terminated"
    return state


async def test_pods_are_shown_from_the_first_moment_on(
    agent: AgentProcess, tools: FaultyTools
) -> None:
    """Who asks the next agent for its pods must not take one for gone that is still looked at."""
    await call(agent.pods.CreateFuncPod, create_request("p1", "hooks", vram_mb=1000), 60)
    await agent.end(signal.SIGKILL)
    os.kill(agent.pid("p1"), signal.SIGSTOP)  # it answers the next agent when it goes on
    try:
        await agent.start(PATH=tools.path)
        status = await agent.status("p1")
        assert (status["state"], status["vram_mb"]) == ("Ready", 1000)
    finally:
        os.kill(agent.pid("p1"), signal.SIGCONT)
    await call(agent.pods.ParkPod, pb.ParkPodReq(**named("p1")), 60)
    assert (await agent.status("p1"))["state"] == "Standby"


@pytest.mark.parametrize(
    ("what", "runtime"),
    [
        ("runc-run", "runc"),
        ("runc-checkpoint", "runc"),
        pytest.param("runc-checkpoint", "containerd", marks=CONTAINERD.marks),
    ],
    indirect=["runtime"],
)
async def test_killed_while_it_starts_or_saves_a_worker(
    agent: AgentProcess, tools: FaultyTools, what: str
) -> None:
    await killed_while(agent, tools, what, "create")
    await serves_again(agent)


@ON_BOTH
@pytest.mark.parametrize("what", ["criu-lazy-pages", "runc-restore"])
async def test_killed_while_it_restores_a_worker(
    agent: AgentProcess, tools: FaultyTools, what: str
) -> None:
    await create(agent, "p0")
    store = agent.folder / "data/snapshots/store"
    await until_shown(agent.state)
    await call(agent.pods.TerminatePod, pb.TerminatePodReq(**named("p0")), 60)
    await killed_while(agent, tools, what, "create")
    await serves_again(agent)
    assert len(list(store.glob("snap-*"))) == 1


@pytest.mark.parametrize(("what", "request_"), [("runc-pause", "park"), ("runc-resume", "resume")])
async def test_killed_while_it_parks_or_resumes(
    agent: AgentProcess, tools: FaultyTools, what: str, request_: str
) -> None:
    await create(agent, "p1")
    if request_ == "resume":
        await call(agent.pods.ParkPod, pb.ParkPodReq(**named("p1")), 60)
    await killed_while(agent, tools, what, request_)
    state = await settled(agent, "p1")
    assert state in ("Ready", "Standby")
    if state == "Standby":
        await call(agent.pods.ResumePod, pb.ResumePodReq(**named("p1")), 60)
    assert (await agent.status("p1"))["state"] == "Ready"


@ON_BOTH
async def test_restored_workers_outlive_their_agent(
    agent: AgentProcess, tools: FaultyTools
) -> None:
    await create(agent, "p0")
    await until_shown(agent.state)
    assert (await create(agent, "p1")).start == "snapshot"
    await agent.end(signal.SIGKILL)
    await agent.start(PATH=tools.path)
    assert await settled(agent, "p1") == "Ready"
    assert (await create(agent, "p2")).start == "snapshot", "the snapshot is found again"


async def test_a_worker_is_not_ended_because_nobody_can_say_that_it_runs(
    agent: AgentProcess, tools: FaultyTools
) -> None:
    await create(agent, "p1")
    await agent.end(signal.SIGKILL)
    tools.fail("runc-state")
    with pytest.raises(AssertionError, match=r"pod p1 cannot be found: .*made-to-fail"):
        await agent.start(PATH=tools.path)
    assert await agent.process.wait() == 1
    assert alive(agent.pid("p1"))
    tools.heal()
    await agent.start(PATH=tools.path)
    assert await settled(agent, "p1") == "Ready"


async def test_memory_and_descriptors_stay_flat_over_parking(tmp_path: Path) -> None:
    """PARK_CYCLES says how often; `make soak-park` does it a thousand times."""
    async with Node(tmp_path, runtime="runc", path=os.environ["PATH"]) as node:
        await node.create("p1", "count")
        await node.agent.manager.settled()
        first: tuple[int, int] | None = None
        for cycle in range(PARK_CYCLES):
            await call(node.pods.ParkPod, pb.ParkPodReq(**named("p1")), 30)
            await call(node.pods.ResumePod, pb.ResumePodReq(**named("p1")), 30)
            if cycle == WARM_UP_CYCLES:
                first = _held()
        assert (await node.worker("p1", "/count")).json()["count"] == 1
        assert first is not None
        descriptors, memory_kib = _held()
        held = {"descriptors": [first[0], descriptors], "rss_kib": [first[1], memory_kib]}
        print(json.dumps({"cycles": PARK_CYCLES, **held}))  # seen by `make soak-park`
        assert descriptors <= first[0] + 2
        assert memory_kib <= first[1] + 10_000
    assert leftovers(tmp_path) == []


def _held() -> tuple[int, int]:
    """This process's descriptors, and its memory in KiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    memory = next(line for line in status if line.startswith("VmRSS:"))
    return len(os.listdir("/proc/self/fd")), int(memory.split()[1])
