"""`make bench-failover`: how long clients wait when a leader or a node is lost; one JSON line.

Each turn kills the leading scheduler under load, or freezes it until another one leads; then each
turn kills a node and its workers at once. Exits with 1 when a call was lost or a limit of the
design is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from tests.chaos.checker import Checker, percentile, read_executions
from tests.chaos.cluster import LEADER_KEY, Cluster
from tests.chaos.load import Load
from tests.chaos.nemesis import RECOVERY_S, Fault
from tests.chaos.processes import Service, workers
from tests.chaos.program import add_keep, carry_out, folder_of

FAILOVER_P99_MS = 3_000
DETECTED_S = 5.0
START_S = 1.5  # of a worker elsewhere, once the node is known to be dead
_ONE = "solo"  # has one replica: nobody else may serve it before the node is known to be dead


class Failover:
    """`report` is what it found, `problems` what was lost or too late."""

    def __init__(self, folder: Path, leaders: int, frozen: int, nodes: int) -> None:
        self.report: dict[str, Any] = {}
        self.problems: list[str] = []
        self._cluster = Cluster(folder)
        self._leaders, self._frozen, self._nodes = leaders, frozen, nodes
        self._faults: list[Fault] = []
        self._elected_s: list[float] = []

    async def go(self) -> None:
        """Start, kill, judge, stop."""
        try:
            await self._cluster.start()
            load = Load(self._cluster.gateways, seed=1)
            load.start()
            try:
                for number in range(self._leaders):
                    await self._lose_leader("kill_leader", number)
                for number in range(self._frozen):
                    await self._lose_leader("pause_leader", number)
            finally:
                await load.stop()
            elsewhere = [await self._kill_node() for _ in range(self._nodes)]
            self._judge(load, elsewhere)
        finally:
            await self._cluster.stop()

    async def _lose_leader(self, kind: str, number: int) -> None:
        leader, _ = await self._cluster.leader()
        # Not always at the same moment between two renewals.
        await asyncio.sleep(0.137 * (number % 7))
        fault = Fault(kind, leader.name, time.monotonic())
        self._faults.append(fault)
        if kind == "kill_leader":
            leader.kill()
        else:
            leader.send(signal.SIGSTOP)
        self._elected_s.append(await self._another_leads(fault.begun))
        await asyncio.sleep(2.0)  # calls that were held up come to their end
        fault.ended = time.monotonic()
        leader.send(signal.SIGCONT)
        await self._cluster.eventually(lambda: _ended(leader), f"{leader.name} ends itself")
        leader.start()
        await self._cluster.answers(RECOVERY_S)
        await self._cluster.listens("scheduler")

    async def _another_leads(self, lost_at: float) -> float:
        """Seconds from its loss until the store has a leader that is younger."""
        store = await self._cluster.store()
        before = await store.get(LEADER_KEY)
        old = 0 if before is None else before.create_revision

        async def younger() -> bool:
            now = await store.get(LEADER_KEY)
            return now is not None and now.create_revision > old

        try:
            await self._cluster.eventually(younger, "another scheduler leads")
        finally:
            await store.close()
        return time.monotonic() - lost_at

    async def _kill_node(self) -> float:
        """Seconds until a function of one replica is served by another node."""
        url = self._cluster.gateways["gateway0"]
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http:
            assert (await http.get(f"/funccall/public/c/{_ONE}/up")).status_code == 200
            victim = await self._home(http)
            begun = time.monotonic()
            victim.kill()
            for pid in workers(victim):
                os.kill(pid, signal.SIGKILL)

            async def served() -> bool:
                return (await http.get(f"/funccall/public/c/{_ONE}/up")).status_code == 200

            await self._cluster.eventually(served, f"{_ONE} is served by another node")
            took_s = time.monotonic() - begun
        victim.start()
        await self._cluster.answers(RECOVERY_S)
        return took_s

    async def _home(self, http: httpx.AsyncClient) -> Service:
        """The node of its worker; other nodes may have standbys."""
        pods = [pod["object"] for pod in (await http.get("/pods/public/c/")).json()]
        node = next(
            pod["spec"]["node"]
            for pod in pods
            if pod["spec"]["funcname"] == _ONE and pod["status"]["state"] != "Standby"
        )
        return self._cluster.services[node]

    def _judge(self, load: Load, elsewhere: list[float]) -> None:
        killed = {name: s.killed_at for name, s in self._cluster.services.items()}
        executions = read_executions(self._cluster.folder / "executions")
        checker = Checker(load.calls, executions, killed)
        lost, duplicated = checker.judge_calls()
        added = checker.added_latency_ms(self._faults)
        self.report = {
            "bench": "failover", "leaders_killed": self._leaders, "leaders_frozen": self._frozen,
            "calls": len(load.calls), "lost": lost, "duplicated": duplicated,
            "elected_p50_ms": round(percentile(self._elected_s, 0.5) * 1000),
            "elected_max_ms": round(max(self._elected_s) * 1000),
            "added_p50_ms": round(percentile(added, 0.5)),
            "added_p99_ms": round(percentile(added, 0.99)),
            "added_max_ms": round(max(added)),
            "nodes_killed": self._nodes,
            "served_elsewhere_max_s": round(max(elsewhere, default=0.0), 2),
        }  # fmt: skip
        self.problems = list(checker.problems)
        if percentile(added, 0.99) > FAILOVER_P99_MS:
            self.problems.append(f"failover p99 is beyond {FAILOVER_P99_MS} ms: {added}")
        if max(elsewhere, default=0.0) > DETECTED_S + START_S:
            self.problems.append(f"dead nodes were replaced too late: {elsewhere} s")


async def _ended(service: Service) -> bool:
    return not service.running()


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaders", type=int, default=20, help="leaders to kill")
    parser.add_argument("--frozen", type=int, default=10, help="leaders to freeze")
    parser.add_argument("--nodes", type=int, default=5, help="nodes to kill")
    add_keep(parser)
    given = parser.parse_args()
    folder = folder_of(given.keep, "failover")
    return carry_out(Failover(folder, given.leaders, given.frozen, given.nodes), folder, given.keep)


if __name__ == "__main__":
    sys.exit(main())
