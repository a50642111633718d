"""A gateway with a real state service and a scheduler that the test speaks for."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpx

from inferx import config, statesvc
from inferx.auth.secretfile import FILE
from inferx.config import NodeConfig
from inferx.errors import NotFound
from inferx.rpc import ixmeta_pb2, ixmeta_pb2_grpc, na_pb2_grpc
from inferx.rpc import na_pb2 as pb
from inferx.rpc.server import Server, serve
from services import gateway
from tests.helpers.ports import free_ports

DEADLINE_S = 15.0
ADMIN_KEY = f"test-admin-{secrets.token_hex(16)}"
LOOPBACK = int(IPv4Address("127.0.0.1"))


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.005)
    return found


def bearer(credential: str) -> dict[str, str]:
    """The header field that carries a credential."""
    return {"Authorization": f"Bearer {credential}"}


class FakeScheduler(na_pb2_grpc.SchedulerServiceServicer, ixmeta_pb2_grpc.IxMetaServiceServicer):
    """Grants what `worker_port` says, or raises `refusal`; keeps what it was asked. Calls of the
    methods in `frozen` get no answer before `thaw` is set; `stuck` names those that wait."""

    def __init__(self) -> None:
        self.worker_port = 0
        self.epoch = 1
        self.frozen: set[str] = set()
        self.stuck: list[str] = []
        self.thaw = asyncio.Event()
        self.refusal: Exception | None = None
        self.granting = asyncio.Event()
        self.granting.set()
        self.rejected: list[str] = []
        self.pods: list[ixmeta_pb2.Obj] = []
        self.known = True
        self.connects: list[pb.ConnectReq] = []
        self.leases: list[pb.LeaseWorkerReq] = []
        self.returns: list[pb.ReturnWorkerReq] = []
        self.kills: list[pb.KillPodReq] = []
        self.reason = ""  # why requests for workers wait
        self.refreshes = 0
        self.watchers: list[asyncio.Queue[ixmeta_pb2.Obj]] = []

    async def _answering(self, method: str) -> None:
        if method in self.frozen:
            self.stuck.append(method)
            await self.thaw.wait()

    async def ConnectScheduler(self, request: pb.ConnectReq, context: Any) -> pb.ConnectResp:
        await self._answering("ConnectScheduler")
        self.connects.append(request)
        self.known = True
        return pb.ConnectResp(epoch=self.epoch, rejected_lease_ids=self.rejected)

    async def RefreshGateway(
        self, request: pb.RefreshGatewayReq, context: Any
    ) -> pb.RefreshGatewayResp:
        await self._answering("RefreshGateway")
        self.refreshes += 1
        if not self.known:
            raise NotFound(f"gateway {request.gateway_id} is not known")
        return pb.RefreshGatewayResp()

    async def LeaseWorker(self, request: pb.LeaseWorkerReq, context: Any) -> pb.LeaseWorkerResp:
        await self._answering("LeaseWorker")
        self.leases.append(request)
        await self.granting.wait()
        if self.refusal is not None:
            raise self.refusal
        # Asked again under its id, a lease is the same.
        asked = list(dict.fromkeys(lease.request_id for lease in self.leases))
        number = asked.index(request.request_id) + 1
        return pb.LeaseWorkerResp(
            id=f"pod{number}", hostipaddr=LOOPBACK, hostport=self.worker_port, hostnetwork=True,
            lease_id=str(number), epoch=self.epoch, slots=50, start="cold",
        )  # fmt: skip

    async def ReturnWorker(self, request: pb.ReturnWorkerReq, context: Any) -> pb.ReturnWorkerResp:
        await self._answering("ReturnWorker")
        self.returns.append(request)
        return pb.ReturnWorkerResp()

    async def ExplainWait(self, request: pb.ExplainWaitReq, context: Any) -> pb.ExplainWaitResp:
        await self._answering("ExplainWait")
        told = [pb.WaitReason(function=one, reason=self.reason) for one in request.functions]
        return pb.ExplainWaitResp(reasons=told if self.reason else [])

    async def KillPod(self, request: pb.KillPodReq, context: Any) -> pb.KillPodResp:
        self.kills.append(request)
        return pb.KillPodResp()

    def show(self, pod: ixmeta_pb2.Obj) -> None:
        """Put a pod into the view, and tell those who watch."""
        self.pods = [*(each for each in self.pods if each.name != pod.name), pod]
        for watcher in self.watchers:
            watcher.put_nowait(pod)

    async def Watch(
        self, request: ixmeta_pb2.ListRequestMessage, context: Any
    ) -> AsyncIterator[ixmeta_pb2.WEvent]:
        news: asyncio.Queue[ixmeta_pb2.Obj] = asyncio.Queue()
        self.watchers.append(news)
        for pod in self.pods:
            yield ixmeta_pb2.WEvent(event_type=ixmeta_pb2.ADDED, obj=pod)
        done = ixmeta_pb2.Obj(kind=request.obj_type)
        yield ixmeta_pb2.WEvent(event_type=ixmeta_pb2.INIT_DONE, obj=done)
        while True:
            yield ixmeta_pb2.WEvent(event_type=ixmeta_pb2.MODIFIED, obj=await news.get())

    async def List(
        self, request: ixmeta_pb2.ListRequestMessage, context: Any
    ) -> ixmeta_pb2.ListResponseMessage:
        pods = [pod for pod in self.pods if request.tenant in ("", pod.tenant)]
        return ixmeta_pb2.ListResponseMessage(objs=pods)

    async def Get(
        self, request: ixmeta_pb2.GetRequestMessage, context: Any
    ) -> ixmeta_pb2.GetResponseMessage:
        for pod in self.pods:
            if pod.name == request.name:
                return ixmeta_pb2.GetResponseMessage(obj=pod)
        raise NotFound(f"pod {request.name} does not exist")

    async def serve(self, port: int) -> Server:
        """Listen; a second call after `stop` of the first is a restart."""
        return await serve(
            f"127.0.0.1:{port}",
            [
                lambda s: na_pb2_grpc.add_SchedulerServiceServicer_to_server(self, s),
                lambda s: ixmeta_pb2_grpc.add_IxMetaServiceServicer_to_server(self, s),
            ],
        )


class Platform:
    """The processes around a gateway, as tasks of the test, and a client."""

    def __init__(self, folder: Path, env: dict[str, str], **entries: Any) -> None:
        state, scheduler, port, agent = free_ports(4)
        document = {
            "dataDir": str(folder), "statSvcPort": state, "schedulerPort": scheduler,
            "gatewayPort": port, "stateSvcAddrs": [f"127.0.0.1:{state}"],
            "schedulerAddr": f"127.0.0.1:{scheduler}", "podMgrPort": agent,
            **entries,
        }  # fmt: skip
        file = folder / "node.json"
        file.write_text(json.dumps(document))
        self.config: NodeConfig = config.load(file, env)
        self.scheduler = FakeScheduler()
        self.scheduler_server: Server | None = None
        self.http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            timeout=DEADLINE_S,
            trust_env=False,
            headers=bearer(env["INFERX_ADMIN_APIKEY"]) if env else {},
            limits=httpx.Limits(max_connections=200),
        )

    async def start_scheduler(self) -> None:
        """Start or restart the scheduler, which knows no gateway then."""
        self.scheduler.known = False
        self.scheduler_server = await self.scheduler.serve(self.config.scheduler_port)

    async def stop_scheduler(self) -> None:
        """The scheduler is gone."""
        assert self.scheduler_server is not None
        await self.scheduler_server.stop(0)
        self.scheduler_server = None

    async def ready(self) -> None:
        """Wait until the gateway says that it is ready."""
        await ready(self.http)

    async def parked(self, count: int, name: str = "f") -> None:
        """Wait until so many calls of a function of public/demo wait."""
        await self.shows("parked", count, name)

    async def shows(self, gauge: str, count: int, name: str = "f") -> None:
        """Wait until a gauge of a function of public/demo has that value."""
        labels = f'function="{name}",namespace="demo",tenant="public"'
        line = f"inferx_function_{gauge}{{{labels}}} {float(count)}"
        deadline = time.monotonic() + DEADLINE_S
        while line not in (await self.http.get("/metrics")).text:
            assert time.monotonic() < deadline, f"never were there {count} {gauge} of {name}"

    async def put(self, kind: str, tenant: str, namespace: str, name: str, **members: Any) -> Any:
        """Create an object; returns the answer's JSON."""
        manifest = {
            "type": kind, "tenant": tenant, "namespace": namespace, "name": name, "object": members,
        }  # fmt: skip
        answer = await self.http.put("/object/", json=manifest)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def function(self, name: str = "f", **spec: Any) -> Any:
        """Create a function of public/demo."""
        base = {"image": "x", "resources": {"CPU": 100, "Mem": 100}}
        return await self.put("function", "public", "demo", name, spec={**base, **spec})


