"""A thousand tenants with limits under locust, without and with a noisy one: `make bench-tenants`.

The plane has core 0 for itself. Core 1 has the backend and the ordinary tenants; the noisy tenant's
generator (wrk) is there as well, but of the class SCHED_IDLE: it runs only while nobody else wants
the core, so that a slower answer is the plane's doing and not the generator's. Rounds are
interleaved, figures are medians; JSON lines on stdout. `over` is the highest rate of a tenant
against its limit, `p99_ms` that of all but the noisy one.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from proxy_targets import HERE, first_line, start, start_backends

CONNECTIONS = 16


def run_load(port: int, tenants: int, noisy: bool, seconds: int, users: int) -> dict:
    """One round; the noisy one calls t0 as fast as it is answered, from before to after."""
    with ExitStack() as stack:
        loud = start_noisy(stack, port, seconds) if noisy else None
        command = [
            "taskset", "-c", "1", sys.executable, "-m", "locust",
            "-f", str(HERE / "tenants_locust.py"), "--headless", "-u", str(users), "-r", "1000",
            "-t", f"{seconds}s", "--only-summary", "-H", f"http://127.0.0.1:{port}",
        ]  # fmt: skip
        done = subprocess.run(  # noqa: S603
            command, env={**os.environ, "TENANTS": str(tenants)}, capture_output=True, text=True,
            timeout=seconds + 60, check=False,
        )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines or done.returncode:
            raise SystemExit(f"bench-tenants: locust failed:\n{done.stdout}\n{done.stderr}")
        found = json.loads(lines[-1].removeprefix("RESULT "))
        return found | (noisy_result(loud) if loud else {})


def start_noisy(stack: ExitStack, port: int, seconds: int) -> subprocess.Popen:
    url = f"http://127.0.0.1:{port}/funccall/t0/n/f/x"
    # Locust takes seconds to start and to stop.
    wrk = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds + 8}s", url]
    return start(stack, 1, "chrt", "--idle", "0", *wrk)


def noisy_result(process: subprocess.Popen) -> dict:
    text, _ = process.communicate(timeout=120)
    total, spent = re.search(r"(\d+) requests in ([\d.]+)(m|s)", text).group(1, 2)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    passed = int(total) - (int(refused[1]) if refused else 0)
    minutes = re.search(r"requests in [\d.]+m", text) is not None
    seconds = float(spent) * (60 if minutes else 1)
    # The first call finds a full bucket, and opens the interval.
    return {
        "noisy_passed": passed,
        "noisy_refused": int(total) - passed,
        "noisy_rate": max(passed - 1, 0) / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=45, choices=range(5, 301), metavar="5..300")
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, 11), metavar="1..10")
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--rate", type=float, default=0.3, help="calls per second of a tenant")
    asked = parser.parse_args()
    print(f"load average at start: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    found: dict[bool, list[dict]] = {False: [], True: []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend, _ = start_backends(stack, folder)
        arguments = (str(folder / "c.sock"), str(backend.port), str(asked.tenants), str(asked.rate))
        process = start(stack, 0, sys.executable, str(HERE / "tenants_host.py"), *arguments)
        port = first_line(process, "the plane")
        for _ in range(asked.rounds):
            for noisy in found:
                found[noisy].append(
                    run_load(port, asked.tenants, noisy, asked.seconds, asked.users)
                )
    for noisy, rounds in found.items():
        row = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        highest = max(max(each["rate_max"], each.get("noisy_rate", 0.0)) for each in rounds)
        row["over"] = highest / asked.rate - 1
        row = {name: round(value, 3) for name, value in row.items()}
        print(json.dumps({"bench": "tenants", "noisy": noisy, "rate": asked.rate, **row}))


if __name__ == "__main__":
    main()
