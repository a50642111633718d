"""Clients that call functions all the time and write down how each call ended.

Must never repeat a call: what happens to one id is what the platform did.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

import httpx

from tests.chaos.cluster import FUNCTIONS

CALL_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Call:
    """One call; `status` 0 = the connection broke, -1 = no end in time."""

    call: str
    function: str
    gateway: str
    begun: float
    ended: float
    status: int
    code: str = ""


class Load:
    """`clients` at once; `calls` is the history."""

    def __init__(self, gateways: dict[str, str], seed: int, clients: int = 8) -> None:
        self.calls: list[Call] = []
        self._gateways = gateways
        self._random = random.Random(seed)
        self._clients = clients
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(self._client(n)) for n in range(self._clients)]

    async def stop(self) -> None:
        """No new calls; wait for those on their way."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def _client(self, number: int) -> None:
        # A connection a call, so that a call meets a killed gateway's successor, not its socket.
        limits = httpx.Limits(max_keepalive_connections=0)
        turn = 0
        async with httpx.AsyncClient(
            timeout=CALL_TIMEOUT_S, trust_env=False, limits=limits
        ) as http:
            while not self._stopping.is_set():
                turn += 1
                function = self._random.choice(sorted(FUNCTIONS))
                gateway = self._random.choice(sorted(self._gateways))
                ms = self._random.randrange(5, 60)
                await self._call(http, f"c{number}-{turn}", function, gateway, ms)
                await asyncio.sleep(self._random.uniform(0.1, 0.6))

    async def _call(
        self, http: httpx.AsyncClient, call: str, function: str, gateway: str, ms: int
    ) -> None:
        url = f"{self._gateways[gateway]}/funccall/public/c/{function}/run?call={call}&ms={ms}"
        begun = time.monotonic()
        status, code = 0, ""
        try:
            # As inference calls are: not to be repeated by anybody on the way.
            answer = await http.post(url, content=b'{"input": 1}', headers={"X-Request-Id": call})
            status = answer.status_code
            if status != 200:
                code = _code(answer)
            elif answer.json()["call"] != call:
                code = "another call's answer"
        except httpx.TimeoutException as error:
            status, code = -1, type(error).__name__
        except httpx.HTTPError as error:
            code = type(error).__name__
        self.calls.append(Call(call, function, gateway, begun, time.monotonic(), status, code))


def _code(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"no code: {answer.text[:100]}"
