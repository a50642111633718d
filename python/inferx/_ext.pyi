"""The compiled module: what Python may call of the Rust crates. The docstrings live here."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self, final

__all__ = [
    "CancelToken",
    "CudaDevice",
    "DeviceError",
    "Door",
    "DoorCall",
    "Gpu",
    "HostPool",
    "Proxy",
    "ResidentSnapshot",
    "SchedulerCore",
    "SchedulerServer",
    "SnapshotError",
    "SnapshotImport",
    "SnapshotStore",
    "SoftDevice",
    "__version__",
    "fsck_snapshots",
    "pod_table",
    "pod_transition",
]

__version__: str
"""The version of the wheel."""

class SnapshotError(Exception):
    """A snapshot is corrupt, unsupported or of another machine, or its job was cancelled."""

class DeviceError(Exception):
    """The device refused a call or does not answer.

    `args` are the message and the driver's result code (`None` after a timeout): 2 out of memory,
    304 stuck for good (kill the process), 401 wrong state, 600 lock timeout (try again),
    801 not supported.
    """

class Gpu:
    """A GPU. Memory is counted in MiB, in units of 2 MiB. Safe to use from any thread."""

    def allocate(self, mib: int) -> int:
        """Takes `mib` of memory and returns its handle.

        `MemoryError` when it does not fit (nothing is taken then), `ValueError` for 0.
        """

    def free(self, handle: int) -> None:
        """Gives memory back. `KeyError` for a handle that is not held (also a second free)."""

    def export(self, handle: int) -> int:
        """A file descriptor of the memory for another process; the caller closes it."""

    @property
    def used_mib(self) -> int:
        """MiB in use."""

    @property
    def capacity_mib(self) -> int:
        """MiB in total."""

    @property
    def name(self) -> str:
        """Marketing name."""

    @property
    def driver(self) -> str:
        """Version of the kernel driver; empty when it does not say."""

    @property
    def cuda(self) -> str:
        """CUDA version of the driver, e.g. "13.0"."""

    @property
    def compute_capability(self) -> str:
        """Compute capability, e.g. "9.0"."""

    @property
    def uuid(self) -> str:
        """UUID as 32 hex digits."""

    def measure_pin(self, mib: int, piece_mib: int) -> int:
        """Microseconds for pinning so much touched host memory in buffers of `piece_mib`."""

    def measure_copy(self, pieces: int, piece_mib: int) -> tuple[int, int]:
        """Microseconds for copying pinned buffers to the device, and back."""

    def measure_map(self, mib: int) -> tuple[int, int, int]:
        """Microseconds for creating, mapping and unmapping device memory."""

    def process_state(self, pid: int) -> Literal["running", "locked", "checkpointed", "failed"]:
        """The state of a process as the driver sees it."""

    def process_lock(self, pid: int, timeout_ms: int) -> None:
        """Running to locked: the process's GPU calls block.

        After `timeout_ms` (0 waits for ever) `DeviceError` 600; the process keeps running then.
        """

    def process_checkpoint(self, pid: int) -> None:
        """Locked to checkpointed: the process's GPU memory moves to the host."""

    def process_restore(self, pid: int, gpus: Sequence[tuple[bytes, bytes]] = ...) -> None:
        """Checkpointed to locked. `gpus` pairs old and new UUIDs, 16 bytes each.

        Check the free memory first: after `DeviceError` 2 the process may be stuck for good.
        """

    def process_unlock(self, pid: int) -> None:
        """Locked to running."""

