"""Runs the keep-alive benchmark on a trace: JSON lines, a plot of mean wait against held GPU time.

It must never compute a figure of a run itself: the simulator prints them, this file compares.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FRONTIER_PCT = range(40, 95, 5)
Row = dict[str, Any]
Curve = list[tuple[float, float]]


def run(args: argparse.Namespace) -> Iterator[Row]:
    """The rows of the simulator, as they come. Raises CalledProcessError when it fails."""
    command = ["cargo", "run", "--quiet", "--release", "-p", "scheduler_core"]
    command += ["--example", "keepalive", "--", "--trace", str(args.trace.resolve())]
    command += ["--slots", args.slots, "--pools", args.pools, "--parallel", str(args.parallel)]
    if args.days:
        command += ["--days", args.days]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def curve(rows: list[Row], policy: str) -> Curve:
    """(busy share in percent, mean wait in seconds) of one policy, by rising busy share."""
    points = [row for row in rows if row["policy"] == policy]
    return sorted((row["busy_over_held_pct"], row["wait_mean_s"]) for row in points)


def wait_at(points: Curve, busy_pct: float) -> float | None:
    """Mean wait at a busy share, between two points in a straight line; None outside the curve."""
    for (low, wait_low), (high, wait_high) in pairwise(points):
        if low <= busy_pct <= high:
            share = (busy_pct - low) / (high - low) if high > low else 0.0
            return wait_low + share * (wait_high - wait_low)
    return None


def summaries(rows: list[Row]) -> Iterator[Row]:
    """The share of the gap to the optimum, and the frontier against the best fixed keep-alive."""
    cached = [row for row in rows if row["bench"] == "keepalive"]
    for slots in sorted({row["slots"] for row in cached}):
        miss = {row["policy"]: row["miss_pct"] for row in cached if row["slots"] == slots}
        gap = miss["greedy-dual"] - miss["optimum"]
        closed = 100 * (miss["greedy-dual"] - miss["inferx"]) / gap if gap else 0.0
        yield {"bench": "keepalive_gap", "slots": slots, "closed_pct": round(closed, 1)}
    for bench, pool in sorted({(row["bench"], row["pool"]) for row in rows if "pool" in row}):
        runs = [row for row in rows if row["bench"] == bench and row.get("pool") == pool]
        ours, fixed = curve(runs, "inferx"), curve(runs, "fixed")
        for busy_pct in FRONTIER_PCT:
            wait, wait_fixed = wait_at(ours, busy_pct), wait_at(fixed, busy_pct)
            if wait is None or wait_fixed is None:
                continue
            yield {
                "bench": f"{bench}_frontier",
                "pool": pool,
                "busy_over_held_pct": busy_pct,
                "wait_inferx_s": round(wait, 4),
                "wait_fixed_s": round(wait_fixed, 4),
                "below_pct": round(100 * (1 - wait / wait_fixed), 1),
            }


def draw(rows: list[Row], path: Path) -> None:
    """Mean wait over held GPU time (per busy hour), one panel per scenario."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    scenarios = sorted({(row["bench"], row["pool"]) for row in rows if "default" in row})
    figure, panels = plt.subplots(1, len(scenarios), figsize=(5.5 * len(scenarios), 4.5))
    for panel, (bench, pool) in zip(
        [panels] if len(scenarios) == 1 else panels, scenarios, strict=True
    ):
        runs = [row for row in rows if row["bench"] == bench and row.get("pool") == pool]
        styles = {"fixed": "o-", "inferx": "s-", "greedy-dual": "^", "clairvoyant-pool": "v"}
        styles |= {"clairvoyant-pool-ahead": ">", "clairvoyant": "<"}
        for policy, style in styles.items():
            points = curve(runs, policy)
            held = [100 / busy for busy, _ in points]
            panel.plot(held, [wait for _, wait in points], style, label=policy, markersize=4)
        default = [row for row in runs if row["default"]]
        for row in default:
            held_hours = 100 / row["busy_over_held_pct"]
            panel.plot(held_hours, row["wait_mean_s"], "k*", markersize=12, label="default")
        panel.set_title(
            "GPUs and pool unlimited" if bench.endswith("unlimited") else f"pool of {pool}"
        )
        panel.set_xlabel("GPU hours held per busy hour")
        panel.set_ylabel("mean added wait, s")
        panel.set_xscale("log")
        panel.set_ylim(bottom=0)
        panel.grid(visible=True, alpha=0.3)
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, required=True, help="CSV: t_s, model, exec_s, tenant")
    parser.add_argument("--slots", default="8,16", help="slots of the caching view")
    parser.add_argument("--pools", default="20,6", help="models in the host pool of genai-8")
    parser.add_argument("--parallel", type=int, default=1, help="calls that a worker runs at once")
    parser.add_argument("--days", help="FROM:TO, days of the trace counted from 0, TO excluded")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "target" / "bench",
        help="folder for the rows (keepalive-TRACE.jsonl) and the plot beside them (.png)",
    )
    args = parser.parse_args()
    rows: list[Row] = []
    for row in run(args):
        rows.append(row)
        print(json.dumps(row), flush=True)
    for row in list(summaries(rows)):
        rows.append(row)
        print(json.dumps(row), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / f"keepalive-{args.trace.stem}.jsonl"
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw(rows, kept.with_suffix(".png"))
    print(f"rows in {kept}, plot in {kept.with_suffix('.png')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
