"""The cases of `make bench-core`, for pytest-benchmark: verbs of the core as Python calls them.

Must never reach into the core: what is measured is what the scheduler service pays.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from inferx._ext import SchedulerCore

GPUS, GPU_MIB = 8, 80_000
PLACEMENTS = 2_000


def node(number: int) -> dict[str, Any]:
    """A node with eight GPUs, as a fact."""
    return {
        "kind": "node", "name": f"n{number}", "boot_id": "b", "ready": True,
        "cpu_millis": 96_000, "mem_mib": 700_000, "cache_mib": 512_000,
        "gpus": [(gpu, "A", GPU_MIB) for gpu in range(GPUS)], "context_overhead_mib": 400,
    }  # fmt: skip


def function(number: int, vram_mib: int = 14_000) -> dict[str, Any]:
    """A function on a share of one GPU, as a fact; a thousand tenants have them."""
    return {
        "kind": "function", "tenant": f"t{number % 1000}", "namespace": "n",
        "name": f"f{number}", "revision": 1, "cpu_millis": 1_000, "mem_mib": 1_000,
        "gpu_type": "Any", "gpu_count": 1, "vram_mib": vram_mib, "max_replica": 5,
    }  # fmt: skip


def pod(number: int, functions: int, nodes: int) -> dict[str, Any]:
    """A pod that an agent reports: every second one runs, the others stand by."""
    runs, owner = number % 2 == 1, number % functions
    return {
        "kind": "pod", "pod_id": f"{number:012x}", "node": f"n{number % nodes}",
        "tenant": f"t{owner % 1000}", "namespace": "n", "name": f"f{owner}", "revision": 1,
        "state": "Ready" if runs else "Standby", "reason": "",
        "cpu_millis": 1_000 if runs else 0, "mem_mib": 1_000, "cache_mib": 0,
        "devices": [number // nodes % GPUS] if runs else [], "gpu_mib": 14_400 if runs else 0,
    }  # fmt: skip


def cluster(nodes: int, functions: int) -> SchedulerCore:
    """A core that was told of this many nodes and functions."""
    core = SchedulerCore("abc123")
    for number in range(nodes):
        core.observe(0, node(number))
    for number in range(functions):
        core.observe(0, function(number))
    return core


@pytest.mark.parametrize("named", [True, False], ids=["idempotent", "plain"])
def test_lease_pair(benchmark: BenchmarkFixture, named: bool) -> None:
    """A warm lease and its return, with and without a request id."""
    core = cluster(1, 1)
    core.lease(1, "t0", "n", "f0", 1, 1, "first", 0, 60_000)
    (start,) = core.effects()
    result = {"pod_id": start["pod_id"], "ok": True, "order": start["order"]}
    core.observe(2, {"kind": "start_result", **result})
    (grant,) = core.effects()
    core.give_back(3, grant["lease_id"])
    request_id = "0123456789abcdef" if named else ""

    def pair() -> None:
        lease = core.lease(10, "t0", "n", "f0", 1, 1, request_id, 1, 60_000)
        core.give_back(10, lease[1])

    benchmark(pair)
    assert core.stats()["leases"] == 0
    core.check(10)


@pytest.mark.parametrize("nodes", [1_000, 10_000])
def test_placement(benchmark: BenchmarkFixture, nodes: int) -> None:
    """A call of a function that runs nowhere: a node is chosen among all, an order comes out."""
    core = cluster(nodes, 0)
    numbers = count()

    def known() -> tuple[tuple[int], dict[str, Any]]:
        number = next(numbers)
        core.observe(0, function(number, vram_mib=(6_000, 14_000, 30_000, 70_000)[number % 4]))
        return (number,), {}

    def place(number: int) -> None:
        core.lease(1, f"t{number % 1000}", "n", f"f{number}", 1, 1, "", 0, 60_000)
        (order,) = core.effects()
        assert order["effect"] == "start"

    benchmark.pedantic(place, setup=known, rounds=PLACEMENTS)
