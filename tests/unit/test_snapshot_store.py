"""Saving and restoring the memory of a simulated GPU from Python.

Must never need a GPU, and never leave a descriptor open.
"""

import json
import os
import threading
from pathlib import Path

import pytest

from inferx._ext import (
    CancelToken,
    CudaDevice,
    DeviceError,
    HostPool,
    SnapshotError,
    SnapshotStore,
    SoftDevice,
)

PAYLOAD = bytes(range(256)) * 4096


def filled(device: SoftDevice) -> int:
    """Memory of 4 MiB that begins with the payload."""
    handle = device.allocate(4)
    descriptor = device.export(handle)
    os.pwrite(descriptor, PAYLOAD, 0)
    os.close(descriptor)
    return handle


def content(device: SoftDevice, handle: int) -> bytes:
    descriptor = device.export(handle)
    data = os.pread(descriptor, 4 << 20, 0)
    os.close(descriptor)
    return data


def test_memory_and_files_come_back(tmp_path: Path) -> None:
    device = SoftDevice(64)
    store = SnapshotStore(tmp_path / "store")
    source = tmp_path / "core.img"
    source.write_bytes(b"process")
    identity = json.dumps({"tenant": "t", "driver": "580", "cgroup": 2})
    handle = filled(device)
    saved = store.save(
        "one", device, {"weights": handle}, identity=identity, files={"criu/core.img": source}
    )
    assert saved["bytes"] == 4 << 20
    assert store.ids() == ["one"]
    assert (store.path("one") / "criu" / "core.img").read_bytes() == b"process"
    manifest = json.loads(store.manifest("one"))
    assert manifest["identity"]["cgroup"] == 2
    device.free(handle)
    handles, figures = store.restore("one", device)
    assert content(device, handles["weights"]) == PAYLOAD.ljust(4 << 20, b"\0")
    assert figures["bytes_copied"] == 4 << 20
    store.verify("one")
    host = json.dumps({"tenant": "t", "driver": "595"})
    assert store.differences("one", host) == ['driver is "595", the snapshot needs "580"']
    for refused in (
        lambda: store.restore("one", device, host=host),
        lambda: store.load("one", HostPool(device, 8), host=host),
    ):
        with pytest.raises(SnapshotError, match="incompatible snapshot: driver"):
            refused()
    store.restore("one", device, host=identity)
    store.remove("one")
    assert store.ids() == []
    assert device.used_mib == 8


def test_a_flipped_bit_is_refused_and_no_memory_is_kept(tmp_path: Path) -> None:
    device = SoftDevice(64)
    store = SnapshotStore(tmp_path)
    store.save("one", device, {"weights": filled(device)})
    segment = store.path("one") / "data-000.seg"
    damaged = bytearray(segment.read_bytes())
    damaged[77] ^= 4
    segment.write_bytes(damaged)
    with pytest.raises(SnapshotError, match="1 bad chunks"):
        store.verify("one")
    with pytest.raises(SnapshotError, match="crc32c"):
        store.restore("one", device)
    assert device.used_mib == 4


def test_a_corrupt_snapshot_is_set_aside_at_the_next_start(tmp_path: Path) -> None:
    device = SoftDevice(64)
    store = SnapshotStore(tmp_path)
    store.save("one", device, {"weights": filled(device)})
    with pytest.raises(BlockingIOError):
        SnapshotStore(tmp_path)
    del store
    (tmp_path / "snap-one" / "COMMIT").write_bytes(b"")
    (tmp_path / ".tmp-two").mkdir()
    again = SnapshotStore(tmp_path)
    assert again.removed == [".tmp-two"]
    assert list(again.quarantined) == ["one"]
    assert again.ids() == []


def test_a_full_device_is_found_before_anything_is_copied(tmp_path: Path) -> None:
    device = SoftDevice(6)
    store = SnapshotStore(tmp_path)
    store.save("one", device, {"weights": filled(device)})
    with pytest.raises(MemoryError):
        store.restore("one", device)
    with pytest.raises(KeyError):
        store.save("two", device, {"weights": 999})
    assert store.ids() == ["one"]


def test_a_restore_can_be_cancelled_while_python_runs(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    source = SoftDevice(64)
    store.save("one", source, {"a": filled(source), "b": filled(source), "c": filled(source)})
    slow = SoftDevice(64, mib_per_second=4)
    token = CancelToken()
    raised: list[BaseException] = []

    def restore() -> None:
        try:
            store.restore("one", slow, cancel=token)
        except SnapshotError as error:
            raised.append(error)

    thread = threading.Thread(target=restore)
    token.cancel()
    thread.start()
    thread.join(timeout=30)
    assert [str(error) for error in raised] == ["cancelled"]
    assert slow.used_mib == 0


def test_memory_waits_in_the_host_pool_and_is_written_later(tmp_path: Path) -> None:
    device = SoftDevice(64)
    pool = HostPool(device, 20)
    assert (pool.capacity_mib, pool.free_mib) == (16, 16)
    handle = filled(device)
    resident = pool.capture(device, {"weights": handle})
    device.free(handle)
    assert (device.used_mib, resident.host_mib, pool.free_mib) == (0, 8, 8)
    handles, figures = resident.restore(device)
    assert content(device, handles["weights"]).startswith(PAYLOAD)
    assert figures["reads"] == 0
    store = SnapshotStore(tmp_path)
    store.save_resident("one", resident, identity='{"tenant": "t"}')
    del resident
    assert pool.free_mib == 16
    again = store.load("one", pool)
    handles, _ = again.restore(device)
    assert content(device, handles["weights"]).startswith(PAYLOAD)
    with pytest.raises(MemoryError, match="pinned host memory"):
        pool.capture(device, {"a": handles["weights"], "b": device.allocate(16)})


def test_without_such_a_gpu_a_cuda_device_is_an_error() -> None:
    with pytest.raises((DeviceError, ValueError), match=r"no CUDA driver|GPUs"):
        CudaDevice(1000)


def test_the_driver_states_of_a_process() -> None:
    device = SoftDevice(8, faults=["stuck-after-oom"])
    device.process_start(7, 6)
    device.process_lock(7, 1000)
    device.process_checkpoint(7)
    assert (device.process_state(7), device.used_mib) == ("checkpointed", 0)
    with pytest.raises(DeviceError) as first:
        device.process_restore(7)
    with pytest.raises(DeviceError) as second:
        device.process_restore(7)
    assert (first.value.args[1], second.value.args[1]) == (2, 304)
    device.process_end(7)
    with pytest.raises(DeviceError):
        device.process_state(7)
    with pytest.raises(ValueError, match="no fault"):
        SoftDevice(8, faults=["unknown"])
