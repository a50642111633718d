"""The sleep mode of vLLM's server: `/sleep` gives its GPU memory up, `/wake_up` takes it back.

Must never call a server that does not offer it, nor fail a pod for what a later step does, too.
"""

from __future__ import annotations

import logging

import httpx

from inferx.errors import Unavailable

log = logging.getLogger("inferx.agent.sleepmode")

ASK_TIMEOUT_S = 2.0
MOVE_TIMEOUT_S = 60.0  # weights of a big model to host memory, or back
LEVEL = 1  # weights go to host memory and come back; 2 would forget them


class SleepMode:
    """One worker's. Whether it is offered is asked once."""

    def __init__(self, client: httpx.AsyncClient, asleep: bool = False) -> None:
        self._client = client
        self._offered: bool | None = True if asleep else None
        self.asleep = asleep

    async def sleep(self, base: str) -> str:
        """Ask the server to give its GPU memory up. What went wrong, for people to read; the
        memory is then left to the next step."""
        if not await self._is_offered(base):
            return ""
        try:
            await self._post(f"{base}/sleep?level={LEVEL}")
        except Unavailable as error:
            return error.message
        self.asleep = True
        return ""

    async def wake(self, base: str) -> None:
        """Ask the server to take its memory back, if it was asked to sleep; raises Unavailable."""
        if self.asleep:
            await self._post(f"{base}/wake_up")
            self.asleep = False

    async def _is_offered(self, base: str) -> bool:
        if self._offered is None:
            self._offered = await self._answers(f"{base}/is_sleeping")
        return self._offered

    async def _answers(self, url: str) -> bool:
        """Whether it speaks of sleeping as vLLM does; any other server has its own meaning."""
        try:
            answer = await self._client.get(url, timeout=ASK_TIMEOUT_S)
            told = answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return False
        return isinstance(told, dict) and isinstance(told.get("is_sleeping"), bool)

    async def _post(self, url: str) -> None:
        path = url.rpartition("/")[2]
        try:
            answer = await self._client.post(url, timeout=MOVE_TIMEOUT_S)
        except httpx.HTTPError as error:
            raise Unavailable(f"/{path} of the server failed: {error!r}") from error
        if answer.status_code >= 300:
            raise Unavailable(f"/{path} of the server answered {answer.status_code}")
