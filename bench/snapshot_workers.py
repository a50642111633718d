"""Real model servers from nothing and from their snapshots, to the first correct answer.

Must never compare figures of different runs, nor count an answer that is not the expected one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvloop

from inferx.agent.identity import Subject
from inferx.agent.runtimes.boxes import Places
from inferx.agent.runtimes.protocol import Worker, WorkerSpec
from inferx.agent.runtimes.runc import RuncRuntime
from inferx.agent.snapshots import Snapshots
from inferx.agent.spec import PodKey, parse_alloc, parse_launch

ROOT = Path(__file__).resolve().parent.parent
JAX_PYTHON = ROOT / ".cache" / "jax" / "bin" / "python"
POD_CIDR = "10.213.0.0/16"
ANSWER_BOUND_S = 120.0
POLL_S = 0.002


@dataclass(frozen=True)
class Case:
    """A model server and one call of it, which always has the same answer."""

    name: str
    entrypoint: list[str]
    commands: list[str]
    path: str
    body: Mapping[str, Any] | None
    mem_mb: int = 2000


EMPTY = Case(
    "empty", ["$(INFERX_PYTHON)", "bench/snapshot_ballast.py"], ["0"], "/", None, mem_mb=500
)
EMPTY_ANSWER = {"sample": ""}
CASES = {
    "1 GiB": Case("1 GiB", ["$(INFERX_PYTHON)", "bench/snapshot_ballast.py"], ["1024"], "/", None),
    "llama.cpp MiniLM": Case(
        "llama.cpp MiniLM",
        ["$(INFERX_PYTHON)", "examples/llama/server.py"],
        ["--model", "minilm", "--port", "$(PORT)"],
        "/v1/embeddings",
        {"model": "minilm", "input": "a cat sits"},
    ),
    "JAX transformer": Case(
        "JAX transformer",
        [str(JAX_PYTHON), "examples/jax/server.py"],
        [],
        "/generate",
        {"prompt": "the first call after zero", "tokens": 4},
        mem_mb=4000,
    ),
}


class Stage:
    """The runtime and the snapshots of a node, without its other parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        places = Places(ROOT, folder / "images", POD_CIDR)
        self.runtime = RuncRuntime(places, {"PATH": os.environ["PATH"], "HOME": "/root"})
        if self.runtime.checkpoints is None:
            raise SystemExit("no CRIU >= 4.2 here; run scripts/install-criu")
        self.checkpoints = self.runtime.checkpoints
        self.snapshots = Snapshots(
            folder / "snapshots", self.checkpoints, 0, lambda *_: None, "bench"
        )
        limits = httpx.Limits(max_keepalive_connections=0)  # addresses are used again
        self.client = httpx.AsyncClient(trust_env=False, timeout=ANSWER_BOUND_S, limits=limits)
        self._number = 0

    def prepare(self, case: Case) -> tuple[WorkerSpec, Subject]:
        """A new pod of the case."""
        self._number += 1
        pod_id = f"w{self._number}"
        function = {
            "image": "",
            "entrypoint": case.entrypoint,
            "commands": case.commands,
            "resources": {"CPU": 1000, "Mem": case.mem_mb},
            "endpoint": {"port": 8000},
        }
        text = json.dumps(function)
        folder = self.folder / pod_id
        folder.mkdir()
        spec = WorkerSpec(
            pod_id=pod_id,
            launch=parse_launch(text),
            alloc=parse_alloc(json.dumps({"CPU": 1000, "Mem": case.mem_mb})),
            folder=folder,
            host=self.runtime.listen_host,
            port=8000,
        )
        return spec, Subject(PodKey("bench", "bench", case.name, 1, pod_id), text)

    async def first_answer(self, worker: Worker, case: Case) -> Any:
        """Ask until it answers; what it said."""
        url = f"http://{worker.host}:8000{case.path}"
        deadline = time.monotonic() + ANSWER_BOUND_S
        while True:
            try:
                method = "GET" if case.body is None else "POST"
                answer = await self.client.request(method, url, json=case.body)
                if answer.status_code == 200:
                    return answer.json()
            except httpx.TransportError:
                if worker.exited.done() or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(POLL_S)

    async def cold(self, case: Case, *, save: bool) -> tuple[float, Any]:
        """Milliseconds from nothing to the first answer; with `save` it is saved before that."""
        spec, subject = self.prepare(case)
        begun = time.perf_counter()
        worker = await self.runtime.start(spec)
        said = await self.first_answer(worker, case)
        spent_ms = (time.perf_counter() - begun) * 1000
        if save:
            await self.snapshots.save(subject, worker)
            await self.snapshots.settled()
        await worker.stop(0)
        return spent_ms, said

    async def restored(self, case: Case, expected: Any) -> float:
        """Milliseconds from the snapshot to the first answer, which has to be the expected one."""
        spec, subject = self.prepare(case)
        begun = time.perf_counter()
        image = await self.snapshots.find(subject)
        if image is None:
            raise SystemExit(f"{case.name}: its snapshot was not kept")
        worker = await self.checkpoints.restore(spec, image)
        said = await self.first_answer(worker, case)
        spent_ms = (time.perf_counter() - begun) * 1000
        if said != expected:
            raise SystemExit(f"{case.name}: restored, it says {said!r} instead of {expected!r}")
        await worker.stop(0)
        return spent_ms


def row(case: str, median_ms: float, **more: Any) -> None:
    """One line of the result."""
    figures = {"bench": "snapshot", "case": case, "median_ms": round(median_ms, 1), **more}
    print(json.dumps(figures), flush=True)


async def measure(stage: Stage, case: Case, rounds: int) -> None:
    """Print the case's rows. An empty worker is restored right before each restore of the case:
    what that takes is the least that any restore takes here and now, the ceiling."""
    first_ms, expected = await stage.cold(case, save=True)
    colds = [first_ms] + [(await stage.cold(case, save=False))[0] for _ in range(rounds - 1)]
    restores, floors = [], []
    for _ in range(rounds):
        floors.append(await stage.restored(EMPTY, EMPTY_ANSWER))
        restores.append(await stage.restored(case, expected))
    cold_ms, restore_ms = statistics.median(colds), statistics.median(restores)
    floor_ms = statistics.median(floors)
    (size_mb,) = (e.size_bytes >> 20 for e in stage.snapshots.all if e.function[2] == case.name)
    row(f"{case.name}: from nothing", cold_ms, rounds=rounds)
    row(
        f"{case.name}: from its snapshot",
        restore_ms,
        ceiling=round(floor_ms, 1),
        fraction=round(floor_ms / restore_ms, 3),
        rounds=rounds,
        max_ms=round(max(restores), 1),
        times_faster=round(cold_ms / restore_ms, 1),
        snapshot_mb=size_mb,
    )
    await stage.snapshots.forget(f"bench/bench/{case.name}")


async def run(rounds: int, names: list[str]) -> None:
    """The given cases, one after the other."""
    with tempfile.TemporaryDirectory(prefix="inferx-bench-") as folder:
        stage = Stage(Path(folder))
        await stage.cold(EMPTY, save=True)
        for name in names:
            await measure(stage, CASES[name], rounds)
        await stage.client.aclose()


def main() -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    if "JAX transformer" in options.cases and not JAX_PYTHON.exists():
        parser.error(f"{JAX_PYTHON} is missing; use make bench-snapshot, which installs it")
    uvloop.run(run(options.rounds, options.cases))
    return 0


if __name__ == "__main__":
    sys.exit(main())
