"""The loads of `bench/proxy.py`: each against one target, with a deadline, as one sample.

Must never wait for a target without an end: what does not finish is a `LoadFailed` with the reason.
"""

import json
import os
import re
import select
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import proxy_targets
from proxy_host import KEY_OF_ALL
from proxy_targets import Target

HERE = Path(__file__).parent
PAGE = os.sysconf("SC_PAGE_SIZE")
CALL = "/funccall/public/bench/f/"
CHAT_PATH = "/v1/chat/completions"
# wrk's connections, and the bytes of the body
UNARY = {"unary_1k_c1": (1, 0), "unary_1k_c64": (64, 0), "post_256k_c8": (8, 262_144)}
CHAT = {"chat_c1": 1, "chat_c16": 16}
STREAMS = {"sse_paced_64": ("paced", 64), "sse_burst_8": ("burst", 8)}
IDLE, PARKED = "idle_1000", "parked_10000"
LOADS = [*UNARY, *CHAT, *STREAMS, IDLE, PARKED]
# Memory that was used once is kept, and a start is cold once: a second round says nothing new.
ONCE = (IDLE, PARKED)
COLUMNS = ("rps", "p50_ms", "p99_ms", "cpu_s_per_10k", "rss_mib", "kib_each")
UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
IDLE_STREAMS = 1000
PARKED_CALLS = 10_000
STREAMS_PATIENCE_S = 60
PARKED_PATIENCE_S = 120
CHAT_LUA = """wrk.method="POST" wrk.headers["Content-Type"]="application/json"
wrk.body='{{"model":"bench/s","messages":[{{"role":"user","content":"{text}"}}]}}'"""

Sample = dict[str, float]


class LoadFailed(Exception):
    """A target did not stand a load; the message says how."""


def takes_part(load: str, target: Target) -> bool:
    """Whether the load means anything for the target."""
    name = target.name
    if load == PARKED:
        return name == "ours"  # the only one whose calls wait for a cold worker
    if load in UNARY:
        return name not in proxy_targets.PEERS  # they know chat only
    if load == IDLE:
        return name not in ("direct", "ours_auth")
    return name != "ours_auth" or load in CHAT


def measure(folder: Path, load: str, target: Target, seconds: int) -> Sample:
    """One sample. Raises `LoadFailed`."""
    if load in UNARY or load in CHAT:
        return wrk(folder, load, target, seconds)
    if load in STREAMS:
        return streams(target, *STREAMS[load])
    if load == IDLE:
        return streams(target, "idle", IDLE_STREAMS)
    return parked(target, PARKED_CALLS)


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in tree(int(child)))]


def usage(target: Target) -> tuple[float, float]:
    """CPU seconds (by the scheduler's own count) and resident MiB of a target's processes."""
    cpu = rss = 0.0
    try:
        for one in tree(target.pid):
            for task in Path(f"/proc/{one}/task").iterdir():
                cpu += int((task / "schedstat").read_text().split()[0]) / 1e9
            rss += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * PAGE / 2**20
    except (FileNotFoundError, ProcessLookupError) as error:
        raise LoadFailed(f"a process of it has ended: {error}") from error
    return cpu, rss


def row(rate: float, p50: float, p99: float, cpu: float, rss: float, each: float = 0) -> Sample:
    """The figures under their names."""
    return dict(zip(COLUMNS, (rate, p50, p99, cpu, rss, each), strict=True))


def wrk(folder: Path, load: str, target: Target, seconds: int) -> Sample:
    """Calls in a closed loop."""
    connections, body = (CHAT[load], 0) if load in CHAT else UNARY[load]
    path = CHAT_PATH if load in CHAT else CALL
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    # Everybody gets the key; who is `ours_auth` looks at it.
    command += ["-H", f"Authorization: Bearer {KEY_OF_ALL}"]
    script = folder / f"{load}.lua"
    if load in CHAT:
        script.write_text(CHAT_LUA.format(text="x" * 900))
        command += ["-s", str(script)]
    elif body:
        path += "post"
        script.write_text(f'wrk.method="POST" wrk.body=string.rep("x", {body})')
        command += ["-s", str(script)]
    before, _ = usage(target)
    url = f"http://127.0.0.1:{target.port}{path}"
    try:
        done = subprocess.run(  # noqa: S603
            [*command, url], capture_output=True, text=True, timeout=seconds + 60, check=True
        )
    except subprocess.SubprocessError as error:
        raise LoadFailed(str(error)) from error
    cpu, rss = usage(target)
    return _read_wrk(done.stdout, cpu - before, rss)


