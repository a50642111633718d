"""The VRAM ledger of the node: the authority on which pod holds how much of which device.

Must never hand out more than a device has, and never do I/O other than its devices' own calls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from inferx._ext import Gpu
from inferx.agent.driver import Driver
from inferx.agent.gpus import Device, GpuInfo, compute_pids
from inferx.errors import BadRequest, InvalidState, NoCapacity


@dataclass
class Holding:
    """One pod's share: MB on each of its devices, and the device allocations behind it."""

    per_device_mb: int
    devices: tuple[int, ...]
    handles: dict[int, int] = field(default_factory=dict)
    # The pod was told to leave for another one, which already owns its room.
    leaving: bool = False


class Ledger:
    """Room is first promised (counted), then taken (allocated on the device) and released.

    Between promise and taking, the victims of the promise leave; nobody else can get that room.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = {device.info.index: device for device in devices}
        self._holdings: dict[str, Holding] = {}

    @property
    def gpus(self) -> list[GpuInfo]:
        """The devices' descriptions, by number."""
        return [self._devices[index].info for index in sorted(self._devices)]

    def simulated(self, devices: Sequence[int]) -> list[Gpu | None]:
        """The memory of the given devices; None for those that are real."""
        found = [self._devices[index] for index in devices]
        return [device.gpu if device.info.simulated else None for device in found]

    def driver(self, devices: Sequence[int]) -> Driver:
        """What takes processes off the given real devices; raises DeviceError."""
        uuids = [self._devices[index].info.uuid for index in devices]
        return Driver(self._devices[devices[0]].gpu, lambda: compute_pids(uuids))

    def used_mb(self, index: int) -> int:
        """MB that pods hold on a device, physically or promised, without those that leave."""
        return self._used_mb(index, without=())

    def taken_mb(self) -> tuple[int, ...]:
        """MB that pods hold on each device in the order of `gpus`, with those that leave."""
        shares = [0] * (max(self._devices, default=-1) + 1)
        for holding in self._holdings.values():
            for index in holding.devices:
                shares[index] += holding.per_device_mb
        return tuple(shares[index] for index in sorted(self._devices))

    def held_mb(self, pod_id: str) -> int:
        """MB that the pod holds over all its devices."""
        holding = self._holdings.get(pod_id)
        return holding.per_device_mb * len(holding.devices) if holding else 0

    def real_devices(self, devices: Iterable[int]) -> list[int]:
        """Those of the given devices that are not simulated."""
        return [
            index
            for index in sorted(set(devices))
            if index in self._devices and not self._devices[index].info.simulated
        ]

    def promise(
        self, pod_id: str, devices: Sequence[int], per_device_mb: int, victims: Collection[str] = ()
    ) -> None:
        """Count room for a pod as if `victims` had left; they are then marked as leaving.

        Raises NoCapacity naming the device and the MBs, with nothing changed; BadRequest for a
        device that the node does not have; InvalidState when the pod holds room already.
        """
        if pod_id in self._holdings:
            raise InvalidState(f"pod {pod_id} already holds VRAM on this node")
        for index in devices:
            self._check(index, per_device_mb, victims)
        for victim in victims:
            if victim in self._holdings:
                self._holdings[victim].leaving = True
        self._holdings[pod_id] = Holding(per_device_mb, tuple(devices))

    def take(self, pod_id: str, *, in_use: bool = False) -> None:
        """Allocate what was promised; raises NoCapacity when a device refuses (promise stays).

        `in_use` is for a worker that was found running.
        """
        holding = self._holdings[pod_id]
        for index in holding.devices:
            if index not in holding.handles and holding.per_device_mb:
                allocate = self._devices[index].allocate
                holding.handles[index] = allocate(holding.per_device_mb, in_use=in_use)

    def release(self, pod_id: str) -> None:
        """Give back all that the pod holds or was promised; a pod without any is fine."""
        holding = self._holdings.pop(pod_id, None)
        if holding is not None:
            for index, handle in holding.handles.items():
                self._devices[index].free(handle)

    def stay(self, pod_ids: Iterable[str]) -> None:
        """Undo the leaving mark of victims that did not leave after all."""
        for pod_id in pod_ids:
            if pod_id in self._holdings:
                self._holdings[pod_id].leaving = False

    def _check(self, index: int, need_mb: int, victims: Collection[str]) -> None:
        if index not in self._devices:
            known = sorted(self._devices)
            raise BadRequest(f"alloc_resources.GPU.devices: no GPU {index} here, only {known}")
        info = self._devices[index].info
        used = self._used_mb(index, without=victims)
        if used + need_mb > info.vram_mb:
            raise NoCapacity(
                f"GPU {index} ({info.type}) has {max(0, info.vram_mb - used)} of"
                f" {info.vram_mb} MB free, {need_mb} MB are needed",
                details={"gpu": index, "free_mb": info.vram_mb - used, "needed_mb": need_mb},
            )

    def _used_mb(self, index: int, without: Collection[str]) -> int:
        return sum(
            holding.per_device_mb
            for pod_id, holding in self._holdings.items()
            if index in holding.devices and not holding.leaving and pod_id not in without
        )
