"""A node agent that is killed or stopped and started again: its pods, its epoch, its ports."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferx import statesvc
from inferx.config import load
from inferx.errors import StaleEpoch
from inferx.rpc import ixmeta_pb2, ixmeta_pb2_grpc, na_pb2_grpc
from inferx.rpc import na_pb2 as pb
from inferx.rpc.client import call, channel
from tests.helpers.agent_node import alive, create_request, kill_and_wait, named, process_state
from tests.helpers.faulty_tools import FaultyTools
from tests.helpers.ports import free_port
from tests.helpers.runtime_kit import until

ROOT = Path(__file__).resolve().parents[2]
START_BOUND_S = 60.0  # on a machine that does ten other things
PYTHONPATH = os.pathsep.join([str(ROOT), *(str(Path(entry).resolve()) for entry in sys.path)])
MAIN = """
import sys
from pathlib import Path
from inferx.config import load
from services import nodeagent
sys.exit(nodeagent.run(load(Path(sys.argv[1]))))
"""


class AgentProcess:
    """The agent as a service process of its own; `start` may be called again after its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = [free_port(), free_port()]
        self.state_service_port = free_port()
        config = {
            "nodeName": "n1",
            "podMgrPort": self.ports[0],
            "qletStateSvcPort": self.ports[1],
            "stateSvcAddrs": [f"127.0.0.1:{self.state_service_port}"],
            "dataDir": str(folder / "data"),
            "simulatedGPUs": [{"type": "Sim", "count": 2, "vramMB": 10_000}],
        }
        (folder / "node.json").write_text(json.dumps(config))

    async def start(self, **environment: str) -> None:
        with (self.folder / "agent.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                MAIN,
                "node.json",
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": PYTHONPATH, **environment},
                stdout=log,
                stderr=log,
            )
        self._channels = [channel(f"127.0.0.1:{port}") for port in self.ports]
        self.pods = na_pb2_grpc.NodeAgentServiceStub(self._channels[0])
        self.state = ixmeta_pb2_grpc.IxMetaServiceStub(self._channels[1])
        listening = asyncio.gather(*(each.channel_ready() for each in self._channels))
        ended = asyncio.create_task(self.process.wait())
        await asyncio.wait(
            [ended, listening], timeout=START_BOUND_S, return_when=asyncio.FIRST_COMPLETED
        )
        assert listening.done(), (self.folder / "agent.log").read_text()
        ended.cancel()

    async def end(self, number: signal.Signals) -> int:
        for each in self._channels:
            await each.close()
        self.process.send_signal(number)
        async with asyncio.timeout(30):
            return await self.process.wait()

    async def restart(self, **environment: str) -> None:
        await self.end(signal.SIGKILL)
        await self.start(**environment)

    async def restart_during(
        self, tools: FaultyTools, what: str, order: Coroutine[Any, Any, object]
    ) -> None:
        """Give the order, kill the agent as soon as it waits for that tool, start the next one."""
        tools.hang(what)
        ordered = asyncio.create_task(order)
        await until(lambda: tools.hung or ordered.done(), f"the agent waits for {what}")
        assert not ordered.done(), ordered
        await self.end(signal.SIGKILL)
        await asyncio.gather(ordered, return_exceptions=True)
        tools.heal()
        await self.start(PATH=tools.path)

    async def status(self, pod_id: str) -> dict[str, Any]:
        request = ixmeta_pb2.GetRequestMessage(
            obj_type="pod", tenant="t", namespace="n", name=pod_id
        )
        return json.loads((await call(self.state.Get, request)).obj.data)["status"]

    async def until(self, pod_id: str, state: str) -> dict[str, Any]:
        watch = self.state.Watch(ixmeta_pb2.ListRequestMessage(obj_type="pod"))
        async with asyncio.timeout(20):
            async for event in watch:
                if event.obj.name == pod_id:
                    status = json.loads(event.obj.data)["status"]
                    if status["state"] == state:
                        watch.cancel()
                        return status
        raise AssertionError("the watch ended")

    def record(self, pod_id: str) -> dict[str, Any]:
        return json.loads((self.folder / "data/pods" / pod_id / "pod.json").read_text())

    def pid(self, pod_id: str) -> int:
        return int(self.record(pod_id)["worker"]["pid"])


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[AgentProcess]:
    process = AgentProcess(tmp_path)
    await process.start()
    yield process
    if process.process.returncode is not None:
        await process.start()
    for pod in (tmp_path / "data/pods").glob("*/pod.json"):
        request = pb.TerminatePodReq(**named(pod.parent.name), epoch=1 << 40)
        await call(process.pods.TerminatePod, request)
    assert await process.end(signal.SIGTERM) == 0, (tmp_path / "agent.log").read_text()


