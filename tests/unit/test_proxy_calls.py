"""Calls through the data plane, byte for byte, against raw workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.proxy_kit import DOORS, Message, RawWorker, Rig, Wire, echo


@pytest.fixture(params=DOORS)
async def rig(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with Rig(tmp_path, request.param, body_bytes_max=100_000, default_tenant="public") as rig:
        yield rig


@pytest.fixture
async def worker(rig: Rig) -> AsyncIterator[RawWorker]:
    async with RawWorker(echo) as worker:
        rig.function()
        rig.add(worker.port)
        yield worker


def lines(answer: Message) -> list[str]:
    return answer.body.decode().split("\n")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "REPORT"])
async def test_method_path_query_headers_and_body_pass_through(
    rig: Rig, worker: RawWorker, method: str
) -> None:
    path = "/funccall/t/n/f/a%2Fb//c;d?x=%20&y=1&y"
    answer = await rig.call(path, method, b"\x00body\r\n", "X-Mine: a  b\r\nAuthorization: k\r\n")
    assert answer.status == 200
    seen = lines(answer)
    assert seen[0] == f"{method} /a%2Fb//c;d?x=%20&y=1&y HTTP/1.1"
    assert {"host: test", "x-mine: a  b", "authorization: k", "content-length: 7"} <= set(seen)
    assert answer.body.endswith(b"\n\n\x00body\r\n")


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("/funccall/t/n/f", "/"),
        ("/funccall/t/n/f/", "/"),
        ("/funccall/t/n/f?a=b", "/?a=b"),
        ("/funccall/t/n/%66/x", "/x"),
    ],
)
async def test_the_empty_path_is_the_root(
    rig: Rig, worker: RawWorker, path: str, seen: str
) -> None:
    assert lines(await rig.call(path))[0] == f"GET {seen} HTTP/1.1"


async def test_hop_by_hop_headers_end_here(rig: Rig, worker: RawWorker) -> None:
    headers = (
        "Connection: keep-alive, x-gone\r\nX-Gone: 1\r\nKeep-Alive: 5\r\nProxy-Authorization: s\r\n"
        "Proxy-Connection: x\r\nTE: trailers, deflate\r\nUpgrade: h2c\r\nX-Kept: 1\r\n"
    )
    seen = lines(await rig.call(headers=headers))
    names = {line.split(":")[0] for line in seen[1:]}
    assert names >= {"x-kept", "te", "host", "x-request-id"}
    assert not names & {"x-gone", "keep-alive", "proxy-authorization", "connection", "upgrade"}
    assert "te: trailers" in seen


async def test_answer_headers(rig: Rig, worker: RawWorker) -> None:
    answer = await rig.call(headers="X-Request-Id: mine-1\r\n")
    assert answer.get("x-request-id") == "mine-1"
    assert "x-request-id: mine-1" in lines(answer)
    assert (answer.get("x-inferx-pod"), answer.get("x-inferx-start")) == ("pod1", "warm")
    assert int(answer.get("x-ttft-latency") or "") >= 0
    assert int(answer.get("x-tcpconn-latency") or "") >= 0
    other = await rig.call(headers="X-Request-Id: not valid!\r\n")
    assert other.get("x-request-id") not in (None, "not valid!")


@pytest.mark.parametrize("status", [200, 201, 404, 418, 429, 500, 503])
async def test_every_status_and_body_of_the_worker_passes(rig: Rig, status: int) -> None:
    async def answer(wire: Wire, _: Message) -> None:
        await wire.send(
            b"HTTP/1.1 %d Own Words\r\nX-Own: 1\r\nX-Own: 2\r\nKeep-Alive: 5\r\n"
            b"Content-Length: 3\r\n\r\nown" % status
        )

    async with RawWorker(answer) as worker:
        rig.function()
        rig.add(worker.port)
        got = await rig.call()
    assert (got.status, got.body) == (status, b"own")
    assert [value for name, value in got.headers if name == "x-own"] == ["1", "2"]
    assert got.get("keep-alive") is None


async def test_answers_without_a_body(rig: Rig) -> None:
    async def answer(wire: Wire, request: Message) -> None:
        start = {"/204": b"204 No Content", "/304": b"304 Not Modified"}.get(
            request.start.split()[1], b"200 OK"
        )
        length = b"" if start.startswith(b"204") else b"Content-Length: 5\r\n"
        await wire.send(b"HTTP/1.1 ", start, b"\r\n", length, b"\r\n")

    async with RawWorker(answer) as worker:
        rig.function()
        rig.add(worker.port)
        wire = await rig.client()
        for _ in range(2):  # twice on one connection: nothing is left over
            await rig.request("/funccall/t/n/f/head", "HEAD", wire=wire)
            head = await wire.message(head_only=True)
            assert (head.status, head.get("content-length")) == (200, "5")
            for path, status in (("/204", 204), ("/304", 304)):
                await rig.request(f"/funccall/t/n/f{path}", wire=wire)
                assert (await wire.message()).status == status
        assert worker.connections == 1


async def test_a_chunked_upload_streams_and_trailers_pass_both_ways(rig: Rig) -> None:
    async with RawWorker() as worker:
        rig.function()
        rig.add(worker.port)
        client = await rig.request(
            method="POST",
            headers="Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\nTE: trailers\r\n",
        )
        upstream = await worker.accept()
        head = await upstream.head()
        assert head.get("transfer-encoding") == "chunked"
        for piece in (b"one", b"two"):
            await client.send(b"3\r\n", piece, b"\r\n")
            assert await upstream.chunk() == piece
        await client.send(b"0\r\nX-Sum: 6\r\n\r\n")
        assert await upstream.chunk() == b""
        up, down = b"x-sum: 6\r\n", b"x-end: yes\r\n"
        if rig.door == "granian":
            up = down = b""  # ASGI has no place for them
        assert (await upstream.reader.readexactly(len(up) + 2)).lower() == up + b"\r\n"
        await upstream.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n"
        )
        answer = await client.head()
        assert answer.get("transfer-encoding") == "chunked"
        await upstream.send(b"5\r\nfirst\r\n")
        assert await client.chunk() == b"first"
        await upstream.send(b"0\r\nX-End: yes\r\n\r\n")
        assert await client.chunk() == b""
        assert (await client.reader.readexactly(len(down) + 2)).lower() == down + b"\r\n"


async def test_the_worker_may_answer_before_the_upload_ends(rig: Rig) -> None:
    async with RawWorker() as worker:
        rig.function()
        rig.add(worker.port)
        client = await rig.request(method="POST", headers="Content-Length: 50000\r\n")
        upstream = await worker.accept()
        await upstream.head()
        await upstream.send(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno")
        answer = await client.message()
        assert (answer.status, answer.body) == (401, b"no")
        await rig.gauge("active", 0)


async def test_continue_is_sent_when_a_worker_wants_the_body(rig: Rig) -> None:
    async with RawWorker(echo) as worker:
        rig.function()
        client = await rig.request(
            method="POST", headers="Content-Length: 3\r\nExpect: 100-continue\r\n"
        )
        await rig.gauge("parked", 1)
        rig.add(worker.port)
        assert (await client.head()).status == 100
        await client.send(b"abc")
        answer = await client.message()
        assert answer.status == 200
        assert answer.body.endswith(b"\n\nabc")


async def test_informational_answers_do_not_end_the_call(rig: Rig) -> None:
    async def answer(wire: Wire, _: Message) -> None:
        await wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with RawWorker(answer) as worker:
        rig.function()
        rig.add(worker.port)
        got = await rig.call()
        assert (got.status, got.body) == (200, b"ok")


async def test_a_body_over_the_limit(rig: Rig, worker: RawWorker) -> None:
    wire = await rig.request(method="POST", headers="Content-Length: 100001\r\n")
    declared = await wire.message()
    assert (declared.status, declared.json()["error"]["code"]) == (413, "body_too_large")
    assert await wire.closed() == b""
    assert worker.connections == 0, "a declared length is refused before anything is opened"
    wire = await rig.request(method="POST", headers="Transfer-Encoding: chunked\r\n")
    await wire.send(b"%x\r\n" % 100_001, b"x" * 100_001, b"\r\n")
    cut = await wire.message()
    assert (cut.status, cut.json()["error"]["code"]) == (413, "body_too_large")
    await rig.gauge("active", 0)
    exact = await rig.call(method="POST", body=b"y" * 100_000)
    assert exact.status == 200


async def test_errors_name_what_is_wrong(rig: Rig, worker: RawWorker) -> None:
    for path, status, code in [
        ("/funccall/t/n/missing/x", 404, "function_not_found"),
        ("/funccall/t/n/f-large", 404, "function_not_found"),
        ("/funccall/t/other/f", 404, "function_not_found"),
        ("/funccall/t/n", 404, "not_found"),
        ("/funccall/t/n/a%2Fb/x", 400, "bad_request"),
        ("/funccall/t/n/a%0Ab", 400, "bad_request"),
        ("/funccall/t/n/a%00", 400, "bad_request"),
        ("/funccall/t/n/%zz", 400, "bad_request"),
    ]:
        answer = await rig.call(path, headers="X-Request-Id: r1\r\n")
        error = answer.json()["error"]
        assert (answer.status, error["code"], error["request_id"]) == (status, code, "r1"), path
    assert "t/n/missing" in (await rig.call("/funccall/t/n/missing/x")).json()["error"]["message"]
    bad = await rig.call(headers="X-Inferx-Timeout: soon\r\n")
    assert (bad.status, "X-Inferx-Timeout" in bad.json()["error"]["message"]) == (400, True)


async def test_the_json_form(rig: Rig, worker: RawWorker) -> None:
    form = b'{"tenant":"t","namespace":"n","funcname":"f","payload":{"a": [1,  2.50]}}'
    answer = await rig.call("/funccall", "POST", form)
    assert lines(answer)[0] == "POST /funccall HTTP/1.1"
    assert answer.body.endswith(b'\n\n{"a": [1,  2.50]}')
    assert "content-type: application/json" in lines(answer)
    moved = await rig.call(
        "/funccall", "POST", form.replace(b'"payload"', b'"path":"/p?q","payload"')
    )
    assert lines(moved)[0] == "POST /p?q HTTP/1.1"
    bare = await rig.call(
        "/funccall", "POST", form.replace(b'"payload"', b'"path":"v1/x","payload"')
    )
    assert lines(bare)[0] == "POST /v1/x HTTP/1.1"
    for body, what in [
        (b"{", "EOF"),
        (form.replace(b'"payload"', b'"other"'), "payload"),
        (form.replace(b'"t"', b'"a/b"'), "a/b"),
        (form.replace(b'"t"', b"5"), "string"),
    ]:
        bad = await rig.call("/funccall", "POST", body)
        assert bad.status == 400
        assert what in bad.json()["error"]["message"]
    missing = await rig.call("/funccall", "POST", form.replace(b'"f"', b'"g"'))
    assert (missing.status, missing.json()["error"]["code"]) == (404, "function_not_found")
    assert (await rig.call("/funccall")).status == 405


async def test_the_openai_routes_find_and_replace_the_model(rig: Rig) -> None:
    async with RawWorker(echo) as worker:
        rig.function("public/demo/f", model_names=["org/alias"], served_model="inner")
        rig.function("other/demo/g")
        rig.add(worker.port, "public/demo/f")
        rig.add(worker.port, "other/demo/g")
        body = b'{"messages":[{"model":"no"}],"model" : "%s","stream":true}'
        for name in (b"demo/f", b"public/demo/f", b"org/alias"):
            answer = await rig.call("/v1/chat/completions?x=1", "POST", body % name)
            assert lines(answer)[0] == "POST /v1/chat/completions?x=1 HTTP/1.1"
            assert answer.body.endswith(b"\n\n" + body % b"inner")
        kept = await rig.call("/v1/embeddings", "POST", body % b"other/demo/g")
        assert kept.body.endswith(b"\n\n" + body % b"other/demo/g")
        for name in (b"demo/missing", b"f", b"demo/g", b"a/b/c/d"):
            wrong = await rig.call("/v1/completions", "POST", body % name)
            error = wrong.json()["error"]
            assert (wrong.status, error["code"], error["param"]) == (
                404,
                "model_not_found",
                "model",
            )
            assert (error["type"], name.decode() in error["message"]) == (
                "invalid_request_error", True,
            )  # fmt: skip
        for bad in (b"{}", b"", b'{"model":3}', b"[]"):
            refused = await rig.call("/v1/completions", "POST", bad)
            assert (refused.status, refused.json()["error"]["code"]) == (400, "bad_request")


async def test_a_model_is_found_in_a_body_that_trickles_in(rig: Rig) -> None:
    async with RawWorker(echo) as worker:
        rig.function("public/demo/f", served_model="a-much-longer-name")
        rig.add(worker.port, "public/demo/f")
        body = b'{"prompt":"\\"model\\"","model":"demo/f","n":1}'
        wire = await rig.request(
            "/v1/completions", "POST", headers=f"Content-Length: {len(body)}\r\n"
        )
        for byte in body:
            await wire.send(bytes([byte]))
            await asyncio.sleep(0)
        answer = await wire.message()
        assert answer.body.endswith(body.replace(b"demo/f", b"a-much-longer-name"))


async def test_health_and_readiness(rig: Rig) -> None:
    assert (await rig.call("/")).status == 200
    assert (await rig.call("/healthz", "HEAD")).status == 200
    assert (await rig.call("/readyz")).status == 200
    rig.proxy.set_not_ready("waiting for the scheduler")
    answer = await rig.call("/readyz")
    assert (answer.status, answer.get("retry-after")) == (503, "1")
    assert answer.json()["error"]["message"] == "waiting for the scheduler"


async def test_everything_else_goes_to_the_control_server(rig: Rig) -> None:
    if rig.door == "granian":  # it is the control server
        assert (await rig.call("/v1/models")).body == b"no such route"
        return
    down = await rig.call("/v1/models")
    assert (down.status, down.json()["error"]["code"]) == (503, "unavailable")
    async with RawWorker(echo, rig.control_path):
        answer = await rig.call("/object/a%2Fb/?x=1", "PUT", b"body", "X-Request-Id: r9\r\n")
        assert lines(answer)[0] == "PUT /object/a%2Fb/?x=1 HTTP/1.1"
        assert "x-request-id: r9" in lines(answer)
        assert answer.body.endswith(b"body")
        assert lines(await rig.call("/v1/models"))[0] == "GET /v1/models HTTP/1.1"


async def test_access_records_tell_what_happened(rig: Rig, worker: RawWorker) -> None:
    await rig.call(method="POST", body=b"12345", headers="X-Request-Id: rec\r\n")
    (record,) = rig.records()
    assert record[1:8] == ["rec", "POST", "t/n/f", 200, "complete", "pod1", "warm"]
    assert 0 <= record[8] <= record[9] <= record[10]
    assert (record[11], record[12] > 5) == (5, True)
    assert rig.stats()["statuses"] == {"200": 1}
