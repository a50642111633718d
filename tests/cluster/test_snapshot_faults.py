"""Whatever fails around a snapshot, the call is answered by a colder start and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inferx import procfs
from inferx.errors import InferxError
from inferx.rpc import na_pb2 as pb
from inferx.rpc.client import call
from tests.cluster.test_snapshots import entries, first_start, published, snapshots
from tests.helpers.agent_node import Node, named
from tests.helpers.containerd_daemon import ON_BOTH
from tests.helpers.faulty_tools import FaultyTools
from tests.helpers.runtime_kit import leftovers, network_state, until


@pytest.fixture
def tools(tmp_path: Path) -> FaultyTools:
    return FaultyTools(tmp_path / "tools")


@pytest.fixture
async def node(tmp_path: Path, tools: FaultyTools, runtime: dict[str, Any]) -> AsyncIterator[Node]:
    folder = tmp_path / "node"
    async with Node(folder, path=tools.path, **entries(runtime)) as node:
        yield node
    assert leftovers(folder) == []


async def end(node: Node, pod_id: str) -> None:
    await call(node.pods.TerminatePod, pb.TerminatePodReq(**named(pod_id)))


@ON_BOTH
@pytest.mark.parametrize("fault", ["runc-checkpoint", "criu-swrk"])
async def test_a_worker_that_cannot_be_saved_serves(
    node: Node, tools: FaultyTools, fault: str
) -> None:
    tools.fail(fault)
    answer = await node.create("p0", "count")
    status = await node.status("p0")
    assert (answer.start, status["state"]) == ("cold", "Ready")
    assert "no snapshot: it cannot be saved" in status["reason"]
    shown = (await snapshots(node))["f"]
    assert (shown["state"], shown["failures"]) == ("Failed", 1)
    assert "it cannot be saved" in shown["reason"]
    assert (await node.worker("p0", "/count")).json()["count"] == 1
    await end(node, "p0")
    tools.heal()
    await first_start_again(node)


async def first_start_again(node: Node) -> None:
    """A failure condemns nothing: the next start from nothing has its snapshot."""
    assert (await node.create("p1", "count")).start == "cold"
    await published(node)
    assert (await node.create("p2", "count")).start == "snapshot"


@ON_BOTH
@pytest.mark.parametrize("fault", ["runc-restore", "criu-lazy-pages", "criu-swrk"])
async def test_a_restore_that_fails_becomes_a_cold_start(
    node: Node, tools: FaultyTools, fault: str
) -> None:
    await first_start(node, "count")
    tools.fail(fault)
    for pod_id, failures in (("p1", 1), ("p2", None)):
        answer = await node.create(pod_id, "count")
        status = await node.status(pod_id)
        assert (answer.start, status["state"], status["start"]) == ("cold", "Ready", "cold")
        assert "its snapshot failed" in status["reason"]
        assert (await node.worker(pod_id, "/count")).json()["count"] == 1
        shown = await snapshots(node)
        # It is not tried for ever: the second failure removes it, and a new one is taken.
        if failures:
            assert shown["f"]["failures"] == failures
        else:
            one = shown.get("f", {"state": "", "failures": 0})
            assert one["state"] != "Ready" or not one["failures"]
        await end(node, pod_id)
    tools.heal()
    await node.create("p3", "count")
    await published(node)
    assert (await node.create("p4", "count")).start == "snapshot"


async def test_a_worker_whose_pages_stop_coming_is_not_used(node: Node, tools: FaultyTools) -> None:
    await first_start(node, "ballast", "100")
    creating = asyncio.create_task(node.create("p1", "ballast", "100"))
    work = str(node.folder / "pods/p1/box/criu")
    daemons = await until(lambda: procfs.find_argument("-W", work), "the daemon runs")
    for daemon in daemons:
        os.kill(daemon, signal.SIGKILL)
    answer = await creating
    status = await node.status("p1")
    assert (answer.start, status["state"]) in (("cold", "Ready"), ("snapshot", "Failed"))
    if status["state"] == "Failed":  # the daemon died after the first answer had been given
        assert "the daemon that restores its memory died" in status["error"]
    await end(node, "p1")


async def test_what_uses_io_uring_is_refused_before_it_is_paused(node: Node) -> None:
    answer = await node.create("p0", "io_uring")
    status = await node.status("p0")
    assert (answer.start, status["state"]) == ("cold", "Ready")
    assert "uses io_uring" in status["reason"]
    assert not (node.folder / "pods/p0/box/criu/dump.log").exists()
    assert (await node.worker("p0", "/")).json()["mode"] == "io_uring"


async def test_saving_and_restoring_leave_no_packet_filter_rules(node: Node) -> None:
    await first_start(node)
    await node.create("p1")
    assert not [line for line in network_state() if "CRIU" in line]
    source = await asyncio.create_subprocess_exec(
        "sh", "-c", "for n in $(ls /run/netns); do ip netns exec $n iptables-save; done 2>&1 | grep"
        " -c CRIU", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    found, _ = await source.communicate()
    assert found.split() == [b"0"]


async def test_a_snapshot_may_be_removed_while_it_is_restored(node: Node) -> None:
    await first_start(node, "ballast", "100")
    creating = asyncio.create_task(node.create("p1", "ballast", "100"))
    work = str(node.folder / "pods/p1/box/criu")
    await until(lambda: procfs.find_argument("-W", work) or creating.done(), "it is restored")
    await call(node.pods.RemoveSnapshot, pb.RemoveSnapshotReq(funckey="t/n/f"))
    answer = await creating
    assert answer.start in ("snapshot", "cold")
    assert (await node.worker("p1", "/")).status_code == 200


async def test_a_container_whose_runc_is_killed_is_reported_and_removed(node: Node) -> None:
    await node.create("p0")
    box = str(node.folder / "pods/p0/box")
    (supervisor,) = procfs.find_argument("--bundle", box)
    os.kill(supervisor, signal.SIGKILL)
    status = await node.until("p0", lambda status: status["state"] == "Failed")
    assert "its runner was killed by signal 9" in status["error"]
    assert status["vram_mb"] == 0


async def test_a_start_that_runc_refuses_leaves_nothing(node: Node, tools: FaultyTools) -> None:
    tools.fail("runc-run")
    with pytest.raises(InferxError, match="made-to-fail"):
        await node.create("p0")
    status = await node.status("p0")
    assert (status["state"], status["vram_mb"]) == ("Failed", 0)
    assert leftovers(node.folder) == []
