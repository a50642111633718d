"""A snapshot that was changed, or is of elsewhere, is refused with its reason and never run."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferx import telemetry
from inferx.agent.gpus import GpuInfo
from inferx.agent.identity import Subject
from inferx.agent.runtimes.protocol import Checkpoints, Worker, WorkerSpec
from inferx.agent.snapshots import Snapshots
from inferx.agent.spec import PodKey
from inferx.domain.function import FunctionSpec
from inferx.errors import StartFailed, Unavailable
from tests.helpers.runtime_kit import Kit, answers, ask, leftovers

SPEC = '{"image": "", "entrypoint": ["x"], "resources": {"CPU": 1, "Mem": 1}}'
SUBJECT = Subject(PodKey("t", "n", "f", 3, "p"), SPEC, (GpuInfo(0, "Sim", 1000, True),))


def catalogue(folder: Path, checkpoints: Checkpoints, budget_mb: int = 0) -> Snapshots:
    return Snapshots(folder, checkpoints, budget_mb, lambda *_: None, "n1")


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    yield Kit("runc", tmp_path)
    assert leftovers(tmp_path) == []


@pytest.fixture
async def taken(kit: Kit) -> Path:
    """The folder of a node's snapshots, with one real one in it."""
    assert kit.runtime.checkpoints is not None
    worker, spec = await kit.start("w1")
    await ask(worker, spec)
    folder = kit.folder / "taken"
    snapshots = catalogue(folder, kit.runtime.checkpoints)
    await snapshots.save(SUBJECT, worker)
    await snapshots.settled()
    assert await snapshots.find(SUBJECT) is not None
    await worker.stop(1)
    return folder


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[:-1])
    elif how == "longer":
        path.write_bytes(data + b"\0")
    elif how == "gone":
        path.unlink()
    else:
        position = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[how]
        data[position] ^= 0x10
        path.write_bytes(data)


async def refused(folder: Path, kit: Kit) -> bool:
    """Whether an agent that opens the folder, or has it open, refuses to restore from it."""
    assert kit.runtime.checkpoints is not None
    snapshots = catalogue(folder, kit.runtime.checkpoints)
    try:
        found = await snapshots.find(SUBJECT)
    except StartFailed as error:
        return "damaged" in error.message
    return found is None  # set aside when the folder was opened


@pytest.mark.parametrize("how", ["first", "middle", "last", "cut", "longer", "gone"])
async def test_every_damaged_file_is_found(kit: Kit, taken: Path, how: str) -> None:
    (snapshot,) = (taken / "store").glob("snap-*")
    files = [
        path.relative_to(taken)
        for path in sorted(snapshot.rglob("*"))
        if path.is_file() and (how in ("gone", "longer") or path.stat().st_size)
    ]
    assert len(files) > 20
    for name in files:
        copy = kit.folder / "copy"
        shutil.copytree(taken, copy)
        damage(copy / name, how)
        assert await refused(copy, kit), f"{name} {how}"
        shutil.rmtree(copy)


async def test_damage_while_the_agent_runs_is_found(kit: Kit, taken: Path) -> None:
    assert kit.runtime.checkpoints is not None
    snapshots = catalogue(taken, kit.runtime.checkpoints)
    assert await snapshots.find(SUBJECT) is not None  # every byte was compared here
    (pages,) = (taken / "store").glob("snap-*/criu/pages-1.img")
    damage(pages, "middle")
    with pytest.raises(StartFailed, match=r"damaged.*pages-1\.img"):
        await snapshots.find(SUBJECT)
    assert await snapshots.find(SUBJECT) is None, "it is removed, and a new one is wanted"
    assert snapshots.wants(SUBJECT)
    assert 'agent_snapshot_fallbacks_total{reason="damaged"}' in telemetry.metrics_text().decode()


async def test_what_an_agent_left_half_written_is_removed(kit: Kit, taken: Path) -> None:
    assert kit.runtime.checkpoints is not None
    draft = taken / "drafts" / "dead"
    draft.mkdir()
    (draft / "pages-1.img").write_bytes(b"half")
    snapshots = catalogue(taken, kit.runtime.checkpoints)
    assert not draft.exists()
    assert await snapshots.find(SUBJECT) is not None


class Elsewhere:
    """The real runtime's checkpoints on a machine that differs in one thing."""

    def __init__(self, real: Checkpoints, **other: str) -> None:
        self._real = real
        self._other = other

    def identity(self, launch: FunctionSpec) -> Mapping[str, Any]:
        return {**self._real.identity(launch), **self._other}

    async def save(self, worker: Worker, target: Path) -> None:
        await self._real.save(worker, target)

    async def restore(self, spec: WorkerSpec, image: Path) -> Worker:
        return await self._real.restore(spec, image)


@pytest.mark.parametrize("what", ["kernel", "criu", "image", "runtime"])
async def test_another_machine_does_not_restore_it(kit: Kit, taken: Path, what: str) -> None:
    assert kit.runtime.checkpoints is not None
    snapshots = catalogue(taken, Elsewhere(kit.runtime.checkpoints, **{what: "another"}))
    with pytest.raises(StartFailed, match=f"not for here: {what} is .another."):
        await snapshots.find(SUBJECT)
    assert await snapshots.find(SUBJECT) is None


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        (replace(SUBJECT, funcspec=SPEC.replace('"x"', '"y"')), "spec is"),
        (replace(SUBJECT, devices=(GpuInfo(0, "Other", 1000, True),)), "GPU 0 is"),
        (replace(SUBJECT, devices=()), "0 GPUs, not 1"),
    ],
    ids=["spec", "gpu", "no-gpu"],
)
async def test_another_pod_does_not_restore_it(
    kit: Kit, taken: Path, subject: Subject, said: str
) -> None:
    assert kit.runtime.checkpoints is not None
    with pytest.raises(StartFailed, match=said):
        await catalogue(taken, kit.runtime.checkpoints).find(subject)


async def test_another_function_has_none(kit: Kit, taken: Path) -> None:
    assert kit.runtime.checkpoints is not None
    other = replace(SUBJECT, key=PodKey("t2", "n", "f", 3, "p"))
    assert await catalogue(taken, kit.runtime.checkpoints).find(other) is None


async def test_a_full_disk_is_found_before_the_worker_is_paused(kit: Kit) -> None:
    assert kit.runtime.checkpoints is not None
    small = kit.folder / "small"
    small.mkdir()
    mounted = await _run("mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(small))
    assert mounted == 0
    try:
        worker, spec = await kit.start("w1")
        await ask(worker, spec)
        snapshots = catalogue(small / "snapshots", kit.runtime.checkpoints)
        with pytest.raises(Unavailable, match="no room for a snapshot"):
            await snapshots.save(SUBJECT, worker)
        assert not (spec.folder / "box/criu/dump.log").exists(), "it was never paused"
        assert await answers(worker, spec)
        assert os.listdir(small / "snapshots/drafts") == []
        await worker.stop(1)
        del snapshots
    finally:
        assert await _run("umount", str(small)) == 0


async def test_a_snapshot_over_the_budget_is_not_kept(kit: Kit) -> None:
    assert kit.runtime.checkpoints is not None
    worker, spec = await kit.start("w1", "ballast", "30")
    await ask(worker, spec)
    snapshots = catalogue(kit.folder / "s", kit.runtime.checkpoints, budget_mb=20)
    await snapshots.save(SUBJECT, worker)
    await snapshots.settled()
    assert snapshots.all == []
    await worker.stop(1)


async def _run(*argv: str) -> int:
    process = await asyncio.create_subprocess_exec(*argv)
    return await process.wait()
