"""One service behind several addresses: calls that may be repeated, answered by whoever is there.

Must never be used for a call whose repetition would do something twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from inferx.errors import Unavailable
from inferx.rpc import client

WRITES = frozenset({"Create", "Update", "Delete", "Grant", "End"})
TRY_S = 0.6  # how long one address may stay silent while others could answer


class Replicas:
    """Stubs of one service at `addrs`; a call starts with the address that answered last.

    `written` is told of each call that changed something.
    """

    def __init__(
        self,
        addrs: Sequence[str],
        stub: Callable[[Any], Any],
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self._written = written
        self._channels = [client.channel(addr) for addr in addrs]
        self._stubs = [stub(channel) for channel in self._channels]
        self._current = 0

    async def call(self, method: str, request: Any, timeout_s: float = 5.0) -> Any:
        """The answer of the first address that gives one; `Unavailable` when none does."""
        count = len(self._stubs)
        try_s = timeout_s if count == 1 else min(timeout_s, TRY_S)
        problem = Unavailable("no addresses")
        for _ in range(count):
            index = self._current
            try:
                answer = await client.call(getattr(self._stubs[index], method), request, try_s)
                if method in WRITES:
                    self._written()
                return answer
            except Unavailable as error:
                problem = error
                if self._current == index:
                    self._current = (index + 1) % count
        raise problem

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels:
            await channel.close(None)