def _read_wrk(text: str, cpu_s: float, rss: float) -> Sample:
    count = re.search(r"(\d+) requests in", text)
    quantiles = re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s)$", text, re.MULTILINE)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    failed = re.search(r"(Non-2xx.*|Socket errors.*)", text)
    if failed or not (count and rate and len(quantiles) == 2 and int(count[1])):
        raise LoadFailed(failed[1] if failed else f"no calls were answered: {text}")
    (p50, p99) = (float(value) * UNITS_MS[unit] for _, value, unit in quantiles)
    return row(float(rate[1]), p50, p99, cpu_s / int(count[1]) * 10_000, rss)


def load_process(stack: ExitStack, *arguments: str) -> "subprocess.Popen[str]":
    """A load generator in Python, ended with the stack."""
    return proxy_targets.start(stack, 1, sys.executable, *arguments)


def read_line(process: "subprocess.Popen[str]", seconds: float) -> str:
    """The one line that the process prints next."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise LoadFailed(f"no result after {seconds:.0f} s")
    line = process.stdout.readline()
    if not line:
        raise LoadFailed("its clients failed (see above)")
    return line


def streams(target: Target, kind: str, count: int) -> Sample:
    """Streams of one kind; rates and CPU are of chunks."""
    script = str(HERE / "proxy_streams.py")
    with ExitStack() as stack:
        before, rss_before = usage(target)
        process = load_process(stack, script, "load", str(target.port), "bench/s", kind, str(count))
        found = json.loads(read_line(process, STREAMS_PATIENCE_S))
        cpu, rss = usage(target)
    if kind == "idle" and found["chunks"] < count:
        raise LoadFailed(f"{found['chunks']} of {count} streams had begun when its time was over")
    per_10k = (cpu - before) / found["chunks"] * 10_000
    each = (rss - rss_before) * 1024 / count if kind == "idle" else 0
    rate = found["chunks"] / found["spent_s"]
    return row(rate, found["p50_ms"], found["p99_ms"], per_10k, rss, each)


def parked(target: Target, count: int) -> Sample:
    """Calls that wait for a cold worker, which comes when all wait."""
    assert target.stdin is not None
    with ExitStack() as stack:
        _, rss_before = usage(target)
        script = str(HERE / "proxy_parked.py")
        process = load_process(stack, script, str(target.port), str(count))
        assert process.stdin is not None
        worker = read_line(process, PARKED_PATIENCE_S)
        give_up = time.monotonic() + PARKED_PATIENCE_S
        while ask(target, "parked") < count:
            if time.monotonic() > give_up:
                raise LoadFailed(f"{ask(target, 'parked')} of {count} calls were parked")
            time.sleep(0.1)
        before, rss = usage(target)
        target.stdin.write(f"add {worker}")
        target.stdin.flush()
        process.stdin.write("\n")
        process.stdin.flush()
        found = json.loads(read_line(process, PARKED_PATIENCE_S))
        cpu, _ = usage(target)
    if found["answered"] != count or found["out_of_order"]:
        raise LoadFailed(f"parked calls: {found}")
    each = (rss - rss_before) * 1024 / count
    return row(count / found["spent_s"], 0, 0, (cpu - before) / count * 10_000, rss, each)


def ask(target: Target, order: str) -> int:
    """What the process of `ours` answers to a line."""
    assert target.stdin is not None
    assert target.stdout is not None
    target.stdin.write(f"{order}\n")
    target.stdin.flush()
    return int(target.stdout.readline())
