"""The judge: the history of calls, executions, records and nodes against the invariants I1 to I6.

Must never excuse what a fault does not explain.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.cluster import FUNCTIONS
from tests.chaos.load import Call
from tests.chaos.nemesis import UPGRADE, Fault

# Refusals that a client may repeat: nothing of the answer was sent, and the code says why.
RETRIABLE = frozenset(
    {"unavailable", "queue_timeout", "queue_full", "no_capacity", "worker_failed", "start_failed"}
)
LEADER_FAULTS = ("kill_leader", "pause_leader")
LATE_S = 0.25  # beyond the usual: longer than a call waits for others when nothing is wrong


@dataclass(frozen=True)
class Execution:
    """One run of a call in a worker; `ended` is infinite when the worker did not finish it."""

    call: str
    pod: str
    begun: float
    ended: float


def read_executions(folder: Path) -> list[Execution]:
    """What the workers wrote down; the last line of a killed one may be cut."""
    found = []
    for file in sorted(folder.glob("executions-*.jsonl")):
        begun: dict[str, dict[str, Any]] = {}
        for line in file.read_text().splitlines():
            try:
                note = json.loads(line)
            except json.JSONDecodeError:
                continue
            if note["what"] == "begin":
                if note["call"] in begun:  # the same worker again
                    first = begun[note["call"]]
                    found.append(Execution(note["call"], note["pod"], first["at"], note["at"]))
                begun[note["call"]] = note
            else:
                first = begun.pop(note["call"])
                found.append(Execution(note["call"], note["pod"], first["at"], note["at"]))
        for note in begun.values():
            found.append(Execution(note["call"], note["pod"], note["at"], float("inf")))
    return found


class Checker:
    """`problems` are sentences, each a broken invariant; the counts go into the report."""

    def __init__(
        self, calls: list[Call], executions: list[Execution], killed: dict[str, list[float]]
    ) -> None:
        self.problems: list[str] = []
        self._calls = calls
        self._executions = executions
        self._killed = killed
        # When calls began that got an answer, by gateway and in order.
        self._answered: dict[str, list[float]] = defaultdict(list)
        for call in sorted(calls, key=lambda call: call.begun):
            if call.status > 0:
                self._answered[call.gateway].append(call.begun)

    def judge_calls(self) -> tuple[int, int]:
        """I3. Calls that are lost, and calls that were executed twice."""
        runs = Counter(execution.call for execution in self._executions)
        finished = Counter(e.call for e in self._executions if e.ended != float("inf"))
        lost = duplicated = 0
        for call in self._calls:
            if call.status == 200:
                fine = finished[call.call] == 1 and not call.code
            elif call.status == 0:
                fine = self._gateway_died(call)
            else:
                fine = call.code in RETRIABLE
            if not fine:
                lost += 1
                self.problems.append(f"I3 lost: {call}, executed {finished[call.call]} times")
            if runs[call.call] > 1:
                duplicated += 1
                where = [e for e in self._executions if e.call == call.call]
                self.problems.append(f"I3 executed {runs[call.call]} times: {call}, {where}")
        return lost, duplicated

    def _gateway_died(self, call: Call) -> bool:
        """A killed gateway says nothing; the broken connection is the client's error. Between its
        death and the first call that it let in again, nobody is there to accept one."""
        answered = self._answered[call.gateway]
        for at in self._killed.get(call.gateway, ()):
            after = bisect_right(answered, at)
            let_in = answered[after] if after < len(answered) else call.begun
            if at <= call.ended and call.begun <= let_in:
                return True
        return False

    def judge_upgrades(self, faults: Iterable[Fault]) -> int:
        """Calls that failed, with whatever error, while services were upgraded in order."""
        failed = [
            call
            for fault in faults
            if fault.kind == UPGRADE
            for call in self._calls
            if fault.begun <= call.begun <= fault.ended and call.status != 200
        ]
        self.problems += [f"failed during a rolling upgrade: {call}" for call in failed]
        return len(failed)

    def judge_audit(self, rows: Counter[str], counted: int) -> int:
        """I6. Finished calls without a row, beyond the rows that the audit itself says are lost."""
        finished = [call.call for call in self._calls if call.status > 0]
        missing = [call for call in finished if rows[call] == 0]
        if len(missing) > counted:
            self.problems.append(
                f"I6 {len(missing)} finished calls have no audit row, {counted} are counted as "
                f"lost: {missing[:10]}"
            )
        self.problems += [
            f"I6 {rows[call]} audit rows of {call}" for call in rows if rows[call] > 1
        ]
        return len(missing)

    def judge_slots(self) -> int:
        """I2. Moments at which a pod ran more calls than its slots allow."""
        calls = {call.call: call for call in self._calls}
        moments: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
        for execution in self._executions:
            call = calls.get(execution.call)
            if call is None:
                continue
            # A call counts as accepted until its client has its answer, or its gateway is dead.
            ends = [execution.ended, call.ended]
            ends += [at for at in self._killed.get(call.gateway, ()) if at >= execution.begun]
            moments[execution.pod].append((execution.begun, 1, call.function))
            moments[execution.pod].append((max(execution.begun, min(ends)), -1, call.function))
        double = 0
        for pod, changes in moments.items():
            running = 0
            for at, change, function in sorted(changes):
                running += change
                if running > FUNCTIONS[function][0]:
                    double += 1
                    self.problems.append(
                        f"I2 pod {pod} of {function} ran {running} calls at {at:.3f}"
                    )
        return double

    def added_latency_ms(self, faults: Iterable[Fault]) -> list[float]:
        """For each loss of a leader, whatever the fault, the longest that a call took beyond the
        usual because of it; sorted.

        Faults follow each other within half a second, and one of them may hold a call up for much
        longer than a lost leader (a frozen gateway for eleven seconds), so the wait of a call that
        meets two is given to one of them. What it waited before a fault began is not that fault's
        doing. When the next fault finds it on its way, all of its wait belongs to the earlier one
        if it was late by then, and none of it otherwise: nothing had held it up so far.
        """
        usual = self._usual()
        history = sorted(faults, key=lambda fault: fault.begun)
        ends = [*(fault.begun for fault in history[1:]), float("inf")]
        found = []
        for fault, next_begun in zip(history, ends, strict=True):
            if fault.deposed or fault.kind in LEADER_FAULTS:
                calls = self._answered_between(fault.begun, next_begun)
                late = [
                    call.ended - since
                    for call in calls
                    for since in [max(call.begun, fault.begun) + usual[call.function]]
                    if call.ended <= next_begun or next_begun - since > LATE_S
                ]
                found.append(max(0.0, *late) * 1000 if late else 0.0)
        return sorted(found)

    def _answered_between(self, begun: float, ended: float) -> list[Call]:
        """Calls that were on their way at some time between these, and went well."""
        return [
            call
            for call in self._calls
            if call.status == 200 and call.ended >= begun and call.begun < ended
        ]

    def _usual(self) -> dict[str, float]:
        """Median seconds of each function's calls."""
        times: dict[str, list[float]] = defaultdict(list)
        for call in self._calls:
            if call.status == 200:
                times[call.function].append(call.ended - call.begun)
        return {name: sorted(found)[len(found) // 2] for name, found in times.items()}


def percentile(values: list[float], share: float) -> float:
    """The value at this share of the sorted values, 0 without any."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
