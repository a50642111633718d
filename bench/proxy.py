"""The data plane beside nginx and the bare backend: `make bench-proxy`.

Proxy on core 0, load (wrk) and backend (nginx) on core 1, loopback only, interleaved rounds,
medians. Rows go to stdout as JSON lines, the table to stderr. CPU is of the proxy's process tree.
"""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from proxy_host import KEY_OF_ALL

HERE = Path(__file__).parent
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
CALL = "/funccall/public/bench/f/"
LOADS = {"unary_1k_c1": (1, 0), "unary_1k_c64": (64, 0), "post_256k_c8": (8, 262_144)}
COLUMNS = ("rps", "p50_ms", "p99_ms", "cpu_s_per_10k", "cpu_ratio_nginx", "rss_mib")
# `return` answers before it has read the body; passing the call on without one reads it first.
POST = """location ~ /post$ {{
      client_body_buffer_size 512k; rewrite ^ / break; proxy_pass http://127.0.0.1:{port};
      proxy_pass_request_body off; proxy_set_header Content-Length "";
    }}"""
UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
READY_S = 15.0
NGINX = """daemon off; master_process off; worker_processes 1; pid {folder}/{name}.pid;
error_log {folder}/{name}.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; client_max_body_size 8m;
  client_body_temp_path {folder}/{name}-body; proxy_temp_path {folder}/{name}-proxy;
  fastcgi_temp_path {folder}/{name}-f; uwsgi_temp_path {folder}/{name}-u;
  scgi_temp_path {folder}/{name}-s;
  {upstream}
  server {{
    listen 127.0.0.1:{port};
    location / {{ {location} }}
    {post}
  }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_port(port: int) -> None:
    give_up = time.monotonic() + READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def start(stack: ExitStack, core: int, *command: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(  # noqa: S603
        ["taskset", "-c", str(core), *command],  # noqa: S607
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process


def start_nginx(stack: ExitStack, folder: Path, name: str, core: int, upstream: int) -> tuple:
    port = free_port()
    location, pool = f"return 200 '{'x' * 1024}';", ""
    if upstream:
        pool = f"upstream b {{ server 127.0.0.1:{upstream}; keepalive 256; }}"
        pool = pool.replace("keepalive 256;", "keepalive 256; keepalive_requests 100000000;")
        location = "proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection '';"
    post = "" if upstream else POST.format(port=port)
    text = NGINX.format(
        folder=folder, name=name, port=port, upstream=pool, location=location, post=post
    )
    config = folder / f"{name}.conf"
    config.write_text(text)
    process = start(stack, core, "nginx", "-p", str(folder), "-c", str(config))
    wait_port(port)
    return port, process.pid


def start_ours(stack: ExitStack, folder: Path, upstream: int, *options: str) -> tuple:
    command = (sys.executable, str(HERE / "proxy_host.py"), str(folder / "c.sock"), str(upstream))
    process = start(stack, 0, *command, *options)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("bench-proxy: the data plane did not start")
    return int(line), process.pid


def tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in tree(int(child)))]


def usage(pid: int) -> tuple[float, float]:
    """CPU seconds and resident MiB of a process and its children."""
    cpu = rss = 0.0
    for one in tree(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        cpu += (int(fields[11]) + int(fields[12])) / TICK
        rss += int(fields[21]) * PAGE / 2**20
    return cpu, rss


def run_load(folder: Path, load: str, target: tuple, seconds: int) -> dict[str, float]:
    connections, body = LOADS[load]
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    # Everybody gets the key; who is `ours_auth` looks at it.
    command += ["-H", f"Authorization: Bearer {KEY_OF_ALL}"]
    if body:
        script = folder / f"{load}.lua"
        script.write_text(f'wrk.method="POST" wrk.body=string.rep("x", {body})')
        command += ["-s", str(script)]
    before, _ = usage(target[1])
    text = subprocess.run(  # noqa: S603
        [*command, f"http://127.0.0.1:{target[0]}{CALL}{'post' if body else ''}"],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=True,
    ).stdout
    cpu, rss = usage(target[1])
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"bench-proxy: calls failed in {load}:\n{text}")
    done = int(re.search(r"(\d+) requests in", text)[1])
    quantiles = re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s)$", text, re.M)
    (p50, p99) = (float(value) * UNITS_MS[unit] for _, value, unit in quantiles)
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])
    per_10k = (cpu - before) / done * 10_000
    return dict(zip(COLUMNS, (rate, p50, p99, per_10k, 0.0, rss), strict=True))


def report(samples: dict, loads: list[str], targets: list[str]) -> None:
    print(f"{'load':14}{'target':10}" + "".join(f"{c:>17}" for c in COLUMNS), file=sys.stderr)
    for load in loads:
        middle = {
            t: {c: statistics.median(s[c] for s in samples[load, t]) for c in COLUMNS}
            for t in targets
        }
        for target in targets:
            row = middle[target]
            row["cpu_ratio_nginx"] = row["cpu_s_per_10k"] / middle["nginx"]["cpu_s_per_10k"]
            row = {c: round(v, 3) for c, v in row.items()}
            print(json.dumps({"bench": "proxy", "load": load, "target": target, **row}))
            cells = "".join(f"{row[c]:>17}" for c in COLUMNS)
            print(f"{load:14}{target:10}{cells}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, choices=range(1, 61), metavar="1..60")
    parser.add_argument("--rounds", type=int, default=3, choices=range(3, 21), metavar="3..20")
    parser.add_argument("--loads", nargs="+", default=list(LOADS), choices=list(LOADS))
    asked = parser.parse_args()
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
        direct = start_nginx(stack, folder, "backend", 1, 0)
        nginx = start_nginx(stack, folder, "proxy", 0, direct[0])
        targets = {"direct": direct, "nginx": nginx}
        targets["ours"] = start_ours(stack, folder, direct[0])
        targets["ours_auth"] = start_ours(stack, folder, direct[0], "auth")
        for _ in range(asked.rounds):
            for load in asked.loads:
                for name, target in targets.items():
                    sample = run_load(folder, load, target, asked.seconds)
                    samples.setdefault((load, name), []).append(sample)
        report(samples, asked.loads, list(targets))


if __name__ == "__main__":
    main()
