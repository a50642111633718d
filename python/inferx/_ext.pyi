"""The compiled module: what Python may call of the Rust crates. The docstrings live here."""

from os import PathLike

__version__: str
"""The version of the wheel."""

class SoftDevice:
    """A simulated GPU. Memory is counted in MiB, in units of 2 MiB, and costs no RAM until written.

    Safe to use from any thread. Dropping the device frees all of its memory.
    """

    granularity_mib: int
    """Allocations are rounded up to a multiple of this many MiB."""

    def __new__(cls, capacity_mib: int) -> SoftDevice:
        """A device with `capacity_mib` of memory. `ValueError` below one unit of 2 MiB."""

    def allocate(self, mib: int) -> int:
        """Takes `mib` of memory and returns its handle.

        `MemoryError` when it does not fit (nothing is taken then), `ValueError` for 0.
        """

    def free(self, handle: int) -> None:
        """Gives memory back. `KeyError` for a handle that is not held (also a second free)."""

    @property
    def used_mib(self) -> int:
        """MiB in use."""

    @property
    def capacity_mib(self) -> int:
        """MiB in total."""

class Proxy:
    """The HTTP data plane of a gateway: listener, dispatch and connections to workers.

    A function is named by its key `tenant/namespace/function`. All methods may be called from any
    thread and return at once, except `start` and `drain`. Times are milliseconds.
    """

    def __init__(
        self,
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
        head_timeout_ms: int = 10000,
        keep_alive_timeout_ms: int = 75000,
        connect_timeout_ms: int = 2000,
        first_byte_timeout_ms: int = 600000,
        idle_timeout_ms: int = 300000,
        control_idle_timeout_ms: int = 3600000,
        pool_idle_timeout_ms: int = 4000,
    ) -> None:
        """A plane that does not listen yet.

        `port` 0 lets the system choose. Requests that are not inference calls go to the Unix
        socket `control_socket`. `threads` 0 means one per core. Raises ValueError for a host that
        is not an IP address.
        """

    def start(self) -> int:
        """Bind and serve; returns the port. Raises OSError that names the address when taken."""

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
    ) -> None:
        """Create a function or replace its definition; parked calls stay.

        With a new `revision` the workers of the old one finish what they have and are offered back.
        `model_names` are aliases on the OpenAI routes, `served_model` replaces the request's
        `model`, `disabled` is the reason for which calls are refused (403).
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

    def remove_worker(self, lease_id: int) -> bool:
        """Take a worker out of rotation, its calls in flight go on. False when it was not in."""

    def fail_lease(
        self,
        function: str,
        *,
        revision: int,
        http_status: int,
        code: str,
        message: str,
        retry_after_ms: int | None = None,
    ) -> None:
        """One wanted worker cannot be had; parked calls get the error when nobody can serve them."""

    def set_synced(self) -> None:
        """All functions are known: from now on an unknown one gets 404 instead of 503."""

    def set_not_ready(self, not_ready: str | None) -> None:
        """What `/readyz` answers: None for 200, otherwise 503 with this reason."""

    def take_events(
        self,
    ) -> list[tuple[str, str, int, int] | tuple[str, str, int] | tuple[str, str, int, str]]:
        """All events since the last call.

        `("need_worker", function, revision, count)`, `("worker_idle", function, lease_id)` and
        `("worker_failed", function, lease_id, reason)`; the workers of the latter two are out of
        rotation already.
        """

    def take_records(self) -> bytes:
        """One msgpack array per call that ended since the last call.

        Fields: unix_ms, request_id, method, function, status (499: the client left before the
        answer), outcome (complete, refused, worker_broke, client_gone), pod, start, wait_ms,
        first_byte_ms, total_ms (-1 = never), bytes_in, bytes_out.
        """

    def stats(self) -> bytes:
        """Counters and gauges as JSON: of the plane, and under `functions` by key."""
