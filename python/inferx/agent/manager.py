"""All pods of one node: who may come, who has to leave, and who is found again after a restart.

Must never await between judging a request and counting its room.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from inferx.agent import records
from inferx.agent.epoch import EpochGuard
from inferx.agent.housekeeping import Housekeeper
from inferx.agent.ledger import Ledger
from inferx.agent.logs import PodLog
from inferx.agent.pod import SERVING, Pod, Room, Tools
from inferx.agent.podstate import TERMINAL
from inferx.agent.runtimes.protocol import Runtime
from inferx.agent.snapshots import Snapshots
from inferx.agent.spec import POD_ID, PodKey, devices_of, parse_alloc, parse_launch
from inferx.agent.tiers.memory import GpuMemory
from inferx.agent.view import AgentView
from inferx.domain.cluster import Alloc
from inferx.domain.function import FunctionSpec
from inferx.domain.meta import check_name
from inferx.errors import (
    BadRequest,
    InferxError,
    InvalidState,
    NotFound,
    NotSupported,
    StartFailed,
    Unavailable,
)

log = logging.getLogger("inferx.agent")


@dataclass(frozen=True)
class Parts:
    """What the manager works with; `grace_s` is a worker's time between SIGTERM and SIGKILL."""

    runtime: Runtime
    ledger: Ledger
    client: httpx.AsyncClient
    grace_s: float = 5.0
    snapshots: Snapshots | None = None
    memory: GpuMemory | None = None


@dataclass(frozen=True)
class CreateRequest:
    """A pod to create and the pods that have to leave for it; texts are the request's JSON."""

    key: PodKey
    funcspec: str
    alloc: str
    labels: dict[str, str]
    annotations: dict[str, str]
    terminate: Sequence[PodKey] = ()
    park: Sequence[PodKey] = ()
    purpose: str = "serve"
    save: bool | None = None  # may its worker be saved? None = as the agent thinks fit


