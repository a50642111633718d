"""A platform's objects in a file and back; files that do not check out; formats of the store."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from inferx import backup, config, statesvc
from inferx.cli import main
from inferx.errors import BadRequest, ConfigError, Conflict, InferxError
from inferx.store.embedded import EmbeddedStore
from inferx.store.migrate import FORMAT, migrate
from inferx.store.protocol import Put
from tests.helpers.ports import free_ports
from tests.helpers.state_client import Client

SPEC = {"image": "i", "resources": {"CPU": 1, "Mem": 2}}
NODE = {"spec": {"address": "127.0.0.1", "podmgr_port": 1, "state_port": 2}}


async def serve(folder: Path) -> tuple[statesvc.Running, Client]:
    (port,) = free_ports(1)
    base = config.load(None, {"INFERX_DATA_DIR": str(folder)})
    running = await statesvc.start(replace(base, statesvc_port=port))
    return running, Client(port)


@pytest.fixture
async def full(tmp_path: Path) -> AsyncIterator[Client]:
    """A state service with a tenant, a namespace, a policy, two functions and a node."""
    running, state = await serve(tmp_path / "full")
    await state.create("tenant", ("system", "system", "t"), {"spec": {}})
    await state.create("namespace", ("t", "system", "n"), {"spec": {}})
    await state.create("funcpolicy", ("t", "n", "p"), {"spec": {"max_replica": 3}})
    for name in ("f", "g"):
        labels = {"team": "ä"}
        await state.create("function", ("t", "n", name), {"spec": SPEC}, labels=labels)
    await state.create("node", ("system", "system", "n1"), NODE)
    yield state
    await state.close()
    await running.stop()


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[Client]:
    """Another, new platform."""
    running, state = await serve(tmp_path / "empty")
    yield state
    await state.close()
    await running.stop()


async def test_everything_comes_back(full: Client, empty: Client, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    done = await backup.backup([full.address], file)
    assert done.objects == {
        "tenant": 2, "namespace": 2, "funcpolicy": 1, "function": 2, "apikey": 0, "snapshot": 0,
    }  # fmt: skip
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.glob(".backup*")) == []  # noqa: ASYNC240
    restored = await backup.restore([empty.address], file)
    # The tenant `system` and its namespace make themselves.
    assert (restored.created, restored.unchanged) == (5, 2)
    assert sorted(await empty.names("function")) == ["f", "g"]
    assert await empty.names("node") == []
    again = await backup.restore([empty.address], file)
    assert (again.created, again.unchanged) == (0, 7)
    function = await empty.get("function", ("t", "n", "f"))
    assert json.loads(function.data)["spec"]["image"] == "i"
    assert [(label.key, label.val) for label in function.labels] == [("team", "ä")]


async def test_a_changed_object_is_not_overwritten_unless_asked(
    full: Client, tmp_path: Path
) -> None:
    file = tmp_path / "backup"
    await backup.backup([full.address], file)
    await full.update("function", ("t", "n", "f"), {"spec": {**SPEC, "image": "newer"}})
    with pytest.raises(Conflict, match="function t/n/f exists with another content"):
        await backup.restore([full.address], file)
    done = await backup.restore([full.address], file, replace=True)
    assert (done.replaced, done.unchanged) == (1, 6)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data[:-30], "damaged or"),
        (lambda data: data.replace(b'"image": "i"', b'"image": "j"', 1), "checksum"),
        (lambda data: b"\n".join(data.splitlines()[:3]), "checksum"),
        (lambda data: b"", "not a backup"),
        (lambda data: b"\x00\xff" * 100, "not a backup"),
    ],
)
async def test_a_file_that_does_not_check_out_changes_nothing(
    full: Client, empty: Client, tmp_path: Path, spoil: Any, says: str
) -> None:
    file = tmp_path / "backup"
    await backup.backup([full.address], file)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(BadRequest, match=says):
        await backup.restore([empty.address], file)
    assert await empty.names("function") == []


async def test_a_full_disk_leaves_the_former_backup(full: Client, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    await backup.backup([full.address], file)
    before = file.read_bytes()
    with pytest.raises(InferxError, match="cannot be written"):
        await backup.backup([full.address], tmp_path / "no" / "such" / "folder")
    assert file.read_bytes() == before


def test_the_command_line_says_who_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, here = free_ports(2)
    ended = CliRunner().invoke(main, ["backup", "b", "--state", f"127.0.0.1:{given}"])
    assert ended.exit_code == 3
    assert f"no state service answers at 127.0.0.1:{given}; name one with --state" in ended.output
    folder = tmp_path / ".inferx"
    folder.mkdir()
    (folder / "up.json").write_text("{}")
    (folder / "node.json").write_text(json.dumps({"stateSvcAddrs": [f"127.0.0.1:{here}"]}))
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(main, ["restore", str(folder / "node.json")])
    assert "not a backup" in ended.output
    ended = CliRunner().invoke(main, ["backup", "b"])
    assert f"at 127.0.0.1:{here};" in ended.output, "that of the platform in this folder"
    assert not (tmp_path / "b").exists()


# ---- formats ----


async def test_a_new_store_has_the_newest_format(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "state.db")
    assert await migrate(store) == FORMAT
    entry = await store.get("/registry/format")
    assert entry is not None
    assert entry.value == b"2"
    revision = entry.revision
    assert await migrate(store) == FORMAT
    again = await store.get("/registry/format")
    assert again is not None
    assert again.revision == revision
    await store.close()


async def test_the_first_format_loses_who_would_seem_alive_for_ever(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "state.db")
    leader, node = "/registry/scheduler/system/system/scheduler", "/registry/node/n1"
    await store.commit((), [Put(leader, b"{}"), Put(node, b"{}"), Put("/registry/x/y", b"{}")])
    lease = await store.grant(60)
    await store.commit((), [Put("/registry/node/n2", b"{}", lease)])
    assert await migrate(store) == 1
    left = [entry.key for entry in (await store.scan("/registry/"))[0]]
    assert left == ["/registry/format", "/registry/node/n2", "/registry/x/y"]
    await store.close()


async def test_a_later_format_is_refused(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "state.db")
    await store.commit((), [Put("/registry/format", b"99")])
    with pytest.raises(ConfigError, match="format 99; this version reads up to 2"):
        await migrate(store)
    await store.close()
