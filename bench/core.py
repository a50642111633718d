"""Measures the scheduler core from Python: one JSON line a case.

Must never print a figure that pytest-benchmark or the operating system did not measure.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from core_cases import cluster, pod

CASES = Path(__file__).with_name("core_cases.py")
NODES, PODS, FUNCTIONS = 10_000, 200_000, 100_000


def rebuild() -> None:
    """What a new leader does: it is told of all nodes, functions and pods, then decides."""
    begun = time.perf_counter()
    core = cluster(NODES, FUNCTIONS)
    for number in range(PODS):
        core.observe(1, pod(number, FUNCTIONS, NODES))
    core.tick(1)
    seconds = time.perf_counter() - begun
    stats = core.stats()
    if sum(stats["pods"].values()) != PODS or stats["functions"] != FUNCTIONS:
        raise SystemExit(f"the core did not take everything over: {stats}")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    case = f"rebuild_{NODES}_nodes_{PODS}_pods_{FUNCTIONS}_functions"
    cpu = round(time.process_time(), 2)
    measured = {"seconds": round(seconds, 2), "cpu_seconds": cpu, "peak_mib": round(peak_mib)}
    print(json.dumps({"bench": "core", "case": case, **measured}))


def main() -> int:
    if sys.argv[1:] == ["--rebuild"]:
        rebuild()
        return 0
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        options = ["-q", "-p", "no:cacheprovider", "-o", "python_files=core_cases.py"]
        options += [f"--benchmark-json={report.name}", "--benchmark-quiet", "--no-header"]
        failed = pytest.main([str(CASES), *options])
        if failed:
            return int(failed)
        measured = json.loads(Path(report.name).read_text())["benchmarks"]
    for case in measured:
        name = case["name"].removeprefix("test_").replace("[", "_").rstrip("]")
        median_ns = round(case["stats"]["median"] * 1e9, 1)
        print(json.dumps({"bench": "core", "case": name, "median_ns": median_ns}), flush=True)
    # A process of its own, so that the peak is that of the rebuild.
    command = [sys.executable, __file__, "--rebuild"]
    return subprocess.run(command, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
