"""Hostile requests as raw bytes, through the data plane and through nginx, side by side.

Each is refused with 400 and a closed connection before a worker sees a byte of it, or it is proven
harmless: the worker got one request that can be read in one way only, then the one sent after it.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.helpers.hostile import GROUPS, SMUGGLED, Row
from tests.helpers.nginx import nginx
from tests.helpers.proxy_kit import DEADLINE_S, Rig, Wire
from tests.helpers.recorder import Recorder, ambiguities

LAST = SMUGGLED.replace(b"Host: a", b"Connection: close\r\nHost: a")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")


async def ours(rig: Rig, worker: Recorder, row: Row) -> str:
    """What is wrong with how the data plane treats a row; empty when nothing is."""
    wire = await rig.client()
    await wire.send(row.raw + LAST)
    answer = await wire.closed()
    statuses = [int(status) for status in _STATUS.findall(answer)]
    seen = worker.take()
    if not row.harmless:
        refused = statuses == [400] and b"connection: close" in answer.lower()
        return "" if refused and not seen else f"answered {statuses}, the worker saw {seen}"
    expected = 1 if row.closes else 2
    if statuses != [200] * expected or len(seen) != expected:
        return f"answered {statuses}, the worker saw {seen}"
    if not row.closes and not seen[1].startswith(b"GET /smuggled "):
        return f"the request after it became {seen[1]!r}"
    return "; ".join(ambiguities(seen[0]))


async def through_granian(rig: Rig, worker: Recorder, row: Row) -> str:
    """What is wrong behind Granian, which forgives more: nothing that a worker gets may."""
    wire = await rig.client()
    await wire.send(row.raw + LAST)
    answer = await wire.closed()
    statuses = [int(status) for status in _STATUS.findall(answer)]
    seen = worker.take()
    faults = [fault for request in seen for fault in ambiguities(request)]
    if len(seen) > 2 or (len(seen) == 2 and not seen[1].startswith(b"GET /smuggled ")):
        faults.append("one request became several")
    if row.harmless and statuses[:1] != [200]:
        faults.append("not served")
    return f"{faults}, answered {statuses}, the worker saw {seen}" if faults else ""


async def theirs(port: int, worker: Recorder, row: Row) -> tuple[list[int], int]:
    """The statuses that nginx answers, and how many requests it let through."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(row.raw + LAST)
    writer.write_eof()
    async with asyncio.timeout(DEADLINE_S):
        answer = await Wire(reader, writer).closed()
    writer.close()
    passed = len(worker.requests) + len(worker.broken)
    worker.requests, worker.broken = [], []
    return [int(status) for status in _STATUS.findall(answer)], passed


@pytest.mark.parametrize("group", GROUPS)
async def test_hostile_requests_are_refused_or_harmless(tmp_path: Path, group: str) -> None:
    wrong: list[str] = []
    async with (
        Recorder() as our_worker,
        Recorder() as their_worker,
        nginx(tmp_path, their_worker.port) as port,
        Rig(tmp_path) as rig,
    ):
        rig.function()
        rig.add(our_worker.port)
        for name, row in GROUPS[group].items():
            fault = await ours(rig, our_worker, row)
            statuses, passed = await theirs(port, their_worker, row)
            verdict = "harmless" if row.harmless else "refused"
            print(f"{name}: {fault or verdict}; nginx answers {statuses}, lets {passed} through")
            if fault:
                wrong.append(f"{name}: {fault}")
            if row.harmless and passed == 0 and not row.stricter_nginx:
                wrong.append(f"{name}: nginx refuses it ({statuses}), we do not")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("group", GROUPS)
async def test_hostile_requests_are_harmless_behind_granian(tmp_path: Path, group: str) -> None:
    wrong: list[str] = []
    async with Recorder() as worker, Rig(tmp_path, "granian") as rig:
        rig.function()
        rig.add(worker.port)
        for name, row in GROUPS[group].items():
            if fault := await through_granian(rig, worker, row):
                wrong.append(f"{name}: {fault}")
    assert not wrong, "\n".join(wrong)


def test_the_table_is_thorough() -> None:
    rows = [row for group in GROUPS.values() for row in group.values()]
    assert sum(not row.harmless for row in rows) >= 120
    assert sum(row.harmless for row in rows) >= 20
