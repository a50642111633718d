"""The core in Python's hands: facts go in, orders come out, calls of gateways pass by.

Leases are granted and taken back by `SchedulerServer` in a thread of its own, at the same core.
Must never await between a verb of the core and its effects.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from inferx._ext import SchedulerCore, SchedulerServer
from inferx.domain.meta import Key
from inferx.errors import InferxError, codes
from inferx.scheduler import metrics

LEASE_TTL_MS = 10_000
# A pod that was adopted is nobody else's before a lease of the former scheduler has run out, unless
# every gateway has said what it holds.
TAKEOVER_MS = LEASE_TTL_MS
_log = logging.getLogger(__name__)

Fact = dict[str, Any]
Effect = dict[str, Any]


class Brain:
    """`orders` takes every effect that an agent has to carry out; `changed` is told of changes;
    `learn` reads a function that the core has not heard of; `broken` is told that the core is
    of no use any more."""

    def __init__(
        self,
        orders: Callable[[Effect], None],
        changed: Callable[[], None],
        learn: Callable[[Key], Awaitable[None]],
        broken: Callable[[InferxError], None],
        idle_park_ms: int | None,
    ) -> None:
        self._core = SchedulerCore(
            secrets.token_hex(4), idle_park_ms, lease_ttl_ms=LEASE_TTL_MS, takeover_ms=TAKEOVER_MS
        )
        statuses = {code: grpc.StatusCode[name].value[0] for code, name in codes().items()}
        self.server = SchedulerServer(self._core, LEASE_TTL_MS, statuses, metrics.WAITS_S)
        self._orders = orders
        self._changed = changed
        self._learn = learn
        self._broken = broken
        self._learning: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.server.bell_fd, self._answer)
        self.unix_offset_ms = time.time_ns() // 1_000_000 - self.now_ms()

    def now_ms(self) -> int:
        """Monotonic milliseconds, the clock of the core."""
        return time.monotonic_ns() // 1_000_000

    # ---- verbs ----

    def expect(self, gateway_ids: list[int]) -> None:
        """These gateways may hold leases of the former scheduler; there are no others."""
        self._core.expect(self.now_ms(), gateway_ids)
        self._settle()

    def heard(self, gateway_id: int) -> None:
        """A gateway has told all leases that it holds."""
        self._core.heard(self.now_ms(), gateway_id)
        self._settle()

    def names(self, gateway_id: int, lease_ids: list[int]) -> None:
        """These are all leases that a gateway holds; one that it does not name for long ends."""
        self._core.names(self.now_ms(), gateway_id, lease_ids)
        self._settle()

    def holds(self, gateway_id: int, lease_id: int) -> bool:
        """Whether the lease is live and the gateway's."""
        return self._core.holds(gateway_id, lease_id)

    def share(self, lease_id: int) -> int | None:
        """Slots that a lease may keep when another gateway waits; None when nobody does."""
        return self._core.share(lease_id)

    def trim(self, lease_id: int, slots: int) -> None:
        """So many slots are held under a lease from now on."""
        self._core.trim(self.now_ms(), lease_id, slots)
        self._settle()

    def connect(self, gateway_id: int) -> None:
        """A gateway begins to tell what it holds; what it has told before counts no longer."""
        self._core.connect(self.now_ms(), gateway_id)
        self._settle()

    def replace(self, gateway_id: int) -> None:
        """That gateway's process is gone; its leases end at once."""
        self._core.replace(self.now_ms(), gateway_id)
        self._settle()

    def refresh(self, gateway_id: int) -> bool:
        """A heartbeat; False for a gateway that has to announce itself."""
        known = self._core.refresh(self.now_ms(), gateway_id)
        self._settle()
        return known

    def announce(self, gateway_id: int, lease_id: int, pod_id: str, slots: int) -> bool:
        """A lease that a gateway holds; False when it must drop it."""
        accepted = self._core.announce(self.now_ms(), gateway_id, lease_id, pod_id, slots)
        self._settle()
        return accepted

    def kill(self, pod_id: str) -> bool | None:
        """Ends a pod; None when there is none, False when it is ending."""
        ended = self._core.kill(self.now_ms(), pod_id)
        self._settle()
        return ended

    def observe(self, fact: Fact) -> None:
        """Tells the core what happened."""
        self._core.observe(self.now_ms(), fact)
        self._settle()

    # ---- views ----

    def why_waiting(self, key: Key) -> str | None:
        """Why requests for a function's workers wait; None when none does."""
        found = self._core.waiting(*key)
        return None if found is None else found[1]

    def pods(self) -> list[dict[str, Any]]:
        """Every pod of the core."""
        return self._core.pods()

    def stats(self) -> dict[str, Any]:
        """Sums of the core."""
        return self._core.stats()

    def snapshot_news(self) -> list[dict[str, Any]]:
        """Snapshot tasks that changed since the last call."""
        return self._core.snapshot_news()

    # ---- inside ----

    async def close(self) -> None:
        """Nobody waits any longer, and nobody is granted anything."""
        self._loop.remove_reader(self.server.bell_fd)
        if not self.server.broken:
            self.server.close()
        for task in self._learning:
            task.cancel()
        await asyncio.gather(*self._learning, return_exceptions=True)

    def _settle(self) -> None:
        self._carry_out(self.server.settle())

    def _carry_out(self, orders: list[Effect]) -> None:
        for order in orders:
            self._orders(order)
        self._changed()

    def _answer(self) -> None:
        """The server has something to tell."""
        try:
            orders, news = self.server.answer_bell()
        except RuntimeError as error:
            self._loop.remove_reader(self.server.bell_fd)
            self._broken(InferxError(str(error)))
            return
        self._carry_out(orders)
        for kind, *told in news:
            if kind == "learn":
                task = self._loop.create_task(self._learn_for(*told))
                self._learning.add(task)
                task.add_done_callback(self._learning.discard)
            elif kind == "refused":
                request_id, key, code, message = told
                name, extra = "/".join(key), {"request_id": request_id}
                _log.info("no lease of %s: %s (%s)", name, message, code, extra=extra)
            elif kind == "untold":
                _log.info("no lease for %d more requests, too many to tell of each", *told)
            else:
                _log.warning("%s", *told)

    async def _learn_for(self, number: int, key: Key) -> None:
        refusal: tuple[str, str, int | None] | None = None
        try:
            await self._learn(key)
        except InferxError as error:
            refusal = (error.code, error.message, error.retry_after_ms)
        except Exception:
            _log.exception("reading the function %s", "/".join(key))
            refusal = ("internal", "internal error of the scheduler; see its log", None)
        self.server.learned(number, refusal)
