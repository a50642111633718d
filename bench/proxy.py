"""The data plane beside other proxies: `make bench-proxy`.

Proxy on core 0, load and backends on core 1, loopback only, rounds interleaved over targets,
medians. Rows go to stdout as JSON lines, the table to stderr. CPU is of the proxy's process tree.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import proxy_targets
from proxy_host import KEY_OF_ALL
from proxy_targets import Target

HERE = Path(__file__).parent
PAGE = os.sysconf("SC_PAGE_SIZE")
CALL = "/funccall/public/bench/f/"
CHAT = "/v1/chat/completions"
# wrk's connections, and the bytes of the body
UNARY = {"unary_1k_c1": (1, 0), "unary_1k_c64": (64, 0), "post_256k_c8": (8, 262_144)}
STREAMS = {"sse_paced_64": ("paced", 64), "sse_burst_8": ("burst", 8)}
LOADS = [*UNARY, "chat_c16", *STREAMS, "idle_1000", "parked_10000"]
PEERS = ["sglang-router", "vllm-router", "litellm"]
TARGETS = ["direct", "nginx", "haproxy", "ours", "ours_auth", *PEERS]
COLUMNS = ("rps", "p50_ms", "p99_ms", "cpu_s_per_10k", "cpu_ratio_nginx", "rss_mib", "kib_each")
UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
IDLE_STREAMS = 1000
PARKED_CALLS = 10_000
PATIENCE_S = 120
CHAT_LUA = """wrk.method="POST" wrk.headers["Content-Type"]="application/json"
wrk.body='{{"model":"bench/s","messages":[{{"role":"user","content":"{text}"}}]}}'"""


def tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in tree(int(child)))]


def usage(pid: int) -> tuple[float, float]:
    """CPU seconds (by the scheduler's own count) and resident MiB of a process and its children."""
    cpu = rss = 0.0
    for one in tree(pid):
        for task in Path(f"/proc/{one}/task").iterdir():
            cpu += int((task / "schedstat").read_text().split()[0]) / 1e9
        rss += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * PAGE / 2**20
    return cpu, rss


def wrk(folder: Path, load: str, target: Target, seconds: int) -> dict[str, float]:
    connections, body = UNARY.get(load, (16, 0))
    path = CALL
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    # Everybody gets the key; who is `ours_auth` looks at it.
    command += ["-H", f"Authorization: Bearer {KEY_OF_ALL}"]
    script = folder / f"{load}.lua"
    if load == "chat_c16":
        path = CHAT
        script.write_text(CHAT_LUA.format(text="x" * 900))
        command += ["-s", str(script)]
    elif body:
        path += "post"
        script.write_text(f'wrk.method="POST" wrk.body=string.rep("x", {body})')
        command += ["-s", str(script)]
    before, _ = usage(target.pid)
    text = subprocess.run(  # noqa: S603
        [*command, f"http://127.0.0.1:{target.port}{path}"],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=True,
    ).stdout
    cpu, rss = usage(target.pid)
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"bench-proxy: calls failed in {load} through {target.name}:\n{text}")
    done = int(re.search(r"(\d+) requests in", text)[1])
    quantiles = re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s)$", text, re.M)
    (p50, p99) = (float(value) * UNITS_MS[unit] for _, value, unit in quantiles)
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])
    return row(rate, p50, p99, (cpu - before) / done * 10_000, rss)


def row(rate: float, p50: float, p99: float, cpu: float, rss: float, each: float = 0) -> dict:
    return dict(zip(COLUMNS, (rate, p50, p99, cpu, 0.0, rss, each), strict=True))


def load_process(stack: ExitStack, *arguments: str) -> subprocess.Popen:
    return proxy_targets.start(stack, 1, sys.executable, *arguments)


