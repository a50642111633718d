"""`make gpu-check` without a GPU: it says so; its device part runs on a fake libcuda.

Must never need a GPU; the part with PyTorch processes is for machines that have one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FAKE = ROOT / "ext" / "gpu_snapshot" / "tests" / "fake_cuda" / "fake_cuda.c"
SCRIPT = ROOT / "bench" / "gpu_check.py"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A libcuda of this test's own."""
    path = tmp_path / "libcuda.so.1"
    options = ["-shared", "-fPIC", "-O1", "-o", str(path), str(FAKE), "-ldl", "-lpthread"]
    subprocess.run(["cc", *options], check=True)
    return path


def test_without_a_gpu_it_says_so_with_a_code_of_its_own(tmp_path: Path) -> None:
    result = check("--library", str(tmp_path / "libcuda.so.1"))
    assert result.returncode == 3
    assert "no GPU here, nothing was checked" in result.stderr
    assert json.loads(result.stdout)["rows"] == []


def test_the_device_part_measures_and_leaves_nothing(library: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    result = check("--library", str(library), "--quick", "--index", "1", "--out", str(out))
    assert result.returncode == 0, result.stderr
    table = json.loads(out.read_text())
    assert table["gpu"]["name"] == "Fake GPU 1"
    cases = [row["case"] for row in table["rows"]]
    for case in ("pin", "h2d", "d2h", "vmm", "pool-to-gpu", "file-to-gpu"):
        assert case in cases
    state = dict(line.split() for line in Path(f"{library}.state").read_text().splitlines())
    held = [state[name] for name in ("allocations", "mappings", "reservations", "streams")]
    assert held == ["0"] * 4


@pytest.mark.parametrize("fault", ["cuMemcpyHtoDAsync 700 0", "cuMemMap 2 0", "cuMemCreate 2 0"])
def test_a_failing_device_fails_the_check_by_name(library: Path, fault: str) -> None:
    Path(f"{library}.faults").write_text(fault)
    result = check("--library", str(library), "--quick")
    assert result.returncode == 1, result.stderr
    table = json.loads(result.stdout)
    assert "copies" in table["failed"]
    code = fault.split()[1]
    assert any(
        code in row.get("error", "") or "memory" in row.get("error", "") for row in table["rows"]
    )
