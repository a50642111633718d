"""The judge of `make chaos` sees what it is there for, and excuses only what a fault explains."""

from __future__ import annotations

from collections import Counter

from tests.chaos.checker import Checker, Execution
from tests.chaos.load import Call
from tests.chaos.nemesis import UPGRADE, Fault

FOREVER = float("inf")


def call(
    name: str, begun: float = 1.0, ended: float = 2.0, status: int = 200, code: str = ""
) -> Call:
    return Call(name, "solo", "gateway0", begun, ended, status, code)


def run(name: str, begun: float = 1.2, ended: float = 1.8, pod: str = "p") -> Execution:
    return Execution(name, pod, begun, ended)


def test_an_answered_call_was_executed_once() -> None:
    fine = Checker([call("a")], [run("a")], {})
    assert fine.judge_calls() == (0, 0)
    assert not fine.problems
    assert Checker([call("a")], [], {}).judge_calls() == (1, 0)
    assert Checker([call("a")], [run("a", ended=FOREVER)], {}).judge_calls() == (1, 0)
    assert Checker([call("a")], [run("a"), run("a", pod="q")], {}).judge_calls() == (1, 1)


def test_a_refusal_has_to_be_one_that_may_be_repeated() -> None:
    assert Checker([call("a", status=503, code="no_capacity")], [], {}).judge_calls() == (0, 0)
    assert Checker([call("a", status=500, code="internal")], [], {}).judge_calls() == (1, 0)


def test_a_broken_connection_is_excused_by_a_killed_gateway_only() -> None:
    broken = call("a", 1.0, 2.0, 0)
    assert Checker([broken], [], {}).judge_calls() == (1, 0)
    assert Checker([broken], [], {"gateway0": [1.5]}).judge_calls() == (0, 0)
    assert Checker([broken], [], {"gateway1": [1.5]}).judge_calls() == (1, 0)
    # It was killed before the call, and others were let in between.
    between = call("b", 0.7, 0.9)
    checker = Checker([broken, between], [run("b", 0.75, 0.85)], {"gateway0": [0.5]})
    assert checker.judge_calls() == (1, 0)
    # Nobody was let in between: it was still down.
    later = call("b", 1.1, 1.4)
    checker = Checker([broken, later], [run("b", 1.2, 1.3)], {"gateway0": [0.5]})
    assert checker.judge_calls() == (0, 0)


def test_a_worker_runs_no_more_calls_than_it_has_slots() -> None:
    calls = [call("a", 1.0, 3.0), call("b", 1.0, 3.0)]
    assert Checker(calls, [run("a", 1.1, 2.0), run("b", 2.1, 2.9)], {}).judge_slots() == 0
    assert Checker(calls, [run("a", 1.1, 2.0), run("b", 1.5, 2.9)], {}).judge_slots() == 1


def test_no_error_is_good_enough_during_an_upgrade() -> None:
    upgrade = Fault(UPGRADE, "scheduler", 1.0, 5.0)
    refused = call("a", 2.0, 3.0, 503, "unavailable")
    assert Checker([refused], [], {}).judge_upgrades([upgrade]) == 1
    assert Checker([call("a", 6.0, 7.0, 503)], [], {}).judge_upgrades([upgrade]) == 0


def test_each_finished_call_is_audited_once_or_counted_as_lost() -> None:
    calls = [call("a"), call("b"), call("c", status=0)]
    for rows, counted, missing, problems in (
        ({"a": 1, "b": 1}, 0, 0, 0), ({"a": 1}, 1, 1, 0), ({"a": 1}, 0, 1, 1),
        ({"a": 2, "b": 1}, 0, 0, 1),
    ):  # fmt: skip
        checker = Checker(calls, [], {})
        assert checker.judge_audit(Counter(rows), counted) == missing
        assert len(checker.problems) == problems


def test_a_wait_is_given_to_the_fault_that_caused_it() -> None:
    usual = [call(f"u{number}", 0.1 * number, 0.1 * number + 0.05) for number in range(9)]
    lost = Fault("kill_leader", "scheduler0", 10.0, 14.0)
    frozen = Fault("pause_gateway", "gateway0", 15.0, 26.0)

    def added(*calls: Call) -> list[float]:
        checker = Checker([*usual, *calls], [], {})
        return [round(value) for value in checker.added_latency_ms([lost, frozen])]

    assert added() == [0]
    assert added(call("a", 10.5, 12.05)) == [1500]
    assert added(call("a", 14.9, 26.0)) == [0], "it was fine until a gateway was frozen"
    assert added(call("a", 13.0, 26.0)) == [12_950], "it was late before the gateway was frozen"
    assert added(call("a", 3.0, 10.5)) == [450], "nobody had lost a leader yet"
    assert added(call("a", 15.5, 26.0)) == [0]
    assert added(call("a", 10.5, 12.05, 503, "unavailable")) == [0], "it is judged as refused"


def test_a_leader_is_lost_by_other_faults_too() -> None:
    calls = [call("u", 0.0, 0.05), call("a", 10.5, 12.05), call("v", 1.0, 1.05)]
    cut = Fault("cut_scheduler_from_state", "scheduler0", 10.0, 14.0)
    assert Checker(calls, [], {}).added_latency_ms([cut]) == []
    cut.deposed = True
    assert [round(value) for value in Checker(calls, [], {}).added_latency_ms([cut])] == [1500]
