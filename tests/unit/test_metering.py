"""GPU seconds: shares of GPUs, for as long as they are held."""

from __future__ import annotations

from typing import Any

from inferx.domain import codec
from inferx.domain.meta import Object
from inferx.gateway.metering import Meter
from inferx.store.informer import ADDED, DELETED, MODIFIED
from inferx.telemetry import registry


def node() -> Object[Any]:
    gpus = [{"index": index, "type": "Sim", "vram_mb": 24_000} for index in range(2)]
    spec = {
        "address": "127.0.0.1", "podmgr_port": 1, "state_port": 1,
        "resources": {"CPU": 1, "Mem": 1, "GPUs": gpus},
    }  # fmt: skip
    return codec.new("node", ("system", "system", "n1"), {"spec": spec})


def pod(state: str, vram_mb: int, devices: list[int], held_mb: int = 0) -> Object[Any]:
    gpu = {"Type": "Sim", "vRam": vram_mb, "devices": devices, "contextOverhead": 0}
    spec = {
        "funcname": "f", "fprevision": 1, "node": "n1",
        "alloc_resources": {"CPU": 1, "Mem": 1, "GPU": gpu},
    }  # fmt: skip
    status = {"state": state, "vram_mb": held_mb, "since_ms": 1}
    return codec.new("pod", ("metered", "n", "p"), {"spec": spec, "status": status})


def seconds(phase: str) -> float:
    labels = {"tenant": "metered", "namespace": "n", "phase": phase}
    return registry.get_sample_value("inferx_gpu_seconds_total", labels) or 0.0


def test_a_share_of_a_gpu_costs_a_share() -> None:
    now = [0.0]
    machine = node()
    meter = Meter(lambda key: machine if key[2] == "n1" else None, lambda: now[0])
    meter.seen(ADDED, pod("Loading", 8000, [0]))
    now[0] += 30
    meter.seen(MODIFIED, pod("Working", 8000, [0]))
    now[0] += 30
    meter.settle()
    assert abs(seconds("running") - 20.0) < 1e-6, "a third of a GPU for a minute"
    meter.seen(MODIFIED, pod("Standby", 8000, [0]))
    now[0] += 3600
    meter.settle()
    assert abs(seconds("running") - 20.0) < 1e-6
    assert seconds("standby") == 0.0, "a standby that holds nothing costs nothing"
    meter.seen(MODIFIED, pod("Standby", 8000, [0], held_mb=2400))
    now[0] += 100
    meter.seen(MODIFIED, pod("Idle", 12_000, [0, 1]))
    assert abs(seconds("standby") - 10.0) < 1e-6
    now[0] += 10
    meter.seen(DELETED, pod("Idle", 12_000, [0, 1]))
    now[0] += 1000
    meter.settle()
    assert abs(seconds("running") - 30.0) < 1e-6, "two halves for ten seconds, then nothing"
