"""One suite for every runtime: what the agent relies on, with real workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from inferx.agent.logs import PodLog
from inferx.agent.runtimes.protocol import Worker, WorkerSpec
from inferx.errors import BadRequest, StartFailed
from tests.helpers.agent_node import alive
from tests.helpers.containerd_daemon import CONTAINERD, Containerd
from tests.helpers.docker_engine import DockerEngine, empty_root
from tests.helpers.docker_engine import mounts as machine_mounts
from tests.helpers.runtime_kit import ROOT, SERVER, Kit, answers, ask, leftovers, until

# One daemon of each is enough: its tests stay in one process.
DOCKER = pytest.param("docker", marks=pytest.mark.xdist_group("docker"))
RUNTIMES = ("process", "runc", DOCKER, CONTAINERD)
ON_SAVING = pytest.mark.parametrize("kit", ["runc", CONTAINERD], indirect=True)
ON_OTHERS = pytest.mark.parametrize("kit", ["process", DOCKER], indirect=True)


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    daemon = DockerEngine(tmp_path_factory.mktemp("docker"))
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture(params=RUNTIMES)
async def kit(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kit]:
    if request.param not in ("docker", "containerd"):
        kit = Kit(request.param, tmp_path)
        yield kit
        await kit.runtime.close()
    else:
        daemon: DockerEngine | Containerd = request.getfixturevalue(request.param)
        kit = Kit(request.param, tmp_path, socket=daemon.socket)
        yield kit
        assert daemon.containers() == []
        await kit.runtime.close()
    assert leftovers(tmp_path) == []


async def test_a_worker_answers_logs_and_ends(kit: Kit) -> None:
    worker, spec = await kit.start("w1")
    assert (await ask(worker, spec))["mode"] == "ok"
    environment = await ask(worker, spec, "/env")
    assert environment["PORT"] == str(spec.port)
    assert environment["INFERX_POD"] == "w1"
    await until(lambda: "model server ok" in PodLog(spec.folder).tail(), "its output is logged")
    await worker.stop(5)
    assert worker.exited.done()
    await worker.stop(5)  # again is fine


@pytest.mark.parametrize(("mode", "said"), [("exit", "exited with code 3")])
async def test_the_way_a_worker_ends_is_told(kit: Kit, mode: str, said: str) -> None:
    worker, spec = await kit.start("w1", mode)
    assert str(await asyncio.wait_for(worker.exited, 30)) == said
    await worker.stop(1)
    await until(lambda: "out of luck" in PodLog(spec.folder).tail(), "its last words are kept")


async def test_a_killed_worker_is_told_by_its_signal(kit: Kit) -> None:
    worker, _ = await kit.start("w1", "silent")
    os.kill(int(worker.record["pid"]), signal.SIGKILL)
    assert str(await asyncio.wait_for(worker.exited, 30)) == "killed by SIGKILL"
    await worker.stop(1)


async def test_a_stubborn_worker_is_killed_after_its_grace(kit: Kit) -> None:
    worker, spec = await kit.start("w1", "stubborn")
    await ask(worker, spec)
    await worker.stop(0.2)
    assert worker.exited.done()


async def test_a_command_that_cannot_run_fails_with_its_name(kit: Kit) -> None:
    with pytest.raises(StartFailed, match="no-such-program"):
        await kit.start("w1", entrypoint=["no-such-program"])


async def test_a_function_that_names_nothing_to_run_is_refused(kit: Kit) -> None:
    if kit.runtime.name == "docker":  # there the image says it
        spec, said = kit.spec("w1", image=""), r"spec\.image"
    else:
        spec, said = kit.spec("w1", entrypoint=[], image="local/x"), r"spec\.entrypoint"
    with pytest.raises(BadRequest, match=said):
        kit.runtime.check(spec.launch)


async def test_freezing_stops_it_and_thawing_lets_it_go_on(kit: Kit) -> None:
    worker, spec = await kit.start("w1")
    await ask(worker, spec)
    await worker.freeze()
    assert not await answers(worker, spec)
    await worker.thaw()
    assert (await ask(worker, spec))["mode"] == "ok"
    await worker.thaw()  # one that runs may be told so
    await worker.freeze()
    await worker.stop(5)  # a frozen one ends, too


async def test_memory_is_limited(kit: Kit) -> None:
    worker, spec = await kit.start("w1", "ok", "300", mem_mb=120)
    with contextlib.suppress(httpx.TransportError):  # it dies while or after it answers
        await ask(worker, spec, "/eat")
    # containerd has removed the control group, which tells why, before its client returns.
    said = "killed by SIGKILL" if kit.runtime.name == "containerd" else "memory limit"
    assert said in str(await asyncio.wait_for(worker.exited, 30))
    await worker.stop(1)


async def test_workers_have_addresses_of_their_own(kit: Kit) -> None:
    first, first_spec = await kit.start("w1", "ok")
    second, second_spec = await kit.start("w2", "prompt")
    assert (await ask(first, first_spec))["mode"] == "ok"
    assert (await ask(second, second_spec))["mode"] == "prompt"
    assert (first.host, first_spec.port) != (second.host, second_spec.port)
    await asyncio.gather(first.stop(5), second.stop(5))


@pytest.mark.parametrize("recorded", [True, False], ids=["record", "no-record"])
async def test_the_next_agent_adopts_a_worker(kit: Kit, recorded: bool) -> None:
    worker, spec = await kit.start("w1")
    await ask(worker, spec)
    record = dict(worker.record) if recorded else {}
    worker.let_go()
    adopted = await kit.runtime.adopt(spec.folder, record)
    assert adopted is not None
    assert adopted.host == worker.host
    assert (await ask(adopted, spec))["mode"] == "ok"
    await adopted.freeze()
    await adopted.thaw()
    await adopted.stop(5)
    assert adopted.exited.done()


async def test_nothing_is_adopted_where_nothing_runs(kit: Kit) -> None:
    worker, spec = await kit.start("w1")
    pid = int(worker.record["pid"])
    record = dict(worker.record)
    worker.let_go()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not alive(pid), "the worker is dead")
    assert await kit.runtime.adopt(spec.folder, record) is None


async def restored_from(
    kit: Kit, worker: Worker, name: str, *mode: str
) -> tuple[Worker, WorkerSpec]:
    """A second worker, from an image of the first one."""
    assert kit.runtime.checkpoints is not None
    image = kit.folder / f"image-of-{name}"
    image.mkdir()
    await kit.runtime.checkpoints.save(worker, image)
    spec = kit.spec(name, *mode, mem_mb=120)
    return await kit.runtime.checkpoints.restore(spec, image), spec


@ON_SAVING
async def test_a_worker_is_saved_and_goes_on_twice(kit: Kit) -> None:
    worker, spec = await kit.start("w1", "count")
    assert (await ask(worker, spec, "/count"))["count"] == 1
    second, second_spec = await restored_from(kit, worker, "w2", "count")
    for each, its in ((worker, spec), (second, second_spec)):
        assert (await ask(each, its, "/count"))["count"] == 2
    assert second.host != worker.host
    await until(lambda: "/count" in PodLog(second_spec.folder).tail(), "its output is in its log")
    await second.freeze()
    assert not await answers(second, second_spec)
    assert (await ask(worker, spec, "/count"))["count"] == 3
    await second.thaw()
    await ask(second, second_spec, "/exit")
    assert str(await asyncio.wait_for(second.exited, 30)) == "exited with code 7"
    await asyncio.gather(second.stop(5), worker.stop(5))


@ON_SAVING
async def test_memory_of_a_restored_worker_is_limited(kit: Kit) -> None:
    worker, spec = await kit.start("w1", "ok", "300")
    await ask(worker, spec)
    second, second_spec = await restored_from(kit, worker, "w2", "ok", "300")
    with contextlib.suppress(httpx.TransportError):
        await ask(second, second_spec, "/eat")
    # `runc restore` has removed the control group, which tells why, before it returns.
    assert str(await asyncio.wait_for(second.exited, 30)) == "killed by SIGKILL"
    assert (await ask(worker, spec))["mode"] == "ok"
    await asyncio.gather(second.stop(1), worker.stop(1))


@ON_SAVING
@pytest.mark.parametrize("recorded", [True, False], ids=["record", "no-record"])
async def test_the_next_agent_adopts_a_restored_worker(kit: Kit, recorded: bool) -> None:
    worker, spec = await kit.start("w1")
    await ask(worker, spec)
    second, second_spec = await restored_from(kit, worker, "w2")
    engines = [str(each.record["engine"]) for each in (worker, second)]
    assert engines == [kit.runtime.name, "runc"]
    for each, its in ((worker, spec), (second, second_spec)):
        each.let_go()
        adopted = await kit.runtime.adopt(its.folder, dict(each.record) if recorded else {})
        assert adopted is not None
        assert adopted.record["engine"] == engines.pop(0)
        assert (await ask(adopted, its))["mode"] == "ok"
        await adopted.freeze()
        await adopted.thaw()
        await adopted.stop(5)
        assert await kit.runtime.adopt(its.folder, {}) is None


async def test_restored_workers_need_no_containerd(tmp_path: Path) -> None:
    worker, spec = await Kit("runc", tmp_path).start("w1", "count")
    await ask(worker, spec, "/count")
    kit = Kit("containerd", tmp_path, socket=tmp_path / "nobody")
    second, second_spec = await restored_from(kit, worker, "w2", "count")
    second.let_go()
    adopted = await kit.runtime.adopt(second_spec.folder, dict(second.record))
    assert adopted is not None
    assert (await ask(adopted, second_spec, "/count"))["count"] == 2
    await asyncio.gather(adopted.stop(5), worker.stop(5))
    assert leftovers(tmp_path) == []


@ON_OTHERS
async def test_the_other_runtimes_say_that_they_save_nothing(kit: Kit) -> None:
    assert kit.runtime.checkpoints is None


async def test_a_worker_of_an_image_sees_that_and_not_this_machine(tmp_path: Path) -> None:
    kit = Kit("runc", tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/minimal.tar").write_bytes(empty_root())
    mounts = machine_mounts(ROOT)
    server = ["$(INFERX_PYTHON)", str(ROOT / SERVER)]
    own = "/root/written-into-the-image"
    worker, spec = await kit.start(
        "w1", "write-file", own, image="minimal", mounts=mounts, entrypoint=server
    )
    assert (await ask(worker, spec, "/file"))["content"] == "written at the start"
    assert not os.path.lexists(own)  # noqa: ASYNC240 - one look
    (unpacked,) = list((tmp_path / "images/.unpacked").iterdir())
    assert os.listdir(unpacked / "root") == [], "an image is never written to"
    await worker.stop(1)
    assert leftovers(tmp_path) == []


async def test_the_address_of_a_worker_that_is_gone_leads_nowhere(tmp_path: Path) -> None:
    """A gateway hears at once that nobody is there, and nothing is asked beyond this machine."""
    kit = Kit("runc", tmp_path)
    worker, spec = await kit.start("w1")
    await ask(worker, spec)
    await worker.stop(1)
    with pytest.raises(OSError, match="No route to host"):
        socket.create_connection((worker.host, spec.port), 10)
