"""The whole path with a real model server: scale from zero, evictions, resumes, bad input."""

from __future__ import annotations

import random
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .conftest import Platform, eventually, function

pytestmark = pytest.mark.xdist_group("platform")


def test_burst_of_first_calls_starts_one_worker(platform: Platform) -> None:
    platform.apply(function("burst", "--start-seconds", "0.5"))
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: platform.call("burst", "pid"), range(32)))
    assert [answer.status_code for answer in answers] == [200] * 32
    assert len({answer.json()["pid"] for answer in answers}) == 1
    assert len(platform.pods("burst")) == 1
    assert {answer.headers["x-inferx-start"] for answer in answers} == {"cold"}


def test_call_passes_through_unchanged(platform: Platform) -> None:
    platform.apply(function("echo"))
    body = "ü".encode() * 1000
    headers = {"X-Custom": "kept", "Content-Type": "application/octet-stream"}
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = platform.call(
            "echo", "a%2Fb/c?x=1&y=%20z&x=2", method=method, content=body, headers=headers
        )
        seen = answer.json()
        assert answer.status_code == 200
        assert seen["method"] == method
        assert seen["path"] == "/a%2Fb/c?x=1&y=%20z&x=2"
        assert seen["body"].encode("latin-1") == body
        assert seen["headers"]["x-custom"] == "kept"
    assert platform.call("echo", method="HEAD").status_code == 200
    assert platform.call("echo", "status?code=418").json() == {"from": "worker"}
    assert platform.call("echo", "status?code=500").status_code == 500
    assert answer.headers["x-inferx-pod"]
    assert answer.headers["x-request-id"]


def test_body_form(platform: Platform) -> None:
    platform.apply(function("form"))
    call = {"tenant": "public", "namespace": "test", "funcname": "form", "payload": {"a": [1, 2]}}
    seen = platform.client.post("/funccall", json=call).json()
    assert (seen["method"], seen["path"]) == ("POST", "/funccall")
    assert seen["body"].replace(" ", "") == '{"a":[1,2]}'
    seen = platform.client.post("/funccall", json={**call, "path": "v1/x"}).json()
    assert seen["path"] == "/v1/x"


def test_stream_arrives_as_it_is_sent(platform: Platform) -> None:
    platform.apply(function("stream"))
    url = "/funccall/public/test/stream/stream?n=5&ms=50"
    with platform.client.stream("GET", url) as answer:
        chunks = [chunk for chunk in answer.iter_raw() if chunk]
    assert b"".join(chunks) == b"".join(b"data: %d\n\n" % index for index in range(5))
    assert len(chunks) >= 4, "the chunks were collected instead of streamed"


def test_idle_worker_is_parked_and_resumed(platform: Platform) -> None:
    platform.apply(function("idle"))
    first = platform.call("idle", "pid")
    assert first.headers["x-inferx-start"] == "cold"
    eventually(
        lambda: [pod["object"]["status"]["state"] for pod in platform.pods("idle")] == ["Standby"],
        what="the idle pod stands by",
    )
    again = platform.call("idle", "pid")
    assert again.headers["x-inferx-start"] == "resume"
    assert again.json()["pid"] == first.json()["pid"]


def test_a_standby_that_does_not_come_back_is_told_as_the_start_it_became(
    platform: Platform,
) -> None:
    platform.apply(function("broken-standby", "--exit-when-thawed"))
    first = platform.call("broken-standby", "pid")
    eventually(
        lambda: (
            [pod["object"]["status"]["state"] for pod in platform.pods("broken-standby")]
            == ["Standby"]
        ),
        what="the idle pod stands by",
    )
    again = platform.call("broken-standby", "pid")
    assert (again.status_code, again.headers["x-inferx-start"]) == (200, "cold")
    assert again.headers["x-inferx-pod"] == first.headers["x-inferx-pod"]
    assert again.json()["pid"] != first.json()["pid"]


def test_500_mixed_calls_over_5_functions_on_2_gpus(platform: Platform) -> None:
    names = [f"mixed-{index}" for index in range(5)]
    platform.apply(*(function(name) for name in names))
    order = [names[index % 5] for index in range(500)]
    random.Random(7).shuffle(order)
    resumes = platform.metric("inferx_starts_total", kind="resume")
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda name: platform.call(name, "wait?ms=5"), order))
    assert {answer.status_code for answer in answers} == {200}, [a.text for a in answers][:3]
    assert platform.metric("inferx_starts_total", kind="resume") > resumes
    starts = {answer.headers["x-inferx-start"] for answer in answers}
    assert {"cold", "resume", "warm"} <= starts


