"""lease + return over gRPC against a real scheduler process: pairs a second, and latency.

It must never count a pair that failed. Prints one JSON row a load and server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferx.domain import codec
from inferx.errors import InferxError, Unavailable
from inferx.rpc import client, convert, ixmeta_pb2, na_pb2_grpc
from inferx.rpc import na_pb2 as pb
from tests.helpers.fake_agent import FakeAgent
from tests.helpers.ports import free_ports
from tests.helpers.state_client import Client

START_S = 60.0
BINARY = Path(__file__).parents[1] / "target/release/examples/pairs"
SLOTS = 10_000  # of the one worker: every lease is warm
NAMES = {"tenant": "t", "namespace": "n", "funcname": "f"}
_stub: Any = na_pb2_grpc.SchedulerServiceStub


@dataclass(frozen=True)
class Target:
    """A scheduler process to measure."""

    name: str
    address: str
    pid: int


def ask(gateway: int) -> pb.LeaseWorkerReq:
    """One slot of the function."""
    return pb.LeaseWorkerReq(**NAMES, fprevision=1, gateway_id=gateway, slots=1, deadline_ms=20_000)


async def pairs(
    address: str, gateway: int, in_flight: int, seconds: float, told: Any = None
) -> list[float]:
    """Seconds of each pair, from `in_flight` loops that do nothing else, so long or until told."""
    until = time.monotonic() + seconds
    channel = client.channel(address)
    stub = _stub(channel)
    took: list[float] = []

    async def loop() -> None:
        while (begun := time.monotonic()) < until and not (told and told.is_set()):
            lease = await stub.LeaseWorker(ask(gateway))
            await stub.ReturnWorker(pb.ReturnWorkerReq(lease_id=lease.lease_id, id=lease.id))
            took.append(time.monotonic() - begun)

    await asyncio.gather(*(loop() for _ in range(in_flight)))
    await channel.close(None)
    return took


def call_until_told(
    address: str, gateway: int, in_flight: int, seconds: float, results: Any, told: Any
) -> None:
    """For a process of its own: calls, and puts the seconds of each pair into `results`."""
    results.put(asyncio.run(pairs(address, gateway, in_flight, seconds, told)))


def from_python(address: str, callers: int, in_flight: int, seconds: float) -> list[float]:
    """Seconds of each pair, called as gateways do."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    each = max(1, in_flight // callers)
    workers = [
        context.Process(target=call_until_told, args=(address, n + 1, each, seconds, results, None))
        for n in range(callers)
    ]
    for worker in workers:
        worker.start()
    took = [second for _ in workers for second in results.get()]
    for worker in workers:
        worker.join()
    return took


def measure(target: Target, kind: str, calls: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One row; the scheduler's own processor time says what one core of it can do."""
    before = cpu_s(target.pid)
    found = calls()
    used = cpu_s(target.pid) - before
    row = {"bench": "lease", "server": target.name, "callers": kind, **found}
    if "pairs" in found:
        row["pairs_per_scheduler_cpu_s"] = round(found["pairs"] / used)
    return row


def python_row(target: Target, given: argparse.Namespace, in_flight: int) -> dict[str, Any]:
    """Calls of `--callers` processes with the gateway's client."""

    def calls() -> dict[str, Any]:
        took = sorted(from_python(target.address, given.callers, in_flight, given.seconds))
        return {
            "in_flight": in_flight, "pairs": len(took),
            "p50_ms": round(took[len(took) // 2] * 1000, 2),
            "p99_ms": round(took[int(len(took) * 0.99)] * 1000, 2),
        }  # fmt: skip

    return measure(target, "python", calls)


def binary_row(target: Target, given: argparse.Namespace, rate: int, loops: int) -> dict[str, Any]:
    """Calls of a compiled client: `rate` pairs a second, or with 0 as many as `loops` can."""
    command = [str(BINARY), target.address, str(given.seconds), str(rate), str(loops)]

    def calls() -> dict[str, Any]:
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        shape: dict[str, Any] = {"rate": rate} if rate else {"in_flight": loops}
        if done.returncode:  # a call failed: such a load is more than the scheduler can take
            return {**shape, "failed": done.stderr.strip()}
        return {**shape, **json.loads(done.stdout)}

    return measure(target, "rust", calls)


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def service(kind: str, file: Path, python: Path) -> subprocess.Popen[bytes]:
    """A service as `inferx up` starts it; it ends when its standard input closes."""
    command = [
        str(python), "-P", "-m", "inferx", "run", kind, "--config", str(file), "--supervised",
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


def _written(folder: Path, document: dict[str, Any]) -> Path:
    folder.mkdir()
    file = folder / "node.json"
    file.write_text(json.dumps(document))
    return file


@contextlib.asynccontextmanager
async def running(name: str, python: Path, folder: Path) -> AsyncIterator[Target]:
    """A state service and a scheduler of one checkout, with a worker that is ready."""
    state, port = free_ports(2)
    document = {
        "statSvcPort": state, "schedulerPort": port, "dataDir": str(folder / "data"),
        "idleParkMs": 600_000, "leaderLeaseMs": 10_000, "logLevel": "warning",
    }  # fmt: skip
    file = _written(folder, document)
    processes = [service(kind, file, python) for kind in ("statesvc", "scheduler")]
    try:
        address = f"127.0.0.1:{port}"
        agent = await deploy(state, address)
        try:
            yield Target(name, address, processes[1].pid)
        finally:
            await agent.stop()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate(timeout=20)


async def run(given: argparse.Namespace, folder: Path) -> None:
    """Start, measure each load in turn with each server, stop."""
    async with contextlib.AsyncExitStack() as stack:
        ours = running("this", Path(sys.executable), folder / "this")
        targets = [await stack.enter_async_context(ours)]
        if given.against:
            python = given.against.absolute() / ".venv/bin/python"
            other = running("against", python, folder / "against")
            targets.append(await stack.enter_async_context(other))
        rows = [
            *((python_row, (n,)) for n in given.in_flight),
            *((binary_row, (rate, 0)) for rate in given.rates),
            *((binary_row, (0, n)) for n in given.in_flight),
        ]  # fmt: skip
        for row, arguments in rows:
            for target in targets:
                print(json.dumps(await asyncio.to_thread(row, target, given, *arguments)))
                sys.stdout.flush()


def main() -> None:
    """Parse, run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=2, help="processes that call")
    parser.add_argument("--seconds", type=float, default=5.0, help="a row")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument(
        "--rates", type=int, nargs="*", default=[500, 1000, 3000], help="pairs a second"
    )
    parser.add_argument("--against", type=Path, help="another checkout that is built")
    given = parser.parse_args()
    if not BINARY.exists():
        parser.error(f"{BINARY} is not built: `make bench-lease` builds it")
    with tempfile.TemporaryDirectory(prefix="inferx-lease-") as folder:
        asyncio.run(run(given, Path(folder)))


if __name__ == "__main__":
    main()
