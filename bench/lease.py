"""lease + return over gRPC against a real scheduler process: pairs a second, and latency.

It must never count a pair that failed. Prints one JSON row a number of calls in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from inferx.domain import codec
from inferx.errors import InferxError, Unavailable
from inferx.rpc import client, convert, ixmeta_pb2, na_pb2_grpc
from inferx.rpc import na_pb2 as pb
from tests.helpers.fake_agent import FakeAgent
from tests.helpers.gateway_kit import free_ports
from tests.helpers.state_client import Client

START_S = 60.0
SLOTS = 10_000  # of the one worker: every lease is warm
NAMES = {"tenant": "t", "namespace": "n", "funcname": "f"}
_stub: Any = na_pb2_grpc.SchedulerServiceStub


def ask(gateway: int) -> pb.LeaseWorkerReq:
    """One slot of the function."""
    return pb.LeaseWorkerReq(**NAMES, fprevision=1, gateway_id=gateway, slots=1, deadline_ms=20_000)


async def pairs(address: str, gateway: int, in_flight: int, until: float) -> list[float]:
    """Seconds of each pair, from `in_flight` loops that do nothing else."""
    channel = client.channel(address)
    stub = _stub(channel)
    took: list[float] = []

    async def loop() -> None:
        while (begun := time.monotonic()) < until:
            lease = await stub.LeaseWorker(ask(gateway))
            await stub.ReturnWorker(pb.ReturnWorkerReq(lease_id=lease.lease_id, id=lease.id))
            took.append(time.monotonic() - begun)

    await asyncio.gather(*(loop() for _ in range(in_flight)))
    await channel.close(None)
    return took


def _caller(address: str, gateway: int, in_flight: int, until: float, results: Any) -> None:
    results.put(asyncio.run(pairs(address, gateway, in_flight, until)))


def measure(address: str, pid: int, callers: int, in_flight: int, seconds: float) -> dict[str, Any]:
    """One row; the scheduler's own processor time says what one core of it can do."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    begun, before = time.monotonic() + 2.0, _cpu_s(pid)  # the callers import until then
    each = max(1, in_flight // callers)
    workers = [
        context.Process(target=_caller, args=(address, n + 1, each, begun + seconds, results))
        for n in range(callers)
    ]
    for worker in workers:
        worker.start()
    took = sorted(second for _ in workers for second in results.get())
    used = _cpu_s(pid) - before
    for worker in workers:
        worker.join()
    return {
        "bench": "lease", "in_flight": each * callers, "pairs": len(took),
        "pairs_per_s": round(len(took) / seconds),
        "pairs_per_scheduler_cpu_s": round(len(took) / used),
        "scheduler_cores_used": round(used / seconds, 2),
        "p50_ms": round(took[len(took) // 2] * 1000, 2),
        "p99_ms": round(took[int(len(took) * 0.99)] * 1000, 2),
    }  # fmt: skip


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def service(kind: str, file: Path) -> subprocess.Popen[bytes]:
    """A service as `inferx up` starts it; it ends when its standard input closes."""
    command = [
        sys.executable, "-m", "inferx", "run", kind, "--config", str(file), "--supervised",
    ]  # fmt: skip
    with file.with_name(f"{kind}.log").open("wb") as log:
        stdin = subprocess.PIPE
        return subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log)  # noqa: S603


async def deploy(state_port: int, scheduler: str) -> FakeAgent:
    """A node, a function, and one worker of it that is ready."""
    state, agent = Client(state_port), FakeAgent()
    deadline = time.monotonic() + START_S
    while True:
        try:
            await state.create("tenant", ("system", "system", "t"), {"spec": {}})
            break
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
    await state.create("namespace", ("t", "system", "n"), {"spec": {}})
    node = await agent.start()
    obj = convert.to_proto(codec.new("node", ("system", "system", "n1"), node.to_raw()))
    await client.call(state.stub.Create, ixmeta_pb2.CreateRequestMessage(obj=obj))
    policy = {"Obj": {"parallel": SLOTS, "queue_len": SLOTS}}
    spec = {"image": "i", "resources": {"CPU": 100, "Mem": 100}, "policy": policy}
    await state.create("function", ("t", "n", "f"), {"spec": spec})
    await state.close()
    channel = client.channel(scheduler)
    while True:
        try:
            lease = await client.call(_stub(channel).LeaseWorker, ask(99), 20.0)
            break
        except InferxError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
    request = pb.ReturnWorkerReq(lease_id=lease.lease_id, id=lease.id)
    await client.call(_stub(channel).ReturnWorker, request)
    await channel.close(None)
    return agent


async def run(given: argparse.Namespace, folder: Path) -> None:
    """Start, measure each number in flight, stop."""
    state, port = free_ports(2)
    file = folder / "node.json"
    document = {
        "statSvcPort": state, "schedulerPort": port, "dataDir": str(folder / "data"),
        "idleParkMs": 600_000, "leaderLeaseMs": 10_000, "logLevel": "warning",
    }  # fmt: skip
    file.write_text(json.dumps(document))
    processes = [service("statesvc", file), service("scheduler", file)]
    try:
        address = f"127.0.0.1:{port}"
        agent = await deploy(state, address)
        for in_flight in given.in_flight:
            arguments = (address, processes[1].pid, given.callers, in_flight, given.seconds)
            print(json.dumps(await asyncio.to_thread(measure, *arguments)), flush=True)
        await agent.stop()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate(timeout=20)


def main() -> None:
    """Parse, run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=2, help="processes that call")
    parser.add_argument("--seconds", type=float, default=5.0, help="a row")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 4, 16, 64])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inferx-lease-") as folder:
        asyncio.run(run(given, Path(folder)))


if __name__ == "__main__":
    main()