async def test_pods_outlive_a_killed_agent_and_are_adopted(agent: AgentProcess) -> None:
    for pod, device in (("run", 0), ("park", 1)):
        request = create_request(pod, vram_mb=6000, devices=(device,), epoch=9)
        await call(agent.pods.CreateFuncPod, request, 30)
    await call(agent.pods.ParkPod, pb.ParkPodReq(**named("park"), epoch=9))
    before = {pod: (await agent.status(pod))["port"] for pod in ("run", "park")}
    pids = {pod: agent.pid(pod) for pod in before}
    await agent.restart()
    assert {pod: (await agent.status(pod))["port"] for pod in before} == before
    assert (await agent.status("run"))["state"] == "Ready"
    assert (await agent.status("park"))["state"] == "Standby"
    assert [process_state(pids["park"]), alive(pids["run"])] == ["T", True]
    # Its VRAM is counted again, and the create of before is still the same pod.
    assert (await agent.status("run"))["vram_mb"] == 6000
    again = create_request("run", vram_mb=6000, epoch=9)
    assert (await call(agent.pods.CreateFuncPod, again, 30)).port == before["run"]
    with pytest.raises(StaleEpoch):
        await call(agent.pods.CreateFuncPod, create_request("new", epoch=8), 30)
    await call(agent.pods.ResumePod, pb.ResumePodReq(**named("park"), epoch=9), 30)
    assert (await agent.status("park"))["start"] == "resume"
    # The end of a process that is not the agent's child is seen all the same.
    os.kill(pids["run"], signal.SIGKILL)
    assert (await agent.until("run", "Failed"))["vram_mb"] == 0
    await call(agent.pods.TerminatePod, pb.TerminatePodReq(**named("park"), epoch=9))
    assert not alive(pids["park"])


async def test_a_pod_that_died_with_the_agent_away_is_reported(agent: AgentProcess) -> None:
    child_file = agent.folder / "child"
    request = create_request("p1", "children", str(child_file))
    await call(agent.pods.CreateFuncPod, request, 30)
    await agent.end(signal.SIGKILL)
    await asyncio.to_thread(kill_and_wait, agent.pid("p1"))
    child = int(child_file.read_text())
    assert alive(child)
    await agent.start()
    status = await agent.until("p1", "Failed")
    assert (status["vram_mb"], status["error"]) == (0, "the worker ended while the agent was away")
    assert not alive(child)
    await call(agent.pods.CreateFuncPod, create_request("p2", vram_mb=10_000), 30)


async def test_a_foreign_process_with_a_reused_pid_is_left_alone(agent: AgentProcess) -> None:
    await call(agent.pods.CreateFuncPod, create_request("p1"), 30)
    await agent.end(signal.SIGKILL)
    await asyncio.to_thread(kill_and_wait, agent.pid("p1"))
    foreign = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    try:
        record = agent.record("p1")
        record["worker"]["pid"] = record["worker"]["pgid"] = foreign.pid
        path = agent.folder / "data/pods/p1/pod.json"
        path.write_text(json.dumps(record))
        await agent.start()
        await agent.until("p1", "Failed")
        await call(agent.pods.TerminatePod, pb.TerminatePodReq(**named("p1")))
        assert foreign.returncode is None
    finally:
        foreign.kill()
        await foreign.wait()


async def test_loading_goes_on_over_a_restart(agent: AgentProcess) -> None:
    go = agent.folder / "go"
    request = create_request("p1", "until-file", str(go))
    creating = asyncio.create_task(call(agent.pods.CreateFuncPod, request, 30))
    await agent.until("p1", "Loading")
    await agent.restart()
    await asyncio.gather(creating, return_exceptions=True)
    joining = asyncio.create_task(call(agent.pods.CreateFuncPod, request, 30))
    go.touch()
    await joining
    assert (await agent.status("p1"))["state"] == "Ready"
    log = await call(agent.pods.ReadPodLog, pb.ReadPodLogReq(**named("p1")))
    assert log.log.count("model server") == 1


