"""Routes that read the audit: of requests, changes, pods, snapshots and callers; also as it grows.

Must never show a row of a tenant to somebody who may not manage that tenant.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from inferx.audit import Query, Row, Sink
from inferx.audit.sink import FILTERS
from inferx.auth import Place
from inferx.errors import BadRequest, Unavailable
from inferx.gateway.access import Access, GuardedRoute
from inferx.gateway.replies import flag, names, number, reply, segments

_PARTS = ("tenant", "namespace", "function", "revision", "pod")
_NUMBERS = ("status", "revision")
HEARTBEAT_S = 10.0


class AuditRoutes:
    """`/audit/{table}/...`, `/podauditlog/...`, `/faillogs/...`, `/SnapshotSchedule/...`."""

    def __init__(self, sink: Sink, access: Access) -> None:
        self._sink = sink
        self._access = access

    def routes(self) -> list[GuardedRoute]:
        """The routes of this part."""
        route = self._access.route
        return [
            route("/audit/{path:path}", self.table, ["GET"], "audit.read", _table_place),
            route("/podauditlog/{path:path}", self.pods, ["GET"], "audit.read", _place),
            route("/faillogs/{path:path}", self.failures, ["GET"], "audit.read", _place),
            route("/SnapshotSchedule/{path:path}", self.snapshots, ["GET"], "audit.read", _place),
        ]

    async def table(self, request: Request) -> Response:
        """`/audit/{table}/[{tenant}/[{namespace}/[{function}]]]`, filters in the query."""
        table, *place = _table(request)
        return await self._answer(request, table, dict(zip(_PARTS, place, strict=False)))

    async def pods(self, request: Request) -> Response:
        """The life of pods: `/podauditlog/{tenant}/{namespace}/[{function}/[{revision}/{pod}]]`."""
        return await self._answer(request, "pods", _named(request))

    async def failures(self, request: Request) -> Response:
        """The ends of pods that failed, with the reason."""
        return await self._answer(request, "pods", {**_named(request), "state": "Failed"})

    async def snapshots(self, request: Request) -> Response:
        """What became of snapshots."""
        return await self._answer(request, "snapshots", _named(request))

    async def _answer(self, request: Request, table: str, chosen: dict[str, Any]) -> Response:
        query = _query(request, table, chosen)
        if flag(request, "follow"):
            return StreamingResponse(self._follow(query), media_type="application/x-ndjson")
        return reply([_shown(row) for row in await self._sink.read(query)])

    async def _follow(self, query: Query) -> AsyncIterator[bytes]:
        """New rows as lines of JSON, an empty line when there was none for a while."""
        after = await self._sink.last(query.table)
        while True:
            self._sink.changed.clear()
            try:
                asked = Query(query.table, query.equal, limit=query.limit, after=after)
                rows = await self._sink.read(asked)
            except Unavailable:
                rows = []
            for row in rows:
                after = row["n"]
                yield orjson.dumps(_shown(row)) + b"\n"
            if len(rows) == query.limit:
                continue
            try:
                await asyncio.wait_for(self._sink.changed.wait(), HEARTBEAT_S)
            except TimeoutError:
                yield b"\n"


def _shown(row: Row) -> Row:
    shown = {name: value for name, value in row.items() if name not in ("n", "writer", "seq")}
    if shown.get("diff"):
        shown["diff"] = orjson.loads(shown["diff"])
    return {name: value for name, value in shown.items() if value is not None}


def _table(request: Request) -> list[str]:
    count = min(max(len(segments(request)) - 1, 1), 4)
    return names(request, *("table", "tenant", "namespace", "function")[:count])


def _named(request: Request) -> dict[str, Any]:
    """What the path chooses; at least a tenant and a namespace."""
    count = min(max(len(segments(request)) - 1, 2), 5)
    found: dict[str, Any] = dict(zip(_PARTS, names(request, *_PARTS[:count]), strict=False))
    if "revision" in found:
        found["revision"] = number(found["revision"], "revision")
    return found


def _table_place(request: Request) -> Place:
    _, *place = _table(request)
    tenant, namespace = [*place, "", ""][:2]
    return Place(tenant, namespace, f"the audit of {'/'.join(place) or 'the platform'}")


def _place(request: Request) -> Place:
    named = _named(request)
    return Place(named["tenant"], named["namespace"])


def _query(request: Request, table: str, chosen: dict[str, Any]) -> Query:
    """The path's choice and the query's filters; a filter cannot widen what the path says."""
    given = request.query_params
    for name in given:
        if name not in (*FILTERS, "since", "until", "limit", "follow"):
            raise BadRequest(f"{name}: there is no such filter; there are {', '.join(FILTERS)}")
    equal = {name: given[name] for name in FILTERS if name in given}
    for name in _NUMBERS:
        if name in equal:
            equal[name] = number(equal[name], name)  # type: ignore[assignment]
    times = {name: number(given[name], name) if name in given else None for name in _BOUNDS}
    return Query(
        table,
        {**equal, **chosen},
        since_ms=times["since"],
        until_ms=times["until"],
        limit=number(given.get("limit", "100"), "limit"),
    )


_BOUNDS = ("since", "until")
