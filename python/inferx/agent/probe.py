"""The probe that decides whether a worker is ready: a health request or the sample query.

Must never start or stop a process; it only asks over HTTP until the answer is 200.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

import httpx

from inferx.agent.runtimes.protocol import Worker
from inferx.agent.spec import coerce, sample_of
from inferx.domain.function import FunctionSpec, SampleQuery
from inferx.errors import InvalidState, StartFailed

RETRY_FIRST_S = 0.010
RETRY_MAX_S = 0.050
RETRY_GROWTH = 1.25
ANSWER_SHOWN_BYTES = 300


class Probe:
    """Asks one worker; `last` says what the most recent try found.

    With `again` the worker has been ready before and only has to show that it runs: a function
    probed by Prompt is then asked for its health path, and may even not know that path.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        spec: FunctionSpec,
        host: str,
        port: int,
        *,
        again: bool = False,
    ) -> None:
        self._client = client
        self._endpoint = spec.endpoint
        self._by_prompt = spec.endpoint.probe_type == "Prompt"
        self._again = again
        self._sample = sample_of(spec)
        by_prompt_now = self._by_prompt and not again
        path = self._sample.path if by_prompt_now else spec.endpoint.probe
        self._asks = f"{'POST' if by_prompt_now else 'GET'} /{path.lstrip('/')}"
        self._base = f"{spec.endpoint.schema.lower()}://{host}:{port}"
        self._port = port
        self._refused = True
        self.last = "not asked yet"
        self.tries = 0

    async def until_ready(self, timeout_s: float) -> None:
        """Ask until the worker answers 200; raises StartFailed when `timeout_s` has passed."""
        deadline = time.monotonic() + timeout_s
        delay_s = RETRY_FIRST_S
        while not await self.once(max(0.001, deadline - time.monotonic())):
            if time.monotonic() + delay_s >= deadline:
                raise StartFailed(f"not ready after {timeout_s:g} s: {self.last}{self._hint()}")
            await asyncio.sleep(delay_s)
            delay_s = min(RETRY_MAX_S, delay_s * RETRY_GROWTH)

    async def once(self, left_s: float) -> bool:
        """One try; whether the worker answered 200. `left_s` bounds it besides probeTimeout."""
        self.tries += 1
        try_s = min(left_s, self._endpoint.probe_timeout_ms / 1000)
        try:
            if self._by_prompt and not self._again:
                return await self._ask_prompt(try_s, left_s)
            return await self._ask("GET", self._endpoint.probe, try_s)
        except httpx.ConnectError:
            self.last = f"{self._asks}: nothing listens on port {self._port}"
        except (httpx.TimeoutException, TimeoutError):
            self._refused = False
            # A try that the end of the loading time cut short says less than the one before it.
            if try_s >= self._endpoint.probe_timeout_ms / 1000 or self.tries == 1:
                self.last = f"{self._asks}: no answer within {try_s * 1000:.0f} ms"
        except httpx.HTTPError as error:
            self._refused = False
            self.last = f"{self._asks}: {type(error).__name__}: {error}"
        return False

    async def _ask_prompt(self, try_s: float, left_s: float) -> bool:
        # A first answer takes longer than a health check: only the connection is bound by
        # probeTimeout, the answer by what is left of the whole loading time.
        limits = httpx.Timeout(left_s, connect=try_s)
        async with asyncio.timeout(left_s):
            return await self._ask(
                "POST", self._sample.path, limits, json=prompt_body(self._sample)
            )

    async def _ask(
        self, method: str, path: str, limits: float | httpx.Timeout, json: Any = None
    ) -> bool:
        url = f"{self._base}/{path.lstrip('/')}"
        async with self._client.stream(method, url, json=json, timeout=limits) as answer:
            self._refused = False
            body = b""
            async for piece in answer.aiter_bytes():
                body += piece
                # The first token proves a streaming worker; the rest of its text is not needed.
                if self._satisfied(answer) or len(body) >= ANSWER_SHOWN_BYTES:
                    break
            if self._satisfied(answer):
                return True
            shown = body[:ANSWER_SHOWN_BYTES].decode("utf-8", errors="replace").strip()
            self.last = f"{self._asks} answered {answer.status_code}: {shown}"
            return False

    def _satisfied(self, answer: httpx.Response) -> bool:
        if self._by_prompt and self._again:
            return answer.status_code < 500
        return answer.status_code == 200

    def _hint(self) -> str:
        if self._refused:
            return "; the command has to listen on $INFERX_HOST:$PORT, both also written $(NAME)"
        return ""


async def prove(probe: Probe, worker: Worker, interrupted: asyncio.Event, timeout_s: float) -> None:
    """Wait for the worker's first 200.

    Raises StartFailed when the worker ends or `timeout_s` passes before, and InvalidState when
    `interrupted` is set before.
    """
    asking = asyncio.create_task(probe.until_ready(timeout_s))
    waiting = asyncio.create_task(interrupted.wait())
    try:
        first: list[asyncio.Future[Any]] = [asking, waiting, worker.exited]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if worker.exited.done():
            raise StartFailed(f"worker {worker.exited.result()} before it was ready")
        if interrupted.is_set():
            raise InvalidState("told to end before it was ready")
        await asking
    finally:
        for task in (asking, waiting):
            task.cancel()
        await asyncio.gather(asking, waiting, return_exceptions=True)


def prompt_body(sample: SampleQuery) -> Mapping[str, Any]:
    """The sample query's JSON body with its prompt where the API of its path expects it."""
    body: dict[str, Any] = coerce(sample.body)
    if any(name in body for name in ("prompt", "messages", "input")) or not sample.prompt:
        return body
    if sample.path.rstrip("/").endswith("chat/completions"):
        text = {"type": "text", "text": sample.prompt}
        image = {"type": "image_url", "image_url": {"url": sample.image_url}}
        content: Any = [text, image] if sample.image_url else sample.prompt
        return body | {"messages": [{"role": "user", "content": content}]}
    if sample.path.rstrip("/").endswith(("embeddings", "speech", "rerank")):
        return body | {"input": sample.prompt}
    return body | {"prompt": sample.prompt}


def new_client() -> httpx.AsyncClient:
    """The agent's HTTP client: direct (no proxy from the environment), no kept connections."""
    # One line for each try would bury the rest of the agent's log.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # A worker's own certificate on loopback names nobody, so there is nothing to verify.
    return httpx.AsyncClient(
        trust_env=False,
        verify=False,  # noqa: S501 # nosec B501
        limits=httpx.Limits(max_keepalive_connections=0),
    )