@pytest.mark.parametrize("lost", ["record", "worker"])
async def test_a_worker_is_found_when_the_agent_died_while_starting_it(
    agent: AgentProcess, lost: str
) -> None:
    await call(agent.pods.CreateFuncPod, create_request("p1"), 30)
    pid = agent.pid("p1")
    await agent.end(signal.SIGKILL)
    path = agent.folder / "data/pods/p1/pod.json"
    if lost == "worker":
        record = agent.record("p1")
        path.write_text(json.dumps({**record, "worker": {}, "state": "Creating"}))
        await agent.start()
        assert (await agent.until("p1", "Ready"))["port"] == record["port"]
        assert agent.pid("p1") == pid
    else:
        path.write_text("{torn")
        await agent.start()
        assert not alive(pid)


async def test_sigterm_leaves_pods_running_unless_told_to_stop_them(agent: AgentProcess) -> None:
    await call(agent.pods.CreateFuncPod, create_request("p1"), 30)
    pid = agent.pid("p1")
    assert await agent.end(signal.SIGTERM) == 0
    assert alive(pid)
    await agent.start(INFERX_STOP_PODS="1")
    loading = create_request("p2", "silent", vram_mb=1000)
    creating = asyncio.create_task(call(agent.pods.CreateFuncPod, loading, 60))
    await agent.until("p2", "Loading")
    pids = [pid, agent.pid("p2")]
    assert await agent.end(signal.SIGTERM) == 0
    assert not any(alive(each) for each in pids)
    await asyncio.gather(creating, return_exceptions=True)


async def test_a_second_agent_on_the_same_folder_or_port_says_why(agent: AgentProcess) -> None:
    def run_second() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", MAIN, "node.json"],
            cwd=agent.folder,
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
            capture_output=True,
            text=True,
            timeout=60,
        )

    second = await asyncio.to_thread(run_second)
    assert second.returncode == 1
    assert "another node agent uses this data folder" in second.stderr
    config = json.loads((agent.folder / "node.json").read_text())
    config["dataDir"] = str(agent.folder / "other")
    (agent.folder / "node.json").write_text(json.dumps(config))
    second = await asyncio.to_thread(run_second)
    assert second.returncode == 1
    assert f"cannot listen on 127.0.0.1:{agent.ports[0]}" in second.stderr


async def test_the_node_registers_once_its_state_service_is_there(agent: AgentProcess) -> None:
    config = load(agent.folder / "node.json", {})
    config = replace(
        config, statesvc_port=agent.state_service_port, data_dir=agent.folder / "state"
    )
    service = await statesvc.start(config)
    try:
        async with channel(f"127.0.0.1:{agent.state_service_port}") as to_state:
            stub = ixmeta_pb2_grpc.IxMetaServiceStub(to_state)
            request = ixmeta_pb2.GetRequestMessage(
                obj_type="node", tenant="system", namespace="system", name="n1"
            )
            watch = stub.Watch(ixmeta_pb2.ListRequestMessage(obj_type="node"))
            async with asyncio.timeout(20):
                async for event in watch:
                    if event.obj.name == "n1":
                        break
            watch.cancel()
            spec = json.loads((await call(stub.Get, request)).obj.data)["spec"]
    finally:
        await service.stop()
    assert (spec["podmgr_port"], spec["state_port"]) == tuple(agent.ports)
    assert [gpu["vram_mb"] for gpu in spec["resources"]["GPUs"]] == [10_000, 10_000]
    assert spec["boot_id"]


async def test_a_pod_whose_gpu_is_gone_after_a_restart_is_ended(agent: AgentProcess) -> None:
    request = create_request("p1", vram_mb=6000, devices=(1,))
    await call(agent.pods.CreateFuncPod, request, 30)
    await call(agent.pods.CreateFuncPod, create_request("p2", vram_mb=6000), 30)
    pid = agent.pid("p1")
    await agent.end(signal.SIGKILL)
    path = agent.folder / "node.json"
    config = json.loads(path.read_text())
    config["simulatedGPUs"][0]["count"] = 1
    path.write_text(json.dumps(config))
    await agent.start()
    await call(agent.pods.TerminatePod, pb.TerminatePodReq(**named("p1")))
    assert not alive(pid)
    assert (await agent.status("p2"))["state"] == "Ready"
    config["simulatedGPUs"][0]["count"] = 2
    path.write_text(json.dumps(config))
