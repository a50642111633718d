"""One pod: a task that alone moves it through its states, starts, parks, resumes and ends it.

Must never touch another pod's state, nor change its own past `PodState`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from inferx.agent import metrics, records
from inferx.agent.devices import driver_of, take_when_free
from inferx.agent.driver import Driver
from inferx.agent.gpuside import GpuSide, Saved
from inferx.agent.identity import Subject
from inferx.agent.ladder import Ladder, Steps
from inferx.agent.ledger import Ledger
from inferx.agent.logs import PodLog
from inferx.agent.podstate import TERMINAL, PodState
from inferx.agent.probe import Probe, prove
from inferx.agent.requests import Request, Requests
from inferx.agent.runtimes.protocol import Exit, Runtime, Worker, WorkerSpec
from inferx.agent.snapshots import Snapshots
from inferx.agent.spec import PodKey, devices_of, parse_alloc, parse_launch, sample_of
from inferx.agent.tiers.memory import GpuMemory
from inferx.agent.vram import Vram
from inferx.domain import cluster
from inferx.errors import InferxError, InvalidState, NoCapacity, StartFailed

log = logging.getLogger("inferx.agent.pod")

RESUME_TIMEOUT_S = 30.0
CLEANUP_GRACE_S = 1.0
SERVING = ("Ready", "Idle")  # Idle by the pod table: that is how a snapshot ends


@dataclass(frozen=True)
class Tools:
    """What every pod of a node works with."""

    node: str
    runtime: Runtime
    snapshots: Snapshots | None
    ledger: Ledger
    client: httpx.AsyncClient
    report: Callable[[Pod], None]  # the pod has changed
    grace_s: float
    memory: GpuMemory | None = None


@dataclass
class Room:
    """The pods that have to leave before this one can take its VRAM."""

    terminate: Sequence[Pod] = ()
    park: Sequence[Pod] = ()

    @property
    def ids(self) -> list[str]:
        return [pod.key.id for pod in (*self.terminate, *self.park)]


class Pod:
    """A pod and its task. Verbs put a request to the task and wait; a caller that gives up
    waiting changes nothing."""

    def __init__(self, tools: Tools, folder: Path, record: records.Record) -> None:
        self.tools = tools
        self.folder = folder
        self.record = record
        self.launch = parse_launch(record.funcspec)
        self.alloc = parse_alloc(record.alloc)
        self.log = PodLog(folder)
        share_mb = self.alloc.vram_mb_per_device
        vram = Vram(tools.memory, lambda: tools.ledger.simulated(self._devices()), share_mb)
        self.gpu = GpuSide(self.key.id, folder, vram, tools.client, self._url, self._driver)
        self._state = PodState(folder, record, lambda: tools.report(self), lambda: self.gpu.record)
        self._requests: Requests[Room] = Requests()
        self._ending = asyncio.Event()
        steps = Steps(
            load=self._load,
            hold=self._hold,
            wake=self.gpu.come_back,
            prove=lambda worker: self._prove(worker, RESUME_TIMEOUT_S, again=True),
            drop=self._drop,
            note=self._state.note,
            ending=self._ending,
        )
        self._ladder = Ladder(record.key.id, tools.runtime, tools.snapshots, steps)
        self._task: asyncio.Task[None] | None = None

    @property
    def key(self) -> PodKey:
        return self.record.key

    @property
    def state(self) -> str:
        return self._state.name

    @property
    def worker(self) -> Worker | None:
        """The running worker; set by who adopts one."""
        return self._state.worker

    @worker.setter
    def worker(self, worker: Worker | None) -> None:
        self._state.worker = worker

    # ---- verbs ----

    def begin(self, verb: str, room: Room | None = None) -> None:
        """Start the task with its first verb: `start`, or `adopted` for a worker found running."""
        self._requests.ask(verb, room or Room())
        self._task = asyncio.create_task(self._run(), name=f"pod {self.key.id}")

    def busy_with(self, verb: str) -> bool:
        """Whether that verb is asked for or in progress."""
        return self._requests.pending(verb) is not None

    def lost(self, reason: str) -> None:
        """The worker was found gone by who looked for it; the pod ends without a task."""
        self.record.error = None if self.state == "Terminating" else reason
        self._state.move("exited" if self.state == "Terminating" else "fail", reason)

    async def settled(self, verb: str) -> None:
        """Wait for the verb in progress, if there is one; raises what it raised."""
        answer = self._requests.pending(verb)
        if answer is not None:
            await asyncio.shield(answer)

    async def terminate(self) -> None:
        """End the worker; returns when all of it is gone. A finished pod is fine."""
        if self.state not in TERMINAL:
            self._ending.set()
            await asyncio.shield(self._requests.ask("terminate", Room()))

    async def park(self) -> None:
        """Freeze the worker and release its VRAM. A parked pod is fine."""
        self.check_parkable()
        if self.state != "Standby":
            await asyncio.shield(self._requests.ask("park", Room()))

    def resume(self, alloc: cluster.Alloc, room: Room) -> None:
        """Ask for the way back from Standby; its room must be promised. `settled` waits for it."""
        self.alloc = alloc
        self.record.alloc = json.dumps(alloc.to_raw())
        self._requests.ask("resume", room)

    def check_parkable(self) -> None:
        """Raise InvalidState when this pod cannot be parked now."""
        if self.state not in (*SERVING, "Parking", "Standby"):
            raise InvalidState(f"pod {self.key.id} is {self.state}; only a Ready pod can be parked")
        self._driver()

    async def let_go(self) -> None:
        """Stop managing the pod; its worker runs on and can be adopted later."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.worker is not None:
            self.worker.let_go()
        self.gpu.close()

    # ---- the task ----

    async def _run(self) -> None:
        steps: dict[str, Callable[[Room], Awaitable[None]]] = {
            "start": self._start,
            "adopted": self._adopted,
            "park": self._park,
            "resume": self._resume,
            "terminate": self._terminate,
            "exited": self._exited,
        }
        while self.state not in TERMINAL:
            request = await self._requests.next()
            try:
                await steps[request.verb](request.argument)
            except InferxError as error:
                request.answer(error)
            except Exception as error:
                log.exception("pod %s: %s failed", self.key.id, request.verb)
                wrapped = InferxError(f"{request.verb} of pod {self.key.id}: {error}")
                await self._fail(wrapped)
                request.answer(wrapped)
            else:
                request.answer()
        for request in self._requests.rest():
            self._refuse(request)

    def _refuse(self, request: Request[Room]) -> None:
        if request.verb in ("terminate", "exited"):
            request.answer()
            return
        self.tools.ledger.stay(request.argument.ids)
        reason = f": {self.record.error}" if self.record.error else ""
        message = f"pod {self.key.id} is {self.state}, it cannot {request.verb}{reason}"
        request.answer(InvalidState(message))

    async def _start(self, room: Room) -> None:
        begun = time.monotonic()
        try:
            self._state.move("create", "making room" if room.ids else "starting")
            await self._make_room(room)
            await take_when_free(self.tools.ledger, self.key.id, self._devices(), self._ending)
            self.gpu.open()
            self.record.start = "snapshot"
            if self.record.purpose == "serve" and await self._ladder.restored(
                self._subject(), self._worker_spec()
            ):
                self._state.pass_through("started")
                self._state.move("probe_ok", self.record.came_from)
            else:
                await self._start_from_nothing()
            metrics.started(self.record.start, self.record.tier, time.monotonic() - begun)
        except InferxError as error:
            if self._ending.is_set():
                raise  # the terminate that interrupted us is the next request
            raise await self._fail(error) from error

    async def _start_from_nothing(self) -> None:
        self.record.start = "cold"
        ladder, subject = self._ladder, self._subject()
        worker = self._hold(await self.tools.runtime.start(self._worker_spec()))
        self._state.move("started", ladder.say("loading"))
        await self._prove(worker, sample_of(self.launch).loading_timeout_s)
        if not ladder.wants_snapshot(subject, self.record.save):
            self._state.move("probe_ok", ladder.say())
            return
        # Before the first call: the image holds nobody's request and no connection, and only the
        # first start of a revision has to wait for it.
        self._state.pass_through("probe_ok")
        self._state.move("snapshot", ladder.say("taking a snapshot"))
        await ladder.save(subject, worker, self.gpu, must=self.record.purpose == "snapshot")
        self._state.move("snapshot_done", ladder.say())

    async def _adopted(self, _: Room) -> None:
        """Go on from the state that the record names, with a worker that still runs."""
        worker = self.worker
        if worker is None:
            raise InvalidState(f"pod {self.key.id} has no worker to adopt")
        worker.exited.add_done_callback(self._on_exit)
        if self.state == "Terminating":
            await self._terminate(Room())
            return
        try:
            # By its record, which the next note replaces.
            await self.gpu.adopt(worker, self.record.gpu, self.state, self.key.tenant)
            self._state.note("adopted")
            if self.state == "Creating":
                self._state.move("started", "adopted while starting")
            if self.state in ("Loading", "Resuming", "Ready", "Idle", "Snapshotting"):
                again = self.state != "Loading"
                await self._prove(worker, sample_of(self.launch).loading_timeout_s, again=again)
                if self.state == "Snapshotting":
                    self._state.move("snapshot_done", "adopted while it was saved")
                elif self.state not in SERVING:
                    self._state.move("probe_ok", "")
                else:
                    self._state.note("adopted")
            elif self.state == "Parking":
                await self._frozen(worker)
        except InferxError as error:
            if self._ending.is_set():
                raise
            raise await self._fail(error) from error

    async def _park(self, _: Room) -> None:
        if self.state == "Standby":
            return
        self.check_parkable()
        if self.worker is None:
            raise InvalidState(f"pod {self.key.id} has no worker")
        # Idle belongs to the scheduler; the agent passes through it on the way to Parking.
        if self.state == "Ready":
            self._state.pass_through("admit")
        self._state.move("park", "parking")
        await self._frozen(self.worker)

    async def _frozen(self, worker: Worker) -> None:
        gpu = self.gpu
        try:
            remark = await gpu.leave(worker, "park")
            await worker.freeze()
            await self._ladder.make_room(gpu.saved_bytes)
            await gpu.keep(gpu.base, self._subject().names, free=True)
            gpu.sink(self.launch.standby.gpu)
        except InferxError as error:
            raise await self._fail(error) from error
        self.tools.ledger.release(self.key.id)
        self._state.move("parked", f"frozen; holds host memory, no VRAM; {remark}".rstrip("; "))

    async def _resume(self, room: Room) -> None:
        if self.state in SERVING:
            return
        if self.worker is None or self.state != "Standby":
            raise InvalidState(f"pod {self.key.id} is {self.state}; only Standby can be resumed")
        try:
            await self._make_room(room)
            await take_when_free(self.tools.ledger, self.key.id, self._devices(), self._ending)
        except InferxError:
            self.tools.ledger.release(self.key.id)
            raise
        begun = time.monotonic()
        self.record.start = "resume"
        self._state.move("resume", "resuming")
        try:
            try:
                await self._load(None)
                await self.worker.thaw()
                await self.gpu.come_back(self.worker)
                await self._prove(self.worker, RESUME_TIMEOUT_S, again=True)
            except InferxError as error:
                if self._ending.is_set():
                    raise
                self._ladder.remark("its standby failed: ", error)
                await self._start_over()
            await self.gpu.forget()
            self._state.move("probe_ok", self._ladder.say(self.record.came_from))
            metrics.started(self.record.start, self.record.tier, time.monotonic() - begun)
        except InferxError as error:
            if self._ending.is_set():
                raise
            raise await self._fail(error) from error

    async def _start_over(self) -> None:
        """The colder ways to a worker, in the place of a parked one that did not come back."""
        self._state.note(self._ladder.say("starting again"))
        await self.gpu.forget()
        await self._drop()
        self.gpu.open()
        self.record.start = "snapshot"
        if not await self._ladder.restored(self._subject(), self._worker_spec()):
            self.record.start = "cold"
            worker = self._hold(await self.tools.runtime.start(self._worker_spec()))
            await self._prove(worker, sample_of(self.launch).loading_timeout_s)

    async def _terminate(self, _: Room) -> None:
        if self.state != "Terminating":
            self._state.move("terminate", "terminating")
        try:
            if self.worker is not None:
                await self.worker.stop(self.tools.grace_s)
        except InferxError as error:
            # Something of it still lives: its VRAM stays counted, and the next request tries again.
            self.record.error = error.message
            self._state.note("could not be ended yet")
            raise
        await self._gone()
        self._state.move("exited", "")

    async def _exited(self, _: Room) -> None:
        if self.worker is not None and self.worker.exited.done():
            await self._fail(InferxError(f"worker {self.worker.exited.result()}"))

    # ---- steps ----

    def _worker_spec(self) -> WorkerSpec:
        return WorkerSpec(
            pod_id=self.key.id,
            launch=self.launch,
            alloc=self.alloc,
            folder=self.folder,
            host=self.tools.runtime.listen_host,
            port=self.record.port,
        )

    def _subject(self) -> Subject:
        gpus = {gpu.index: gpu for gpu in self.tools.ledger.gpus}
        devices = tuple(gpus[index] for index in devices_of(self.alloc) if index in gpus)
        return Subject(self.key, self.record.funcspec, devices)

    def _devices(self) -> tuple[int, ...]:
        return devices_of(self.alloc)

    def _driver(self) -> Driver | None:
        return driver_of(self.tools.ledger, self.key.id, self._devices())

    def _url(self) -> str:
        schema = self.launch.endpoint.schema.lower()
        return f"{schema}://{self.record.ip}:{self.record.port}"

    async def _load(self, saved: Saved | None) -> None:
        """Bring the GPU memory of this pod, or of a snapshot, back."""
        tier = await self.gpu.restore(saved) if saved or self.state == "Resuming" else None
        self.record.tier = tier.name.lower() if tier is not None else ""

    async def _gone(self) -> None:
        """Give up all that a worker has left behind."""
        await self.gpu.forget()
        self.gpu.close()
        self.tools.ledger.release(self.key.id)

    def _hold(self, worker: Worker) -> Worker:
        self.worker = worker
        self.record.ip = worker.host
        worker.exited.add_done_callback(self._on_exit)
        return worker

    async def _drop(self) -> None:
        """End a worker that will not be the pod's after all."""
        if self.worker is not None:
            await self.worker.stop(0)
            self.worker = None
        self.gpu.vram.release()

    def _on_exit(self, _: asyncio.Future[Exit]) -> None:
        if self.state not in TERMINAL:
            self._requests.ask("exited", Room())

    async def _make_room(self, room: Room) -> None:
        leave = [pod.terminate() for pod in room.terminate] + [pod.park() for pod in room.park]
        outcomes = await asyncio.gather(*leave, return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures:
            self.tools.ledger.stay(room.ids)
            reasons = "; ".join(str(failure) for failure in failures)
            raise NoCapacity(f"pods did not make room: {reasons}")

    async def _prove(self, worker: Worker, timeout_s: float, *, again: bool = False) -> None:
        """Wait for the probe; `again` for a worker that has been ready before."""
        tools = self.tools
        probe = Probe(tools.client, self.launch, worker.host, self.record.port, again=again)
        await prove(probe, worker, self._ending, timeout_s)

    async def _fail(self, error: InferxError) -> InferxError:
        """End what is left, release the VRAM, and say why; returns the error for the caller."""
        if self.state in TERMINAL:
            return error
        if self.worker is not None:
            try:
                await self.worker.stop(CLEANUP_GRACE_S)
            except InferxError as left:
                error = StartFailed(f"{error.message}; {left.message}")
                self._state.fail(error.message)
                return error
        await self._gone()
        message = f"pod {self.key.id}: {error.message}{self.log.last_words()}"
        # The pod's view may reach the scheduler before this call's answer does: both say the same.
        error = type(error)(message, retry_after_ms=error.retry_after_ms, details=error.details)
        self._state.fail(error.message)
        return error
