"""Prometheus metrics of the scheduler.

Must never be read to decide anything.
"""

from __future__ import annotations

from typing import Any

from inferx import telemetry

_orders = telemetry.histogram(
    "scheduler_order_seconds",
    "Time that agents took for orders of the scheduler",
    ("kind", "outcome"),
    telemetry.START_BUCKETS_S,
)
_leases = telemetry.counter(
    "scheduler_leases_total", "Leases granted, by the start that came before them", ("start",)
)
_refusals = telemetry.counter("scheduler_refusals_total", "Leases refused, by code", ("code",))
_waits = telemetry.histogram(
    "scheduler_lease_wait_seconds", "Time until a lease was granted", ("start",)
)
_pods = telemetry.gauge("scheduler_pods", "Pods by state", ("state",))
_tasks = telemetry.gauge(
    "scheduler_snapshot_tasks", "Snapshots of functions on nodes, by state of the task", ("state",)
)
_save_failures = telemetry.gauge(
    "scheduler_snapshot_failures", "Attempts to take a snapshot that failed, since the start"
)
_now = telemetry.gauge(
    "scheduler_now",
    "Leases and tickets that live, nodes that are ready, GPU memory in MiB",
    ("what",),
)


_repairs = telemetry.counter(
    "scheduler_reconciled_total",
    "Differences between store, agents and core that were put right, by kind",
    ("kind",),
)


def reconciled(kind: str) -> None:
    """A difference was found and acted on."""
    _repairs.labels(kind).inc()


def order(kind: str, seconds: float, ok: bool) -> None:
    """An agent answered an order."""
    _orders.labels(kind, "ok" if ok else "failed").observe(seconds)


def granted(start: str, seconds: float) -> None:
    """A lease was granted after this time."""
    _leases.labels(start).inc()
    _waits.labels(start).observe(seconds)


def refused(code: str) -> None:
    """A lease was refused."""
    _refusals.labels(code).inc()


def shown(stats: dict[str, Any]) -> None:
    """The core's sums as they are now."""
    for state, count in stats["pods"].items():
        _pods.labels(state).set(count)
    for state, count in stats["snapshot_tasks"].items():
        _tasks.labels(state).set(count)
    _save_failures.set(stats["snapshots_failed"])
    for what in ("leases", "tickets", "nodes_ready", "gpu_mib_total", "gpu_mib_used"):
        _now.labels(what).set(stats[what])
