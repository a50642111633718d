"""The agent's parts without processes: ledger, spec, logs, epoch, GPU selection."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from inferx.agent.epoch import EpochGuard
from inferx.agent.gpus import Device, GpuInfo, discover
from inferx.agent.housekeeping import ENDED_KEPT_MAX, Housekeeper
from inferx.agent.ledger import Ledger
from inferx.agent.logs import FILE_BYTES_MAX, PodLog
from inferx.agent.probe import prompt_body
from inferx.agent.runtimes.limits import Limits, read_group
from inferx.agent.spec import coerce, expand, parse_alloc, parse_launch
from inferx.config import SimulatedGpu
from inferx.domain.function import SampleQuery
from inferx.errors import BadRequest, InvalidState, NoCapacity, StaleEpoch, Unavailable


def two_gpus() -> list[Device]:
    return discover((SimulatedGpu("Sim", 2, 10_000),), "Auto")


# ---- control groups ----


def test_a_control_group_that_is_just_removed_reads_as_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel answers for a file that was opened before; the group's worker has ended."""

    def read(file: Path) -> str:
        number = errno.EIO if file.name == "broken" else errno.ENODEV
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_text", read)
    limits = Limits([str(tmp_path)])
    assert (limits.pids(), limits.out_of_memory()) == (set(), "")
    with pytest.raises(OSError, match="Input/output"):
        read_group(tmp_path / "broken")


# ---- ledger ----


def test_ledger_refuses_what_does_not_fit_and_names_device_and_sizes() -> None:
    ledger = Ledger(two_gpus())
    ledger.promise("a", (0,), 7_000)
    ledger.take("a")
    with pytest.raises(NoCapacity, match=r"GPU 0 \(Sim\) has 3000 of 10000 MB free, 4000 MB"):
        ledger.promise("b", (0,), 4_000)
    assert ledger.used_mb(0) == 7_000
    ledger.promise("b", (1,), 4_000)
    ledger.release("a")
    ledger.release("a")
    assert (ledger.used_mb(0), ledger.used_mb(1)) == (0, 4_000)


def test_ledger_checks_all_devices_before_it_counts_any() -> None:
    ledger = Ledger(two_gpus())
    ledger.promise("a", (1,), 8_000)
    with pytest.raises(NoCapacity, match="GPU 1"):
        ledger.promise("b", (0, 1), 5_000)
    assert ledger.used_mb(0) == 0
    assert ledger.held_mb("b") == 0


def test_room_of_victims_is_promised_once() -> None:
    ledger = Ledger(two_gpus())
    ledger.promise("old", (0,), 9_000)
    ledger.take("old")
    ledger.promise("new", (0,), 9_000, victims=["old"])
    with pytest.raises(NoCapacity):
        ledger.promise("other", (0,), 9_000, victims=["old"])
    with pytest.raises(NoCapacity, match="refused 9000 MB"):
        ledger.take("new")  # the device itself is still full
    ledger.release("old")
    ledger.take("new")
    assert ledger.used_mb(0) == 9_000


def test_a_victim_that_stays_counts_again() -> None:
    ledger = Ledger(two_gpus())
    ledger.promise("old", (0,), 9_000)
    ledger.promise("new", (0,), 5_000, victims=["old"])
    ledger.release("new")
    ledger.stay(["old"])
    assert ledger.used_mb(0) == 9_000


def test_ledger_names_unknown_devices_and_double_promises() -> None:
    ledger = Ledger(two_gpus())
    with pytest.raises(BadRequest, match="no GPU 5 here"):
        ledger.promise("a", (5,), 1)
    ledger.promise("a", (0,), 1)
    with pytest.raises(InvalidState):
        ledger.promise("a", (0,), 1)


def test_odd_sizes_fill_a_simulated_gpu_to_the_last_mb() -> None:
    ledger = Ledger(discover((SimulatedGpu("Sim", 1, 21),), "Auto"))
    for number in range(7):
        ledger.promise(str(number), (0,), 3)
        ledger.take(str(number))
    assert ledger.used_mb(0) == 21


# ---- spec ----


def test_expand_knows_names_and_leaves_unknown_ones() -> None:
    values = {"PORT": "81", "A.B": "x"}
    assert expand("p=$(PORT) $(NOPE) $$(PORT) $PORT $(A.B)", values) == (
        "p=81 $(NOPE) $(PORT) $PORT x"
    )


