"""The node's GPUs: an inventory of real ones through NVML and of simulated ones from the config.

Must never decide who may use a device (the ledger does) and never change a device's settings.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pynvml  # type: ignore[import-untyped]

from inferx._ext import CudaDevice, Gpu, SoftDevice
from inferx.config import SimulatedGpu
from inferx.errors import ConfigError, NoCapacity

log = logging.getLogger("inferx.agent.gpus")

MIB = 1 << 20
# A software device hands out whole 2 MiB units; the slack keeps its rounding from refusing what
# the ledger, which counts exact MBs, has already granted.
ROUNDING_SLACK_MB = 256


@dataclass(frozen=True)
class GpuInfo:
    """One device: its number on this node, its type's name and its memory in MB."""

    index: int
    type: str
    vram_mb: int
    simulated: bool
    uuid: str = ""


class Device(Protocol):
    """A device that VRAM is taken on; `allocate` and `free` are the physical part of the ledger."""

    @property
    def info(self) -> GpuInfo: ...

    @property
    def gpu(self) -> Gpu:
        """The device to copy memory from and to, and to checkpoint processes on.

        Raises DeviceError when its driver cannot be used.
        """

    def allocate(self, size_mb: int, *, in_use: bool = False) -> int:
        """Take memory and return a handle; raises NoCapacity when the device has not that much.

        `in_use` tells that the worker runs already, so that what it needs is not free any more.
        """

    def free(self, handle: int) -> None:
        """Give memory back by its handle."""


class SimulatedDevice:
    """A software device: its memory exists only as a bounded sparse allocation."""

    def __init__(self, info: GpuInfo) -> None:
        self.info = info
        self._soft = SoftDevice(info.vram_mb + ROUNDING_SLACK_MB)
        # What workers keep there, each within the share that it holds of `_soft`.
        self.gpu: Gpu = SoftDevice(info.vram_mb + ROUNDING_SLACK_MB, index=info.index)

    def allocate(self, size_mb: int, *, in_use: bool = False) -> int:
        try:
            return int(self._soft.allocate(size_mb))
        except (MemoryError, OSError, ValueError) as error:
            raise NoCapacity(f"GPU {self.info.index} refused {size_mb} MB: {error}") from error

    def free(self, handle: int) -> None:
        self._soft.free(handle)


class RealDevice:
    """A device of the machine: the worker allocates; its driver is asked before that."""

    def __init__(self, info: GpuInfo) -> None:
        self.info = info
        self._handles = 0
        self._gpu: Gpu | None = None

    @property
    def gpu(self) -> Gpu:
        if self._gpu is None:  # opened when it is needed: that takes memory of the device
            self._gpu = CudaDevice(self.info.index)
        return self._gpu

    def allocate(self, size_mb: int, *, in_use: bool = False) -> int:
        free_mb = free_memory_mb(self.info.uuid)
        if free_mb < size_mb and not in_use:
            raise NoCapacity(
                f"GPU {self.info.index} ({self.info.type}) has {free_mb} MB free by its driver,"
                f" {size_mb} MB are needed"
            )
        self._handles += 1
        return self._handles

    def free(self, handle: int) -> None:
        """Nothing to do: the memory goes with the worker's process."""


def free_memory_mb(uuid: str) -> int:
    """Memory in MB that the driver reports free on a device right now."""
    memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    return int(memory.free) // MIB


def compute_pids(uuids: Sequence[str]) -> set[int]:
    """Processes that hold one of the devices, by its driver; empty when it does not tell."""
    found: set[int] = set()
    for uuid in uuids:
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            found |= {entry.pid for entry in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
        except pynvml.NVMLError as error:
            log.warning("the users of GPU %s are not known: %s", uuid, error)
    return found


def usable_memory_mb(handle: Any) -> int:
    """Memory in MB that workers can have: without what the driver keeps for itself."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError:
        # A driver before 510 knows only the total.
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) // MIB
    return int(memory.total - memory.reserved) // MIB


def discover(simulated: Sequence[SimulatedGpu], selection: str) -> list[Device]:
    """The node's devices: the simulated ones when the config has any, else the real ones.

    `selection` is "Auto" or "all" for every device, "none", or numbers such as "0-3" or "0,2".
    Raises ConfigError when it names a device that is not there.
    """
    if simulated:
        return [SimulatedDevice(info) for info in _simulated(simulated)]
    found = _real()
    chosen = _select(selection, {info.index for info in found})
    return [RealDevice(info) for info in found if info.index in chosen]


def _simulated(groups: Sequence[SimulatedGpu]) -> list[GpuInfo]:
    flat = [group for group in groups for _ in range(group.count)]
    return [
        GpuInfo(index=index, type=group.type, vram_mb=group.vram_mb, simulated=True)
        for index, group in enumerate(flat)
    ]


def _real() -> list[GpuInfo]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("no NVIDIA driver on this node: %s", error)
        return []
    # NVML stays open: the driver is asked again before each start.
    infos = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        infos.append(
            GpuInfo(
                index=index,
                type=str(pynvml.nvmlDeviceGetName(handle)),
                vram_mb=usable_memory_mb(handle),
                simulated=False,
                uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
            )
        )
    return infos


def _select(selection: str, present: set[int]) -> set[int]:
    if selection.strip().lower() in ("", "auto", "all"):
        return present
    if selection.strip().lower() == "none":
        return set()
    chosen: set[int] = set()
    for part in selection.split(","):
        first, _, last = part.strip().partition("-")
        try:
            chosen.update(range(int(first), int(last or first) + 1))
        except ValueError as error:
            raise ConfigError(
                f"resources.GPUs: {selection!r} is neither Auto, all nor numbers such as 0-3"
            ) from error
    missing = sorted(chosen - present)
    if missing:
        raise ConfigError(
            f"resources.GPUs: {selection!r} names GPU {missing[0]}, which is not here"
        )
    return chosen
