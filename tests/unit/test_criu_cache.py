"""What CRIU found out about the kernel is kept, also where /run is no memory file system."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferx.agent.runtimes import criucache

# As CRIU does it: only in a memory file system, for which a mounted one stands here.
_PICKY = 'echo "$1" >> {log}\nmountpoint -q {run} || exit 0\necho findings > {run}/criu.kdat'


class Machine:
    """A /run, a memory file system and a CRIU that does what `script` says."""

    def __init__(self, folder: Path, memory: Path, script: str = _PICKY) -> None:
        self.run, self.memory = folder / "run", memory
        self.run.mkdir()
        self._log = folder / "log"
        self._criu = folder / "criu"
        self._criu.write_text("#!/bin/sh\n" + script.format(run=self.run, log=self._log) + "\n")
        self._criu.chmod(0o755)

    @property
    def cache(self) -> Path:
        return self.run / "criu.kdat"

    @property
    def commands(self) -> list[str]:
        return self._log.read_text().split() if self._log.exists() else []

    def keep(self) -> None:
        criucache.keep(str(self._criu), self.run, self.memory)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in a memory file system."""
    with tempfile.TemporaryDirectory(dir=criucache.MEMORY) as folder:
        yield Path(folder)


def test_findings_on_a_disk_are_a_link_into_memory(tmp_path: Path, memory: Path) -> None:
    machine = Machine(tmp_path, memory)
    machine.keep()
    assert machine.cache.is_symlink()
    assert machine.cache.read_text() == "findings\n"
    assert machine.cache.resolve().is_relative_to(machine.memory)
    assert [each.name for each in machine.cache.resolve().parent.iterdir()] == ["criu.kdat"]
    assert machine.commands == ["check", "check"]
    machine.keep()
    assert machine.commands == ["check", "check"]


def test_a_link_that_leads_nowhere_after_a_boot_is_replaced(tmp_path: Path, memory: Path) -> None:
    machine = Machine(tmp_path, memory)
    machine.cache.symlink_to(tmp_path / "gone")
    machine.keep()
    assert machine.cache.read_text() == "findings\n"


def test_criu_that_keeps_them_itself_is_left_alone(tmp_path: Path, memory: Path) -> None:
    machine = Machine(tmp_path, memory, "echo findings > {run}/criu.kdat")
    machine.keep()
    assert not machine.cache.is_symlink()
    assert list(machine.memory.iterdir()) == []


def test_nothing_is_read_from_a_folder_that_others_can_write(
    tmp_path: Path, memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(tmp_path, memory)
    folder = machine.memory / "inferx-criu"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "criu.kdat").write_text("lies\n")
    with caplog.at_level(logging.WARNING):
        machine.keep()
    assert not machine.cache.is_symlink()
    assert "is not ours alone" in caplog.text


def test_what_a_killed_criu_left_does_not_stop_the_others_for_ever(
    tmp_path: Path, memory: Path
) -> None:
    machine = Machine(tmp_path, memory)
    unfinished = machine.run / "criu.kdat.tmp"
    unfinished.touch()
    machine.keep()
    assert unfinished.exists()  # that one may still be at work
    long_ago = time.time() - 2 * criucache.ABANDONED_S
    os.utime(unfinished, (long_ago, long_ago))
    machine.keep()
    assert not unfinished.exists()


def test_criu_that_keeps_nothing_is_named_in_the_log(
    tmp_path: Path, memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(tmp_path, memory, "echo the kernel has no such thing >&2; exit 1")
    with caplog.at_level(logging.WARNING):
        machine.keep()
    assert "restores take longer" in caplog.text
    assert "the kernel has no such thing" in caplog.text
    assert list(machine.run.iterdir()) == []


def test_findings_never_lie_on_a_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = Path("/")  # of the machine or of a container, never a memory file system
    machine = Machine(tmp_path, disk)
    with tempfile.TemporaryDirectory(dir=disk) as folder, caplog.at_level(logging.WARNING):
        machine.memory = Path(folder)
        machine.keep()
    assert "is no memory file system" in caplog.text
    assert not machine.cache.is_symlink()
