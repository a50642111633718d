"""The data plane beside other proxies: `make bench-proxy`.

Proxy on core 0, load and backends on core 1, loopback only, rounds interleaved over targets,
medians. Rows go to stdout as JSON lines as soon as a load is through, the table to stderr. A target
that does not start, or does not stand a load, costs a row that says so and nothing else.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import proxy_loads
import proxy_targets
from proxy_loads import CHAT, COLUMNS, LOADS, ONCE, STREAMS, LoadFailed, Sample
from proxy_targets import PEERS, Target

TARGETS = ["direct", "nginx", "haproxy", "ours", "ours_auth", *PEERS]
SHOWN = ("rps", "p50_ms", "p99_ms", "p99_added_ms", "cpu_s_per_10k", "cpu_ratio_nginx",
         "rps_per_core", "rss_mib", "kib_each")  # fmt: skip
# What an LLM gateway is compared in: (name, load, column, more is better).
COMPARED = (
    *(("req/s per core", load, "rps_per_core", True) for load in CHAT),
    *(("added p99", load, "p99_added_ms", False) for load in (*CHAT, "sse_paced_64")),
    *(("CPU per chunk", load, "cpu_s_per_10k", False) for load in STREAMS),
)

Middle = dict[str, Sample]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rounds_of(load: str, folder: Path, targets: list[Target], asked: argparse.Namespace) -> Middle:
    """The medians of a load by target; who fails once is left out from then on."""
    samples: dict[str, list[Sample]] = {}
    failed: set[str] = set()
    for _ in range(1 if load in ONCE else asked.rounds):
        for target in targets:
            if target.name in failed or not proxy_loads.takes_part(load, target):
                continue
            try:
                sample = proxy_loads.measure(folder, load, target, asked.seconds)
                samples.setdefault(target.name, []).append(sample)
            except LoadFailed as error:
                failed.add(target.name)
                samples.pop(target.name, None)
                emit(load, target.name, {"failed": str(error)})
                say(f"{load:14}{target.name:15}failed: {error}")
    return {
        name: {column: statistics.median(one[column] for one in found) for column in COLUMNS}
        for name, found in samples.items()
    }


def emit(load: str, target: str, figures: dict) -> None:
    print(json.dumps({"bench": "proxy", "load": load, "target": target, **figures}), flush=True)


def complete(middle: Middle) -> None:
    """Adds what is relative to others of the same load."""
    for found in middle.values():
        cpu = found["cpu_s_per_10k"]
        found["rps_per_core"] = 10_000 / cpu if cpu else 0.0
        if "direct" in middle:
            found["p99_added_ms"] = found["p99_ms"] - middle["direct"]["p99_ms"]
        if "nginx" in middle:
            found["cpu_ratio_nginx"] = cpu / middle["nginx"]["cpu_s_per_10k"]


def report(load: str, middle: Middle) -> None:
    complete(middle)
    for target, found in middle.items():
        emit(load, target, {name: round(found[name], 3) for name in SHOWN if name in found})
        cells = "".join(f"{found[name]:>16.3f}" if name in found else f"{'':16}" for name in SHOWN)
        say(f"{load:14}{target:15}{cells}")


def compare(loads: dict[str, Middle]) -> None:
    """Ours beside each LLM gateway that was measured in this run."""
    for what, load, column, more_is_better in COMPARED:
        middle = loads.get(load, {})
        for peer in PEERS:
            both = [middle.get(name, {}).get(column) for name in ("ours", peer)]
            if None in both:
                continue
            ours, theirs = both
            ahead = ours > theirs if more_is_better else ours < theirs
            figures = {"ours": round(ours, 3), "theirs": round(theirs, 3), "ahead": ahead}
            row = {"bench": "proxy_peers", "what": what, "load": load, "peer": peer, **figures}
            print(json.dumps(row), flush=True)
            verdict = "ahead" if ahead else "behind"
            say(f"{what:16}{load:14}{peer:15}{ours:>14.3f}{theirs:>14.3f}  {verdict}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3, choices=range(1, 61), metavar="1..60")
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, 21), metavar="1..20")
    parser.add_argument("--loads", nargs="+", default=LOADS, choices=LOADS)
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS)
    return parser.parse_args()


def main() -> None:
    asked = parse()
    needed = {"nginx": "nginx-light", "wrk": "wrk", "taskset": "util-linux"}
    missing = [package for name, package in needed.items() if not shutil.which(name)]
    if missing:
        raise SystemExit(f"bench-proxy needs Debian packages: apt install {' '.join(missing)}")
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("bench-proxy needs two cores")
    say(f"load average at start: {os.getloadavg()[0]:.1f}")
    begun = time.monotonic()
    measured: dict[str, Middle] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        unary, chat = proxy_targets.start_backends(stack, folder)
        wanted = [name for name in asked.targets if name != "direct"]
        targets = proxy_targets.start_targets(stack, folder, wanted, unary.port, chat.port, say)
        say(f"{len(targets)} targets run after {time.monotonic() - begun:.0f} s")
        say(f"{'load':14}{'target':15}" + "".join(f"{name:>16}" for name in SHOWN))
        for load in asked.loads:
            direct = [unary if load in proxy_loads.UNARY else chat]
            among = [*(direct if "direct" in asked.targets else []), *targets]
            measured[load] = rounds_of(load, folder, among, asked)
            report(load, measured[load])
        compare(measured)
    say(f"load average at end: {os.getloadavg()[0]:.1f}, {time.monotonic() - begun:.0f} s in all")


if __name__ == "__main__":
    main()
