"""A whole platform of processes with userspace proxies between them, for a nemesis to break.

Must never be started twice in one folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx

from inferx.config import EtcdConfig
from inferx.domain.meta import Object
from inferx.errors import InferxError, Unavailable
from inferx.rpc import client, convert, ixmeta_pb2, ixmeta_pb2_grpc
from inferx.store.etcd import EtcdStore
from tests.chaos.processes import ROOT, Node, Service, SmallDisk, workers
from tests.chaos.tcp_proxy import TcpProxy
from tests.cluster.etcd_server import EtcdServer
from tests.helpers.ports import free_ports
from tests.helpers.postgres_server import Postgres

WORKER = ROOT / "tests" / "chaos" / "worker.py"
START_S = 90.0
ETCD_MIB = 2048  # its log comes in files of 64 MiB, and what is compacted leaves its database late
LEADER_KEY = "/registry/scheduler/system/system/scheduler"
PORTS = {"statesvc": "statSvcPort", "scheduler": "schedulerPort", "nodeagent": "podMgrPort"}
FUNCTIONS = {
    # name -> (calls that one worker may run at once, its replicas)
    "solo": (1, 1), "pair": (2, 1), "wide": (4, 2), "many": (1, 3),
}  # fmt: skip
ResultT = TypeVar("ResultT")
_stub: Any = ixmeta_pb2_grpc.IxMetaServiceStub


class Cluster:
    """etcd, two state services, two schedulers, nodes with their agents, two gateways."""

    def __init__(self, folder: Path, nodes: int = 3, replicas: int = 2) -> None:
        self._replicas = replicas
        self.folder = folder
        self.etcd: EtcdServer
        self.postgres = Postgres()
        self.services: dict[str, Service] = {}
        self.nodes = [Node(number, os.getpid() % 10_000) for number in range(nodes)]
        # Who is cut off by which proxies: (from, to) -> the proxies on the way.
        self.ways: dict[tuple[str, str], list[TcpProxy]] = {}
        self.gateways: dict[str, str] = {}
        self.disks: dict[str, SmallDisk] = {}
        self._proxies: list[TcpProxy] = []

    def of(self, kind: str) -> list[Service]:
        """All services of a kind."""
        return [service for service in self.services.values() if service.kind == kind]

    async def start(self, deploy: bool = True) -> None:
        """Start everything and wait until each function answers through each gateway."""
        (self.folder / "executions").mkdir()
        # In memory where that is possible: what other work of this machine does to its disk is no
        # fault of ours, and may stall etcd for longer than any of them.
        self.disks["etcd"] = SmallDisk(self.folder / "etcd" / "data", ETCD_MIB)
        await asyncio.to_thread(self.postgres.start)
        self.etcd = await asyncio.to_thread(EtcdServer, self.folder / "etcd")
        for node in self.nodes:
            node.make()
        state_ports, scheduler_ports = free_ports(self._replicas), free_ports(self._replicas)
        for number, port in enumerate(state_ports):
            way = await self._way(f"statesvc{number}", "etcd", self.etcd.port)
            document = {"etcdAddrs": [f"127.0.0.1:{way}"], "statSvcPort": port}
            self._add(f"statesvc{number}", "statesvc", document)
        self._state_ports = state_ports
        for number, port in enumerate(scheduler_ports):
            name = f"scheduler{number}"
            way = await self._way("gateways", name, port)
            extra = {"schedulerPort": port, "advertisedAddr": f"127.0.0.1:{way}"}
            await self._add_follower(name, "scheduler", extra)
        for number in range(self._replicas):
            (port,) = free_ports(1)
            extra = {
                "gatewayPort": port, "schedulerAddr": f"127.0.0.1:{scheduler_ports[0]}",
                "auditdbAddr": self.postgres.url,
            }  # fmt: skip
            await self._add_follower(f"gateway{number}", "gateway", extra)
            self.gateways[f"gateway{number}"] = f"http://127.0.0.1:{port}"
        for node in self.nodes:
            await self._add_agent(node)
        for service in self.services.values():
            service.start()
        await self._deploy(self._functions() if deploy else [])
        if deploy:
            await self.answers()

    def _add(self, name: str, kind: str, document: dict[str, Any]) -> Service:
        base = {"nodeName": name, "hostIp": "127.0.0.1", "idleParkMs": 1500, "logLevel": "info"}
        service = Service(name, kind, self.folder / name, {**base, **document})
        self.services[name] = service
        return service

    async def _way(self, one: str, other: str, port: int, host: str = "127.0.0.1") -> int:
        proxy = TcpProxy("127.0.0.1", port)
        await proxy.start(host)
        self._proxies.append(proxy)
        self.ways.setdefault((one, other), []).append(proxy)
        return proxy.port

    async def _state_addrs(self, name: str, host: str = "127.0.0.1") -> list[str]:
        return [
            f"{host}:{await self._way(name, f'statesvc{number}', port, host)}"
            for number, port in enumerate(self._state_ports)
        ]

    async def _add_follower(self, name: str, kind: str, document: dict[str, Any]) -> None:
        self._add(name, kind, {"stateSvcAddrs": await self._state_addrs(name), **document})

    async def _add_agent(self, node: Node) -> None:
        name = f"node{node.number}"
        ports = free_ports(2)
        document = {
            "hostIp": node.ip, "podMgrPort": ports[0], "qletStateSvcPort": ports[1],
            "stateSvcAddrs": await self._state_addrs(name, node.host),
            "simulatedGPUs": {"type": "Simulated", "count": 2, "vramMB": 2000},
            "resources": {"CPU": 8000, "Mem": 8000},
        }  # fmt: skip
        service = self._add(name, "nodeagent", document)
        service.prefix = node.prefix
        self.disks[name] = SmallDisk(service.folder / "data")

    async def _deploy(self, functions: list[dict[str, Any]]) -> None:
        async with httpx.AsyncClient(
            base_url=self.gateways["gateway0"], timeout=20, trust_env=False
        ) as http:
            await self.eventually(lambda: _ok(http, "/readyz"), "the gateway is ready")
            empty = {"object": {"spec": {}, "status": {"disable": False}}}
            tenant = {"type": "tenant", "tenant": "system", "namespace": "system", "name": "public"}
            space = {"type": "namespace", "tenant": "public", "namespace": "system", "name": "c"}
            for manifest in ({**tenant, **empty}, {**space, **empty}, *functions):
                answer = await http.put("/object/", json=manifest)
                assert answer.status_code in (200, 201), answer.text

    def _functions(self) -> list[dict[str, Any]]:
        return [function(name, self.folder / "executions") for name in FUNCTIONS]

    async def undeploy(self) -> None:
        """Delete the functions."""
        async with httpx.AsyncClient(
            base_url=self.gateways["gateway0"], timeout=20, trust_env=False
        ) as http:
            for name in FUNCTIONS:
                answer = await http.delete(f"/object/function/public/c/{name}/")
                assert answer.status_code in (200, 404), answer.text

    async def answers(self, timeout_s: float = START_S) -> float:
        """Wait until each function answers through each gateway; the seconds that took."""
        begun = time.monotonic()
        async with httpx.AsyncClient(timeout=15, trust_env=False) as http:
            await asyncio.gather(
                *(
                    self.eventually(
                        lambda url=url, name=name: _ok(http, f"{url}/funccall/public/c/{name}/up"),
                        f"{name} answers at {url}",
                        timeout_s,
                    )
                    for url in self.gateways.values()
                    for name in FUNCTIONS
                )
            )
        return time.monotonic() - begun

    async def supervise(self) -> None:
        """Start again what has ended, for as long as this runs: a leader that cannot renew its
        lease ends itself, also after the fault."""
        while True:
            for service in self.services.values():
                service.start()
            await asyncio.sleep(0.2)

    async def listens(self, kind: str) -> None:
        """Wait until every service of that kind does; one that has ended is started again."""
        for service in self.of(kind):

            async def up(service: Service = service) -> bool:
                service.start()
                return await _accepts(service.document["hostIp"], service.document[PORTS[kind]])

            await self.eventually(up, f"{service.name} listens")

    async def eventually(
        self, check: Callable[[], Any], what: str, timeout_s: float = START_S
    ) -> None:
        """Wait until the awaited `check()` is true."""
        deadline = time.monotonic() + timeout_s
        while not await check():
            if time.monotonic() > deadline:
                logs = "\n".join(f"== {s.name}\n{s.log_tail()}" for s in self.services.values())
                raise AssertionError(f"not within {timeout_s} s: {what}\n{logs}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Stop and remove everything."""
        order = ("gateway", "scheduler", "nodeagent", "statesvc")
        for kind in order:
            await asyncio.gather(*(service.stop() for service in self.of(kind)))
        # Workers outlive their agents; a run that broke off has not deleted its functions.
        for pid in (pid for service in self.of("nodeagent") for pid in workers(service)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for proxy in self._proxies:
            await proxy.stop()
        await asyncio.to_thread(self.etcd.kill)
        await asyncio.to_thread(self.postgres.remove)
        for node in self.nodes:
            node.remove()
        for disk in self.disks.values():
            disk.remove()

    # ---- what there is to see ----

    async def store(self) -> EtcdStore:
        """A connection to etcd that no proxy cuts."""
        return await EtcdStore.open([self.etcd.address], EtcdConfig())

    async def with_store(self, work: Callable[[EtcdStore], Awaitable[ResultT]]) -> ResultT:
        """What `work` makes of a connection to etcd; begun anew while etcd does not answer."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                store = await self.store()
                try:
                    return await work(store)
                finally:
                    await store.close()
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def leader(self) -> tuple[Service, Service]:
        """The leading scheduler and the other one."""
        entry = await self.with_store(lambda store: store.get(LEADER_KEY))
        first, second = self.of("scheduler")
        address = second.document["advertisedAddr"]
        leads_second = entry is not None and f'"{address}"'.encode() in entry.value
        return (second, first) if leads_second else (first, second)

    async def shown(self, node: Node, kind: str) -> list[Object[Any]]:
        """Objects as an agent shows them, [] when it cannot be asked."""
        document = self.services[f"node{node.number}"].document
        channel = client.channel(f"{node.ip}:{document['qletStateSvcPort']}")
        try:
            request = ixmeta_pb2.ListRequestMessage(obj_type=kind)
            answer = await client.call(_stub(channel).List, request, 2.0)
            return [convert.from_proto(obj) for obj in answer.objs]
        except InferxError:
            return []
        finally:
            await channel.close(None)


async def _accepts(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


async def _ok(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).status_code == 200
    except httpx.HTTPError:
        return False


def function(name: str, folder: Path) -> dict[str, Any]:
    """The manifest of a worker of `FUNCTIONS` that writes its executions into `folder`."""
    parallel, replicas = FUNCTIONS[name]
    policy = {
        "max_replica": replicas, "parallel": parallel, "queue_len": 200, "queue_timeout": 20.0,
        "scalein_timeout": 0.1,
    }  # fmt: skip
    spec = {
        "image": "test/chaos",
        "entrypoint": ["$(INFERX_PYTHON)", str(WORKER)],
        "envs": [["CHAOS_DIR", str(folder)]],
        "resources": {"CPU": 100, "Mem": 100, "GPU": {"Type": "Any", "Count": 1, "vRam": 500}},
        "endpoint": {"port": 8000, "schema": "Http", "probe": "/health"},
        "sample_query": {"path": "up", "loadingTimeout": 20, "body": {}},
        "standby": {"gpu": "Mem", "pageable": "Mem", "pinned": "Mem"},
        "policy": {"Obj": policy},
    }
    return {
        "type": "function", "tenant": "public", "namespace": "c", "name": name,
        "object": {"spec": spec},
    }  # fmt: skip
