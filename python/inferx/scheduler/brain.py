"""The one owner of the core: each verb is called here, its effects are handed out, time is kept.

Must never await between a verb of the core and its effects.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inferx._ext import SchedulerCore
from inferx.domain.meta import Key
from inferx.errors import InferxError, Unavailable, from_code

LEASE_TTL_MS = 10_000
# A pod that was adopted is nobody else's before a lease of the former scheduler has run out, unless
# every gateway has said what it holds.
TAKEOVER_MS = LEASE_TTL_MS

Fact = dict[str, Any]
Effect = dict[str, Any]


@dataclass(frozen=True)
class Granted:
    """Slots of a pod; `start` is warm, resume or cold."""

    lease_id: int
    pod_id: str
    slots: int
    start: str


@dataclass(frozen=True)
class Wish:
    """A gateway's request for slots (0 = all of one pod), to be answered within `wait_ms`
    (0 = the queue timeout of the function's policy). `consumer` is the calling tenant, if known."""

    key: Key
    revision: int
    gateway_id: int
    request_id: str
    slots: int
    wait_ms: int
    consumer: str = ""


class Brain:
    """`orders` takes every effect that an agent has to carry out; `changed` is told of changes."""

    def __init__(
        self,
        orders: Callable[[Effect], None],
        changed: Callable[[], None],
        idle_park_ms: int | None,
    ) -> None:
        self._core = SchedulerCore(
            secrets.token_hex(4), idle_park_ms, lease_ttl_ms=LEASE_TTL_MS, takeover_ms=TAKEOVER_MS
        )
        self._orders = orders
        self._changed = changed
        self._waiters: dict[int, list[asyncio.Future[Granted]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms: int | None = None
        self._closed = False
        self.unix_offset_ms = time.time_ns() // 1_000_000 - self.now_ms()

    def now_ms(self) -> int:
        """Monotonic milliseconds, the clock of the core."""
        return time.monotonic_ns() // 1_000_000

    # ---- verbs ----

    async def lease(self, wish: Wish) -> Granted:
        """Slots, as soon as there are any; raises what the core refuses with.

        When the caller gives up, the ticket is withdrawn, or the lease given back.
        """
        if self._closed:
            raise Unavailable("this scheduler is stopping")
        now_ms = self.now_ms()
        answer: tuple[Any, ...] = self._core.lease(
            now_ms,
            *wish.key,
            wish.revision,
            wish.gateway_id,
            wish.request_id,
            wish.slots,
            now_ms + wish.wait_ms if wish.wait_ms else 0,
            wish.consumer,
        )
        if answer[0] == "leased":
            self._settle()
            return Granted(*answer[1:])
        if answer[0] == "refused":
            self._settle()
            _, code, message, retry_after_ms = answer
            raise from_code(code)(message, retry_after_ms=retry_after_ms)
        return await self._wait(answer[1])

    async def _wait(self, ticket: int) -> Granted:
        waiter: asyncio.Future[Granted] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(ticket, []).append(waiter)
        self._settle()
        try:
            return await waiter
        except asyncio.CancelledError:
            self._gone(ticket, waiter)
            raise

    def _gone(self, ticket: int, waiter: asyncio.Future[Granted]) -> None:
        """A caller went away; the last one of a ticket takes it along."""
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self.give_back(waiter.result().lease_id)
            return
        others = self._waiters.get(ticket, [])
        if waiter in others:
            others.remove(waiter)
            if not others:
                del self._waiters[ticket]
                self._core.cancel(self.now_ms(), ticket)
                self._settle()

    def give_back(self, lease_id: int, ok: bool = True) -> bool:
        """Ends a lease; False when it is not live."""
        known = self._core.give_back(self.now_ms(), lease_id, ok)
        self._settle()
        return known

    def expect(self, gateway_ids: list[int]) -> None:
        """These gateways may hold leases of the former scheduler; there are no others."""
        self._core.expect(self.now_ms(), gateway_ids)
        self._settle()

    def heard(self, gateway_id: int) -> None:
        """A gateway has told all leases that it holds."""
        self._core.heard(self.now_ms(), gateway_id)
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
        """A gateway is there."""
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

    def knows(self, key: Key, revision: int) -> bool:
        """Whether the core has heard of the function in this revision."""
        return self._core.knows(*key, revision)

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

    def close(self) -> None:
        """No more time, and nobody waits any longer."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        waiters, self._waiters = self._waiters, {}
        for waiter in (waiter for group in waiters.values() for waiter in group):
            if not waiter.done():
                waiter.set_exception(Unavailable("this scheduler is stopping"))

    def _settle(self) -> None:
        for effect in self._core.effects():
            if effect["effect"] == "grant":
                self._granted(effect)
            elif effect["effect"] == "refuse":
                self._refused(effect)
            else:
                self._orders(effect)
        self._rearm()
        self._changed()

    def _granted(self, effect: Effect) -> None:
        granted = Granted(effect["lease_id"], effect["pod_id"], effect["slots"], effect["start"])
        waiting = [w for w in self._waiters.pop(effect["ticket"], []) if not w.done()]
        for waiter in waiting:
            waiter.set_result(granted)
        if not waiting:
            # Everybody left in this very turn of the loop; the slots go to the next one.
            asyncio.get_running_loop().call_soon(self.give_back, granted.lease_id)

    def _refused(self, effect: Effect) -> None:
        error: InferxError = from_code(effect["code"])(
            effect["message"], retry_after_ms=effect["retry_after_ms"]
        )
        for waiter in self._waiters.pop(effect["ticket"], []):
            if not waiter.done():
                waiter.set_exception(error)

    def _rearm(self) -> None:
        at_ms = None if self._closed else self._core.next_wakeup_ms()
        if at_ms == self._timer_ms and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_ms = at_ms
        if at_ms is not None:
            delay_s = max(0, at_ms - self.now_ms()) / 1000
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._timer_ms = None
        self._core.tick(self.now_ms())
        self._settle()
