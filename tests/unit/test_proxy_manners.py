"""Memory, promptness and isolation of a data plane in a process of its own.

The figures come from `make bench-manners` on a quiet machine; the bounds here leave room for noise,
except those for memory, which noise does not touch.
"""

from __future__ import annotations

import statistics

import pytest

from bench import manners

GONE_MS = 100.0  # the target is 10 ms; the median of several rounds shrugs off most noise
LOCK_HELD_MS = 3000
GAP_MS = 1000.0  # the target is 15 ms; without isolation it is as long as the lock is held
CALLS, REFUSED = 10_000, 1_000
PARKED_MIB_MAX = 64.0


@pytest.mark.parametrize("streaming", [False, True], ids=["silent", "mid-stream"])
async def test_the_worker_sees_at_once_that_a_client_is_gone(streaming: bool) -> None:
    taken = await manners.client_gone(11, streaming)
    assert statistics.median(taken) < GONE_MS, taken


async def test_a_stalled_reader_costs_no_memory() -> None:
    growth_mib, taken_mib = await manners.stalled_reader(2.0)
    assert taken_mib < 64, "the worker must be stalled, too"
    assert growth_mib <= 1.0


async def test_tokens_flow_while_the_interpreter_lock_is_held() -> None:
    gap_ms, sent_gap_ms = await manners.lock_held(LOCK_HELD_MS)
    # What a busy machine sends late can come no earlier.
    assert gap_ms - sent_gap_ms < GAP_MS, f"{gap_ms:.0f} ms, sent with up to {sent_gap_ms:.0f} ms"


async def test_ten_thousand_parked_calls_are_cheap_and_answered_in_order() -> None:
    figures = await manners.parked(CALLS, REFUSED)
    assert (figures["served"], figures["refused"]) == (CALLS - REFUSED, REFUSED)
    assert figures["displaced_max"] < 500, "first come, first served"
    assert figures["growth_mib"] < PARKED_MIB_MAX
