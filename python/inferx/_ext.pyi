"""The compiled module: what Python may call of the Rust crates. The docstrings live here."""

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
