"""Standby on a real GPU, as far as a fake libcuda can stand for one: parked by the driver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inferx._ext import CudaDevice
from inferx.agent import devices, gpus, service
from inferx.agent import ledger as ledger_module
from inferx.agent.gpus import GpuInfo, RealDevice
from inferx.errors import InferxError, InvalidState
from inferx.rpc import na_pb2 as pb
from inferx.rpc.client import call
from tests.helpers.agent_node import GPU_MB, Node, alive, named
from tests.unit.test_agent_driver import FakeCuda


class RealNode:
    """A node whose only GPU is the fake driver's, which knows one process: the worker of p1."""

    def __init__(self, node: Node, cuda: FakeCuda, gpu: CudaDevice) -> None:
        self.node = node
        self.gpu = gpu
        self._cuda = cuda

    def faults(self, *lines: str) -> None:
        self._cuda.fail(f"pid {self.node.pid('p1')} 0", *lines)

    async def park(self) -> None:
        await call(self.node.pods.ParkPod, pb.ParkPodReq(**named("p1")), 60)

    async def resume(self) -> str:
        """How it came back."""
        answer = await call(self.node.pods.ResumePod, pb.ResumePodReq(**named("p1")), 60)
        return answer.start

    def driver_state(self, pid: int) -> str:
        return self.gpu.process_state(pid)


@pytest.fixture
async def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RealNode]:
    cuda = FakeCuda(tmp_path)
    gpu = cuda.open()
    device = RealDevice(GpuInfo(0, "Fake", GPU_MB, simulated=False, uuid="GPU-0"))
    device._gpu = gpu
    monkeypatch.setattr(service, "discover", lambda *_: [device])
    monkeypatch.setattr(gpus, "free_memory_mb", lambda _: GPU_MB)
    monkeypatch.setattr(ledger_module, "compute_pids", lambda _: set())
    monkeypatch.setattr(devices, "DRIVER_FREES_WITHIN_S", 0.1)
    async with Node(tmp_path / "node") as node:
        await node.create("p1")
        running = RealNode(node, cuda, gpu)
        running.faults()
        yield running
        await node.agent.manager.stop_all()


async def test_a_worker_is_parked_by_the_driver_and_resumed(real: RealNode) -> None:
    pid = real.node.pid("p1")
    for _ in range(2):
        await real.park()
        status = await real.node.status("p1")
        assert (status["state"], status["vram_mb"]) == ("Standby", 0)
        assert real.driver_state(pid) == "checkpointed"
        assert await real.resume() == "resume"
        status = await real.node.status("p1")
        assert (status["state"], status["start"]) == ("Ready", "resume")
        assert real.driver_state(pid) == "running"
        assert (await real.node.worker("p1", "/")).status_code == 200


@pytest.mark.parametrize("code", [2, 304])
async def test_a_worker_that_is_stuck_is_killed_and_started_again(
    real: RealNode, code: int
) -> None:
    pid = real.node.pid("p1")
    await real.park()
    real.faults(f"cuCheckpointProcessRestore {code} 0")
    assert await real.resume() == "cold"
    status = await real.node.status("p1")
    assert (status["state"], status["start"]) == ("Ready", "cold")
    assert "its standby failed: process" in status["reason"]
    assert not alive(pid)


async def test_a_worker_that_cannot_leave_its_gpu_makes_room_by_ending(real: RealNode) -> None:
    pid = real.node.pid("p1")
    real.faults("cuCheckpointProcessCheckpoint 801 0")
    with pytest.raises(InferxError, match="the GPU cannot be given up"):
        await real.park()
    status = await real.node.status("p1")
    assert (status["state"], status["vram_mb"]) == ("Failed", 0)
    assert not alive(pid)


async def test_an_old_driver_parks_nothing_and_the_worker_serves_on(real: RealNode) -> None:
    real.faults("version 12040 0")
    real.gpu = CudaDevice(1, library=real._cuda.library)
    real.node.agent.ledger._devices[0]._gpu = real.gpu  # type: ignore[attr-defined]
    with pytest.raises(InvalidState, match=r"cannot be parked.*too old.*terminate it instead"):
        await real.park()
    assert (await real.node.status("p1"))["state"] == "Ready"
    assert (await real.node.worker("p1", "/")).status_code == 200
