"""The data plane's counters as Prometheus metrics, next to those of this process.

Must never count anything itself; the data plane does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from inferx.telemetry import metrics_text

_PLANE_COUNTERS = {
    "connections": "Client connections accepted",
    "requests": "HTTP requests of any kind",
    "retries": "Calls tried on another connection or worker",
    "records_lost": "Access records that were dropped because nobody took them",
}
_GAUGES = {
    "workers": "Workers in rotation",
    "slots": "Calls that the workers in rotation serve at a time",
    "active": "Calls being served",
    "parked": "Calls waiting for a slot",
    "requested": "Workers asked for and not there yet",
}


class _Snapshot:
    """One reading of the data plane, as a collector."""

    def __init__(self, stats: dict[str, Any]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """All metrics of the reading."""
        stats = self._stats
        for name, text in _PLANE_COUNTERS.items():
            yield CounterMetricFamily(f"inferx_gateway_{name}", text, value=stats[name])
        text = "Client connections open now"
        yield GaugeMetricFamily("inferx_gateway_connections_open", text, stats["connections_open"])
        functions = [(name.split("/"), found) for name, found in stats["functions"].items()]
        yield from self._counters(functions)
        labels = ("tenant", "namespace", "function")
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"inferx_function_{name}", text, labels=labels)
            for key, found in functions:
                gauge.add_metric(key, found[name])
            yield gauge
        yield self._histogram("wait", "Time from a call's arrival to its slot", functions)
        yield self._histogram("first_byte", "Time to the head of the answer", functions)

    def _counters(self, functions: list[tuple[list[str], dict[str, Any]]]) -> Iterable[Metric]:
        labels = ("tenant", "namespace", "function")
        calls = CounterMetricFamily(
            "inferx_calls", "Calls that ended, by status", labels=(*labels, "status")
        )
        starts = CounterMetricFamily(
            "inferx_starts", "Workers taken in, by how they came to be", labels=(*labels, "kind")
        )
        broken = CounterMetricFamily(
            "inferx_calls_broken", "Answers that broke off, by who left", labels=(*labels, "by")
        )
        for key, found in functions:
            for status, count in found["statuses"].items():
                calls.add_metric([*key, status], count)
            for kind, count in found["starts"].items():
                starts.add_metric([*key, kind], count)
            broken.add_metric([*key, "client"], found["client_gone"])
            broken.add_metric([*key, "worker"], found["broken"])
        return (calls, starts, broken)

    def _histogram(
        self, name: str, text: str, functions: list[tuple[list[str], dict[str, Any]]]
    ) -> Metric:
        labels = ("tenant", "namespace", "function")
        family = HistogramMetricFamily(f"inferx_call_{name}_seconds", text, labels=labels)
        bounds = [str(bound / 1000) for bound in self._stats["bounds_ms"]] + ["+Inf"]
        for key, found in functions:
            total = 0
            buckets = []
            for bound, count in zip(bounds, found[name]["buckets"], strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric(key, buckets, found[name]["sum_ms"] / 1000)
        return family


def render(stats: bytes) -> bytes:
    """`Proxy.stats()` and this process's registry in Prometheus text form."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(orjson.loads(stats)))
    return generate_latest(registry) + metrics_text()