def test_numbers_written_as_strings_are_coerced_but_text_is_not() -> None:
    given = {"max_tokens": "10", "temperature": "0.5", "stream": "true", "model": "4", "n": 1}
    assert coerce(given) == {
        "max_tokens": 10, "temperature": 0.5, "stream": True, "model": "4", "n": 1,
    }  # fmt: skip
    assert coerce({"messages": [{"role": "user", "content": "12"}]}) == {
        "messages": [{"role": "user", "content": "12"}]
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("v1/completions", {"model": "m", "prompt": "hi"}),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
        ("v1/embeddings", {"model": "m", "input": "hi"}),
    ],
)
def test_the_prompt_goes_where_its_api_wants_it(path: str, expected: object) -> None:
    query = SampleQuery(path=path, prompt="hi", body={"model": "m"})
    assert prompt_body(query) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"GPU": {"vRam": "14", "devices": [0]}}', "alloc_resources.GPU.vRam"),
        ('{"GPU": {"vRam": 14, "devices": [0, 0]}}', "names a device twice"),
        ('{"CPU": -1}', "alloc_resources.CPU"),
        ("[]", "alloc_resources"),
        ("{", "not JSON"),
    ],
)
def test_a_wrong_allocation_is_named(text: str, named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        parse_alloc(text)


def test_a_prompt_probe_needs_a_sample_query() -> None:
    spec = {
        "image": "x",
        "resources": {"CPU": 1, "Mem": 1},
        "endpoint": {"probetype": "Prompt"},
    }
    with pytest.raises(BadRequest, match=r"sample_query\.path"):
        parse_launch(json.dumps(spec))


# ---- logs ----


def write(log: PodLog, text: str) -> None:
    descriptor = log.open_for_worker()
    os.write(descriptor, text.encode())
    os.close(descriptor)


def test_a_log_stays_bounded_and_keeps_its_end(tmp_path: Path) -> None:
    log = PodLog(tmp_path, file_bytes_max=1000)
    for number in range(100):
        write(log, f"line {number:03d} {'x' * 40}\n")
        log.rotate()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3_200
    text = log.tail()
    kept = [line for line in text.splitlines() if line.startswith("line")]
    assert kept[-1].startswith("line 099")
    assert len(kept) > 20
    assert log.tail(2).splitlines() == kept[-2:]
    assert log.path.stat().st_mode & 0o777 == 0o600


async def test_following_a_log_survives_its_rotation(tmp_path: Path) -> None:
    log = PodLog(tmp_path, file_bytes_max=100)
    write(log, "before\n")
    seen: list[str] = []
    async for text in log.follow(0, lambda: "after\n" in "".join(seen)):
        seen.append(text)
        if len(seen) == 1:
            write(log, "grüße " * 20 + "\n")
            assert log.rotate()
            write(log, "after\n")
    assert "".join(seen) == "before\n" + "grüße " * 20 + "\nafter\n"


# ---- epoch, GPUs ----


def test_the_epoch_fences_over_restarts(tmp_path: Path) -> None:
    guard = EpochGuard(tmp_path / "epoch")
    guard.check(0)
    guard.check(7)
    guard.check(7)
    with pytest.raises(StaleEpoch, match="epoch 6 is over"):
        EpochGuard(tmp_path / "epoch").check(6)


def test_an_epoch_that_cannot_be_kept_is_not_obeyed(tmp_path: Path) -> None:
    guard = EpochGuard(tmp_path / "no such folder" / "epoch")
    with pytest.raises(Unavailable, match="cannot keep epoch 7"):
        guard.check(7)
    assert guard.epoch == 0


def test_simulated_gpus_are_numbered_through() -> None:
    groups = (SimulatedGpu("A", 2, 100), SimulatedGpu("B", 1, 200))
    infos = [device.info for device in discover(groups, "Auto")]
    assert [(info.index, info.type, info.vram_mb) for info in infos] == [
        (0, "A", 100), (1, "A", 100), (2, "B", 200),
    ]  # fmt: skip


class FullDevice:
    """A real device whose driver has nothing free: what an adopted worker leaves."""

    info = GpuInfo(index=0, type="Full", vram_mb=1000, simulated=False)

    def allocate(self, size_mb: int, *, in_use: bool = False) -> int:
        if not in_use:
            raise NoCapacity("nothing free")
        return 1

    def free(self, handle: int) -> None:
        assert handle == 1


def test_a_worker_found_running_keeps_its_vram_although_none_is_free() -> None:
    ledger = Ledger([FullDevice()])
    ledger.promise("a", (0,), 1000)
    with pytest.raises(NoCapacity):
        ledger.take("a")
    ledger.take("a", in_use=True)
    assert ledger.real_devices((0,)) == [0]
    ledger.release("a")
    assert ledger.used_mb(0) == 0


# ---- housekeeping ----


def test_folders_of_ended_pods_are_bounded_and_live_ones_stay(tmp_path: Path) -> None:
    forgotten: list[str] = []
    for number in range(ENDED_KEPT_MAX + 3):
        folder = tmp_path / f"p{number:02d}"
        folder.mkdir()
        os.utime(folder, (time.time() - 60 + number, time.time() - 60 + number))
    old = tmp_path / "old"
    old.mkdir()
    os.utime(old, (1, 1))
    (tmp_path / "lock").touch()
    live = {"p00"}
    keeper = Housekeeper(tmp_path, lambda: live, forgotten.append)
    PodLog(tmp_path / "p00").path.write_bytes(b"x" * (FILE_BYTES_MAX + 1))
    keeper.round()
    assert sorted(forgotten) == ["old", "p01", "p02"]
    assert (tmp_path / "p00" / "log").stat().st_size == 0
    assert (tmp_path / "p00" / "log.1").stat().st_size == FILE_BYTES_MAX + 1
    assert (tmp_path / "lock").exists()