@final
class SoftDevice(Gpu):
    """A simulated GPU: its memory costs no RAM until it is written.

    Dropping the device frees all of its memory.
    """

    def __new__(
        cls,
        capacity_mib: int,
        *,
        index: int = 0,
        mib_per_second: int | None = None,
        faults: Sequence[str] = ...,
    ) -> SoftDevice:
        """A device with `capacity_mib` of memory; `ValueError` below one unit of 2 MiB.

        `index` tells devices apart (part of the UUID); copies run at `mib_per_second`, or as fast
        as the host copies. `faults` by name: `oom-on-create:N`, `stuck-after-oom`,
        `lock-timeout`, `process-failed`, `flip-bit:N`, `short-copy:N`, `hang:N`, `wrong-device`.
        """

    def adopt(self, descriptor: int, mib: int) -> int:
        """Takes over exported memory that another process kept; the caller closes its descriptor.

        `MemoryError` when it does not fit, `ValueError` when it is of another size.
        """

    def process_start(self, pid: int, mib: int) -> None:
        """A process starts to use the device with `mib` of its own memory."""

    def process_end(self, pid: int) -> None:
        """A process ended, in whatever state; its memory is free again."""

@final
class CudaDevice(Gpu):
    """An NVIDIA GPU; libcuda is loaded when the first one is opened."""

    def __new__(cls, index: int = 0, *, library: str | PathLike[str] | None = None) -> CudaDevice:
        """The GPU of this index, by the driver's `library` when it is not where it always is.

        `DeviceError` 100 when the machine has no driver.
        """

@final
class CancelToken:
    """Cancels a save or a restore from another thread; it stops between two chunks."""

    def __new__(cls) -> CancelToken: ...
    def cancel(self) -> None:
        """Asks the job to stop; it raises `SnapshotError` then."""

@final
class HostPool:
    """Pinned host memory in slots of 8 MiB: the tier between disk and GPU.

    Pinning is slow, seconds for many GiB, so a pool is made when the agent starts.
    """

    def __new__(cls, gpu: Gpu, mib: int) -> HostPool:
        """A pool of `mib`, rounded down to whole slots."""

    @property
    def capacity_mib(self) -> int:
        """MiB in all."""

    @property
    def free_mib(self) -> int:
        """MiB that no resident snapshot holds."""

    def capture(self, gpu: Gpu, regions: Mapping[str, int]) -> ResidentSnapshot:
        """Copies GPU memory (handles by name of region) into the pool.

        When this returns, the memory may be freed. `MemoryError` when the pool is too full.
        """

