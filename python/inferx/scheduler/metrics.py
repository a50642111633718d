"""Prometheus metrics of the scheduler.

Must never be read to decide anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from inferx import telemetry

WAITS_S = telemetry.WAIT_BUCKETS_S

_orders = telemetry.histogram(
    "scheduler_order_seconds",
    "Time that agents took for orders of the scheduler",
    ("kind", "outcome"),
    telemetry.START_BUCKETS_S,
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


class _Leases(Collector):
    """What the server of leases has counted; nothing before there is one."""

    source: Callable[[], dict[str, Any]] | None = None

    def describe(self) -> Iterable[Metric]:
        """Nothing is fixed before the first lease."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Leases by the start that came before them, waits, refusals."""
        if self.source is None:
            return ()
        stats = self.source()
        leases = CounterMetricFamily(
            "inferx_scheduler_leases",
            "Leases granted, by the start that came before them",
            labels=("start",),
        )
        waits = HistogramMetricFamily(
            "inferx_scheduler_lease_wait_seconds",
            "Time until a lease was granted",
            labels=("start",),
        )
        refusals = CounterMetricFamily(
            "inferx_scheduler_refusals", "Leases refused, by code", labels=("code",)
        )
        bounds = [str(float(bound)) for bound in WAITS_S] + ["+Inf"]
        for start, (sum_s, counts) in stats["granted"].items():
            totals = list(itertools.accumulate(counts))
            leases.add_metric([start], totals[-1])
            waits.add_metric([start], list(zip(bounds, totals, strict=True)), sum_s)
        for code, count in stats["refused"].items():
            refusals.add_metric([code], count)
        return (leases, waits, refusals)


_leases = _Leases()
telemetry.registry.register(_leases)


def leases_from(source: Callable[[], dict[str, Any]]) -> None:
    """Show what `SchedulerServer.stats` says from now on."""
    _leases.source = source


def shown(stats: dict[str, Any]) -> None:
    """The core's sums as they are now."""
    for state, count in stats["pods"].items():
        _pods.labels(state).set(count)
    for state, count in stats["snapshot_tasks"].items():
        _tasks.labels(state).set(count)
    _save_failures.set(stats["snapshots_failed"])
    for what in ("leases", "tickets", "nodes_ready", "gpu_mib_total", "gpu_mib_used"):
        _now.labels(what).set(stats[what])
