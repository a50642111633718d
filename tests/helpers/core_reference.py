"""An executable reference of the scheduler core, small enough to be checked by eye.

Must never be fast or clever. It covers slots, tickets, replicas, back-off, snapshot tasks and time
on a cluster with room for all; who makes room for whom is left to the simulation of the core.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

IDLE_PARK_MS = 5_000
BACKOFF_MS, BACKOFF_MAX_MS = 1_000, 60_000
SNAPSHOT_BACKOFF_MS, SNAPSHOT_BACKOFF_MAX_MS = 30_000, 3_600_000
SNAPSHOT_WAIT_MS = 600_000

Deed = tuple[object, ...]


@dataclass
class Task:
    """The snapshot of a function on the one node. `saver` is the start that may save its worker."""

    state: str = ""
    failures: int = 0
    told: int = 0
    saver: Pod | None = None
    due_ms: int | None = None


@dataclass
class Function:
    """A function and its policy; the wait ratio is 0, so every waiting slot counts."""

    name: str
    parallel: int
    max_replica: int
    queue_len: int
    failures: int = 0
    retry_ms: int = 0
    task: Task = field(default_factory=Task)


@dataclass
class Pod:
    """`number` is the order in which pods were started; `state` is starting, open or ending."""

    number: int
    function: Function
    state: str = "starting"
    leased: int = 0
    used_ms: int = 0
    broken: bool = False

    @property
    def free(self) -> int:
        return self.function.parallel - self.leased


@dataclass
class Ticket:
    """Who waits for how many slots (0 = all of one pod) until when."""

    number: int
    function: Function
    request: tuple[int, str]
    slots: int
    deadline_ms: int


@dataclass
class Lease:
    """Slots in somebody's hands."""

    number: int
    pod: Pod
    request: tuple[int, str]
    slots: int


