"""The scheduler dies after its first writes of a function's life; `make crash-points` tries all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.crash_points import CrashPoints


@pytest.mark.xdist_group("chaos")
async def test_the_same_end_after_each_crash(tmp_path: Path) -> None:
    points = CrashPoints(tmp_path, converge_s=60.0)  # a busy machine is slow
    await points.go(limit=3, services=("scheduler0",))
    assert points.tried == {"scheduler0": 3}
    assert not points.problems, "make crash-points\n" + "\n".join(points.problems)
