"""Long moves of memory as jobs: awaited like a task, run in a thread, and cancelled between chunks.

Must never leave a thread running that nobody waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from inferx._ext import CancelToken

T = TypeVar("T")


class Job(Generic[T]):
    """One move. Awaiting gives its result; cancelling the waiter cancels the move and waits for
    its end. The engine releases the interpreter lock for as long as it works."""

    def __init__(self, pool: ThreadPoolExecutor, work: Callable[[CancelToken], T]) -> None:
        self._token = CancelToken()
        self._cancelled = False
        loop = asyncio.get_running_loop()
        self._future = loop.run_in_executor(pool, work, self._token)

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop; it may have been through already."""
        return self._cancelled

    def cancel(self) -> None:
        """Ask it to stop at the next chunk; it then ends with SnapshotError."""
        self._cancelled = True
        self._token.cancel()

    @property
    def result(self) -> T:
        """What it gave; only after it has ended."""
        return self._future.result()

    async def ended(self) -> BaseException | None:
        """Wait for its end; what went wrong, or None."""
        await asyncio.wait([self._future])
        return self._future.exception()

    def __await__(self) -> Generator[Any, None, T]:
        return self._result().__await__()

    async def _result(self) -> T:
        try:
            return await asyncio.shield(self._future)
        except asyncio.CancelledError:
            self.cancel()
            await self.ended()
            raise