@dataclass
class Reference:
    """Verbs like those of the core; each leaves its deeds in `deeds`."""

    functions: dict[str, Function] = field(default_factory=dict)
    pods: list[Pod] = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    deeds: list[Deed] = field(default_factory=list)
    now_ms: int = 0
    _pods: count[int] = field(default_factory=lambda: count(1))
    _tickets: count[int] = field(default_factory=lambda: count(1))
    _leases: count[int] = field(default_factory=lambda: count(1))

    # ---- verbs ----

    def lease(self, name: str, request: tuple[int, str], slots: int, wait_ms: int) -> Deed:
        """("leased", lease), ("queued", ticket) or ("refused", code)."""
        function = self.functions.get(name)
        if function is None:
            return ("refused", "function_not_found")
        for lease in self.leases:
            if lease.request == request:
                return ("leased", lease)
        for ticket in self.tickets:
            if ticket.request == request:
                return ("queued", ticket.number)
        if not self.waiting(function) and (pod := self.best_pod(function, slots)):
            return ("leased", self.grant(pod, request, min(want(function, slots), pod.free)))
        if len(self.waiting(function)) >= function.queue_len:
            return ("refused", "queue_full")
        ticket = Ticket(next(self._tickets), function, request, slots, self.now_ms + wait_ms)
        self.tickets.append(ticket)
        self.serve(function)
        if ticket not in self.tickets:  # the answer is the verb's own
            self.deeds.remove(("refuse", ticket.number))
            return ("refused", "start_failed")
        return ("queued", ticket.number)

    def give_back(self, lease: Lease, ok: bool) -> None:
        """The slots go to the oldest ticket; a broken pod ends with its last lease."""
        pod = lease.pod
        self.leases.remove(lease)
        pod.leased -= lease.slots
        pod.used_ms = self.now_ms
        pod.broken |= not ok
        if pod.broken and pod.leased == 0:
            self.end(pod)
        self.serve(pod.function)

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for it any more."""
        self.tickets.remove(ticket)
        self.serve(ticket.function)

    def started(self, pod: Pod, ok: bool) -> None:
        """A start succeeded, or failed and left nothing."""
        function = pod.function
        self.saver_is_over(function.task, pod, ok)
        if ok:
            pod.state, pod.used_ms = "open", self.now_ms
            function.failures = function.retry_ms = 0
        else:
            self.pods.remove(pod)
            function.failures += 1
            backoff_ms = min(BACKOFF_MS << (function.failures - 1), BACKOFF_MAX_MS)
            function.retry_ms = self.now_ms + backoff_ms
        self.serve(function)

    def ended(self, pod: Pod) -> None:
        """The agent has nothing left of it."""
        self.pods.remove(pod)

    def kill(self, pod: Pod) -> None:
        """A pod ends with its leases."""
        self.end(pod)
        self.serve(pod.function)

    def saved(self, function: Function) -> None:
        """The node has the snapshot."""
        function.task = Task("Done", saver=function.task.saver)

    def not_saved(self, function: Function) -> None:
        """The node tells of one more attempt that failed."""
        function.task.told += 1
        self.count_failure(function.task)

    def removed(self, function: Function) -> None:
        """The node has the snapshot no longer."""
        if function.task.state == "Done":
            function.task.state = "Waiting"

    def tick(self, now_ms: int) -> None:
        """Deadlines, snapshots, idle pods, retries."""
        self.now_ms = now_ms
        for task in (function.task for function in self.functions.values()):
            if task.due_ms is not None and task.due_ms <= now_ms:
                if task.state == "Scheduled":
                    self.count_failure(task)  # nothing was heard of it
                else:
                    task.state, task.due_ms = "Waiting", None
        for ticket in [t for t in self.tickets if t.deadline_ms <= now_ms]:
            self.tickets.remove(ticket)
            self.deeds.append(("refuse", ticket.number))
        for pod in self.pods:
            idle = pod.state == "open" and pod.leased == 0
            if idle and pod.used_ms + IDLE_PARK_MS <= now_ms:
                self.end(pod)
        for function in self.functions.values():
            self.serve(function)

    # ---- rules ----

    def serve(self, function: Function) -> None:
        """Free slots to tickets, oldest first, then starts for what is still wanted."""
        while (waiting := self.waiting(function)) and (
            pod := self.best_pod(function, waiting[0].slots)
        ):
            ticket = waiting[0]
            share = max(1, pod.free // max(1, len(waiting) - len(self.starting(function))))
            self.tickets.remove(ticket)
            slots = min(want(function, ticket.slots), share)
            lease = self.grant(pod, ticket.request, slots)
            self.deeds.append(("grant", ticket.number, pod.number, lease.slots))
        coming = sum(pod.free for pod in self.starting(function))
        wanted = sum(want(function, ticket.slots) for ticket in self.waiting(function))
        lacking = -(-max(0, wanted - coming) // function.parallel)
        while lacking and self.may_start(function):
            pod = Pod(next(self._pods), function, used_ms=self.now_ms)
            self.pods.append(pod)
            self.deeds.append(("start", function.name, self.may_save(function.task, pod)))
            lacking -= 1
        backs_off = function.retry_ms > self.now_ms or function.max_replica == 0
        if lacking and backs_off and not self.running(function):
            for ticket in self.waiting(function):
                self.tickets.remove(ticket)
                self.deeds.append(("refuse", ticket.number))

    def may_save(self, task: Task, pod: Pod) -> bool:
        """Not while another start may, nor while it backs off; a snapshot that is there may turn
        out to be of no use."""
        if task.state in ("", "Waiting") and task.saver is None:
            task.state, task.saver, task.due_ms = "Scheduled", pod, None
            return True
        return task.state == "Done"

    def saver_is_over(self, task: Task, pod: Pod, ok: bool) -> None:
        if task.saver is pod:
            task.saver = None
            if task.state == "Scheduled" and ok:
                task.due_ms = self.now_ms + SNAPSHOT_WAIT_MS
            elif task.state == "Scheduled":
                task.state = "Waiting"

    def count_failure(self, task: Task) -> None:
        task.state, task.failures = "ScheduleFail", max(task.failures + 1, task.told)
        backoff_ms = min(SNAPSHOT_BACKOFF_MS << (task.failures - 1), SNAPSHOT_BACKOFF_MAX_MS)
        task.due_ms = self.now_ms + backoff_ms

    def may_start(self, function: Function) -> bool:
        backs_off = function.retry_ms > self.now_ms
        return not backs_off and len(self.running(function)) < function.max_replica

    def grant(self, pod: Pod, request: tuple[int, str], slots: int) -> Lease:
        pod.leased += slots
        pod.used_ms = self.now_ms
        lease = Lease(next(self._leases), pod, request, slots)
        self.leases.append(lease)
        return lease

    def end(self, pod: Pod) -> None:
        pod.state, pod.leased = "ending", 0
        self.leases = [lease for lease in self.leases if lease.pod is not pod]
        self.deeds.append(("terminate", pod.number))

    def best_pod(self, function: Function, slots: int) -> Pod | None:
        """Enough free slots before too few, busy before idle, then the one used last."""
        wanted = want(function, slots)
        usable = [
            pod
            for pod in self.pods
            if pod.function is function and pod.state == "open" and not pod.broken and pod.free
        ]

        def rank(pod: Pod) -> tuple[int, bool, int, int]:
            return (min(pod.free, wanted), pod.leased > 0, pod.used_ms, pod.number)

        return max(usable, key=rank, default=None)

    def waiting(self, function: Function) -> list[Ticket]:
        return [ticket for ticket in self.tickets if ticket.function is function]

    def starting(self, function: Function) -> list[Pod]:
        return [pod for pod in self.running(function) if pod.state == "starting"]

    def running(self, function: Function) -> list[Pod]:
        return [
            pod
            for pod in self.pods
            if pod.function is function and pod.state != "ending" and not pod.broken
        ]


def want(function: Function, slots: int) -> int:
    """Slots of an ask: 0 = all of one pod, never more than one pod has."""
    return min(slots, function.parallel) if slots else function.parallel
