"""`make chaos`: a real cluster under load and faults, judged at the end; one JSON line.

Exits with 1 when an invariant was broken; `--keep` leaves the folder with every log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from inferx.store.objects import ObjectStore
from tests.chaos.checker import Checker, percentile, read_executions
from tests.chaos.cluster import FUNCTIONS, Cluster
from tests.chaos.load import Load
from tests.chaos.nemesis import Nemesis
from tests.chaos.watch import Watch

SETTLE_S = 10.0  # after the faults everything agrees within this time (I5)


class Run:
    """One run; `report` is what it found."""

    def __init__(self, folder: Path, faults: int, seed: int) -> None:
        self.report: dict[str, Any] = {}
        self.problems: list[str] = []
        self._faults = faults
        self._cluster = Cluster(folder)
        self._load: Load
        self._nemesis = Nemesis(self._cluster, seed, _say)
        self._watch = Watch(self._cluster)
        self._seed = seed

    async def go(self) -> None:
        """Start, break, judge, stop."""
        begun = time.monotonic()
        try:
            await self._cluster.start()
            _say(f"the cluster answers after {time.monotonic() - begun:.1f} s")
            self._load = Load(self._cluster.gateways, self._seed)
            self._watch.start()
            self._load.start()
            try:
                await self._nemesis.run(self._faults)
            finally:
                await self._load.stop()
                await self._watch.stop()
            leaks = await self._agreement()
            self._judge(leaks, time.monotonic() - begun)
        finally:
            await self._cluster.stop()

    def _judge(self, leaks: list[str], seconds: float) -> None:
        killed = {name: s.killed_at for name, s in self._cluster.services.items()}
        folder = self._cluster.folder / "executions"
        calls = [asdict(call) for call in self._load.calls]
        history = {"calls": calls, "faults": [asdict(fault) for fault in self._nemesis.faults]}
        (self._cluster.folder / "history.json").write_text(json.dumps(history, indent=1))
        checker = Checker(self._load.calls, read_executions(folder), killed)
        lost, duplicated = checker.judge_calls()
        double = checker.judge_slots()
        added = checker.added_latency_ms(self._nemesis.faults)
        recovered = [fault.recovered_s * 1000 for fault in self._nemesis.faults]
        self.problems = [*checker.problems, *self._watch.problems, *leaks]
        statuses = [call.status for call in self._load.calls]
        self.report = {
            "bench": "chaos",
            "seed": self._seed,
            "faults": self._nemesis.counts(),
            "calls": len(statuses),
            "ok": statuses.count(200),
            "refused": sum(status > 0 and status != 200 for status in statuses),
            "lost": lost,
            "duplicated": duplicated,
            "double_leases": double,
            "leaks": len(leaks),
            "store_and_memory_problems": len(self._watch.problems),
            "leaders": self._watch.leaders,
            "failover_p50_ms": round(percentile(added, 0.5)),
            "failover_p99_ms": round(percentile(added, 0.99)),
            "recovery_p99_ms": round(percentile(recovered, 0.99)),
            "isolated_nodes": sum(node.isolated for node in self._cluster.nodes),
            "seconds": round(seconds),
        }

    # ---- the end ----

    async def _agreement(self) -> list[str]:
        """I5: store and nodes tell the same; without functions nothing is left at all."""
        leaks = await self._until_none(self._differences)
        async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
            base = self._cluster.gateways["gateway0"]
            for name in FUNCTIONS:
                answer = await http.delete(f"{base}/object/function/public/c/{name}/")
                if answer.status_code != 200:
                    leaks.append(f"I5 {name} cannot be deleted: {answer.text}")
        return leaks + await self._until_none(self._leftovers)

    async def _until_none(self, look: Any) -> list[str]:
        deadline = time.monotonic() + SETTLE_S
        while (found := await look()) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        return list(found)

    async def _differences(self) -> list[str]:
        stored = await self._stored()
        shown = {
            obj.meta.name
            for node in self._cluster.nodes
            for obj in await self._cluster.shown(node, "pod")
            if obj.spec.status.state not in ("Terminated", "Failed")
        }
        return [
            *(f"I5 pod {name} is recorded and on no node" for name in stored - shown),
            *(f"I5 pod {name} is on a node and not recorded" for name in shown - stored),
        ]

    async def _leftovers(self) -> list[str]:
        left = await self._differences()
        left += [f"I5 pod {name} is still recorded" for name in await self._stored()]
        for service in self._cluster.of("nodeagent"):
            left += [f"I5 worker {pid} runs" for pid in self._nemesis.workers(service)]
        for node in self._cluster.nodes:
            for obj in await self._cluster.shown(node, "node"):
                if any(obj.spec.vram_used_mb):
                    left.append(f"I5 {obj.meta.name} holds {obj.spec.vram_used_mb} MB")
        return left

    async def _stored(self) -> set[str]:
        store = await self._cluster.store()
        try:
            found, _ = await ObjectStore(store).list("pod")
        finally:
            await store.close()
        pods = [stored.object() for stored in found]
        return {pod.meta.name for pod in pods if pod.spec.status.state != "Failed"}


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=100, help="faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for logs, which stays")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="inferx-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, given.n, given.seed)
    try:
        asyncio.run(run.go())
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(run.report))
    for problem in run.problems:
        _say(problem)
    return 1 if run.problems else 0


if __name__ == "__main__":
    sys.exit(main())
