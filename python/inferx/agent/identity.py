"""What a snapshot of a worker depends on: its function, image, kernel, CRIU, CPU and GPUs.

Must never leave out what would make a restored worker another one, or break it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferx._ext import CudaDevice, DeviceError, __version__
from inferx.agent.gpus import GpuInfo
from inferx.agent.spec import PodKey

# Members beyond those that the store itself compares.
OWN = ("spec", "runtime", "cpu", "device_numbers")


@dataclass(frozen=True)
class Subject:
    """A function's revision as a pod runs it; `funcspec` is the request's JSON text."""

    key: PodKey
    funcspec: str
    devices: Sequence[GpuInfo] = ()

    @property
    def names(self) -> dict[str, Any]:
        """Whose it is, as members of an identity."""
        tenant, namespace, function = self.function
        named = {"tenant": tenant, "namespace": namespace, "function": function}
        return {**named, "revision": self.key.fprevision}

    @property
    def function(self) -> tuple[str, str, str]:
        """Tenant, namespace and name."""
        return (self.key.tenant, self.key.namespace, self.key.funcname)


def identity_of(subject: Subject, runtime: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a snapshot that is taken, or could be restored, here and now.

    `runtime` are the keys that the runtime adds.
    """
    real = [gpu for gpu in subject.devices if not gpu.simulated]
    driver = _driver(real[0].index) if real else {}
    return {
        **subject.names,
        # Revisions begin anew with a new store; the spec itself cannot be taken for another.
        "spec": hashlib.sha256(_canonical(subject.funcspec)).hexdigest(),
        "agent": __version__,
        "cpu": _cpu(),
        "gpus": [{"name": gpu.type, "uuid": gpu.uuid} for gpu in subject.devices],
        # A worker goes on with the devices that it was saved with.
        "device_numbers": [gpu.index for gpu in real],
        **driver,
        **runtime,
    }


def own_differences(taken: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Why a snapshot may not be restored here, as far as the store does not know it."""
    return [
        f"{name} is {here.get(name)!r}, the snapshot needs {taken.get(name)!r}"
        for name in OWN
        if taken.get(name) != here.get(name)
    ]


def _canonical(text: str) -> bytes:
    return json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")).encode()


def _cpu() -> str:
    """The processor's features: a process may have chosen its code by them."""
    flags = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            flags = " ".join(sorted(line.partition(":")[2].split()))
            break
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:16]}"


def _driver(index: int) -> dict[str, str]:
    try:
        device = CudaDevice(index)
    except DeviceError:
        return {}
    return {"driver": device.driver, "cuda": device.cuda}
