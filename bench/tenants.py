"""A thousand tenants with limits under locust, without and with a noisy one: `make bench-tenants`.

Plane on core 0, load and backend on core 1, rounds interleaved, medians; JSON lines on stdout.
`over` is the highest rate of a tenant against its limit, `p99` that of all but the noisy one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from proxy import HERE, start, start_nginx


def run_load(port: int, tenants: int, noisy: int, seconds: int, users: int) -> dict:
    environment = {**os.environ, "TENANTS": str(tenants), "NOISY_USERS": str(noisy)}
    command = [
        "taskset", "-c", "1", sys.executable, "-m", "locust", "-f", str(HERE / "tenants_locust.py"),
        "--headless", "-u", str(users + noisy), "-r", "1000", "-t", f"{seconds}s", "--only-summary",
        "-H", f"http://127.0.0.1:{port}",
    ]  # fmt: skip
    done = subprocess.run(  # noqa: S603
        command, env=environment, capture_output=True, text=True, timeout=seconds + 60, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines or done.returncode:
        raise SystemExit(f"bench-tenants: locust failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, choices=range(5, 301), metavar="5..300")
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, 11), metavar="1..10")
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--noisy", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.3, help="calls per second of a tenant")
    asked = parser.parse_args()
    print(f"load average at start: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    found: dict[int, list[dict]] = {0: [], asked.noisy: []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend, _ = start_nginx(stack, folder, "backend", 1, 0)
        arguments = (str(folder / "c.sock"), str(backend), str(asked.tenants), str(asked.rate))
        process = start(stack, 0, sys.executable, str(HERE / "tenants_host.py"), *arguments)
        assert process.stdout is not None
        port = int(process.stdout.readline())
        for _ in range(asked.rounds):
            for noisy in found:
                found[noisy].append(
                    run_load(port, asked.tenants, noisy, asked.seconds, asked.users)
                )
    for noisy, rounds in found.items():
        row = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        row["over"] = max(each["rate_max"] for each in rounds) / asked.rate - 1
        row = {name: round(value, 3) for name, value in row.items()}
        print(json.dumps({"bench": "tenants", "noisy_users": noisy, "rate": asked.rate, **row}))


if __name__ == "__main__":
    main()
