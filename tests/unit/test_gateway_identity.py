"""A gateway speaks for those that died on its folder, and for no living one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from inferx.gateway.identity import Identity


def test_dead_gateways_are_replaced_until_announced(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"gateway-{dead.pid}.id").write_text("41")
    (tmp_path / "gateway-1.id").write_text("42")  # process 1 lives
    identity = Identity(tmp_path)
    assert identity.replaces == [41]
    identity.announced()
    assert identity.replaces == []
    identity.release()
    assert [path.name for path in tmp_path.iterdir()] == ["gateway-1.id"]


def test_a_torn_file_is_only_removed(tmp_path: Path) -> None:
    (tmp_path / "gateway-999999999.id").write_text("")
    identity = Identity(tmp_path)
    assert identity.replaces == []
    identity.announced()
    assert len(list(tmp_path.iterdir())) == 1