@asynccontextmanager
async def second_gateway(up: Platform, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Another gateway of the platform, as on another machine; its client sends no credential."""
    (port,) = free_ports(1)
    _share_secret(up.config.data_dir, folder)
    stop = asyncio.Event()
    made = replace(up.config, data_dir=folder, gateway_port=port)
    serving = asyncio.create_task(gateway.main(made, stop))
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S, trust_env=False
    ) as http:
        try:
            await ready(http)
            yield http
        finally:
            stop.set()
            await serving


def _share_secret(source: Path, target: Path) -> None:
    """What an operator gives to all gateways: the secret that keys are hashed under."""
    secret = source / FILE
    if secret.exists():
        target.mkdir()
        (target / FILE).write_bytes(secret.read_bytes())


async def ready(http: httpx.AsyncClient) -> None:
    """Wait until a gateway says that it is ready."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            if (await http.get("/readyz")).status_code == 200:
                return
        except httpx.ConnectError:
            assert time.monotonic() < deadline, "the gateway does not listen"
        assert time.monotonic() < deadline, "the gateway is not ready"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def platform(folder: Path, *, auth: bool = False, **entries: Any) -> AsyncIterator[Platform]:
    """A ready gateway with tenant `public` and namespace `demo`; its client is the admin's."""
    env = {"INFERX_ADMIN_APIKEY": ADMIN_KEY} if auth else {}
    found = Platform(folder, env, auth={"enable": auth}, **entries)
    state = await statesvc.start(found.config)
    await found.start_scheduler()
    stop = asyncio.Event()
    serving = asyncio.create_task(gateway.main(found.config, stop))
    try:
        await found.ready()
        await found.put("tenant", "system", "system", "public", spec={})
        await found.put("namespace", "public", "system", "demo", spec={})
        yield found
    finally:
        await found.http.aclose()
        stop.set()
        await serving
        await state.stop(0)
        if found.scheduler_server is not None:
            await found.scheduler_server.stop(0)
