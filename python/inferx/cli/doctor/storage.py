"""Checks of the disk that keeps snapshots: room and speed, measured with a file of its own.

Must never leave that file behind.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from inferx.cli.doctor.machine import Finding, fail, ok, warn
from inferx.config import NodeConfig

FREE_GB_MIN = 20
READ_MB_S_MIN = 1000
FSYNC_MS_MAX = 10.0  # etcd's own advice for the 99th percentile
TEST_MB = 64
BLOCK_BYTES = 4 << 20
FSYNCS = 20


def check(config: NodeConfig) -> Iterator[Finding]:
    """Findings about the folder of snapshots, or the nearest folder above it that is there."""
    folder = config.snapshot_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free_gb = shutil.disk_usage(folder).free / 1e9
    found = f"{free_gb:.0f} GB free in {folder}"
    if free_gb < FREE_GB_MIN:
        advice = f"{FREE_GB_MIN} GB at least; a snapshot is as large as its model"
        yield warn("disk space", found, advice)
    else:
        yield ok("disk space", found)
    if not os.access(folder, os.W_OK):
        yield fail(
            "disk speed", f"{folder} cannot be written", "run the doctor as the agent's user"
        )
        return
    yield from _speed(folder)


def _speed(folder: Path) -> Iterator[Finding]:
    with tempfile.NamedTemporaryFile(dir=folder, prefix="inferx-doctor-") as file:
        write_mb_s = _write(file.fileno())
        fsync_ms = _fsync_ms(file.fileno())
        read_mb_s, how = _read(Path(file.name))
    found = f"{read_mb_s:.0f} MB/s read ({how}), {write_mb_s:.0f} MB/s written, {TEST_MB} MB"
    if read_mb_s < READ_MB_S_MIN:
        advice = "put snapshotDir on a local NVMe disk: a restore is as fast as it can be read"
        yield warn("disk speed", found, advice)
    else:
        yield ok("disk speed", found)
    found = f"{fsync_ms:.1f} ms, the slowest of {FSYNCS}"
    if fsync_ms > FSYNC_MS_MAX:
        yield warn("disk sync", found, "etcd should not share this disk; it wants 10 ms at most")
    else:
        yield ok("disk sync", found)


def _write(descriptor: int) -> float:
    block = os.urandom(BLOCK_BYTES)  # a disk that compresses would be flattered by zeros
    begun = time.perf_counter()
    for _ in range(TEST_MB * (1 << 20) // BLOCK_BYTES):
        os.write(descriptor, block)
    os.fsync(descriptor)
    return TEST_MB / (time.perf_counter() - begun)


def _fsync_ms(descriptor: int) -> float:
    slowest = 0.0
    for number in range(FSYNCS):
        begun = time.perf_counter()
        os.pwrite(descriptor, b"x" * 4096, number * 4096)
        os.fsync(descriptor)
        slowest = max(slowest, time.perf_counter() - begun)
    return slowest * 1000


def _read(path: Path) -> tuple[float, str]:
    """MB/s past the page cache where the file system allows it, and how it was read."""
    try:
        descriptor, how = os.open(path, os.O_RDONLY | os.O_DIRECT), "direct"
    except OSError:
        descriptor, how = os.open(path, os.O_RDONLY), "cached by the system"
    with mmap.mmap(-1, BLOCK_BYTES) as block:  # aligned, as direct reads want it
        begun, total = time.perf_counter(), 0
        try:
            while count := os.readv(descriptor, [block]):
                total += count
        finally:
            os.close(descriptor)
        return total / (1 << 20) / (time.perf_counter() - begun), how
