"""Prometheus metrics of the node agent.

Must never be read to decide anything.
"""

from __future__ import annotations

from inferx import telemetry

_starts = telemetry.histogram(
    "agent_start_seconds",
    "Time until a worker was ready, by the way it took and where its GPU memory was kept",
    ("start", "tier"),
    telemetry.START_BUCKETS_S,
)
_saves = telemetry.counter("agent_snapshots_total", "Workers to be saved, by outcome", ("outcome",))
_fallbacks = telemetry.counter(
    "agent_snapshot_fallbacks_total",
    "Snapshots that could not be used, so that a worker started from nothing, by reason",
    ("reason",),
)
_kept = telemetry.gauge("agent_snapshot_bytes", "Bytes of all snapshots on this node", ())


_tier_failures = telemetry.counter(
    "agent_tier_failures_total",
    "Copies of GPU memory that could not be used, so that a colder one was taken, by tier",
    ("tier",),
)


def started(start: str, tier: str, seconds: float) -> None:
    """A pod got ready: `start` is cold, snapshot or resume; `tier` is empty for a worker without
    GPU memory that the agent keeps."""
    _starts.labels(start, tier).observe(seconds)


def tier_failed(tier: str) -> None:
    """A copy in that tier could not be used."""
    _tier_failures.labels(tier).inc()


def saved(outcome: str) -> None:
    """A worker was published, `not saved`, or `not kept` after that."""
    _saves.labels(outcome).inc()


def fell_back(reason: str) -> None:
    """A snapshot was `damaged`, `foreign`, or its worker did not get ready (`restore`)."""
    _fallbacks.labels(reason).inc()


def kept(size_bytes: int) -> None:
    """What all snapshots take now."""
    _kept.set(size_bytes)
