"""A few faults against a whole cluster of processes; `make chaos` runs more of the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import Run

SEED = 456  # its first eight faults are the worst kinds


@pytest.mark.xdist_group("chaos")
async def test_nothing_is_lost_and_nothing_is_leased_twice(tmp_path: Path) -> None:
    run = Run(tmp_path, faults=8, seed=SEED, settle_s=60.0)  # a busy machine is slow
    await run.go()
    assert not run.problems, f"make chaos N=8 SEED={SEED}\n" + "\n".join(run.problems)
    report = run.report
    assert report["ok"] > 50, report
    assert sum(report["faults"].values()) == 8, report
