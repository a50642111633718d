"""The node agent's gRPC face and its life: build the parts, adopt, serve, register, drain.

Must never decide about pods itself: it turns messages into calls of the manager.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inferx import health
from inferx.agent.claim import claim
from inferx.agent.gpus import discover
from inferx.agent.ledger import Ledger
from inferx.agent.manager import CreateRequest, Manager, Parts
from inferx.agent.pod import Pod
from inferx.agent.probe import new_client
from inferx.agent.register import Registrar
from inferx.agent.runtimes import containerd, docker
from inferx.agent.runtimes.boxes import Places
from inferx.agent.runtimes.containerd import ContainerdRuntime
from inferx.agent.runtimes.docker import DockerRuntime
from inferx.agent.runtimes.process import ProcessRuntime
from inferx.agent.runtimes.protocol import Runtime
from inferx.agent.runtimes.runc import RuncRuntime
from inferx.agent.snapshots import Snapshots
from inferx.agent.spec import PodKey
from inferx.agent.tiers.memory import GpuMemory
from inferx.agent.tiers.node import node_memory
from inferx.agent.view import AgentView
from inferx.config import NodeConfig
from inferx.domain.cluster import GpuDevice, Node, NodeResources
from inferx.errors import BadRequest, InferxError
from inferx.procfs import boot_id
from inferx.rpc import ixmeta_pb2_grpc, na_pb2_grpc
from inferx.rpc import na_pb2 as pb
from inferx.rpc.server import Server, serve
from inferx.store.crashpoint import CrashPoint

log = logging.getLogger("inferx.agent")


class AgentServicer(na_pb2_grpc.NodeAgentServiceServicer):
    """NodeAgentService over the manager. Every request that changes something is fenced."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def CreateFuncPod(
        self, request: pb.CreateFuncPodReq, context: Any
    ) -> pb.CreateFuncPodResp:
        self._manager.epochs.check(request.epoch)
        if request.create_type not in (pb.Normal, pb.Snapshot, pb.Restore):
            raise BadRequest(f"create_type: {request.create_type} is not known")
        only_snapshot = request.create_type == pb.Snapshot
        create = CreateRequest(
            key=_key(request),
            funcspec=request.funcspec,
            alloc=request.alloc_resources,
            labels={item.key: item.val for item in request.labels},
            annotations={item.key: item.val for item in request.annotations},
            terminate=_keys(request.terminate_pods),
            park=_keys(request.park_pods),
            purpose="snapshot" if only_snapshot else "serve",
            save=request.save_snapshot if request.HasField("save_snapshot") else None,
        )
        if only_snapshot:
            await self._manager.take_snapshot(create)
            return pb.CreateFuncPodResp()
        # A pod that is to be restored starts from nothing where its snapshot cannot be used, and
        # one that may start either way uses the snapshot when there is one.
        pod = await self._manager.create(create)
        return pb.CreateFuncPodResp(
            ipaddress=_address(pod), port=pod.record.port, start=pod.record.start
        )

    async def TerminatePod(self, request: pb.TerminatePodReq, context: Any) -> pb.TerminatePodResp:
        self._manager.epochs.check(request.epoch)
        await self._manager.terminate(_key(request))
        return pb.TerminatePodResp()

    async def ResumePod(self, request: pb.ResumePodReq, context: Any) -> pb.ResumePodResp:
        self._manager.epochs.check(request.epoch)
        terminate, park = _keys(request.terminate_pods), _keys(request.park_pods)
        pod = await self._manager.resume(_key(request), request.alloc_resources, terminate, park)
        return pb.ResumePodResp(
            ipaddress=_address(pod), port=pod.record.port, start=pod.record.start
        )

    async def ParkPod(self, request: pb.ParkPodReq, context: Any) -> pb.ParkPodResp:
        self._manager.epochs.check(request.epoch)
        await self._manager.park(_key(request))
        return pb.ParkPodResp()

    async def ReadPodLog(self, request: pb.ReadPodLogReq, context: Any) -> pb.ReadPodLogResp:
        return pb.ReadPodLogResp(log=self._manager.read_log(_key(request), request.tail))

    async def StreamPodLog(
        self, request: pb.ReadPodLogReq, context: Any
    ) -> AsyncIterator[pb.ReadPodLogResp]:
        if not request.follow:
            yield pb.ReadPodLogResp(log=self._manager.read_log(_key(request), request.tail))
            return
        async for text in self._manager.follow_log(_key(request), request.tail):
            yield pb.ReadPodLogResp(log=text)

    async def RemoveSnapshot(
        self, request: pb.RemoveSnapshotReq, context: Any
    ) -> pb.RemoveSnapshotResp:
        await self._manager.remove_snapshot(request.funckey)
        return pb.RemoveSnapshotResp()


def _key(request: Any) -> PodKey:
    return PodKey(
        tenant=request.tenant,
        namespace=request.namespace,
        funcname=request.funcname,
        fprevision=request.fprevision,
        id=request.id,
    )


def _keys(requests: Iterable[Any]) -> list[PodKey]:
    return [_key(request) for request in requests]


def _address(pod: Pod) -> int:
    return int(ipaddress.IPv4Address(pod.record.ip))


@dataclass(frozen=True)
class Options:
    """What the process that hosts the agent decides, beyond the node's configuration."""

    work_dir: Path
    environment: Mapping[str, str]
    stop_pods_on_exit: bool = False
    grace_s: float = 5.0


