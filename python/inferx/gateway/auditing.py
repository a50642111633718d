"""What the gateway tells the audit: calls, changes of objects, lives of pods, refusals.

Must never tell a secret: values that look like one are replaced before a row is made.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import grpc.aio
from starlette.requests import Request

from inferx.audit import Audit
from inferx.domain.meta import Object
from inferx.domain.objects import Pod, Snapshot
from inferx.domain.redaction import redacted
from inferx.errors import InferxError
from inferx.gateway.access import caller_of
from inferx.gateway.leader import LeaderLink
from inferx.gateway.metering import Meter
from inferx.gateway.replies import request_id
from inferx.store.informer import DELETED, Informer

DIFF_PATHS_MAX = 200
_ABSENT = object()
_CALL_FIELDS = (
    "request_id", "principal", "method", "status", "outcome", "pod", "start", "wait_ms",
    "first_byte_ms", "total_ms", "bytes_in", "bytes_out", "tokens",
)  # fmt: skip


class Auditor:
    """Feeds one audit from what this gateway sees."""

    def __init__(self, audit: Audit, state: grpc.aio.Channel, link: LeaderLink) -> None:
        self.audit = audit
        self._link = link
        self._nodes = Informer(state, "node")
        self.meter = Meter(self._nodes.get)
        self._snapshots = Informer(state, "snapshot")
        self._snapshots.subscribe(self._on_snapshot)
        self._pods: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to write and to follow pods and snapshots."""
        self.audit.start()
        await self._snapshots.start()
        await self._nodes.start()
        self._pods = asyncio.create_task(self._follow_pods(), name="audit-pods")

    async def stop(self) -> None:
        """End, with everything written or kept on disk."""
        if self._pods is not None:
            self._pods.cancel()
            await asyncio.gather(self._pods, return_exceptions=True)
        await self._snapshots.stop()
        await self._nodes.stop()
        await self.audit.stop()

    # ---- calls ----

    def called(self, record: dict[str, Any]) -> None:
        """One record of the data plane: a call, or a request that never became one."""
        parts = record["function"].split("/")
        names = parts if len(parts) == 3 and all(parts) else [None, None, None]
        place = dict(zip(("tenant", "namespace", "function"), names, strict=True))
        if record["outcome"] == "refused" and record["status"] in (400, 401, 403):
            row = {
                "request_id": record["request_id"], "principal": record["principal"],
                "action": "function.call", "target": record["function"],
                "outcome": str(record["status"]), "tenant": place["tenant"],
                "namespace": place["namespace"],
            }  # fmt: skip
            self.audit.record("logins", {**row, "at_ms": record["unix_ms"]})
        if place["tenant"] is None:
            return
        known = {name: record.get(name) for name in _CALL_FIELDS}
        row = {name: None if value in ("", -1.0) else value for name, value in known.items()}
        self.audit.record("requests", {**row, **place, "at_ms": record["unix_ms"]})

    # ---- changes and callers ----

    def changed(
        self,
        request: Request,
        action: str,
        manifest: dict[str, Any],
        before: dict[str, Any] | None = None,
    ) -> None:
        """An object was written or deleted by the request's caller."""
        after = None if action == "delete" else manifest
        row = {
            "request_id": request_id(request),
            "principal": caller_of(request).name,
            "action": action,
            "kind": manifest["type"],
            "tenant": manifest["tenant"],
            "namespace": manifest["namespace"],
            "name": manifest["name"],
            "revision": manifest.get("revision"),
            "diff": json.dumps(list(difference(before, after)), ensure_ascii=False),
        }
        self.audit.record("changes", row)

    def refused(self, request: Request, principal: str, action: str, error: InferxError) -> None:
        """A caller of a control route was refused."""
        row = {
            "request_id": request_id(request),
            "principal": principal,
            "action": action or request.method,
            "target": request.url.path,
            "outcome": error.code,
        }
        self.audit.record("logins", row)

    def logged_in(self, principal: str) -> None:
        """A credential was seen here for the first time, or again after a while, and is good."""
        row = {"principal": principal, "action": "login", "outcome": "ok"}
        self.audit.record("logins", row)

    # ---- pods and snapshots ----

    async def _follow_pods(self) -> None:
        """The pods as the leading scheduler sees them, whoever leads."""
        await self._nodes.synced.wait()  # the meter asks how large their GPUs are
        while True:
            replaced = self._link.replaced
            informer = Informer(self._link.address, "pod")
            informer.subscribe(self._on_pod)
            informer.subscribe(self.meter.seen)
            await informer.start()
            try:
                await replaced.wait()
            finally:
                await informer.stop()
                self.meter.forget()

    def _on_pod(self, event: str, obj: Object[Any]) -> None:
        pod = obj.spec
        if event == DELETED or not isinstance(pod, Pod) or not pod.status.since_ms:
            return
        status = pod.status
        reason = "\n".join(filter(None, (status.reason, status.error)))
        row = {
            "at_ms": status.since_ms, "tenant": obj.meta.tenant, "namespace": obj.meta.namespace,
            "function": pod.funcname, "revision": pod.fprevision, "pod": obj.meta.name,
            "node": pod.node, "state": status.state, "start": status.start, "reason": reason,
        }  # fmt: skip
        # Every gateway sees it; the row is the same for all of them and stored once.
        same = (obj.meta.name, status.state, str(status.since_ms))
        self.audit.record("pods", row, identity=(0, _number(*same)))

    def _on_snapshot(self, event: str, obj: Object[Any]) -> None:
        snapshot = obj.spec
        if not isinstance(snapshot, Snapshot):
            return
        state = "Deleted" if event == DELETED else snapshot.state
        row = {
            # The revision is the same for every gateway, the time is not: rows of one state may
            # come from each. They tell of one task, and are chosen by its revision.
            "tenant": obj.meta.tenant, "namespace": obj.meta.namespace,
            "function": snapshot.funcname, "revision": snapshot.fprevision,
            "snapshot": obj.meta.name, "node": snapshot.node, "state": state,
            "size_mb": snapshot.size_mb, "reason": snapshot.reason,
        }  # fmt: skip
        self.audit.record("snapshots", row)


def _plain(manifest: dict[str, Any] | None) -> dict[str, Any]:
    """A manifest without secrets, without what is empty, and without its revision."""
    shown = redacted(manifest or {})
    return {name: value for name, value in shown.items() if value and name != "revision"}


def _number(*parts: str) -> int:
    """A number that is the same wherever the parts are."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def difference(
    before: Any, after: Any, path: str = "", left: list[int] | None = None
) -> Iterator[dict[str, Any]]:
    """What differs between two manifests, secrets replaced: {path, old, new} for each place."""
    left = [DIFF_PATHS_MAX] if left is None else left
    if not path:
        before, after = _plain(before), _plain(after)
    if before == after or left[0] <= 0:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            inner = f"{path}.{name}".lstrip(".")
            yield from difference(before.get(name, _ABSENT), after.get(name, _ABSENT), inner, left)
        return
    left[0] -= 1
    change = {"path": path, "old": before, "new": after}
    yield {name: value for name, value in change.items() if value is not _ABSENT}
