"""`make chaos`: a real cluster under load and faults, judged at the end; one JSON line.

Exits with 1 when an invariant was broken; `--keep` leaves the folder with every log.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.agreement import SETTLE_S, Agreement
from tests.chaos.audited import audited
from tests.chaos.checker import Checker, percentile, read_executions
from tests.chaos.cluster import Cluster
from tests.chaos.load import Load
from tests.chaos.nemesis import Nemesis
from tests.chaos.program import add_keep, carry_out, folder_of
from tests.chaos.watch import Watch


class Run:
    """One run; `report` is what it found."""

    def __init__(self, folder: Path, faults: int, seed: int, settle_s: float = SETTLE_S) -> None:
        self._settle_s = settle_s
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
                self._keep_history()
                await self._watch.stop()
            leaks = await self._end()
            rows, counted = await audited(self._cluster.postgres.url, self._load.calls)
            self._judge(leaks, rows, counted, time.monotonic() - begun)
        finally:
            await self._cluster.stop()

    async def _end(self) -> list[str]:
        """I5: store and nodes tell the same; without functions nothing is left at all."""
        agreement = Agreement(self._cluster)
        leaks = await agreement.until_none(agreement.differences, self._settle_s)
        await self._cluster.undeploy()
        return leaks + await agreement.until_none(agreement.leftovers, self._settle_s)

    def _keep_history(self) -> None:
        """Also of a run that breaks off."""
        calls = [asdict(call) for call in self._load.calls]
        faults = [asdict(fault) for fault in self._nemesis.faults]
        history = {"calls": calls, "faults": faults}
        (self._cluster.folder / "history.json").write_text(json.dumps(history, indent=1))

    def _judge(self, leaks: list[str], rows: Counter[str], counted: int, seconds: float) -> None:
        killed = {name: s.killed_at for name, s in self._cluster.services.items()}
        folder = self._cluster.folder / "executions"
        checker = Checker(self._load.calls, read_executions(folder), killed)
        lost, duplicated = checker.judge_calls()
        double = checker.judge_slots()
        upgrades = checker.judge_upgrades(self._nemesis.faults)
        unaudited = checker.judge_audit(rows, counted)
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
            "failed_in_upgrades": upgrades,
            "audit_rows": sum(rows.values()),
            "audit_missing": unaudited,
            "audit_counted_lost": counted,
            "store_and_memory_problems": len(self._watch.problems),
            "leaders": self._watch.leaders,
            "failover_p50_ms": round(percentile(added, 0.5)),
            "failover_p99_ms": round(percentile(added, 0.99)),
            "recovery_p99_ms": round(percentile(recovered, 0.99)),
            "isolated_nodes": sum(node.isolated for node in self._cluster.nodes),
            "seconds": round(seconds),
        }


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=100, help="faults")
    parser.add_argument("--seed", type=int, default=1)
    add_keep(parser)
    given = parser.parse_args()
    folder = folder_of(given.keep, "chaos")
    return carry_out(Run(folder, given.n, given.seed), folder, given.keep)


if __name__ == "__main__":
    sys.exit(main())
