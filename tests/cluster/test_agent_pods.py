"""Pods of a real node agent over gRPC: real worker processes, real ports, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from inferx.errors import (
    BadRequest,
    InvalidState,
    NoCapacity,
    NotFound,
    StaleEpoch,
    StartFailed,
    Unavailable,
)
from inferx.rpc import na_pb2 as pb
from inferx.rpc.client import call
from tests.helpers.agent_node import (
    SECRET,
    Node,
    alive,
    alloc,
    create_request,
    named,
    process_state,
)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node(tmp_path) as running:
        yield running


# ---- start ----


async def test_a_pod_starts_answers_and_ends_without_a_trace(node: Node) -> None:
    created = await node.create("p1")
    assert created.ipaddress == 0x7F000001
    status = await node.status("p1")
    assert (status["state"], status["port"]) == ("Ready", created.port)
    assert (status["gpus"], status["vram_mb"], status["start"]) == ([0], 4000, "cold")
    assert (await node.worker("p1", "/")).json()["mode"] == "ok"
    pid = node.pid("p1")
    await call(node.pods.TerminatePod, pb.TerminatePodReq(**named("p1")))
    assert not alive(pid)
    assert node.agent.ledger.used_mb(0) == 0
    with pytest.raises(NotFound):
        await node.status("p1")
    await call(node.pods.TerminatePod, pb.TerminatePodReq(**named("p1")))


async def test_a_worker_sees_its_own_environment_and_no_secret(node: Node) -> None:
    envs = [["WHERE", "http://127.0.0.1:$(PORT)/$(NOPE)"], ["PORT", "1"]]
    await node.create("p1", devices=(0, 1), envs=envs)
    seen = (await node.worker("p1", "/env")).json()
    port = str((await node.status("p1"))["port"])
    assert seen["PORT"] == seen["INFERX_PORT"] == port
    assert seen["WHERE"] == f"http://127.0.0.1:{port}/$(NOPE)"
    assert seen["CUDA_VISIBLE_DEVICES"] == seen["NVIDIA_VISIBLE_DEVICES"] == "0,1"
    assert seen["INFERX_POD"] == "p1"
    assert SECRET not in seen
    assert "do-not-tell" not in json.dumps(seen)


async def test_creating_a_pod_twice_starts_one_process(node: Node) -> None:
    both = await asyncio.gather(node.create("p1", "slow", "0.3"), node.create("p1", "slow", "0.3"))
    assert both[0].port == both[1].port == (await node.create("p1")).port
    log = await call(node.pods.ReadPodLog, pb.ReadPodLogReq(**named("p1")))
    assert log.log.count("model server") == 1


async def test_pods_start_in_parallel(node: Node) -> None:
    start = time.monotonic()
    starts = [node.create(f"p{number}", "slow", "1.5", vram_mb=2000) for number in range(4)]
    await asyncio.gather(*starts)
    assert time.monotonic() - start < 4.5
    assert len({(await node.status(f"p{number}"))["port"] for number in range(4)}) == 4


async def test_a_worker_that_exits_is_reported_at_once_with_its_log(node: Node) -> None:
    start = time.monotonic()
    with pytest.raises(StartFailed, match="exited with code 3") as caught:
        await node.create("p1", "exit")
    assert "cannot load the model: out of luck" in caught.value.message
    assert time.monotonic() - start < 20
    status = await node.status("p1")
    assert (status["state"], status["vram_mb"]) == ("Failed", 0)
    assert "exited with code 3" in status["error"]
    with pytest.raises(StartFailed, match="exited with code 3"):
        await node.create("p1", "exit")
    log = await call(node.pods.ReadPodLog, pb.ReadPodLogReq(**named("p1"), tail=1))
    assert log.log == "cannot load the model: out of luck\n"


@pytest.mark.parametrize(
    ("mode", "named_reason"),
    [
        ("silent", r"GET /health: nothing listens on port \d+; the command has to listen"),
        ("error", "GET /health answered 500: .*the weights are broken"),
    ],
)
async def test_a_worker_that_never_gets_ready_is_ended(
    node: Node, mode: str, named_reason: str
) -> None:
    with pytest.raises(StartFailed, match=f"not ready after 1 s: {named_reason}"):
        await node.create("p1", mode, sample_query={"loadingTimeout": 1})
    assert not alive(node.pid("p1"))
    assert node.agent.ledger.used_mb(0) == 0


async def test_a_prompt_probe_sends_the_sample_with_numbers(node: Node) -> None:
    prompt = {
        "endpoint": {"probe": "/health", "probetype": "Prompt"},
        "sample_query": {
            "path": "v1/completions",
            "prompt": "hi",
            "body": {"max_tokens": "5"},
            "loadingTimeout": 10,
        },
    }
    await node.create("p1", "prompt", **prompt)
    assert (await node.status("p1"))["state"] == "Ready"
    prompt["sample_query"]["body"] = {"max_tokens": "five"}
    prompt["sample_query"]["loadingTimeout"] = 1
    with pytest.raises(StartFailed, match=r"answered 400: .*max_tokens is 'five'"):
        await node.create("p2", "prompt", **prompt)


async def test_a_function_without_entrypoint_is_refused_clearly(node: Node) -> None:
    with pytest.raises(BadRequest, match=r"spec\.entrypoint: needed .*'vllm:1' has no meaning"):
        await node.create("p1", entrypoint=[], image="vllm:1")
    with pytest.raises(StartFailed, match=r"cannot run '/no/such' .*No such file"):
        await node.create("p2", entrypoint=["/no/such"])
    assert node.agent.ledger.used_mb(0) == 0


async def test_a_caller_that_gives_up_does_not_end_a_loading_pod(
    node: Node, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    request = create_request("p1", "until-file", str(go))
    with pytest.raises(Unavailable, match="no answer in time"):
        await call(node.pods.CreateFuncPod, request, 0.3)
    assert (await node.status("p1"))["state"] in ("Creating", "Loading")
    go.touch()
    assert (await node.create("p1")).port == (await node.status("p1"))["port"]


# ---- end ----


async def test_terminate_interrupts_loading(node: Node) -> None:
    creating = asyncio.create_task(node.create("p1", "silent"))
    await node.until("p1", lambda status: status["state"] == "Loading")
    await call(node.pods.TerminatePod, pb.TerminatePodReq(**named("p1")))
    with pytest.raises(InvalidState, match="told to end before it was ready"):
        await creating
    assert node.agent.ledger.used_mb(0) == 0


async def test_a_stubborn_group_is_killed_to_the_last_process(tmp_path: Path) -> None:
    child_file = tmp_path / "child"
    async with Node(tmp_path, grace_s=0.3) as node:
        await node.create("p1", "stubborn", vram_mb=1000)
        await node.create("p2", "children", str(child_file), vram_mb=1000)
        pids = [node.pid("p1"), node.pid("p2"), int(child_file.read_text())]
        assert all(alive(pid) for pid in pids)
        for pod in ("p1", "p2"):
            await call(node.pods.TerminatePod, pb.TerminatePodReq(**named(pod)))
        assert not any(alive(pid) for pid in pids)


async def test_a_worker_that_dies_later_is_reported_and_releases_its_vram(
    node: Node, tmp_path: Path
) -> None:
    child_file = tmp_path / "child"
    await node.create("p1", "children", str(child_file))
    child = int(child_file.read_text())
    await node.worker("p1", "/exit")
    status = await node.until("p1", lambda status: status["state"] == "Failed")
    assert "exited with code 7" in status["reason"]
    assert status["vram_mb"] == 0
    assert not alive(child)
    await node.create("p2")
    os.kill(node.pid("p2"), signal.SIGKILL)
    status = await node.until("p2", lambda status: status["state"] == "Failed")
    assert "killed by SIGKILL" in status["error"]


# ---- VRAM ----


async def test_what_does_not_fit_is_refused_before_anything_happens(node: Node) -> None:
    await node.create("p1", vram_mb=7000)
    with pytest.raises(NoCapacity, match=r"GPU 0 \(Sim\) has 3000 of 10000 MB free, 4000 MB are"):
        await node.create("p2", vram_mb=4000)
    with pytest.raises(NotFound):
        await node.status("p2")
    await node.create("p2", vram_mb=4000, devices=(1,))


async def test_victims_leave_and_the_new_pod_takes_their_room(node: Node) -> None:
    await node.create("old", vram_mb=5000)
    await node.create("idle", vram_mb=5000)
    await node.create("new", vram_mb=10_000, terminate=("old", "unknown"), park=("idle",))
    assert (await node.status("idle"))["state"] == "Standby"
    assert (await node.status("new"))["state"] == "Ready"
    with pytest.raises(NotFound):
        await node.status("old")
    assert node.agent.ledger.used_mb(0) == 10_000


async def test_victims_stay_untouched_when_the_new_pod_cannot_come(node: Node) -> None:
    await node.create("old", vram_mb=5000)
    loading = asyncio.create_task(node.create("busy", "silent", vram_mb=5000))
    await node.until("busy", lambda status: status["state"] == "Loading")
    with pytest.raises(InvalidState, match="busy is Loading"):
        await node.create("new", vram_mb=10_000, terminate=("old",), park=("busy",))
    with pytest.raises(NoCapacity):
        await node.create("new", vram_mb=9000, terminate=("old",))
    with pytest.raises(BadRequest, match="named twice"):
        await node.create("new", vram_mb=5000, terminate=("old",), park=("old",))
    assert (await node.status("old"))["state"] == "Ready"
    assert (await node.worker("old", "/")).status_code == 200
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)


# ---- standby ----


async def test_park_freezes_and_releases_and_resume_takes_again(node: Node) -> None:
    await node.create("p1", vram_mb=6000)
    pid = node.pid("p1")
    await call(node.pods.ParkPod, pb.ParkPodReq(**named("p1")))
    await call(node.pods.ParkPod, pb.ParkPodReq(**named("p1")))
    status = await node.status("p1")
    assert (status["state"], status["vram_mb"], node.agent.ledger.used_mb(0)) == ("Standby", 0, 0)
    assert process_state(pid) == "T"
    await node.create("p2", vram_mb=6000)
    with pytest.raises(NoCapacity, match="GPU 0"):
        await call(node.pods.ResumePod, pb.ResumePodReq(**named("p1")))
    assert (await node.status("p1"))["state"] == "Standby"
    victims = [pb.ParkPodReq(**named("p2"))]
    resumed = await call(node.pods.ResumePod, pb.ResumePodReq(**named("p1"), park_pods=victims))
    status = await node.status("p1")
    assert (status["state"], status["start"], status["vram_mb"]) == ("Ready", "resume", 6000)
    assert resumed.port == status["port"]
    assert (await node.worker("p1", "/")).json()["pid"] == pid
    assert (await node.status("p2"))["state"] == "Standby"
    await call(node.pods.ResumePod, pb.ResumePodReq(**named("p1")))


async def test_a_parked_pod_can_be_resumed_on_another_simulated_gpu(node: Node) -> None:
    await node.create("p1", vram_mb=6000)
    await call(node.pods.ParkPod, pb.ParkPodReq(**named("p1")))
    request = pb.ResumePodReq(**named("p1"), alloc_resources=alloc(6000, (1,)))
    await call(node.pods.ResumePod, request)
    assert (await node.status("p1"))["gpus"] == [1]
    assert (node.agent.ledger.used_mb(0), node.agent.ledger.used_mb(1)) == (0, 6000)


async def test_a_parked_pod_that_is_killed_fails_and_one_can_be_terminated(node: Node) -> None:
    for pod in ("p1", "p2"):
        await node.create(pod)
        await call(node.pods.ParkPod, pb.ParkPodReq(**named(pod)))
    os.kill(node.pid("p1"), signal.SIGKILL)
    await node.until("p1", lambda status: status["state"] == "Failed")
    pid = node.pid("p2")
    await call(node.pods.TerminatePod, pb.TerminatePodReq(**named("p2")))
    assert not alive(pid)
    with pytest.raises(InvalidState, match="p1 is Failed"):
        await call(node.pods.ResumePod, pb.ResumePodReq(**named("p1")))


# ---- requests ----


async def test_old_epochs_and_foreign_pods_are_refused(node: Node) -> None:
    await node.create("p1", epoch=5)
    for request in (create_request("p2", epoch=4), create_request("p2")):
        with pytest.raises(StaleEpoch, match="follows epoch 5"):
            await call(node.pods.CreateFuncPod, request)
    foreign = {**named("p1"), "funcname": "f-anything", "epoch": 5}
    for method, message in (
        (node.pods.TerminatePod, pb.TerminatePodReq),
        (node.pods.ParkPod, pb.ParkPodReq),
    ):
        with pytest.raises(BadRequest, match="belongs to another function"):
            await call(method, message(**foreign))
    assert (await node.status("p1"))["state"] == "Ready"


@pytest.mark.parametrize("pod_id", ["", "../x", "a/b", "a\nb", ".hidden"])
async def test_bad_pod_ids_are_refused(node: Node, pod_id: str) -> None:
    with pytest.raises(BadRequest, match="is not a pod id"):
        await node.create(pod_id)
    with pytest.raises(NotFound):
        await call(node.pods.ReadPodLog, pb.ReadPodLogReq(**named(pod_id)))


async def test_who_follows_an_empty_log_is_answered_at_once(node: Node) -> None:
    await node.create("p1")
    log = node.folder / "pods" / "p1" / "log"
    await node.worker("p1", "/")
    os.truncate(log, 0)
    stream = node.pods.StreamPodLog(pb.ReadPodLogReq(**named("p1"), follow=True))
    async with asyncio.timeout(10):
        assert (await stream.read()).log == ""
        await node.worker("p1", "/marker-of-this-test")
        seen = (await stream.read()).log
        while "marker-of-this-test" not in seen:
            seen += (await stream.read()).log
    stream.cancel()


async def test_a_log_can_be_followed_until_its_pod_ends(node: Node) -> None:
    await node.create("p1")
    stream = node.pods.StreamPodLog(pb.ReadPodLogReq(**named("p1"), tail=1, follow=True))
    seen = (await stream.read()).log
    assert "GET /health" in seen
    await node.worker("p1", "/marker-of-this-test")
    while "marker-of-this-test" not in seen:
        seen += (await stream.read()).log
    await call(node.pods.TerminatePod, pb.TerminatePodReq(**named("p1")))
    async with asyncio.timeout(10):
        while (piece := await stream.read()) is not grpc.aio.EOF:
            seen += piece.log


async def test_a_worker_over_its_memory_limit_is_named_or_the_limit_is(node: Node) -> None:
    status = await node.until_ready("p1", "hungry", "600")
    notes = status["reason"]
    if "memory limit of 300 MB not enforced" in notes:
        return  # this machine gives no control group, and the pod says so
    await node.worker("p1", "/eat")
    status = await node.until("p1", lambda status: status["state"] == "Failed")
    assert "over its memory limit" in status["error"]


async def test_starts_that_want_the_same_victim_do_not_share_its_room(node: Node) -> None:
    await node.create("old", vram_mb=9000)
    outcomes = await asyncio.gather(
        node.create("a", vram_mb=9000, terminate=("old",)),
        node.create("b", vram_mb=9000, terminate=("old",)),
        return_exceptions=True,
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, NoCapacity)]
    assert len(refused) == 1
    assert node.agent.ledger.used_mb(0) == 9000


@pytest.mark.parametrize("part", ["Manager._port_for", "Pod"])
async def test_a_pod_that_cannot_be_made_leaves_neither_room_nor_id_taken(
    node: Node, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.create("old", vram_mb=9000)

    def fail(*_: object) -> None:
        raise StartFailed("this test says so")

    with monkeypatch.context() as broken:
        broken.setattr(f"inferx.agent.manager.{part}", fail)
        with pytest.raises(StartFailed, match="this test says so"):
            await node.create("p1", vram_mb=9000, terminate=("old",))
    ledger = node.agent.ledger
    assert (ledger.held_mb("p1"), ledger.used_mb(0)) == (0, 9000)
    assert (await node.worker("old", "/")).status_code == 200
    await node.create("p1", vram_mb=9000, terminate=("old",))
    assert (ledger.held_mb("p1"), ledger.held_mb("old")) == (9000, 0)


async def test_a_seeded_storm_of_requests_never_overfills_a_gpu(node: Node) -> None:
    seed = int(os.environ.get("SEED", "7"))
    chance = random.Random(seed)

    async def one(number: int) -> None:
        pod = f"p{number}"
        room, device = chance.choice([2000, 4000, 6000]), chance.randrange(2)
        others = [f"p{other}" for other in range(number) if chance.random() < 0.2]
        try:
            await node.create(pod, vram_mb=room, devices=(device,), terminate=tuple(others))
            await call(node.pods.ParkPod, pb.ParkPodReq(**named(pod)))
            await call(node.pods.ResumePod, pb.ResumePodReq(**named(pod)), 60)
        except (NoCapacity, InvalidState, NotFound, StartFailed):
            return  # refusals are part of the storm; what counts is the sum at its end

    await asyncio.gather(*(one(number) for number in range(12)))
    ledger = node.agent.ledger
    pods = {pod.key.id: pod for pod in node.agent.manager.pods}
    held = sum(ledger.held_mb(pod) for pod in pods)
    assert held == ledger.used_mb(0) + ledger.used_mb(1), f"SEED={seed}"
    assert max(ledger.used_mb(0), ledger.used_mb(1)) <= 10_000, f"SEED={seed}"
    for pod_id, pod in pods.items():
        assert (ledger.held_mb(pod_id) > 0) == (pod.state == "Ready"), f"{pod_id}, SEED={seed}"
        if pod.state == "Ready":
            assert (await node.worker(pod_id, "/")).status_code == 200
