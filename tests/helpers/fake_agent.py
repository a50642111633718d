"""A node agent without processes: real gRPC, pods that are ready when a test says so."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from inferx.domain import codec
from inferx.domain.meta import SYSTEM
from inferx.domain.objects import GpuDevice, Node, NodeResources
from inferx.errors import InferxError, NotFound
from inferx.rpc import ixmeta_pb2_grpc, na_pb2_grpc
from inferx.rpc import na_pb2 as pb
from inferx.rpc.server import Server, serve
from inferx.store.view import ObjectView

LOOPBACK = 0x7F000001


class FakeAgent(na_pb2_grpc.NodeAgentServiceServicer):
    """`asked` lists verbs with pod ids; `failure` is raised by starts; `gate` holds starts back."""

    def __init__(self, name: str = "n1") -> None:
        self.name = name
        self.view = ObjectView("", ("node", "pod", "snapshot"))
        self.asked: list[tuple[str, str]] = []
        self.epochs: set[int] = set()
        self.failure: InferxError | None = None
        self.resumes_as = "resume"
        self.max_pods = 0
        self.keeps_snapshots = False
        self.saves: list[bool] = []  # of each start: may its worker be saved?
        self._kept: set[tuple[str, str, str]] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self._servers: list[Server] = []
        self._pods: dict[str, dict[str, Any]] = {}

    async def start(self) -> Node:
        add_pods: Any = na_pb2_grpc.add_NodeAgentServiceServicer_to_server
        add_view: Any = ixmeta_pb2_grpc.add_IxMetaServiceServicer_to_server
        self._servers = [
            await serve("127.0.0.1:0", [lambda server: add_pods(self, server)]),
            await serve("127.0.0.1:0", [lambda server: add_view(self.view, server)]),
        ]
        gpus = (GpuDevice(0, "A", 24_000), GpuDevice(1, "A", 24_000))
        return Node(
            address="127.0.0.1",
            podmgr_port=self._servers[0].port,
            state_port=self._servers[1].port,
            boot_id="boot",
            keeps_snapshots=self.keeps_snapshots,
            resources=NodeResources(8_000, 16_000, 0, gpus, 450, 1, self.max_pods),
        )

    async def stop(self) -> None:
        await asyncio.gather(*(server.stop(0) for server in self._servers))

    def _show(self, pod_id: str, **status: Any) -> None:
        pod = self._pods[pod_id]
        pod["object"]["status"] |= status
        self.view.put(codec.parse_manifest(pod)[0])

    def show_snapshot(self, key: tuple[str, str, str], revision: int, **status: Any) -> None:
        """Show a snapshot of a function, which later starts come from, or why there is none."""
        spec = {"funcname": key[2], "fprevision": revision, "node": self.name}
        self.view.put(codec.new("snapshot", key, {"spec": spec, "status": status}))
        if status["state"] == "Ready":
            self._kept.add(key)

    def forget(self, pod_id: str) -> None:
        """The pod ends."""
        pod = self._pods.pop(pod_id, None)
        if pod is not None:
            self.view.remove("pod", (pod["tenant"], pod["namespace"], pod_id))

    def _note(self, verb: str, request: Any) -> None:
        self.asked.append((verb, request.id))
        self.epochs.add(request.epoch)

    async def CreateFuncPod(
        self, request: pb.CreateFuncPodReq, context: Any
    ) -> pb.CreateFuncPodResp:
        self._note("create", request)
        for victim in request.terminate_pods:
            self.forget(victim.id)
        for victim in request.park_pods:
            self._show(victim.id, state="Standby")
        if self.failure is not None:
            raise self.failure
        self.saves.append(request.save_snapshot)
        spec = {
            "funcname": request.funcname,
            "fprevision": request.fprevision,
            "node": self.name,
            "alloc_resources": json.loads(request.alloc_resources),
        }
        self._pods[request.id] = {
            "type": "pod",
            "tenant": request.tenant,
            "namespace": request.namespace,
            "name": request.id,
            "object": {"spec": spec, "status": {"state": "Loading"}},
        }
        self._show(request.id)
        await self.gate.wait()
        self._show(request.id, state="Ready", ip="127.0.0.1", port=7_000)
        key = (request.tenant, request.namespace, request.funcname)
        start = "snapshot" if key in self._kept else "cold"
        return pb.CreateFuncPodResp(ipaddress=LOOPBACK, port=7_000, start=start)

    async def ResumePod(self, request: pb.ResumePodReq, context: Any) -> pb.ResumePodResp:
        self._note("resume", request)
        self._show(request.id, state="Ready")
        return pb.ResumePodResp(ipaddress=LOOPBACK, port=7_000, start=self.resumes_as)

    async def ParkPod(self, request: pb.ParkPodReq, context: Any) -> pb.ParkPodResp:
        self._note("park", request)
        self._show(request.id, state="Standby")
        return pb.ParkPodResp()

    async def TerminatePod(self, request: pb.TerminatePodReq, context: Any) -> pb.TerminatePodResp:
        if request.tenant == SYSTEM:  # only to tell the epoch
            self.epochs.add(request.epoch)
            raise NotFound("there is no such pod")
        self._note("terminate", request)
        self.forget(request.id)
        return pb.TerminatePodResp()
