"""What the audit's database says of the calls of a run: rows of each call, and rows it lost.

Must never write.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import asyncpg

from tests.chaos.load import Call

SETTLE_S = 15.0


async def audited(url: str, calls: Sequence[Call]) -> tuple[Counter[str], int]:
    """Rows by call, and how many rows the writers have counted as lost. Rows are written some time
    after their calls; it waits until every finished call is accounted for, or the time is over."""
    connection = await asyncpg.connect(url)
    deadline = time.monotonic() + SETTLE_S
    finished = {call.call for call in calls if call.status > 0}
    known = {call.call for call in calls}
    try:
        while True:
            found = await connection.fetch("select request_id from requests")
            rows = Counter(row[0] for row in found if row[0] in known)
            counted = int(await connection.fetchval("select coalesce(sum(rows), 0) from losses"))
            missing = len(finished - rows.keys())
            if missing <= counted or time.monotonic() > deadline:
                return rows, counted
            await asyncio.sleep(0.2)
    finally:
        await connection.close()
