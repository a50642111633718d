"""One worker's regions of simulated GPU memory: handed out, kept in the tiers, brought back.

Must never give a worker more than its pod's share, nor keep device memory of one that is gone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from inferx._ext import Gpu, SoftDevice
from inferx.agent.tiers.accountant import Tier
from inferx.agent.tiers.kept import Region, Restored
from inferx.agent.tiers.memory import GpuMemory
from inferx.domain.meta import check_name
from inferx.errors import BadRequest, InferxError, NoCapacity, NotFound, Unavailable
from inferx.worker import REGIONS_MAX

UNIT_MIB = 2  # of a simulated device


@dataclass(frozen=True)
class Described:
    """A region as worker and records know it; `device` counts the pod's own from 0."""

    name: str
    device: int
    mib: int
    saved: bool = True


@dataclass
class _Held:
    described: Described
    gpu: Gpu | None = None  # None while the worker is parked
    handle: int = 0


class Vram:
    """`devices` are the pod's, or None for one that is real: its memory is the worker's own."""

    def __init__(
        self, memory: GpuMemory | None, devices: Callable[[], Sequence[Gpu | None]], share_mib: int
    ) -> None:
        self._memory = memory
        self._devices = devices
        self._share_mib = share_mib
        self._held: dict[str, _Held] = {}

    @property
    def described(self) -> list[Described]:
        """All regions."""
        return [held.described for held in self._held.values()]

    def allocate(self, request: Mapping[str, Any]) -> int:
        """A new region by a worker's request; a descriptor of it, which the caller closes.

        Raises BadRequest for nonsense and NoCapacity when the pod's share is used up.
        """
        region = _read(request)
        check_name(region.name, "name")
        if region.name in self._held or len(self._held) >= REGIONS_MAX:
            raise BadRequest(f"region {region.name} exists, or there are {REGIONS_MAX} already")
        self._check_share([*self.described, region])
        held = _Held(region)
        self._fill(held)
        self._held[region.name] = held
        return self._export(held)

    def free(self, name: str) -> None:
        """Give a region back."""
        if name not in self._held:
            raise BadRequest(f"there is no region {name!r}")
        _release(self._held.pop(name))

    def adopt(self, regions: Sequence[Mapping[str, Any]], descriptors: Sequence[int]) -> None:
        """Take over what a worker of a former agent has mapped; the descriptors stay open."""
        if len(regions) != len(descriptors):
            raise Unavailable(f"the worker told of {len(regions)} regions, not {len(descriptors)}")
        for raw, descriptor in zip(regions, descriptors, strict=True):
            region = _read(raw)
            self._check_share([*self.described, region])
            gpu = self._device(region.device)
            try:
                handle = gpu.adopt(descriptor, region.mib)
            except (OSError, ValueError, MemoryError) as error:
                raise Unavailable(f"region {region.name} cannot be taken over: {error}") from error
            self._held[region.name] = _Held(region, gpu, handle)

    def remember(self, regions: Sequence[Mapping[str, Any]]) -> None:
        """Regions of a parked worker, or of a snapshot; their content is in the tiers."""
        self.release()
        self._held = {region.name: _Held(region) for region in map(_read, regions)}
        self._check_share(self.described)

    def exported(self) -> tuple[list[dict[str, Any]], list[int]]:
        """All regions with a descriptor of each, which the caller closes."""
        described = [asdict(region) for region in self.described]
        return described, [self._export(held) for held in self._held.values()]

    async def keep(self, base: str, identity: Mapping[str, Any], *, free: bool) -> None:
        """Save what is to be saved under ids made of `base`; with `free` nothing is held then."""
        if not self._held:
            return
        memory = self._tiers()
        for device, names in self._saved().items():
            regions = {
                name: Region(self._held[name].handle, self._held[name].described.mib)
                for name in names
            }
            gpu = self._held[names[0]].gpu
            if gpu is None:
                raise Unavailable("the memory of the worker is not on its GPU")
            await memory.save(item_id(base, device), gpu, regions, identity, free=free)
            if free:
                for name in names:
                    self._held[name].gpu = None
        if free:
            self.release(forget=False)

    async def restore(self, base: str) -> Tier | None:
        """Bring everything back; the coldest tier that something came from.

        Raises with the reasons, nothing held.
        """
        coldest: Tier | None = None
        try:
            for device, names in self._saved().items():
                found: Restored = await self._tiers().restore(
                    item_id(base, device), self._device(device)
                )
                for name, region in found.regions.items():
                    if name in names:
                        self._held[name].gpu = self._device(device)
                        self._held[name].handle = region.handle
                coldest = found.tier if coldest is None else max(coldest, found.tier)
            for held in self._held.values():
                if held.gpu is None:
                    self._fill(held)
        except BaseException:
            self.release(forget=False)
            raise
        return coldest

    async def find_again(self, base: str, tenant: str) -> None:
        """Look for what a former agent kept; raises NotFound when something is missing."""
        for device, names in self._saved().items():
            mib = {name: self._held[name].described.mib for name in names}
            if not await self._tiers().find_again(item_id(base, device), tenant, mib):
                raise NotFound(f"the memory of GPU {device} went with the former agent")

    def sink(self, base: str, lowest: Tier) -> None:
        """Let what is kept under `base` go down to a tier, in the background."""
        for device in self._saved():
            self._tiers().sink(item_id(base, device), lowest)

    async def forget(self, base: str) -> None:
        """Drop what is kept under `base`."""
        if self._memory is not None:
            await asyncio.gather(
                *(self._memory.forget(item_id(base, device)) for device in self._saved())
            )

    def release(self, *, forget: bool = True) -> None:
        """Give all device memory back; with `forget` there are no regions any more."""
        for held in self._held.values():
            _release(held)
        if forget:
            self._held.clear()

    # ---- inside ----

    def _saved(self) -> dict[int, list[str]]:
        """Names of the regions to save, by device."""
        found: dict[int, list[str]] = {}
        for name, held in sorted(self._held.items()):
            if held.described.saved:
                found.setdefault(held.described.device, []).append(name)
        return found

    def _check_share(self, regions: Sequence[Described]) -> None:
        for device in {region.device for region in regions}:
            total = sum(region.mib for region in regions if region.device == device)
            if total > self._share_mib:
                raise NoCapacity(
                    f"device {device}: {total} MiB are wanted, the pod has {self._share_mib}"
                )

    def _device(self, number: int) -> SoftDevice:
        devices = self._devices()
        if not 0 <= number < len(devices):
            raise BadRequest(f"device: {number} is not one of the pod's {len(devices)}")
        gpu = devices[number]
        if not isinstance(gpu, SoftDevice):
            raise BadRequest("device: memory of a real GPU is the server's own to allocate")
        return gpu

    def _fill(self, held: _Held) -> None:
        """New memory; it is zero."""
        gpu = self._device(held.described.device)
        try:
            held.handle = gpu.allocate(held.described.mib)
        except (MemoryError, OSError) as error:
            raise NoCapacity(f"region {held.described.name}: {error}") from error
        held.gpu = gpu

    def _export(self, held: _Held) -> int:
        if held.gpu is None:
            raise Unavailable(f"region {held.described.name} is not on its GPU")
        return held.gpu.export(held.handle)

    def _tiers(self) -> GpuMemory:
        if self._memory is None:
            raise InferxError("this node keeps no GPU memory")
        return self._memory


def item_id(base: str, device: int) -> str:
    """The id in the tiers of one device's regions."""
    return f"{base}-{device}"


def _read(raw: Mapping[str, Any]) -> Described:
    name, device, mib, saved = (raw[key] for key in ("name", "device", "mib", "saved"))
    if not (isinstance(name, str) and type(device) is int and type(mib) is int and mib > 0):
        raise BadRequest(f"region {name!r}: name, device and mib are needed, mib above 0")
    return Described(name, device, -(-mib // UNIT_MIB) * UNIT_MIB, bool(saved))


def _release(held: _Held) -> None:
    if held.gpu is not None:
        held.gpu.free(held.handle)
        held.gpu = None


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors that were sent."""
    for descriptor in descriptors:
        os.close(descriptor)
