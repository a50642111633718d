"""Mixed load on a whole platform, and whether memory and descriptors stay flat: `make soak`.

Starts `inferx up` in a folder of its own, deploys three functions of the test model server, lets
`bench/locustfile.py` call them, and looks at every service meanwhile. The first quarter warms up;
the last one must not stand above the second. Ends with status 1 when a call failed or something
grew.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.cluster.conftest import Platform, eventually, function, start_platform  # noqa: E402

SAMPLES = 60
GROWTH_MIB_MAX, GROWTH_SHARE_MAX = 8.0, 0.05
DESCRIPTORS_MAX = 16
FUNCTIONS = ("unary", "stream", "mixed")


def usage(pid: int) -> tuple[float, int]:
    """Resident MiB and open descriptors of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib = int(status.split("VmRSS:")[1].split()[0])
    return kib / 1024, len(os.listdir(f"/proc/{pid}/fd"))


def load(platform: Platform, seconds: int, users: int) -> "subprocess.Popen[bytes]":
    """Starts locust against the platform. Its report, which an hour makes longer than a pipe takes,
    goes to files for `totals`.
    """
    command = [
        sys.executable, "-m", "locust", "-f", str(ROOT / "bench" / "locustfile.py"), "--headless",
        "--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds}s",
        "--host", platform.url, "--json", "--only-summary", "--exit-code-on-error", "0",
    ]  # fmt: skip
    report, errors = _files(platform)
    with report.open("wb") as output, errors.open("wb") as trouble:
        return subprocess.Popen(command, stdout=output, stderr=trouble)  # noqa: S603


def _files(platform: Platform) -> tuple[Path, Path]:
    return platform.folder.with_suffix(".locust.json"), platform.folder.with_suffix(".locust.err")


def totals(platform: Platform) -> tuple[int, int, str]:
    """Calls, failed ones, and what else there was to say, of a load that has ended."""
    report, errors = _files(platform)
    rows = json.loads(report.read_text())
    requests = sum(row["num_requests"] for row in rows)
    return requests, sum(row["num_failures"] for row in rows), errors.read_text()


def deploy(platform: Platform) -> None:
    """The three functions, each with a worker that is ready."""
    platform.start_namespace()
    platform.apply(*(function(name, scalein_timeout=60.0) for name in FUNCTIONS))
    for name in FUNCTIONS:
        assert platform.call(name, "pid").status_code == 200, name


def watch(platform: Platform, running: "subprocess.Popen[bytes]", seconds: int) -> dict[str, list]:
    """Samples of every service while the load runs."""
    samples: dict[str, list] = {}
    step = seconds / SAMPLES
    while running.poll() is None:
        for name, pid in platform.children().items():
            samples.setdefault(name, []).append(usage(pid))
        time.sleep(step)
    return samples


def judge(name: str, samples: list[tuple[float, int]]) -> list[str]:
    """What grew in a service; prints a row."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    rss = [statistics.median(mib for mib, _ in part) for part in (early, late)]
    descriptors = [statistics.median(count for _, count in part) for part in (early, late)]
    row = {
        "bench": "soak", "service": name, "rss_mib": [round(value, 1) for value in rss],
        "descriptors": descriptors, "rss_mib_max": round(max(mib for mib, _ in samples), 1),
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    found = []
    if rss[1] - rss[0] > GROWTH_MIB_MAX + GROWTH_SHARE_MAX * rss[0]:
        found.append(f"{name} grew from {rss[0]:.1f} to {rss[1]:.1f} MiB")
    if descriptors[1] - descriptors[0] > DESCRIPTORS_MAX:
        found.append(f"{name} went from {descriptors[0]} to {descriptors[1]} descriptors")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--users", type=int, default=12)
    parser.add_argument("--listener", default="rust", choices=("rust", "granian"))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench/soak.py was told to end"))
    with tempfile.TemporaryDirectory() as folder:
        platform = start_platform(
            Path(folder, "inferx"), "--gpus", "3x1000", "--listener", asked.listener
        )
        try:
            deploy(platform)
            with load(platform, asked.seconds, asked.users) as running:
                try:
                    samples = watch(platform, running, asked.seconds)
                finally:
                    running.kill()  # nothing when it has ended
            eventually(lambda: platform.client.get("/readyz").status_code == 200, what="ready")
            requests, failed, errors = totals(platform)
        finally:
            platform.stop()
    print(json.dumps({"bench": "soak", "seconds": asked.seconds, "users": asked.users,
                      "requests": requests, "failed": failed}))  # fmt: skip
    faults = [fault for name in samples for fault in judge(name, samples[name])]
    if failed or not requests:
        faults.append(f"{failed} of {requests} calls failed:\n{errors}")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
