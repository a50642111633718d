"""The ordinary tenants of `bench/tenants.py`: each user calls the next tenant ten times a second.

Prints one JSON line at the end.
"""

import itertools
import json
import os
import time
from collections import defaultdict

from locust import FastHttpUser, constant_pacing, events, task

TENANTS = int(os.environ["TENANTS"])
RATE_OF_USER = 10.0
turn = itertools.cycle(range(1, TENANTS))
passed = defaultdict(list)
refused = defaultdict(int)
latencies_ms = []


class Ordinary(FastHttpUser):
    """Calls one tenant after the other."""

    wait_time = constant_pacing(1 / RATE_OF_USER)

    @task
    def call(self) -> None:
        tenant = next(turn)
        begun = time.perf_counter()
        path = f"/funccall/t{tenant}/n/f/x"
        with self.client.get(path, catch_response=True, name="call") as answer:
            latencies_ms.append((time.perf_counter() - begun) * 1000)
            if answer.status_code == 200:
                passed[tenant].append(time.monotonic())
            elif answer.status_code == 429:
                refused[tenant] += 1
                answer.success()
            else:
                answer.failure(f"HTTP {answer.status_code}")


@events.quitting.add_listener
def report(environment: object, **_: object) -> None:
    """One line with what was seen."""
    rates = [
        (len(times) - 1) / (times[-1] - times[0])
        for times in passed.values()
        if len(times) > 1 and times[-1] > times[0]
    ]
    ordered = sorted(latencies_ms)
    found = {
        "passed": sum(len(times) for times in passed.values()),
        "refused": sum(refused.values()),
        "tenants_seen": len(passed),
        "rate_max": max(rates, default=0.0),
        "p50_ms": ordered[len(ordered) // 2] if ordered else 0.0,
        "p99_ms": ordered[int(len(ordered) * 0.99)] if ordered else 0.0,
    }
    print("RESULT " + json.dumps(found), flush=True)
