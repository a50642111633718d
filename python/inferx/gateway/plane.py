"""The data plane's events and records on the event loop of this process.

Must never block the loop: events are handled at once, records in bounded portions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]

from inferx._ext import Proxy

RECORDS_EVERY_S = 0.25
_PORTION = 500
_FIELDS = (
    "unix_ms", "request_id", "method", "function", "status", "outcome", "pod", "start",
    "wait_ms", "first_byte_ms", "total_ms", "bytes_in", "bytes_out", "principal", "tokens",
)  # fmt: skip
_log = logging.getLogger("inferx.access")

Handler = Callable[[tuple[Any, ...]], None]


class Pump:
    """Hands events to `handle` as they come, records to `on_record` and to the log, and to
    `on_lost` how many records there was no room for."""

    def __init__(
        self,
        proxy: Proxy,
        handle: Handler,
        on_record: Callable[[dict[str, Any]], None],
        on_lost: Callable[[int], None],
    ) -> None:
        self._proxy = proxy
        self._on_record = on_record
        self._on_lost = on_lost
        self._lost = 0
        self._handle = handle
        self._records: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; must be called on the running event loop."""
        asyncio.get_running_loop().add_reader(self._proxy.event_fd, self._on_events)
        self._records = asyncio.create_task(self._drain_records(), name="access-records")

    async def stop(self) -> None:
        """End, with the records that are left."""
        asyncio.get_running_loop().remove_reader(self._proxy.event_fd)
        self._on_events()
        if self._records is not None:
            self._records.cancel()
            await asyncio.gather(self._records, return_exceptions=True)
        await self._write_records()

    def _on_events(self) -> None:
        for event in self._proxy.take_events():
            self._handle(event)

    async def _drain_records(self) -> None:
        while True:
            await asyncio.sleep(RECORDS_EVERY_S)
            await self._write_records()

    async def _write_records(self) -> None:
        unpacker = msgpack.Unpacker(max_buffer_size=0)
        unpacker.feed(self._proxy.take_records())
        for number, record in enumerate(unpacker, 1):
            try:
                found = dict(zip(_FIELDS, record, strict=True))
                self._on_record(found)
                _write(found)
            except Exception:
                # Whatever is wrong with it: those after it are to be accounted for, too.
                _log.exception("a record of the data plane")
                self._on_lost(1)
            if number % _PORTION == 0:
                await asyncio.sleep(0)
        if (lost := self._proxy.records_lost) > self._lost:
            self._on_lost(lost - self._lost)
            self._lost = lost


def _write(record: dict[str, Any]) -> None:
    """One call; what a person should look at is logged above the level of the ordinary."""
    strange = record["status"] >= 500 or record["outcome"] == "worker_broke"
    level = logging.WARNING if strange else logging.DEBUG
    if _log.isEnabledFor(level):
        record = {name: value for name, value in record.items() if value not in ("", -1.0)}
        times = {name: round(value, 1) for name, value in record.items() if name.endswith("_ms")}
        _log.log(level, "%s %s", record["method"], record["function"], extra={**record, **times})