def streams(target: Target, kind: str, count: int) -> dict[str, float]:
    script = str(HERE / "proxy_streams.py")
    with ExitStack() as stack:
        before, rss_before = usage(target.pid)
        process = load_process(stack, script, "load", str(target.port), "bench/s", kind, str(count))
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"bench-proxy: {kind} failed through {target.name}")
        found = json.loads(line)
        cpu, rss = usage(target.pid)
    per_10k = (cpu - before) / found["chunks"] * 10_000
    each = (rss - rss_before) * 1024 / count if kind == "idle" else 0
    rate = found["chunks"] / found["spent_s"]
    return row(rate, found["p50_ms"], found["p99_ms"], per_10k, rss, each)


def parked(target: Target, count: int) -> dict[str, float]:
    """Only ours has calls that wait for a cold worker."""
    assert target.stdin is not None
    with ExitStack() as stack:
        _, rss_before = usage(target.pid)
        script = str(HERE / "proxy_parked.py")
        process = load_process(stack, script, str(target.port), str(count))
        worker = process.stdout.readline()
        give_up = time.monotonic() + PATIENCE_S
        while ask(target, "parked") < count:
            if time.monotonic() > give_up:
                raise SystemExit("bench-proxy: the calls were not parked")
            time.sleep(0.1)
        before, rss = usage(target.pid)
        target.stdin.write(f"add {worker}")
        target.stdin.flush()
        process.stdin.write("\n")
        process.stdin.flush()
        found = json.loads(process.stdout.readline())
        cpu, _ = usage(target.pid)
    if found["answered"] != count or found["out_of_order"]:
        raise SystemExit(f"bench-proxy: parked calls: {found}")
    each = (rss - rss_before) * 1024 / count
    return row(count / found["spent_s"], 0, 0, (cpu - before) / count * 10_000, rss, each)


def ask(target: Target, order: str) -> int:
    target.stdin.write(f"{order}\n")
    target.stdin.flush()
    return int(target.stdout.readline())


def measure(folder: Path, load: str, target: Target, seconds: int) -> dict[str, float] | None:
    """None for a load that this target has no part in."""
    if load in UNARY:
        return None if target.name in PEERS else wrk(folder, load, target, seconds)
    if target.name == "direct" or (load == "parked_10000" and target.name != "ours"):
        return None
    if load == "chat_c16":
        return wrk(folder, load, target, seconds)
    if load in STREAMS:
        return streams(target, *STREAMS[load])
    if load == "idle_1000":
        return streams(target, "idle", IDLE_STREAMS)
    return parked(target, PARKED_CALLS)


def report(samples: dict, loads: list[str], targets: list[str]) -> None:
    print(f"{'load':14}{'target':15}" + "".join(f"{c:>16}" for c in COLUMNS), file=sys.stderr)
    for load in loads:
        middle = {
            t: {c: statistics.median(s[c] for s in samples[load, t]) for c in COLUMNS}
            for t in targets
            if (load, t) in samples
        }
        for target, found in middle.items():
            if "nginx" in middle:
                found["cpu_ratio_nginx"] = found["cpu_s_per_10k"] / middle["nginx"]["cpu_s_per_10k"]
            shown = {c: round(v, 3) for c, v in found.items()}
            print(json.dumps({"bench": "proxy", "load": load, "target": target, **shown}))
            cells = "".join(f"{shown[c]:>16}" for c in COLUMNS)
            print(f"{load:14}{target:15}{cells}", file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, choices=range(1, 61), metavar="1..60")
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
    print(f"load average at start: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    samples: dict = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        unary, chat = proxy_targets.start_backends(stack, folder)
        wanted = [name for name in asked.targets if name != "direct"]
        targets = proxy_targets.start_targets(stack, folder, wanted, unary, chat)
        if "direct" in asked.targets:
            targets.insert(0, unary)
        for number in range(asked.rounds):
            for load in asked.loads:
                if load == "parked_10000" and number:
                    continue  # a start is cold once
                for target in targets:
                    sample = measure(folder, load, target, asked.seconds)
                    if sample is not None:
                        samples.setdefault((load, target.name), []).append(sample)
        report(samples, asked.loads, [target.name for target in targets])
    print(f"load average at end: {os.getloadavg()[0]:.1f}", file=sys.stderr)


if __name__ == "__main__":
    main()
