"""A node agent inside the test's own process, and the requests that a scheduler would send it."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from inferx.agent.service import Agent, Options
from inferx.config import NodeConfig, NodeResourcesConfig, SimulatedGpu
from inferx.rpc import ixmeta_pb2, ixmeta_pb2_grpc, na_pb2_grpc
from inferx.rpc import na_pb2 as pb
from inferx.rpc.client import call, channel

MODEL_SERVER = str(Path(__file__).with_name("agent_worker.py"))
GPU_MB = 10_000
SECRET = "INFERX_ADMIN_APIKEY"


class Node:
    """An agent in this process and what a scheduler would use to talk to it."""

    def __init__(
        self,
        folder: Path,
        grace_s: float = 2.0,
        runtime: str = "process",
        path: str = os.defpath,
        **more: Any,
    ) -> None:
        self.folder = folder
        config = NodeConfig(
            runtime=runtime,
            node_name="n1",
            resources=NodeResourcesConfig(cpu_millis=2000, mem_mb=4000),
            scheduler_addr="127.0.0.1:1",
            data_dir=folder,
            snapshot_dir=folder / "snapshots",
            podmgr_port=0,
            agent_state_port=0,
            state_svc_addrs=("127.0.0.1:1",),
            simulated_gpus=(SimulatedGpu("Sim", 2, GPU_MB),),
            **more,
        )
        environment = {"PATH": path, "HOME": "/root", SECRET: "do-not-tell"}
        self.agent = Agent(config, Options(folder, environment, grace_s=grace_s))

    async def __aenter__(self) -> Node:
        await self.agent.start()
        ports = (self.agent.podmgr_port, self.agent.state_port)
        self._channels = [channel(f"127.0.0.1:{port}") for port in ports]
        self.pods = na_pb2_grpc.NodeAgentServiceStub(self._channels[0])
        self.state = ixmeta_pb2_grpc.IxMetaServiceStub(self._channels[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end(stop_pods=True)

    async def end(self, *, stop_pods: bool) -> None:
        if stop_pods:
            await self.agent.manager.stop_all()
        for each in self._channels:
            await each.close()
        await self.agent.stop()

    async def create(self, pod_id: str, *mode: str, **more: Any) -> pb.CreateFuncPodResp:
        return await call(self.pods.CreateFuncPod, create_request(pod_id, *mode, **more), 60)

    async def until_ready(self, pod_id: str, *mode: str) -> dict[str, Any]:
        await self.create(pod_id, *mode)
        return await self.status(pod_id)

    async def status(self, pod_id: str) -> dict[str, Any]:
        request = ixmeta_pb2.GetRequestMessage(
            obj_type="pod", tenant="t", namespace="n", name=pod_id
        )
        return json.loads((await call(self.state.Get, request)).obj.data)["status"]

    async def until(self, pod_id: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The pod's first reported status that is wanted."""
        watch = self.state.Watch(ixmeta_pb2.ListRequestMessage(obj_type="pod"))
        async with asyncio.timeout(20):
            async for event in watch:
                if event.obj.name == pod_id and wanted(
                    status := json.loads(event.obj.data)["status"]
                ):
                    watch.cancel()
                    return status
        raise AssertionError("the watch ended")

    async def worker(self, pod_id: str, path: str) -> httpx.Response:
        status = await self.status(pod_id)
        async with httpx.AsyncClient(trust_env=False) as client:
            return await client.get(f"http://{status['ip']}:{status['port']}{path}", timeout=5)

    def pid(self, pod_id: str) -> int:
        record = json.loads((self.folder / "pods" / pod_id / "pod.json").read_text())
        return int(record["worker"]["pid"])


async def until_shown(state: Any, function: str = "f", revision: int = 3) -> None:
    """Wait until the agent shows a snapshot of the function in that revision."""
    watch = state.Watch(ixmeta_pb2.ListRequestMessage(obj_type="snapshot"))
    async with asyncio.timeout(40):
        async for event in watch:
            raw = json.loads(event.obj.data or "{}")
            shown, state = raw.get("spec", {}), raw.get("status", {}).get("state")
            wanted = (function, revision, "Ready")
            if (event.obj.name, shown.get("fprevision"), state) == wanted:
                break
    watch.cancel()


def function_spec(*mode: str, **more: Any) -> dict[str, Any]:
    return {
        "image": "",
        "entrypoint": ["$(INFERX_PYTHON)", MODEL_SERVER],
        "commands": list(mode or ("ok",)),
        "resources": {"CPU": 100, "Mem": 200},
        **more,
    }


def alloc(vram_mb: int = 4000, devices: tuple[int, ...] = (0,)) -> str:
    gpu = {"Type": "Sim", "vRam": vram_mb - 100, "contextOverhead": 100, "devices": list(devices)}
    return json.dumps({"CPU": 500, "Mem": 300, "CacheMem": 0, "GPU": gpu})


def create_request(
    pod_id: str,
    *mode: str,
    vram_mb: int = 4000,
    devices: tuple[int, ...] = (0,),
    terminate: tuple[str, ...] = (),
    park: tuple[str, ...] = (),
    epoch: int = 0,
    **spec: Any,
) -> pb.CreateFuncPodReq:
    return pb.CreateFuncPodReq(
        **named(pod_id),
        funcspec=json.dumps(function_spec(*mode, **spec)),
        alloc_resources=alloc(vram_mb, devices),
        terminate_pods=[pb.TerminatePodReq(**named(victim)) for victim in terminate],
        park_pods=[pb.ParkPodReq(**named(victim)) for victim in park],
        epoch=epoch,
    )


def named(pod_id: str) -> dict[str, Any]:
    return {"tenant": "t", "namespace": "n", "funcname": "f", "fprevision": 3, "id": pod_id}


def process_state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def alive(pid: int) -> bool:
    return process_state(pid) not in "ZX"


def kill_and_wait(pid: int) -> None:
    """SIGKILL a process and return when it is dead, whoever its parent is."""
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        assert select.select([descriptor], [], [], 20)[0], f"process {pid} does not die"
    finally:
        os.close(descriptor)