class Agent:
    """A running node agent."""

    def __init__(self, config: NodeConfig, options: Options) -> None:
        self._config = config
        self._options = options
        pods_dir = config.data_dir / "pods"
        self._claim = claim(pods_dir)
        self._client = new_client()
        self.ledger = Ledger(discover(config.simulated_gpus, config.resources.gpus))
        self.view = AgentView(self.ledger.taken_mb)
        runtime = _runtime(config, options)
        memory = node_memory(config, self.ledger)
        self._snapshots = _snapshots(config, runtime, self.view, memory)
        parts = Parts(
            runtime=runtime,
            snapshots=self._snapshots,
            memory=memory,
            ledger=self.ledger,
            client=self._client,
            grace_s=options.grace_s,
        )
        self.manager = Manager(config.node_name, parts, self.view, pods_dir)
        self._keeps_snapshots = parts.snapshots is not None
        self._servers: list[Server] = []
        self.podmgr_port = self.state_port = 0
        self._registrar: Registrar | None = None
        self._registration: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Adopt what runs, then listen, then register; raises Unavailable for a taken port."""
        if self._snapshots is not None:
            await self._snapshots.find_memory()
        await self.manager.adopt_all()
        config = self._config
        add_pods: Any = na_pb2_grpc.add_NodeAgentServiceServicer_to_server
        add_view: Any = ixmeta_pb2_grpc.add_IxMetaServiceServicer_to_server
        pods = await serve(
            f"{config.host_ip}:{config.podmgr_port}",
            [lambda server: add_pods(AgentServicer(self.manager), server)],
        )
        self._servers.append(pods)
        state = await serve(
            f"{config.host_ip}:{config.agent_state_port}",
            [lambda server: add_view(self.view.servicer, server)],
        )
        self._servers.append(state)
        self.podmgr_port, self.state_port = pods.port, state.port
        node = replace(
            describe_node(config, self.ledger, pods.port, state.port),
            keeps_snapshots=self._keeps_snapshots,
        )
        self.view.show_node(config.node_name, node)
        self._registrar = Registrar(
            config.state_svc_addrs,
            config.node_name,
            node,
            CrashPoint(config.crash_after_writes),
        )
        self._registration = asyncio.create_task(self._registrar.run(), name="registration")
        gpus = ", ".join(f"{gpu.index}: {gpu.type} {gpu.vram_mb} MB" for gpu in self.ledger.gpus)
        log.info("node %s serves, GPUs: %s", config.node_name, gpus or "none")

    def waits_for(self) -> str | None:
        """What keeps this node from getting work."""
        if self._registrar is None or not self._registrar.registered.is_set():
            return "waiting for the state service to take this node's registration"
        return None

    async def stop(self) -> None:
        """Stop listening; end the pods, or leave them running, as the options say."""
        if self._registration is not None:
            self._registration.cancel()
            await asyncio.gather(self._registration, return_exceptions=True)
        try:
            if self._options.stop_pods_on_exit:
                await self.manager.stop_all()
        except InferxError as error:
            log.error("a pod could not be ended: %s", error.message)
        await asyncio.gather(*(server.stop() for server in self._servers))
        await self.manager.close()
        self.view.close()
        await self._client.aclose()
        os.close(self._claim)


def _runtime(config: NodeConfig, options: Options) -> Runtime:
    if config.runtime == "process":
        return ProcessRuntime(options.work_dir, options.environment, config.host_ip)
    if config.runtime == "docker":
        return DockerRuntime(config.container_socket or docker.SOCKET, config.container_network)
    data, snapshots = config.data_dir.resolve(), config.snapshot_dir.resolve()
    places = Places(
        work_dir=options.work_dir,
        images=data / "images",
        pod_cidr=config.pod_cidr,
        hidden=(data, snapshots),
    )
    if config.runtime == "containerd":
        socket = config.container_socket or containerd.SOCKET
        return ContainerdRuntime(places, options.environment, socket)
    return RuncRuntime(places, options.environment)


def _snapshots(
    config: NodeConfig, runtime: Runtime, view: AgentView, memory: GpuMemory | None
) -> Snapshots | None:
    if runtime.checkpoints is None:
        return None
    return Snapshots(
        config.snapshot_dir,
        runtime.checkpoints,
        config.snapshot_budget_mb,
        view.show_snapshot,
        config.node_name,
        memory,
    )


def describe_node(config: NodeConfig, ledger: Ledger, podmgr_port: int, state_port: int) -> Node:
    """The node as the scheduler sees it."""
    return Node(
        address=config.host_ip,
        podmgr_port=podmgr_port,
        state_port=state_port,
        runtime=config.runtime,
        boot_id=boot_id(),
        resources=NodeResources(
            cpu_millis=config.resources.cpu_millis,
            mem_mb=config.resources.mem_mb,
            gpus=tuple(GpuDevice(gpu.index, gpu.type, gpu.vram_mb) for gpu in ledger.gpus),
            context_overhead_mb=config.resources.context_overhead_mb,
            max_context_per_gpu=config.resources.max_context_per_gpu,
            max_pods=config.resources.max_pods,
        ),
    )


async def run(config: NodeConfig, options: Options, stop: asyncio.Event) -> None:
    """Serve until `stop` is set."""
    async with health.serving(config) as probes:
        agent = Agent(config, options)
        try:
            await agent.start()
            probes.ready_when(agent.waits_for)
            await stop.wait()
        finally:
            await agent.stop()
