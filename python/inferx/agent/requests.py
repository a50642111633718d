"""The requests that a pod's task works off one after the other.

Must never run anything itself, and never hold more than one request of a verb at a time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Generic, TypeVar

from inferx.errors import InferxError

T = TypeVar("T")


@dataclass
class Request(Generic[T]):
    """One thing asked of a pod; `done` is the answer to everybody who asked for it."""

    verb: str
    argument: T
    done: asyncio.Future[None]

    def answer(self, error: InferxError | None = None) -> None:
        """Tell who waits that it is done, or why not."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class Requests(Generic[T]):
    """A queue whose requests are joined by verb: asking twice waits for the same answer."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Request[T]] = asyncio.Queue()
        self._pending: dict[str, asyncio.Future[None]] = {}

    def ask(self, verb: str, argument: T) -> asyncio.Future[None]:
        """Put a request in, or join the one of that verb; shield the future when waiting for it."""
        if verb in self._pending:
            return self._pending[verb]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody may be waiting; the outcome shows in the pod's state as well.
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        done.add_done_callback(lambda _: self._pending.pop(verb, None))
        self._pending[verb] = done
        self._queue.put_nowait(Request(verb, argument, done))
        return done

    def pending(self, verb: str) -> asyncio.Future[None] | None:
        """The answer to come of that verb, if it was asked for."""
        return self._pending.get(verb)

    async def next(self) -> Request[T]:
        """The next request, in the order in which they came."""
        return await self._queue.get()

    def rest(self) -> list[Request[T]]:
        """All requests that nobody will work off any more."""
        left = []
        while not self._queue.empty():
            left.append(self._queue.get_nowait())
        return left
