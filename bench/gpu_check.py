"""Everything of the CudaDevice on a real GPU, in minutes: one JSON object with the design's table.

`python bench/gpu_check.py [--index N] [--quick] [--out FILE]`; exits with 3 where there is no GPU,
with 1 when a check failed. Must never report a figure that was not measured in this run.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from inferx._ext import CudaDevice, DeviceError, HostPool, SnapshotStore

EXIT_FAILED, EXIT_NO_GPU = 1, 3
NO_DEVICE, OUT_OF_MEMORY = 100, 2
MIB = 1 << 20
LOCK_TIMEOUT_MS = 10_000
WORKER_TIMEOUT_S = 240


class Table:
    """The rows; a step that fails becomes a row with its reason, and the others go on."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, case: str, **figures: Any) -> None:
        """One row of the table."""
        self.rows.append({"bench": "gpu-check", "case": case, **figures})

    def step(self, case: str, run: Callable[[], None]) -> None:
        """Run one part of the check."""
        print(f"gpu-check: {case}", file=sys.stderr, flush=True)
        try:
            run()
        except Exception as error:
            self.add(case, error=f"{type(error).__name__}: {error}")

    @property
    def failed(self) -> list[str]:
        """The cases that did not go through, or whose answer was wrong."""
        return [row["case"] for row in self.rows if row.get("error") or row.get("correct") is False]


