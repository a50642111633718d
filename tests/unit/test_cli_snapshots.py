"""`inferx snapshot fsck`: sound, damaged, in use. Must never need the platform."""

from pathlib import Path

from click.testing import CliRunner

from inferx._ext import SnapshotStore, SoftDevice
from inferx.cli import main


def test_fsck_names_the_damaged_and_leaves_them(tmp_path: Path) -> None:
    device = SoftDevice(64)
    store = SnapshotStore(tmp_path)  # in use while it is checked
    image = tmp_path / "image"
    image.write_bytes(b"process")
    for id in ("one", "two"):
        store.save(id, device, {"weights": device.allocate(2)}, files={"core.img": image})
    runner = CliRunner()
    result = runner.invoke(main, ["snapshot", "fsck", str(tmp_path)])
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "2 snapshots, 0 damaged")
    (store.path("two") / "core.img").write_bytes(b"procesS")
    result = runner.invoke(main, ["snapshot", "fsck", str(tmp_path)])
    assert result.exit_code == 1
    assert "one: sound" in result.output
    assert "two: corrupt snapshot: core.img: xxh3-128 does not match" in result.output
    assert store.ids() == ["one", "two"]
    assert runner.invoke(main, ["snapshot", "fsck", str(tmp_path / "no")]).exit_code == 2
