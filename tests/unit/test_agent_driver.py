"""Processes leave their GPU and come back, by a fake libcuda and by the simulated device alike."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from inferx._ext import CudaDevice, Gpu, SoftDevice
from inferx.agent.driver import Broken, Driver
from inferx.errors import InvalidState, NotSupported

SOURCE = Path(__file__).resolve().parents[2] / "ext/gpu_snapshot/tests/fake_cuda/fake_cuda.c"
USER, OTHER = 77, 78  # the fake driver knows one process


class FakeCuda:
    """A libcuda of this test's own; `fail` makes calls answer driver codes."""

    def __init__(self, folder: Path) -> None:
        self.library = folder / "libcuda.so.1"
        options = ["-shared", "-fPIC", "-O1", "-o", str(self.library), str(SOURCE)]
        subprocess.run(["cc", *options, "-ldl", "-lpthread"], check=True)

    def fail(self, *lines: str) -> None:
        Path(f"{self.library}.faults").write_text("".join(f"{line}\n" for line in lines))

    def open(self) -> CudaDevice:
        return CudaDevice(1, library=self.library)


@pytest.fixture
def cuda(tmp_path: Path) -> FakeCuda:
    return FakeCuda(tmp_path)


def soft(*faults: str) -> SoftDevice:
    device = SoftDevice(16, faults=faults)
    device.process_start(USER, 8)
    return device


@pytest.fixture(params=["cuda", "soft"])
def gpu(request: pytest.FixtureRequest) -> Gpu:
    return request.getfixturevalue("cuda").open() if request.param == "cuda" else soft()


async def test_a_process_leaves_and_comes_back(gpu: Gpu) -> None:
    driver = Driver(gpu)
    driver.check()
    for _ in range(3):
        await driver.take_off([OTHER, USER])
        assert gpu.process_state(USER) == "checkpointed"
        await driver.take_off([USER])  # again, after an agent died meanwhile
        await driver.put_back([OTHER, USER])
        assert gpu.process_state(USER) == "running"
    await driver.put_back([USER])  # one that runs is left alone


async def test_memory_is_free_for_others_meanwhile() -> None:
    gpu = soft()
    await Driver(gpu).take_off([USER])
    assert gpu.used_mib == 0
    handle = gpu.allocate(16)
    with pytest.raises(Broken, match=r"out of|do not fit"):
        await Driver(gpu).put_back([USER])
    gpu.free(handle)
    await Driver(gpu).put_back([USER])


async def test_who_holds_the_gpu_all_the_same_is_not_parked(gpu: Gpu) -> None:
    driver = Driver(gpu, holders=lambda: {OTHER})
    with pytest.raises(InvalidState, match=r"processes \[78\] hold it all the same"):
        await driver.take_off([USER, OTHER])
    assert gpu.process_state(USER) == "running"


async def test_a_lock_that_times_out_is_tried_again(cuda: FakeCuda) -> None:
    gpu = cuda.open()
    cuda.fail("cuCheckpointProcessLock 600 1")
    await Driver(gpu).take_off([USER])
    assert gpu.process_state(USER) == "checkpointed"


async def test_a_process_that_does_not_lock_runs_on() -> None:
    gpu = soft("lock-timeout")
    with pytest.raises(InvalidState, match="is not locked"):
        await Driver(gpu).take_off([USER])
    assert gpu.process_state(USER) == "running"


@pytest.mark.parametrize("code", [1, 2, 304, 401, 999])
async def test_a_checkpoint_that_fails_is_taken_back(cuda: FakeCuda, code: int) -> None:
    gpu = cuda.open()
    cuda.fail(f"cuCheckpointProcessCheckpoint {code} 0")
    with pytest.raises(InvalidState, match="is not checkpointed"):
        await Driver(gpu).take_off([USER])
    assert gpu.process_state(USER) == "running"


async def test_a_process_that_failed_has_to_be_killed() -> None:
    gpu = soft("process-failed")
    with pytest.raises(Broken, match="call"):
        await Driver(gpu).take_off([USER])


@pytest.mark.parametrize("call", ["Restore", "Unlock"])
@pytest.mark.parametrize("code", [2, 304, 401])
async def test_a_process_that_does_not_come_back_is_broken(
    cuda: FakeCuda, call: str, code: int
) -> None:
    gpu = cuda.open()
    await Driver(gpu).take_off([USER])
    cuda.fail(f"cuCheckpointProcess{call} {code} 0")
    with pytest.raises(Broken, match=f"process {USER} is not"):
        await Driver(gpu).put_back([USER])


async def test_one_that_is_stuck_for_lack_of_memory_stays_broken() -> None:
    gpu = soft("stuck-after-oom")
    await Driver(gpu).take_off([USER])
    for _ in range(2):
        with pytest.raises(Broken):
            await Driver(gpu).put_back([USER])


async def test_a_driver_that_is_too_old_says_so(cuda: FakeCuda) -> None:
    cuda.fail("version 12040 0")
    driver = Driver(cuda.open())
    with pytest.raises(NotSupported, match="too old"):
        driver.check()
    with pytest.raises(NotSupported, match="too old"):
        await driver.take_off([USER])
