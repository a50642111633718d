"""Records of the data plane on their way to those who keep accounts."""

from __future__ import annotations

from typing import Any, cast

import msgpack  # type: ignore[import-untyped]

from inferx._ext import Proxy
from inferx.gateway.plane import Pump

RECORD = [
    0, "r1", "GET", "t/n/f", 200, "ok", "pod1", "warm", 0.0, 1.0, 2.0, 0, 2, "", 0,
]  # fmt: skip


class Plane:
    """Stands for the data plane: some records, and one that no version of it would write."""

    records_lost = 0

    def take_records(self) -> bytes:
        """Three, the second of them wrong."""
        return b"".join(msgpack.packb(record) for record in (RECORD, [1, 2], RECORD))


async def test_a_record_that_cannot_be_read_costs_no_other() -> None:
    seen: list[dict[str, Any]] = []
    lost: list[int] = []
    pump = Pump(cast(Proxy, Plane()), lambda event: None, seen.append, lost.append)
    await pump._write_records()
    assert ([record["request_id"] for record in seen], lost) == (["r1", "r1"], [1])
