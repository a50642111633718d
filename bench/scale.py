"""10k functions and 1k agents: how long until they are known, and until a restart serves again.

The agents are real gRPC servers of one process without workers, each with a registration of its
own; etcd, state service, scheduler and gateway are processes. Prints one JSON row.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from bench.lease import cpu_s, service
from inferx.agent.register import LEASE_MS
from inferx.domain import codec
from inferx.errors import InferxError
from inferx.rpc import client, convert, ixmeta_pb2, na_pb2_grpc
from inferx.rpc import na_pb2 as pb
from inferx.store.presence import Presence, State
from tests.cluster.etcd_server import EtcdServer
from tests.helpers.fake_agent import FakeAgent
from tests.helpers.ports import free_ports
from tests.helpers.state_client import Client

DEADLINE_S = 240.0
IDLE_S = 15.0  # each node renews its lease three times
WRITERS = 16
SERVICES = ("statesvc", "scheduler", "gateway")
_scheduler: Any = na_pb2_grpc.SchedulerServiceStub


class Scale:
    """One run."""

    def __init__(self, folder: Path, functions: int, agents: int) -> None:
        self._functions = functions
        self._state_port, self._port, self._gateway = free_ports(3)
        self._file = folder / "node.json"
        (folder / "etcd").mkdir()
        self._etcd = EtcdServer(folder / "etcd")
        document = {
            "etcdAddrs": [self._etcd.address],
            "statSvcPort": self._state_port, "schedulerPort": self._port,
            "gatewayPort": self._gateway, "dataDir": str(folder / "data"),
            "idleParkMs": 600_000, "leaderLeaseMs": 10_000, "logLevel": "warning",
        }  # fmt: skip
        self._file.write_text(json.dumps(document))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._agents = [FakeAgent(f"n{number}") for number in range(agents)]
        self._presences: list[asyncio.Task[None]] = []

    async def go(self) -> dict[str, Any]:
        """The row."""
        self._start()
        await self._serving(None)
        begun = time.monotonic()
        await self._deploy()
        functions_s = time.monotonic() - begun
        begun = time.monotonic()
        state = State((f"127.0.0.1:{self._state_port}",))
        await self._register(state)
        nodes_s = await self._serving(begun)
        # Everything is killed but the agents, which are other machines.
        self._stop(signal.SIGKILL)
        self._etcd.kill()
        begun = time.monotonic()
        self._etcd.start()
        self._start()
        restart_s = await self._serving(begun)
        busy = await self._idle()
        for presence in self._presences:
            presence.cancel()
        await asyncio.gather(*self._presences, return_exceptions=True)
        await state.close()
        return {
            "bench": "scale", "functions": self._functions, "agents": len(self._agents),
            "functions_written_s": round(functions_s, 1), "agents_ready_s": round(nodes_s, 1),
            "restart_to_serving_s": round(restart_s, 1), "statesvc_cpu_idle": round(busy, 3),
        }  # fmt: skip

    def _start(self) -> None:
        self._processes = [service(kind, self._file, Path(sys.executable)) for kind in SERVICES]

    def _stop(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)
        for process in self._processes:
            process.communicate(timeout=30)

    async def close(self) -> None:
        """End everything."""
        self._stop(signal.SIGTERM)
        self._etcd.kill()
        for agent in self._agents:
            await agent.stop()

    async def _deploy(self) -> None:
        state = Client(self._state_port)
        await state.create("tenant", ("system", "system", "public"), {"spec": {}})
        await state.create("namespace", ("public", "system", "n"), {"spec": {}})
        spec = {"image": "i", "resources": {"CPU": 100, "Mem": 100}}
        left = iter(range(self._functions))

        async def writer() -> None:
            for number in left:
                obj = codec.new("function", ("public", "n", f"f{number}"), {"spec": spec})
                request = ixmeta_pb2.CreateRequestMessage(obj=convert.to_proto(obj))
                await client.call(state.stub.Create, request, 60.0)

        await asyncio.gather(*(writer() for _ in range(WRITERS)))
        await state.close()

    async def _register(self, state: State) -> None:
        for agent in self._agents:
            node = await agent.start()
            obj = codec.new("node", ("system", "system", agent.name), node.to_raw())
            presence = Presence(state, obj, LEASE_MS)
            self._presences.append(asyncio.create_task(presence.run()))

    async def _serving(self, begun: float | None) -> float:
        """Wait until the gateway is ready and, with `begun`, every node and the last function is
        known to the scheduler and gets a worker; the seconds since `begun`."""
        deadline = time.monotonic() + DEADLINE_S
        async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
            while not await _ready(http, f"http://127.0.0.1:{self._gateway}/readyz"):
                self._check_alive()
                assert time.monotonic() < deadline, "the gateway is not ready"
                await asyncio.sleep(0.05)
        if begun is None:
            return 0.0
        scheduler = client.channel(f"127.0.0.1:{self._port}")
        number = self._functions - 1
        while True:
            request = pb.LeaseWorkerReq(
                tenant="public", namespace="n", funcname=f"f{number}", gateway_id=1, slots=1,
                deadline_ms=5_000,
            )  # fmt: skip
            try:
                await client.call(_scheduler(scheduler).LeaseWorker, request, 20.0)
            except InferxError as error:
                self._check_alive()
                if time.monotonic() > deadline:
                    raise AssertionError(f"no lease of the last function: {error}") from error
                await asyncio.sleep(0.1)
                continue
            break
        await self._followed(deadline)
        await scheduler.close(None)
        return time.monotonic() - begun

    def _check_alive(self) -> None:
        """Nobody starts a service again here: say what it said last."""
        for kind, process in zip(SERVICES, self._processes, strict=True):
            if process.poll() is not None:
                said = self._file.with_name(f"{kind}.log").read_text().splitlines()[-5:]
                raise AssertionError("\n".join([f"{kind} ended ({process.returncode}):", *said]))

    async def _idle(self) -> float:
        """The share of a core that the state service takes while nothing but time passes."""
        state = self._processes[SERVICES.index("statesvc")].pid
        begun, spent_s = time.monotonic(), cpu_s(state)
        await asyncio.sleep(IDLE_S)
        return (cpu_s(state) - spent_s) / (time.monotonic() - begun)

    async def _followed(self, deadline: float) -> None:
        """Every agent's pods are being watched by the scheduler."""
        while any(agent.view.watchers == 0 for agent in self._agents):
            self._check_alive()
            assert time.monotonic() < deadline, "some agents are not followed"
            await asyncio.sleep(0.1)


async def _ready(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).status_code == 200
    except httpx.HTTPError:
        return False


async def run(given: argparse.Namespace, folder: Path) -> None:
    """Run and print."""
    scale = Scale(folder, given.functions, given.agents)
    try:
        print(json.dumps(await scale.go()), flush=True)
    finally:
        await scale.close()


def main() -> None:
    """Parse, run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", type=int, default=10_000)
    parser.add_argument("--agents", type=int, default=1_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inferx-scale-") as folder:
        asyncio.run(run(given, Path(folder)))


if __name__ == "__main__":
    main()
