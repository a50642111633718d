"""Orders of the core, carried out by the agents: start, resume, park, terminate.

Must never retry: a result goes back to the core, which decides what comes next.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inferx.domain.meta import SYSTEM, Key, Object
from inferx.domain.objects import FunctionSpec, Pod
from inferx.errors import Conflict, InferxError, NotFound, StaleEpoch, Unavailable
from inferx.rpc import client
from inferx.rpc import na_pb2 as pb
from inferx.scheduler import metrics
from inferx.scheduler.intents import Intents
from inferx.scheduler.links import Links, NodeLink
from inferx.scheduler.places import Places

SLACK_S = 60.0  # room for victims to leave and images to come, beyond a worker's loading time
LOADING_S = 90.0
PARK_S = 60.0
TERMINATE_S = 30.0

# The function cannot be started as it is; another node would say the same.
_FUNCTION_FAULTS = frozenset({"start_failed", "bad_request", "config"})
# The agent answers these before it changes anything.
_NOTHING_DONE = frozenset({"bad_request", "no_capacity", "conflict", "stale_epoch", "config"})
_STARTS = frozenset({"resume", "snapshot", "cold"})
_log = logging.getLogger(__name__)

Effect = dict[str, Any]


@dataclass
class _Start:
    """An order to start or resume a pod that has no result yet; `sent` once its agent may know."""

    effect: Effect
    task: asyncio.Task[None]
    sent: bool = False


class Orders:
    """`epoch` goes with each order; `stale` is called when an agent follows a newer scheduler.

    A start is recorded in `intents` before its order goes out. Nothing goes out once `leads` says
    no: a process that was frozen wakes up with orders that its successor knows nothing of.

    `places` is told where pods listen before the core is told that they do.
    """

    def __init__(
        self,
        links: Links,
        function: Callable[[Key], Object[FunctionSpec] | None],
        observe: Callable[[dict[str, Any]], None],
        stale: Callable[[InferxError], None],
        intents: Intents,
        places: Places,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self.epoch = 0
        self._leads = leads
        self._greetings: set[asyncio.Task[None]] = set()
        self._intents = intents
        self._places = places
        self._links = links
        self._function = function
        self._observe = observe
        self._stale = stale
        self._starts: dict[str, _Start] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def carry_out(self, effect: Effect) -> None:
        """Begin; the result is observed by the core."""
        kind = effect["effect"]
        task = asyncio.create_task(self._run(effect), name=f"{kind}-{effect['pod_id']}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if kind in ("start", "resume"):
            start = self._starts[effect["pod_id"]] = _Start(effect, task)
            task.add_done_callback(lambda task: self._started(start))

    def greet(self, link: NodeLink) -> None:
        """Tell an agent the epoch before anything else: from then on it refuses what a former
        leader still sends. The order to end a pod that does not exist says no more than that."""
        task = asyncio.create_task(self._greet(link), name=f"greet-{link.name}")
        for tasks in (self._tasks, self._greetings):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def greeted(self, timeout_s: float) -> None:
        """Wait until every agent that was greeted has answered, but no longer than that."""
        if self._greetings:
            await asyncio.wait(self._greetings, timeout=timeout_s)

    async def _greet(self, link: NodeLink) -> None:
        request = pb.TerminatePodReq(
            tenant=SYSTEM, namespace=SYSTEM, funcname="none", id="none", epoch=self.epoch
        )
        try:
            await client.call(link.stub.TerminatePod, request, TERMINATE_S)
        except NotFound:
            return
        except StaleEpoch as error:
            self._stale(error)
        except InferxError as error:
            _log.warning("node %s does not know this epoch yet: %s", link.name, error.message)

    def remove_snapshots(self, key: Key) -> None:
        """A function was deleted: no agent needs to keep anything of it. One that cannot be reached
        now drops it when it needs the room."""
        for link in self._links.all():
            task = asyncio.create_task(self._remove_snapshot(link, "/".join(key)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _remove_snapshot(self, link: NodeLink, funckey: str) -> None:
        request = pb.RemoveSnapshotReq(funckey=funckey)
        try:
            await client.call(link.stub.RemoveSnapshot, request, TERMINATE_S)
        except InferxError as error:
            _log.warning("node %s keeps snapshots of %s: %s", link.name, funckey, error.message)

    def _started(self, start: _Start) -> None:
        if self._starts.get(start.effect["pod_id"]) is start:
            del self._starts[start.effect["pod_id"]]

    def starting(self, pod_id: str) -> bool:
        """Whether an order to start or resume it is out."""
        return pod_id in self._starts

    def end_stranger(self, node: str, pod: Object[Pod]) -> None:
        """End a pod that the core knows nothing of."""
        tenant, namespace, pod_id = pod.key
        self.carry_out(
            {
                "effect": "terminate",
                "tenant": tenant,
                "namespace": namespace,
                "funcname": pod.spec.funcname,
                "revision": pod.spec.fprevision,
                "pod_id": pod_id,
                "node": node,
                "order": 0,
            }
        )

    async def stop(self) -> None:
        """Stop waiting for results; the agents go on with what they were told."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, effect: Effect) -> None:
        kind = effect["effect"]
        begun = time.monotonic()
        error: InferxError | None = None
        start: str | None = None
        try:
            start = await {
                "start": self._start,
                "resume": self._resume,
                "park": self._park,
                "terminate": self._terminate,
            }[kind](effect)
        except InferxError as failure:
            error = failure
        except Exception as failure:
            _log.exception("%s of pod %s", kind, effect["pod_id"])
            error = InferxError(f"internal error of the scheduler: {type(failure).__name__}")
        metrics.order(kind, time.monotonic() - begun, error is None)
        self._report(effect, error, start=start)

    async def _overtake(self, start: _Start) -> None:
        """An order to end the pod is here: stop waiting for the start, and say how it ended. What
        its agent was never told of leaves nothing behind."""
        start.task.cancel()
        await asyncio.gather(start.task, return_exceptions=True)
        if start.task.cancelled():
            metrics.order(start.effect["effect"], 0.0, False)
            error = Conflict("an order to end the pod has overtaken it")
            self._report(start.effect, error, gone=not start.sent)

    def _report(
        self,
        effect: Effect,
        error: InferxError | None,
        gone: bool | None = None,
        start: str | None = None,
    ) -> None:
        """Tell the core; whether nothing is left follows from the error, unless given. `start`: how
        the agent says that the pod was started or resumed."""
        kind, pod_id = effect["effect"], effect["pod_id"]
        function = "/".join((effect["tenant"], effect["namespace"], effect["funcname"]))
        result = "start_result" if kind == "resume" else f"{kind}_result"
        fact: dict[str, Any] = {"kind": result, "pod_id": pod_id, "order": effect["order"]}
        if error is None:
            _log.info("%s of pod %s of %s done", kind, pod_id, function)
            self._observe({**fact, "ok": True, "start": start})
            return
        _log.warning("%s of pod %s of %s failed: %s", kind, pod_id, function, error.message)
        if isinstance(error, StaleEpoch):
            self._stale(error)
        blamed = error.code in _FUNCTION_FAULTS and kind != "terminate"
        if gone is None:
            gone = isinstance(error, NotFound) or (
                kind == "start" and (error.code in _NOTHING_DONE or error.code == "start_failed")
            )
        code = "start_failed" if blamed else error.code
        fact |= {"ok": False, "code": code, "reason": error.message, "gone": gone}
        self._observe(fact)

    def _stub(self, effect: Effect) -> Any:
        if not self._leads():
            raise Unavailable("this scheduler leads no longer")
        stub = self._links.stub(effect["node"])
        if stub is None:
            raise Unavailable(f"node {effect['node']} is not known any more")
        return stub

    async def _start(self, effect: Effect) -> str | None:
        stub = self._stub(effect)
        function = self._function((effect["tenant"], effect["namespace"], effect["funcname"]))
        if function is None or function.revision != effect["revision"]:
            raise Conflict("the function was changed or deleted meanwhile")
        request = pb.CreateFuncPodReq(
            **_names(effect),
            labels=[pb.KV(key=k, val=v) for k, v in function.meta.labels.items()],
            annotations=[pb.KV(key=k, val=v) for k, v in function.meta.annotations.items()],
            create_type=pb.Normal,
            funcspec=json.dumps(function.raw["spec"]),
            alloc_resources=json.dumps(effect["alloc"]),
            terminate_pods=[self._terminate_request(pod) for pod in effect["terminate"]],
            park_pods=[self._park_request(pod) for pod in effect["park"]],
            save_snapshot=effect["save"],
            epoch=self.epoch,
        )
        await self._intents.place(effect)
        self._sent(effect)
        answer = await client.call(stub.CreateFuncPod, request, _loading_s(function) + SLACK_S)
        self._places.told(effect["pod_id"], answer.ipaddress, answer.port)
        return _known(answer.start)

    async def _resume(self, effect: Effect) -> str | None:
        function = self._function((effect["tenant"], effect["namespace"], effect["funcname"]))
        request = pb.ResumePodReq(
            **_names(effect),
            alloc_resources=json.dumps(effect["alloc"]),
            terminate_pods=[self._terminate_request(pod) for pod in effect["terminate"]],
            park_pods=[self._park_request(pod) for pod in effect["park"]],
            epoch=self.epoch,
        )
        timeout_s = _loading_s(function) + SLACK_S
        self._sent(effect)
        answer = await client.call(self._stub(effect).ResumePod, request, timeout_s)
        self._places.told(effect["pod_id"], answer.ipaddress, answer.port)
        return _known(answer.start)

    def _sent(self, effect: Effect) -> None:
        start = self._starts.get(effect["pod_id"])
        if start is not None and start.effect is effect:
            start.sent = True

    async def _park(self, effect: Effect) -> None:
        await client.call(self._stub(effect).ParkPod, self._park_request(effect), PARK_S)

    async def _terminate(self, effect: Effect) -> None:
        start = self._starts.get(effect["pod_id"])
        if start is not None:
            # Not to overtake the request that makes the pod.
            await self._overtake(start)
        request = self._terminate_request(effect)
        await client.call(self._stub(effect).TerminatePod, request, TERMINATE_S)
        self._places.gone(effect["pod_id"])

    def _terminate_request(self, pod: Effect) -> pb.TerminatePodReq:
        return pb.TerminatePodReq(**_names(pod), epoch=self.epoch)

    def _park_request(self, pod: Effect) -> pb.ParkPodReq:
        return pb.ParkPodReq(**_names(pod), epoch=self.epoch)


def _known(start: str) -> str | None:
    """How a pod was started, None = as ordered: an agent of an earlier version does not say, and
    one of a later version may say what this one has no word for."""
    return start if start in _STARTS else None


def _names(pod: Effect) -> dict[str, Any]:
    return {
        "tenant": pod["tenant"],
        "namespace": pod["namespace"],
        "funcname": pod["funcname"],
        "fprevision": pod["revision"],
        "id": pod["pod_id"],
    }


def _loading_s(function: Object[FunctionSpec] | None) -> float:
    if function is None or function.spec.sample_query is None:
        return LOADING_S
    return float(function.spec.sample_query.loading_timeout_s)