class Process:
    """A worker of `gpu_worker.py`, and the socket that hands memory over to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        script = Path(__file__).with_name("gpu_worker.py")
        self._process = subprocess.Popen(  # noqa: S603 (a script of this project)
            [sys.executable, str(script), str(theirs.fileno())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[theirs.fileno()], text=True,
        )  # fmt: skip
        theirs.close()
        self._socket = ours
        self.pid = self._process.pid

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; raises RuntimeError with the worker's reason."""
        self.send(what, **arguments)
        return self.answer()

    def send(self, what: str, **arguments: Any) -> None:
        """Send a command only."""
        assert self._process.stdin is not None
        print(json.dumps({"do": what, **arguments}), file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """The answer to the oldest command."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise RuntimeError(found["error"])
        return found

    def map(self, descriptor: int, size_bytes: int) -> dict[str, Any]:
        """Hand device memory over."""
        socket.send_fds(self._socket, [b"m"], [descriptor])
        os.close(descriptor)
        return self.ask("map", size_bytes=size_bytes)


def timed_ms(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e3


def rate(size_mib: float, us: float) -> float:
    """GB/s of so many MiB in so many microseconds."""
    return size_mib * MIB / us / 1e3


def check_copies(gpu: CudaDevice, table: Table, quick: bool) -> None:
    """Pinning, raw copies of big buffers, and mapping by size."""
    size_mib = 64 if quick else 2048
    us = gpu.measure_pin(size_mib, 64 if not quick else 8)
    table.add("pin", mib=size_mib, gb_per_s=rate(size_mib, us))
    pieces, piece_mib = (2, 8) if quick else (4, 256)
    runs = [gpu.measure_copy(pieces, piece_mib) for _ in range(5)]
    for case, place in (("h2d", 0), ("d2h", 1)):
        us = statistics.median(run[place] for run in runs)
        table.add(case, mib=pieces * piece_mib, gb_per_s=rate(pieces * piece_mib, us))
    for mib in (2, 8) if quick else (2, 16, 128, 1024):
        timings = [gpu.measure_map(mib) for _ in range(5)]
        create, mapped, unmapped = (
            statistics.median(column) for column in zip(*timings, strict=True)
        )
        table.add("vmm", mib=mib, create_us=create, map_us=mapped, unmap_us=unmapped)


def check_engine(gpu: CudaDevice, table: Table, quick: bool, folder: Path) -> None:
    """Pinned pool to GPU and file to GPU through the engine, beside the copy rate of this run."""
    size_mib = 16 if quick else 8192
    pool = HostPool(gpu, size_mib)
    store = SnapshotStore(folder / "store")
    handle = gpu.allocate(size_mib)
    resident = pool.capture(gpu, {"weights": handle})
    store.save("check", gpu, {"weights": handle})
    gpu.free(handle)
    ceiling = next((row["gb_per_s"] for row in table.rows if row["case"] == "h2d"), None)
    for case, restore in (
        ("pool-to-gpu", lambda: resident.restore(gpu)),
        ("file-to-gpu", lambda: store.restore("check", gpu)),
    ):
        times, figures = [], {}
        for _ in range(5):
            handles, figures = restore()
            times.append(figures["elapsed_us"])
            for one in handles.values():
                gpu.free(one)
        speed = rate(size_mib, statistics.median(times))
        fraction = speed / ceiling if ceiling and figures["bytes_copied"] else None
        table.add(
            case,
            mib=size_mib,
            gb_per_s=speed,
            ceiling=ceiling,
            fraction=fraction,
            bytes_copied=figures["bytes_copied"],
            first_copy_us=figures["first_copy_us"],
        )


def park(gpu: CudaDevice, pid: int) -> dict[str, float]:
    """Lock and checkpoint; what each took, ms."""
    lock = timed_ms(lambda: gpu.process_lock(pid, LOCK_TIMEOUT_MS))
    return {"lock_ms": lock, "checkpoint_ms": timed_ms(lambda: gpu.process_checkpoint(pid))}


def resume(gpu: CudaDevice, pid: int) -> dict[str, float]:
    """Restore and unlock; what each took, ms."""
    restore = timed_ms(lambda: gpu.process_restore(pid))
    return {"restore_ms": restore, "unlock_ms": timed_ms(lambda: gpu.process_unlock(pid))}


def check_checkpoints(gpu: CudaDevice, table: Table, sizes_mib: Sequence[int]) -> None:
    """A PyTorch process with a CUDA graph, by the memory that the driver has to move."""
    for mib in sizes_mib:
        with Process() as worker:
            digest = worker.ask("capture")["digest"]
            total = worker.ask("allocate", mib=mib)["sum"]
            before = gpu.used_mib
            figures = park(gpu, worker.pid)
            freed = before - gpu.used_mib
            figures |= resume(gpu, worker.pid)
            same = worker.ask("replay")["digest"] == digest and worker.ask("sum")["sum"] == total
            table.add("checkpoint", resident_mib=mib, freed_mib=freed, correct=same, **figures)


def check_stuck(gpu: CudaDevice, table: Table) -> None:
    """What a restore does that finds too little memory, and one after that finds enough."""
    with Process() as worker:
        worker.ask("allocate", mib=2048)
        park(gpu, worker.pid)
        taken = gpu.allocate(gpu.capacity_mib - gpu.used_mib - 1024)
        codes: list[int | None] = []
        try:
            codes.append(_code_of(lambda: gpu.process_restore(worker.pid)))
        finally:
            gpu.free(taken)
        codes.append(_code_of(lambda: gpu.process_restore(worker.pid)))
        table.add("oom-then-stuck", code_without_memory=codes[0], code_with_memory=codes[1],
                  stuck=codes[1] is not None, expected_code=OUT_OF_MEMORY)  # fmt: skip


def _code_of(call: Callable[[], Any]) -> int | None:
    try:
        call()
    except DeviceError as error:
        return int(error.args[1]) if error.args[1] is not None else -1
    return None


def check_first_token(gpu: CudaDevice, table: Table, folder: Path) -> None:
    """An 8B-class model with random weights in the agent's memory: the first token after a resume
    of the process, its weights from the pinned pool (P2+H), then from a file."""
    from gpu_worker import model_bytes

    mib = -(-model_bytes() // (2 * MIB)) * 2
    pool = HostPool(gpu, -(-mib // 8) * 8)
    store = SnapshotStore(folder / "weights")
    with Process() as worker:
        handle = gpu.allocate(mib)
        worker.map(gpu.export(handle), mib * MIB)
        token = worker.ask("fill")["token"]
        worker.ask("unmap")
        resident = pool.capture(gpu, {"weights": handle})
        store.save("weights", gpu, {"weights": handle})
        gpu.free(handle)
        for case, bring in (
            ("first-token-pool", lambda: resident.restore(gpu)),
            ("first-token-file", lambda: store.restore("weights", gpu)),
        ):
            times, right, parts = [], True, {}
            for _ in range(5):
                park(gpu, worker.pid)
                begun = time.perf_counter()
                # The driver brings the process back while the engine brings its weights.
                with ThreadPoolExecutor(1) as beside:
                    weights = beside.submit(bring)
                    parts = resume(gpu, worker.pid)
                    handles, figures = weights.result()
                worker.map(gpu.export(handles["weights"]), mib * MIB)
                right &= worker.ask("token")["token"] == token
                times.append((time.perf_counter() - begun) * 1e3)
                worker.ask("unmap")
                gpu.free(handles["weights"])
                parts["weights_ms"] = figures["elapsed_us"] / 1e3
            table.add(case, mib=mib, median_ms=statistics.median(times), max_ms=max(times),
                      correct=right, **parts)  # fmt: skip


def run(arguments: argparse.Namespace) -> tuple[Table, dict[str, str]]:
    """All checks; raises DeviceError when there is no GPU."""
    begun = time.perf_counter()
    gpu = CudaDevice(arguments.index, library=arguments.library)
    table = Table()
    table.add("cuInit and context", median_ms=(time.perf_counter() - begun) * 1e3)
    about = {"name": gpu.name, "driver": gpu.driver, "cuda": gpu.cuda,
             "compute_capability": gpu.compute_capability}  # fmt: skip
    quick = arguments.quick
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        table.step("copies", lambda: check_copies(gpu, table, quick))
        table.step("engine", lambda: check_engine(gpu, table, quick, folder))
        if not quick:
            sizes = [size for size in (100, 1024, 8192, 32768) if size < gpu.capacity_mib // 2]
            table.step("checkpoint", lambda: check_checkpoints(gpu, table, sizes))
            table.step("first-token", lambda: check_first_token(gpu, table, folder))
            # Last, because it may leave a process that only a kill ends.
            table.step("oom-then-stuck", lambda: check_stuck(gpu, table))
    return table, about


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", type=int, default=0, help="number of the GPU")
    parser.add_argument("--library", help="libcuda, when it is not where it always is")
    parser.add_argument("--quick", action="store_true", help="small sizes, no PyTorch process")
    parser.add_argument("--folder", help="where files are written: the disk of the snapshots")
    parser.add_argument("--out", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    try:
        table, about = run(arguments)
    except DeviceError as error:
        if error.args[1] != NO_DEVICE:
            raise
        print(f"gpu-check: no GPU here, nothing was checked: {error.args[0]}", file=sys.stderr)
        print(json.dumps({"gpu": None, "reason": error.args[0], "rows": []}))
        return EXIT_NO_GPU
    text = json.dumps({"gpu": about, "rows": table.rows, "failed": table.failed}, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    for case in table.failed:
        print(f"gpu-check: {case} failed", file=sys.stderr)
    return EXIT_FAILED if table.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
