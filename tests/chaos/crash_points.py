"""`make crash-points`: a service dies after its n-th write to the store, for every n there is.

In each turn one service is started with a crash point, and a function lives its whole life: it is
created, called, parked, resumed and deleted. The service is started again after its crash; in the
end the function has answered, and nothing is left of it anywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from tests.chaos.agreement import Agreement
from tests.chaos.cluster import Cluster, function
from tests.chaos.processes import Service

CONVERGE_S = 10.0
CRASH = "INFERX_CRASH_AFTER_WRITES"
SERVICES = ("statesvc0", "scheduler0", "node0")
POINTS_MAX = 60
_NAME = "solo"


class CrashPoints:
    """`tried` says how many points each service has; `slowest_s` how long convergence took."""

    def __init__(self, folder: Path, converge_s: float = CONVERGE_S) -> None:
        self._converge_s = converge_s
        self.tried: dict[str, int] = {}
        self.problems: list[str] = []
        self.slowest_s = 0.0
        self._cluster = Cluster(folder, nodes=1, replicas=1)
        self._agreement = Agreement(self._cluster)

    async def go(self, limit: int = POINTS_MAX, services: tuple[str, ...] = SERVICES) -> None:
        """All points of all services, at most `limit` of each."""
        try:
            await self._cluster.start(deploy=False)
            for name in services:
                self.tried[name] = 0
                for number in range(1, limit + 1):
                    if not await self._point(self._cluster.services[name], number):
                        break
                    self.tried[name] = number
        finally:
            await self._cluster.stop()

    async def _point(self, service: Service, number: int) -> bool:
        """One turn; False when the life of a function has fewer writes than that."""
        service.kill()
        service.environment = {CRASH: str(number)}
        service.start()
        service.environment = {}
        crashed = asyncio.Event()
        keeper = asyncio.create_task(self._keep_running(service, crashed))
        try:
            await self._life()
            begun = time.monotonic()
            left = await self._agreement.until_none(self._agreement.leftovers, self._converge_s)
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
            self.problems += [f"{service.name} write {number}: {one}" for one in left]
            return crashed.is_set()
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _keep_running(self, service: Service, crashed: asyncio.Event) -> None:
        """Starts again what has ended, as a supervisor does."""
        while True:
            if not service.running():
                crashed.set()
            for each in self._cluster.services.values():
                each.start()
            await asyncio.sleep(0.05)

    async def _life(self) -> None:
        url = self._cluster.gateways["gateway0"]
        call = f"{url}/funccall/public/c/{_NAME}/up"
        async with httpx.AsyncClient(timeout=30, trust_env=False) as http:

            async def created() -> bool:
                answer = await http.put(f"{url}/object/", json=self._manifest())
                return answer.status_code in (201, 409)

            async def answered() -> bool:
                return (await http.get(call)).status_code == 200

            async def parked() -> bool:
                pods = (await http.get(f"{url}/pods/public/c/")).json()
                states = [pod["object"]["status"]["state"] for pod in pods]
                return states == ["Standby"]

            async def deleted() -> bool:
                path = f"{url}/object/function/public/c/{_NAME}/"
                return (await http.delete(path)).status_code in (200, 404)

            for step in (created, answered, parked, answered, deleted):
                await self._cluster.eventually(_patient(step), step.__name__, 40.0)

    def _manifest(self) -> dict[str, object]:
        return function(_NAME, self._cluster.folder / "executions")


def _patient(step: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
    """A broken connection or an odd answer counts as not yet."""

    async def check() -> bool:
        try:
            return bool(await step())
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return False

    return check


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=POINTS_MAX, help="points of each service")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="inferx-crash-"))
    points = CrashPoints(folder)
    begun = time.monotonic()
    try:
        asyncio.run(points.go(given.limit))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = {
        "bench": "crash_points", "points": points.tried, "broken": len(points.problems),
        "converged_max_s": round(points.slowest_s, 2), "seconds": round(time.monotonic() - begun),
    }  # fmt: skip
    print(json.dumps(report))
    print("\n".join(points.problems), file=sys.stderr)
    return 1 if points.problems else 0


if __name__ == "__main__":
    sys.exit(main())