def test_names_are_matched_whole(platform: Platform) -> None:
    platform.apply(function("m"), function("m-large"))
    assert platform.call("m-large", "pid").status_code == 200
    assert platform.call("m", "pid").status_code == 200
    assert platform.call("m-larg", "pid").status_code == 404
    assert platform.call("m", "pid").json() != platform.call("m-large", "pid").json()


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/funccall/public/test/nobody/x", 404, "function_not_found"),
        ("/funccall/nobody/test/echo/x", 404, "function_not_found"),
        ("/funccall/public/test/a%2Fb/x", 400, "bad_request"),
        ("/funccall/public/test/a%0Ab/x", 400, "bad_request"),
        ("/funccall/public/test", 404, "not_found"),
        ("/objects/nothing/public/test/", 400, "bad_request"),
        ("/object/function/public/test/nobody/", 404, "not_found"),
        ("/nowhere", 404, "not_found"),
    ],
)
def test_unknown_names(platform: Platform, path: str, status: int, code: str) -> None:
    answer = platform.client.get(path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    assert error["request_id"] == answer.headers["x-request-id"]


def test_unknown_model_has_openai_error(platform: Platform) -> None:
    answer = platform.client.post("/v1/completions", json={"model": "no/body", "prompt": "x"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_wrong_manifests_are_refused_with_their_path(platform: Platform) -> None:
    def refused(manifest: object, *words: str) -> None:
        answer = platform.client.put("/object/", json=manifest)
        assert answer.status_code == 400, answer.text
        for word in words:
            assert word in answer.json()["error"]["message"], answer.text

    wrong = function("wrong")
    wrong["object"]["spec"]["resources"]["GPU"]["vRam"] = "much"
    refused(wrong, "spec.resources.GPU.vRam")
    refused({**function("x"), "name": "a/b"}, "name")
    refused({**function("x"), "name": "a\n"}, "name")
    refused({**function("x"), "type": "gadget"}, "gadget")
    refused([], "object")
    answer = platform.client.put("/object/", json={**function("x"), "namespace": "missing"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert "namespace 'missing' does not exist" in answer.json()["error"]["message"]
    answer = platform.client.put("/object/", content=b"{", headers={"content-type": "text/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
    assert platform.call("wrong").status_code == 404


def test_more_than_any_node_has(platform: Platform) -> None:
    platform.apply(function("huge", vram_mb=90000))
    answer = platform.call("huge")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_capacity")
    assert "gpu_memory" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1


def test_worker_that_exits_at_start(platform: Platform) -> None:
    platform.apply(function("exits", "--exit-at-start", "3"))
    answer = platform.call("exits")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "start_failed")
    assert "3" in answer.json()["error"]["message"]
    assert "the weights are missing" in answer.json()["error"]["message"]
    eventually(lambda: not platform.pods("exits"), what="the failed pod is gone")


@pytest.mark.parametrize("flag", ["--never-ready", "--unhealthy"])
def test_worker_that_never_gets_ready(platform: Platform, flag: str) -> None:
    manifest = function(f"late{flag}")
    manifest["object"]["spec"]["commands"] = [flag]
    manifest["object"]["spec"]["sample_query"]["loadingTimeout"] = 4
    platform.apply(manifest)
    answer = platform.call(manifest["name"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "start_failed")
    assert "/health" in answer.json()["error"]["message"]


def test_worker_that_dies_mid_stream_is_replaced(platform: Platform) -> None:
    platform.apply(function("dies"))
    with pytest.raises(httpx.RemoteProtocolError):
        platform.call("dies", "die?after=10")
    # The next call gets a new worker; it must not be sent to the dead one.
    answer = platform.call("dies", "pid")
    assert answer.status_code == 200, answer.text


def test_body_over_the_limit(platform: Platform) -> None:
    platform.apply(function("big"))
    declared = (
        "POST /funccall/public/test/big/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776"
    )
    with socket.create_connection(("127.0.0.1", platform.port), 10) as line:
        line.sendall(f"{declared}\r\n\r\n".encode())
        answer = line.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    assert b'"body_too_large"' in answer


def test_queue_full_and_queue_timeout(platform: Platform) -> None:
    platform.apply(function("narrow", parallel=1, queue_len=1, queue_timeout=1.5))
    eventually(lambda: platform.call("narrow", "pid").status_code == 200, what="a worker")
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: platform.call("narrow", "wait?ms=3000"), range(3)))
    errors = {a.status_code: a.json().get("error", {}).get("code") for a in answers}
    assert errors == {200: None, 429: "queue_full", 504: "queue_timeout"}


def test_deleted_function_leaves_nothing(platform: Platform) -> None:
    platform.apply(function("gone"))
    assert platform.call("gone", "pid").status_code == 200
    answer = platform.client.delete("/object/function/public/test/gone/")
    assert answer.status_code == 200, answer.text
    eventually(lambda: platform.call("gone").status_code == 404, what="calls are refused")
    eventually(lambda: not platform.pods("gone"), what="its pods are gone")


def test_logs_and_nodes(platform: Platform) -> None:
    platform.apply(function("talks"))
    platform.call("talks", "echo-for-the-log")
    pod = platform.pods("talks")[0]
    revision = pod["object"]["spec"]["fprevision"]
    url = f"/podlog/public/test/talks/{revision}/{pod['name']}?tail=5"
    eventually(lambda: "echo-for-the-log" in platform.client.get(url).text, what="the log line")
    nodes = platform.client.get("/nodes/").json()
    assert len(nodes) == 1
    assert len(nodes[0]["object"]["spec"]["resources"]["GPUs"]) == 2