class Manager:
    """The node's registry of pods. Everything of it lies under one folder, locked by one agent."""

    def __init__(self, node: str, parts: Parts, view: AgentView, folder: Path) -> None:
        self._view = view
        self._folder = folder = folder.resolve()
        self._tools = Tools(
            node=node,
            runtime=parts.runtime,
            snapshots=parts.snapshots,
            ledger=parts.ledger,
            client=parts.client,
            report=self._report,
            memory=parts.memory,
            grace_s=parts.grace_s,
        )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.epochs = EpochGuard(folder / "epoch")
        self._pods: dict[str, Pod] = {}
        self._closing = False
        self._housekeeper: asyncio.Task[None] | None = None

    @property
    def pods(self) -> list[Pod]:
        """All pods that are shown: the live ones and the last failed ones."""
        return list(self._pods.values())

    @property
    def memory(self) -> GpuMemory | None:
        """The tiers that keep workers' GPU memory."""
        return self._tools.memory

    # ---- requests ----

    async def create(self, request: CreateRequest) -> Pod:
        """Start a pod and wait until it is ready; asking again for the same pod joins the wait.

        Raises BadRequest, NoCapacity or InvalidState with nothing changed, StartFailed when the
        worker did not get ready. A caller that stops waiting leaves the pod loading.
        """
        pod = self._pods.get(request.key.id)
        if pod is None:
            pod = self._admit(request)
        elif not pod.key.same_function(request.key):
            raise BadRequest(f"pod {request.key.id} belongs to another function")
        for verb in ("start", "adopted", "resume"):
            await pod.settled(verb)
        if pod.state in TERMINAL:
            raise StartFailed(f"pod {pod.key.id} is {pod.state}: {pod.record.error or 'ended'}")
        if pod.state not in SERVING:
            raise InvalidState(f"pod {pod.key.id} exists and is {pod.state}")
        return pod

    async def take_snapshot(self, request: CreateRequest) -> None:
        """Start a pod for its snapshot only: it ends once that is published.

        Raises as `create` does, and NotSupported where the runtime cannot save workers.
        """
        if self._tools.snapshots is None:
            name = self._tools.runtime.name
            raise NotSupported(f"create_type: the {name} runtime of this node keeps no snapshots")
        pod = await self.create(request)
        await self.settled()
        await pod.terminate()

    async def settled(self) -> None:
        """Wait until every snapshot that was taken is published, or given up."""
        if self._tools.snapshots is not None:
            await self._tools.snapshots.settled()
        if self._tools.memory is not None:
            await self._tools.memory.settled()

    async def remove_snapshot(self, funckey: str) -> None:
        """Remove what is kept of a function; nothing there is fine."""
        if self._tools.snapshots is not None:
            await self._tools.snapshots.forget(funckey)

    async def resume(
        self, key: PodKey, alloc: str, terminate: Sequence[PodKey], park: Sequence[PodKey]
    ) -> Pod:
        """Bring a parked pod back and wait until it is ready; a ready one is fine.

        `alloc` (empty: unchanged) may name other devices when they are simulated; a worker cannot
        move to another real GPU.
        """
        pod = self._find(key)
        if pod.state == "Standby" and not pod.busy_with("resume"):
            room = self._room(terminate, park, key.id)
            new = self._resumable_with(pod, alloc)
            self._tools.ledger.promise(key.id, devices_of(new), new.vram_mb_per_device, room.ids)
            pod.resume(new, room)
        elif pod.state not in (*SERVING, "Standby", "Resuming"):
            raise InvalidState(f"pod {key.id} is {pod.state}; only Standby can be resumed")
        for verb in ("adopted", "resume"):
            await pod.settled(verb)
        return pod

    async def terminate(self, key: PodKey) -> None:
        """End a pod; one that is not here, or has ended, is fine."""
        pod = self._pods.get(key.id)
        if pod is not None:
            await self._find(key).terminate()

    async def park(self, key: PodKey) -> None:
        """Freeze a ready pod and release its VRAM; a parked one is fine."""
        await self._find(key).park()

    def read_log(self, key: PodKey, lines: int) -> str:
        """The end of a pod's log, also of one that has ended a short while ago."""
        return self._log_of(key).tail(lines)

    def follow_log(self, key: PodKey, lines: int) -> AsyncIterator[str]:
        """The end of a pod's log and what follows, until the pod has ended."""
        pod = self._pods.get(key.id)
        finished = (lambda: pod.state in TERMINAL) if pod is not None else (lambda: True)
        return self._log_of(key).follow(lines, finished)

    # ---- life of the agent ----

    async def adopt_all(self) -> None:
        """Find the pods of the agent's former life again: live ones go on, the others are ended.

        Their VRAM is counted before anything new can ask for it; probes run in the background.
        Raises Unavailable when the node cannot say what runs: whoever serves without that knowledge
        shows live pods as gone, and gives their VRAM to others.
        """
        for folder in sorted(self._folder.iterdir()):
            if not folder.is_dir():
                continue
            record = records.load(folder)
            try:
                if record is not None:
                    await self._adopt(folder, record)
                else:
                    await self._clear(folder, {})
            except Unavailable as error:
                raise Unavailable(f"pod {folder.name} cannot be found: {error.message}") from error
            except InferxError as error:
                log.error("pod %s cannot be adopted: %s", folder.name, error)
        await self._clear_memory()
        keeper = Housekeeper(self._folder, self._live_ids, self._forget)
        self._housekeeper = asyncio.create_task(keeper.run(), name="housekeeping")

    async def stop_all(self) -> None:
        """End every pod and take no new ones; raises the first error after all were tried."""
        self._closing = True
        ends = [pod.terminate() for pod in self.pods]
        outcomes = await asyncio.gather(*ends, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def close(self) -> None:
        """Let the pods go, running; the next agent adopts them."""
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            await asyncio.gather(self._housekeeper, return_exceptions=True)
        for pod in self.pods:
            await pod.let_go()
        await self.settled()
        if self._tools.memory is not None:
            await self._tools.memory.close()
        await self._tools.runtime.close()

    # ---- inside ----

    async def _clear_memory(self) -> None:
        """Remove the GPU memory of pods that are no more, once the others' is found again."""
        if self._tools.memory is None:
            return
        for pod in self.pods:
            if pod.state == "Standby":
                with contextlib.suppress(InferxError):  # its memory is gone, so it has failed
                    await pod.settled("adopted")
        await self._tools.memory.forget_others()

    def _admit(self, request: CreateRequest) -> Pod:
        """Judge, count and begin; nothing is awaited here, so nobody comes in between."""
        pod_id = request.key.id
        if self._closing:
            raise Unavailable("this node agent is stopping")
        if not POD_ID.fullmatch(pod_id):
            raise BadRequest(f"id: {pod_id!r} is not a pod id")
        for part in ("tenant", "namespace", "funcname"):
            check_name(getattr(request.key, part), part)
        folder = self._folder / pod_id
        if folder.exists():
            raise InvalidState(f"pod {pod_id} has ended on this node; use a new id")
        launch = parse_launch(request.funcspec)
        self._tools.runtime.check(launch)
        alloc = parse_alloc(request.alloc)
        room = self._room(request.terminate, request.park, pod_id)
        per_device_mb = alloc.vram_mb_per_device
        self._tools.ledger.promise(pod_id, devices_of(alloc), per_device_mb, room.ids)
        try:
            pod = self._new_pod(folder, request, launch)
        except BaseException:
            # Nothing is left of it: its room is free again, and its id may be asked for again.
            self._tools.ledger.release(pod_id)
            self._tools.ledger.stay(room.ids)
            raise
        self._pods[pod.key.id] = pod
        pod.begin("start", room)
        return pod

    def _new_pod(self, folder: Path, request: CreateRequest, launch: FunctionSpec) -> Pod:
        """A pod with a folder of its own; raises with neither there."""
        try:
            record = records.Record(
                key=request.key,
                funcspec=request.funcspec,
                alloc=request.alloc,
                port=self._port_for(launch),
                state="Init",
                since_ms=_now_ms(),
                labels=request.labels,
                annotations=request.annotations,
                purpose=request.purpose,
                save=request.save,
            )
            folder.mkdir(mode=0o700)
            try:
                return Pod(self._tools, folder, record)
            except BaseException:
                shutil.rmtree(folder)
                raise
        except OSError as error:
            raise Unavailable(f"node cannot keep pod {request.key.id}: {error}") from error

    def _room(self, terminate: Sequence[PodKey], park: Sequence[PodKey], for_id: str) -> Room:
        """The pods that have to leave; raises when one of them may not, before any is touched."""
        ids = [key.id for key in (*terminate, *park)]
        if len(set(ids)) != len(ids) or for_id in ids:
            raise BadRequest(f"terminate_pods and park_pods: a pod is named twice in {ids}")
        # One that has ended already has left: that is what was wanted.
        leaving = [self._find(key) for key in terminate if key.id in self._pods]
        parking = [self._find(key) for key in park]
        for pod in parking:
            pod.check_parkable()
        return Room(terminate=leaving, park=parking)

    def _resumable_with(self, pod: Pod, text: str) -> Alloc:
        new = parse_alloc(text) if text else pod.alloc
        both = {*devices_of(new), *devices_of(pod.alloc)}
        if devices_of(new) != devices_of(pod.alloc) and self._tools.ledger.real_devices(both):
            raise BadRequest(
                f"alloc_resources.GPU.devices: pod {pod.key.id} runs on {devices_of(pod.alloc)} and"
                f" cannot move to {devices_of(new)}"
            )
        return new

    def _find(self, key: PodKey) -> Pod:
        pod = self._pods.get(key.id)
        if pod is None:
            raise NotFound(f"pod {key.id} is not on this node")
        if not pod.key.same_function(key):
            raise BadRequest(f"pod {key.id} belongs to another function")
        return pod

    def _port_for(self, launch: FunctionSpec) -> int:
        taken = {pod.record.port for pod in self.pods if pod.state not in TERMINAL}
        return self._tools.runtime.port_for(launch, taken)

    def _report(self, pod: Pod) -> None:
        self._view.show_pod(pod)
        if pod.state == "Terminated":
            self._pods.pop(pod.key.id, None)
            self._view.remove_pod(pod)

    async def _adopt(self, folder: Path, record: records.Record) -> None:
        if record.state in TERMINAL:
            if record.state == "Failed":
                pod = Pod(self._tools, folder, record)
                self._pods[pod.key.id] = pod
                self._report(pod)
            return
        try:
            pod = Pod(self._tools, folder, record)
        except InferxError as error:
            log.error("pod %s has a record that is not understood: %s", record.key.id, error)
            await self._clear(folder, record.worker)
            return
        pod.worker = await self._tools.runtime.adopt(folder, record.worker)
        self._pods[pod.key.id] = pod
        if pod.worker is None:
            pod.lost("the worker ended while the agent was away")
            return
        first = "adopted"
        if record.state not in ("Standby", "Parking"):
            ledger = self._tools.ledger
            try:
                ledger.promise(record.key.id, devices_of(pod.alloc), pod.alloc.vram_mb_per_device)
                ledger.take(record.key.id, in_use=True)
            except InferxError as error:
                log.error("pod %s is ended, its GPU is not here: %s", record.key.id, error)
                first = "terminate"
        # Before anybody can ask for the pods: to the scheduler, one that is not shown is gone.
        self._report(pod)
        pod.begin(first)

    async def _clear(self, folder: Path, worker_record: Mapping[str, Any]) -> None:
        """End the worker of a folder that does not say what it is for, and remove the folder."""
        worker = await self._tools.runtime.adopt(folder, worker_record)
        if worker is not None:
            await worker.stop(self._tools.grace_s)
        shutil.rmtree(folder)

    def _log_of(self, key: PodKey) -> PodLog:
        """The log's place is found by the id; the rest of the key must fit what is known."""
        if key.id in self._pods:
            return self._find(key).log
        folder = self._folder / key.id
        if not POD_ID.fullmatch(key.id) or not folder.is_dir():
            raise NotFound(f"pod {key.id} is not on this node")
        record = records.load(folder)
        if record is None or not record.key.same_function(key):
            raise NotFound(f"pod {key.id} is not one of {key.funcname} on this node")
        return PodLog(folder)

    def _live_ids(self) -> set[str]:
        """Pods whose folders must stay: not ended, or still holding VRAM (could not be killed)."""
        held = self._tools.ledger.held_mb
        return {pod.key.id for pod in self.pods if pod.state not in TERMINAL or held(pod.key.id)}

    def _forget(self, pod_id: str) -> None:
        pod = self._pods.pop(pod_id, None)
        if pod is not None:
            self._view.remove_pod(pod)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