@final
class ResidentSnapshot:
    """GPU memory in a host pool. Its slots are free again when this is dropped."""

    @property
    def host_mib(self) -> int:
        """MiB of the pool that this holds; zero and repeated chunks take nothing."""

    def restore(
        self, gpu: Gpu, *, cancel: CancelToken | None = None
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Like `SnapshotStore.restore`, without the disk."""

def fsck_snapshots(root: str | PathLike[str]) -> dict[str, str | None]:
    """Reads and checks every byte of every snapshot in a directory and changes nothing.

    What is wrong with each, by id; None for a sound one. The directory may be in use.
    """

@final
class SnapshotImport:
    """A snapshot that comes from elsewhere; each chunk is checked before it is written.

    Dropping it unpublished removes what was written.
    """

    @property
    def id(self) -> str:
        """The id under which it will be published."""

    def files(self) -> list[tuple[str, int]]:
        """Names and lengths of the files that have to come, in this order."""

    def feed(self, name: str, content: bytes) -> None:
        """Takes the next bytes of a file in; `SnapshotError` when a chunk is not sound."""

    def publish(self) -> None:
        """Makes the snapshot visible; `SnapshotError` when something of it is missing."""

    def abandon(self) -> None:
        """Removes what was written; nothing happens after `publish`."""

@final
class SnapshotStore:
    """Snapshots in one directory, which this process owns while the object lives.

    All methods release the GIL. Ids are letters, digits, `-` and `_`.
    """

    def __new__(cls, root: str | PathLike[str]) -> SnapshotStore:
        """Opens or creates the directory, cleans up after a crash and checks what is there.

        `BlockingIOError` when another process owns it.
        """

    @property
    def removed(self) -> list[str]:
        """Left-overs of interrupted jobs that the start removed."""

    @property
    def quarantined(self) -> dict[str, str]:
        """Corrupt snapshots that the start set aside, by id, with the reason."""

    @property
    def skipped(self) -> dict[str, str]:
        """Snapshots that could not be judged, by id, with the reason."""

    def ids(self) -> list[str]:
        """Ids of the published snapshots."""

    def path(self, id: str) -> Path:
        """Where the snapshot of this id is, or would be."""

    def manifest(self, id: str) -> str:
        """The manifest as JSON, after the snapshot's metadata was checked."""

    def differences(self, id: str, host: str) -> list[str]:
        """Why the snapshot may not be restored on `host` (an identity as JSON); empty if it may."""

    def verify(self, id: str) -> None:
        """Reads and checks every byte; `SnapshotError` names all bad chunks."""

    def remove(self, id: str) -> None:
        """Removes a snapshot; running restores are not disturbed."""

    def start_import(
        self, commit: bytes, manifest: bytes, table: bytes, *, host: str | None = None
    ) -> SnapshotImport:
        """Starts to take a snapshot in from elsewhere by its three files of metadata.

        `SnapshotError` when they are damaged or not of `host` (an identity as JSON), `ValueError`
        when the id is taken, `OSError` for a full disk: all before a byte of data is asked for.
        """

    def save(
        self,
        id: str,
        gpu: Gpu,
        regions: Mapping[str, int],
        *,
        identity: str = "{}",
        extra: str = "{}",
        files: Mapping[str, str | PathLike[str]] = ...,
        created_unix_ms: int = 0,
        cancel: CancelToken | None = None,
    ) -> dict[str, int]:
        """Saves GPU memory (handles by name of region) and files (by path in the snapshot).

        `identity` and `extra` are JSON objects for the manifest. Published atomically, or not at
        all: `OSError` for a full disk, found before anything is copied. Returns `chunks`, `bytes`
        and `elapsed_us`.
        """

    def restore(
        self, id: str, gpu: Gpu, *, host: str | None = None, cancel: CancelToken | None = None
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Restores all GPU regions into new memory; returns handles by name of region, figures.

        `host`, an identity as JSON, is what the machine is now: a snapshot of another image,
        driver, GPU, kernel or function is refused with `SnapshotError`, which names the
        differences.

        After any error no memory is kept: `SnapshotError` for bad chunks (all are named),
        `MemoryError` before anything is copied, `DeviceError`. Figures: `chunks`, `reads`,
        `read_calls` (to the system), `bytes_read`, `bytes_copied`, `bytes_zeroed`, `direct` (1
        when the reads went past the page cache), `first_copy_us`, `elapsed_us`.
        """

    def load(
        self,
        id: str,
        pool: HostPool,
        *,
        host: str | None = None,
        cancel: CancelToken | None = None,
    ) -> ResidentSnapshot:
        """Reads and checks the GPU regions into a host pool.

        `MemoryError` when the pool is too full, `SnapshotError` for bad chunks (all are named).
        """

    def save_resident(
        self,
        id: str,
        resident: ResidentSnapshot,
        *,
        identity: str = "{}",
        extra: str = "{}",
        created_unix_ms: int = 0,
        cancel: CancelToken | None = None,
    ) -> None:
        """Publishes a captured worker's memory as a snapshot, while the worker runs on."""

@final
class Proxy:
    """The HTTP data plane of a gateway: listener, dispatch and connections to workers.

    A function is named by its key `tenant/namespace/function`. All methods may be called from any
    thread and return at once, except `start` and `drain`. Times are milliseconds.
    """

    def __new__(
        cls,
        host: str,
        port: int,
        control_socket: str | PathLike[str],
        *,
        default_tenant: str = "public",
        body_bytes_max: int = 67108864,
        head_bytes_max: int = 65536,
        connections_max: int = 32768,
        parked_max: int = 20000,
        threads: int = 0,
        auth_key: bytes | None = None,
        head_timeout_ms: int = 10000,
        keep_alive_timeout_ms: int = 75000,
        connect_timeout_ms: int = 2000,
        first_byte_timeout_ms: int = 600000,
        idle_timeout_ms: int = 300000,
        control_idle_timeout_ms: int = 3600000,
        pool_idle_timeout_ms: int = 4000,
        eject_failures: int = 10,
        share_port: bool = False,
        listen_fd: int | None = None,
        tls: tuple[str | PathLike[str], str | PathLike[str]] | None = None,
    ) -> Self:
        """A plane that does not listen yet.

        `port` 0 lets the system choose. Requests that are not inference calls go to the Unix
        socket `control_socket`. `threads` 0 means one per core. With `auth_key` (32 random bytes)
        callers of functions need a credential, which is asked about with `need_verdict` and
        hashed under the key. Raises ValueError for a host that is not an IP address.
        A worker that fails `eject_failures` times in a row (5xx, no answer) is given up. With
        `share_port` another plane may listen on the port already; anybody may join a plane later.
        `listen_fd` is a socket that listens on the port and that others hold, too; the plane owns
        the descriptor from then on. In both cases nobody is accepted before `set_not_ready(None)`,
        or for 10 s.
        `tls` is a certificate chain and its key as PEM files: clients then speak TLS, with HTTP/2
        or HTTP/1.1. Raises OSError naming the file that cannot be used.
        """

    def reload_certificate(self) -> None:
        """Read the certificate and key again; on an OSError those in use stay."""

    def start(self) -> int:
        """Bind and serve; returns the port. Raises OSError that names the address when taken."""

    def open_door(self) -> Door:
        """A second way in, for calls that another server of this process reads.

        Without `start` before, the plane runs without a listener of its own. Raises OSError when
        the system has no threads or descriptors left.
        """

    def drain(self, timeout_ms: int) -> bool:
        """Stop accepting, wait for the open requests; False when some were cut at the timeout."""

    @property
    def port(self) -> int | None:
        """The port that is listened on, None when not."""

    @property
    def event_fd(self) -> int:
        """A descriptor that is readable while events wait."""

    def upsert_function(
        self,
        function: str,
        *,
        revision: int,
        parallel: int,
        queue_len: int,
        queue_timeout_ms: int,
        wait_ratio: float,
        scalein_timeout_ms: int,
        model_names: list[str] = ...,
        served_model: str | None = None,
        disabled: str | None = None,
        public: bool = False,
    ) -> None:
        """Create a function or replace its definition; parked calls stay.

        With a new `revision` the workers of the old one finish what they have and are offered back.
        `model_names` are aliases on the OpenAI routes, `served_model` replaces the request's
        `model`, `disabled` is the reason for which calls are refused (403), `public` says that
        calls need no credential.
        """

    def remove_function(self, function: str) -> bool:
        """Remove it; its parked calls get 404. False when it was not there."""

    def add_worker(
        self,
        function: str,
        *,
        revision: int,
        lease_id: int,
        pod_id: str,
        host: str,
        port: int,
        slots: int,
        start: str,
    ) -> bool:
        """Answer one wanted worker. False when it is not wanted any more: give the lease back.

        `lease_id` is the caller's handle, never used twice; `start` is warm, resume, snapshot or
        cold.
        """

    def hold_leases(self, seconds: float) -> None:
        """The scheduler was heard: leases may be used for so long from now. After that calls wait,
        and no worker is given one, until this is called again; before its first call there is no
        end."""

    def remove_worker(self, lease_id: int) -> bool:
        """Take a worker out of rotation. Its calls in flight go on; `worker_idle` comes after the
        last of them. False when it was not in."""

    def trim_worker(self, lease_id: int, most: int) -> bool:
        """Others want slots of this worker: keep at most so many, and no more than its calls and
        those that wait can use now. `worker_trimmed` comes when the calls beyond them have ended,
        `worker_idle` when nothing is kept. False when it was not in."""

    def fail_lease(
        self,
        function: str,
        *,
        revision: int,
        http_status: int,
        code: str,
        message: str,
        retry_after_ms: int | None = None,
        late: bool = False,
    ) -> None:
        """One wanted worker cannot be had; parked calls get the error when nobody can serve them.

        `late`: it was waited for until the time was over. Then only calls whose own time is over
        get the error, and `need_worker` comes again for those that are younger."""

    def explain_wait(self, function: str, message: str) -> None:
        """What `why_waiting` asks for: calls that have waited in vain tell it to their clients."""

    def set_verdict(
        self, digest: bytes, principal: str, tag: str, grants: list[str], lifetime_ms: int
    ) -> None:
        """Answer `need_verdict`: calls with that credential are let in for `lifetime_ms`.

        `grants` are "" (everywhere), `tenant` or `tenant/namespace`; `tag` is for
        `revoke_verdicts`; `principal` names the caller in records.
        """

    def refuse_verdict(
        self, digest: bytes, http_status: int, code: str, message: str, lifetime_ms: int
    ) -> None:
        """Answer `need_verdict` with a refusal, which is kept for `lifetime_ms`."""

    def revoke_verdicts(self, tag: str) -> int:
        """Forget the verdicts under a tag; the next call asks again. Returns how many."""

    def set_tenant_limits(
        self,
        tenant: str,
        *,
        request_rate: float | None = None,
        concurrency: int | None = None,
        tokens_per_minute: int | None = None,
        gateways: int = 1,
        rank: int = 0,
    ) -> None:
        """What calls of a tenant's functions may have of this plane; None = no limit.

        `request_rate` is in calls per second, tokens are those that answers on `/v1/` routes say
        in `usage.total_tokens`. A call over a limit gets 429 `tenant_limit` that names it.
        Of `gateways` that share the limits this is the one at place `rank`: it takes its part.
        """

    def set_synced(self) -> None:
        """All functions are known: from now on an unknown one gets 404 instead of 503."""

    def set_not_ready(self, not_ready: str | None) -> None:
        """What `/readyz` answers: None for 200, otherwise 503 with this reason."""

    def take_events(
        self,
    ) -> list[
        tuple[str, str, int, int]
        | tuple[str, str, int]
        | tuple[str, str, int, str]
        | tuple[str, bytes, str]
        | tuple[str, str]
    ]:
        """All events since the last call.

        `("need_worker", function, revision, count)`, `("worker_idle", function, lease_id)` and
        `("worker_failed", function, lease_id, reason)`; the workers of the latter two are out of
        rotation already. `("worker_trimmed", function, lease_id, slots)`: so many slots are left.
        `("need_verdict", digest, credential)`: a credential that is not known; the calls with it
        wait. `("why_waiting", function)`: calls are about to have waited in vain; the reason is
        wanted, by `explain_wait`.
        """

    def count_records_in(self, path: Path) -> None:
        """From now on access records are counted in the third number of this file, which has four
        of 64 bits; the count outlives a kill. `OSError` when it cannot be mapped."""

    @property
    def records_lost(self) -> int:
        """How many access records were dropped because nobody took them."""

    def take_records(self) -> bytes:
        """One msgpack array per call that ended since the last call.

        Fields: unix_ms, request_id, method, function, status (499: the client left before the
        answer), outcome (complete, refused, worker_broke, client_gone), pod, start, wait_ms,
        first_byte_ms, total_ms (-1 = never), bytes_in, bytes_out, principal (empty without
        authentication), tokens (0 = not said). A request refused for its caller or a limit leaves
        one with its path or function.
        """

    def stats(self) -> bytes:
        """Counters and gauges as JSON: of the plane, and under `functions` by key."""

@final
class Door:
    """Hands calls to the data plane: same dispatch, same limits, bounded frames both ways."""

    @property
    def ready_fd(self) -> int:
        """A descriptor that is readable while calls have news."""

    def ready(self) -> list[int]:
        """The ids of the calls with news since the last call: a part of the answer, or room for
        another frame of the upload."""

    def open(self, head: bytes, chunked: bool) -> DoorCall:
        """Begin a call whose head is `head`, written as in HTTP/1 up to its blank line.

        It is read as strictly as one that comes over the plane's own listener; a refusal is the
        call's answer. `chunked`: its fields promise a body in chunks. Raises OSError when the
        system has no descriptors left.
        """

@final
class DoorCall:
    """One call. Losing the last reference to it means that its client has left."""

    @property
    def id(self) -> int:
        """How `Door.ready` names it."""

    def push(self, frame: bytes) -> bool:
        """Hand in a frame of the upload; False when there is no room for it now."""

    def finish(self) -> None:
        """The upload is complete."""

    def take(self) -> tuple[Any, ...] | None:
        """The next part of the answer, None when there is none yet.

        `("whole", status, [(name, value), ...], bytes)` for an answer that came at once. Otherwise
        `("head", status, [(name, value), ...])`, then `("data", bytes)` any number of times, then
        `("end",)` or `("broken", reason)`.
        """

    def leave(self) -> None:
        """The client has left: the call ends now, the worker's connection is closed."""

def pod_table() -> list[tuple[str, str, str]]:
    """Every legal step of a pod's life as rows `(from, event, to)`, by state, then event."""

def pod_transition(state: str, event: str) -> str:
    """The state after `event`. `ValueError` for a pair that is not in the table, or a wrong
    name."""

@final
class SchedulerCore:
    """Every decision about placement, leases and standby. Safe for several threads: a verb waits
    for another to end. A verb that panics breaks the core for good: `RuntimeError` from then on.

    All times are milliseconds of one monotonic clock of the caller. Verbs return at once; deeds are
    collected and fetched with `effects`. After each verb fetch them, and call `tick` at the time
    that `next_wakeup_ms` names.
    """

    def __new__(
        cls,
        pod_id_prefix: str,
        idle_park_ms: int | None = None,
        lease_ttl_ms: int = 15000,
        takeover_ms: int = 3000,
        placement: str = "inferx",
        eviction: str = "worth",
    ) -> SchedulerCore:
        """An empty core. `pod_id_prefix`: hexadecimal, different for each scheduler process, at
        most 8 characters; pod ids have 12. An idle pod is parked `idle_park_ms` after its last
        lease came back, None = when the keep-alive policy says so; leases of a gateway silent for
        `lease_ttl_ms` end; pods found ready by this process wait `takeover_ms` for a gateway to
        announce them.

        For comparison: `placement` may be Random, FirstFit, BestFit, DotProd, GpuClustering,
        GpuPacking or FGD, `eviction` may be LRU. `ValueError` names one that is not known.
        """

    def lease(
        self,
        now_ms: int,
        tenant: str,
        namespace: str,
        funcname: str,
        revision: int,
        gateway_id: int,
        request_id: str,
        slots: int,
        deadline_ms: int,
        consumer: str = "",
    ) -> tuple[str, int, str, int, str] | tuple[str, int] | tuple[str, str, str, int | None]:
        """Slots of a function: `("leased", lease_id, pod_id, slots, start)`, `("queued", ticket)`
        or `("refused", code, message, retry_after_ms)` with a code of `inferx.errors`.

        Idempotent by (`gateway_id`, `request_id`) while the lease or ticket lives; "" = never.
        `slots` 0 = all of one pod; fewer may be granted. `deadline_ms` is absolute, 0 = the
        policy's queue timeout. The current revision serves every caller, whatever `revision` it
        names. `consumer` is the tenant that calls, "" = the function's own: the keep-alive policy
        tells callers apart by it.
        """

    def give_back(self, now_ms: int, lease_id: int, ok: bool = True) -> bool:
        """Ends a lease. False when it is not live (any more). `ok` False: the worker is broken."""

    def share(self, lease_id: int) -> int | None:
        """Slots that the lease may keep because another gateway waits for some of its function, 0 =
        none; None when nobody else waits."""

    def trim(self, now_ms: int, lease_id: int, slots: int) -> bool:
        """The gateway holds at most so many slots under the lease from now on, at least one. False
        when it is not live."""

    def cancel(self, now_ms: int, ticket: int) -> bool:
        """Takes a ticket out of the queue. False when it was answered already."""

    def connect(self, now_ms: int, gateway_id: int) -> None:
        """A gateway begins to tell what it holds, with `announce`, and ends with `heard`; its
        leases live while it is heard of."""

    def replace(self, now_ms: int, gateway_id: int) -> None:
        """The process of that gateway is gone; its leases end at once."""

    def refresh(self, now_ms: int, gateway_id: int) -> bool:
        """A heartbeat. False for an unknown gateway, which has to connect and announce its
        leases."""

    def expect(self, now_ms: int, gateway_ids: list[int]) -> None:
        """A new leader names every gateway that may hold leases of its predecessor. Adopted pods
        are free as soon as all of them were `heard`, or their time is over."""

    def heard(self, now_ms: int, gateway_id: int) -> None:
        """A gateway has told all leases that it holds. Only pods that it announced, and that no
        agent has shown yet, still wait for it once they are adopted."""

    def names(self, now_ms: int, gateway_id: int, lease_ids: list[int]) -> None:
        """A gateway names every lease that it holds. One that it has not named for as long as
        leases live is one that it knows nothing of, and ends."""

    def holds(self, gateway_id: int, lease_id: int) -> bool:
        """Whether the lease is live and the gateway's."""

    def announce(
        self, now_ms: int, gateway_id: int, lease_id: int, pod_id: str, slots: int
    ) -> bool:
        """A gateway holds a lease, maybe of a former process. False: it has to drop it."""

    def kill(self, now_ms: int, pod_id: str) -> bool | None:
        """Ends a pod with its leases. None: no such pod; False: it is ending already."""

    def knows(self, tenant: str, namespace: str, funcname: str, revision: int) -> bool:
        """Whether the function was observed in this revision or a later one."""

    def waiting(self, tenant: str, namespace: str, funcname: str) -> tuple[int, str] | None:
        """How many tickets wait for a function and why; None when none does."""

    def observe(self, now_ms: int, fact: dict[str, object]) -> None:
        """Something happened. Telling a fact twice does no harm.

        `kind` is one of
        function (tenant, namespace, name, revision, cpu_millis, mem_mib, cache_mib,
        standby_mem_mib, gpu_type, gpu_count, vram_mib, contexts, standby_image_in_memory,
        expected_cold_ms, expected_resume_ms, expected_host_ms, expected_file_ms, min_replica,
        max_replica, standby_per_node, parallel, queue_len, queue_timeout_ms, wait_ratio_milli),
        function_gone (its name), tenant (name, disabled, priority, weight, allow_standby,
        max_replica, min_replica_cap, max_standby, max_gpu_milli, max_queue_len; None = no limit),
        namespace (tenant, name, disabled), node (name, boot_id, ready, keeps_snapshots,
        cpu_millis, mem_mib, cache_mib, gpus as (index, type, vram_mib), context_overhead_mib,
        contexts_per_gpu_max, pods_max), node_lost
        (name), node_gone (name), pod (pod_id, node, tenant, namespace, name, revision, state,
        reason, cpu_millis, mem_mib, cache_mib, devices, gpu_mib per device, contexts per device),
        pod_gone (pod_id), start_result, park_result, terminate_result (pod_id, ok, code, reason,
        gone, order, start: resume, snapshot or cold as it was really done, None = as ordered),
        snapshot (node, tenant, namespace, name, revision, state Done, ScheduleFail or Cannot, tier
        host or file, size_mib, failures of this revision, reason), snapshot_gone (node, tenant,
        namespace, name).

        `KeyError` or `ValueError` name an entry that is missing or wrong.
        """

    def tick(self, now_ms: int) -> None:
        """Does what is due: deadlines, expiries, parking, retries."""

    def next_wakeup_ms(self) -> int | None:
        """When `tick` has something to do; it may turn out to be nothing."""

    def effects(self) -> list[dict[str, Any]]:
        """Deeds since the last call, in order; `effect` is one of
        grant (ticket, lease_id, pod_id, slots, start), refuse (ticket, code, message,
        retry_after_ms), start and resume (pod_id, node, tenant, namespace, funcname, revision,
        order, alloc, save: the worker may be saved, terminate, park: pods that make room), park
        and terminate (a pod).
        A result is told with `observe` and carries the order's number.
        """

    def snapshot_news(self) -> list[dict[str, Any]]:
        """Snapshot tasks that changed since the last call: tenant, namespace, funcname, node, and
        state (Init, Scheduled, Done, ScheduleFail, Waiting, Cannot), revision, failures, size_mib,
        reason, tier; without these when the task is forgotten."""

    def check(self, now_ms: int) -> None:
        """Panics when an invariant is broken; looks at everything, for tests."""

    def pods(self) -> list[dict[str, Any]]:
        """Every pod: pod_id, tenant, namespace, funcname, revision, node, state, reason, since_ms,
        slots, leased, start, alloc."""

    def stats(self) -> dict[str, Any]:
        """Sums: functions, nodes, nodes_ready, pods by state, leases, tickets, gpu_mib_total,
        gpu_mib_used, snapshot_tasks by state, and counters of starts, parks, terminations, grants,
        refusals, expiries, snapshots that failed."""

@final
class SchedulerServer:
    """The scheduler's port. LeaseWorker and ReturnWorker are answered in a thread of its own that
    never needs the interpreter lock; all other calls are passed to a gRPC server behind.

    It also keeps the core's time: nobody else needs to call `tick`. After a verb of `core` call
    `settle` instead of `effects`.
    """

    def __new__(
        cls,
        core: SchedulerCore,
        lease_ttl_ms: int,
        statuses: dict[str, int],
        bounds_s: Sequence[float],
    ) -> SchedulerServer:
        """A server that does not listen yet. `statuses`: the number of the gRPC status of each
        error code. `bounds_s`: the upper bounds of waits in `stats`, ascending."""

    def start(
        self,
        address: str,
        behind: Path,
        callers: list[str],
        tls: tuple[Path, Path, Path] | None = None,
    ) -> int:
        """Listens on `address` (IP:port, port 0 = any) and returns the port; OSError when that is
        not possible, ValueError for what is no address.

        `behind`: the Unix socket of the other server. `tls`: files of the authority that callers
        must have a certificate of, of ours, of its key; they are looked at for each connection.
        `callers`: the common names of who may lease and return, when certificates are in use.
        """

    def stop(self, grace_ms: int) -> None:
        """Accepts nobody any more, lets running calls end for so long, then cuts them. Blocks."""

    @property
    def bell_fd(self) -> int:
        """A descriptor that becomes readable when `answer_bell` has something, also when only
        what the views show has changed, and when the core broke."""

    @property
    def broken(self) -> bool:
        """Whether a verb has panicked: nothing is served any more."""

    def lead(self, epoch: int, until_ms: int) -> None:
        """This process leads under `epoch` until that time of the core's clock. Past it, and with
        0, calls are refused as `unavailable`."""

    def open(self) -> None:
        """The core is filled: calls are served while this process leads."""

    def close(self) -> None:
        """Sends away who waits and who comes, for good; `stop` may follow."""

    def settle(self) -> list[dict[str, Any]]:
        """After verbs of one's own: callers get their answers, the orders for agents come back,
        with those that calls have caused meanwhile, in the order in which they were decided."""

    def answer_bell(self) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]]]:
        """The orders, and news: `("learn", number, key)` wants the core to be told of a function
        and then `learned`; `("refused", request_id, key, code, message)`, `("untold", count)` of
        refusals and `("warning", text)` are for the log."""

    def learned(self, number: int, refusal: tuple[str, str, int | None] | None = None) -> None:
        """The function is known now, or will not be: (code, message, retry_after_ms)."""

    def place(self, pod_id: str, ip: int, port: int) -> None:
        """Where a pod listens. Tell it before the core hears that the pod is there."""

    def forget_place(self, pod_id: str) -> None:
        """The pod is gone."""

    def stats(self) -> dict[str, Any]:
        """`granted`: start -> (sum of waits in seconds, counts by bound and beyond);
        `refused`: code -> count."""
