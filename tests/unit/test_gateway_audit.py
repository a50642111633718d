"""What a gateway leaves in the audit, and who reads it; secrets are in neither."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio
from click.testing import CliRunner, Result

from inferx.cli import main
from inferx.rpc import ixmeta_pb2
from tests.helpers.gateway_kit import ADMIN_KEY, Platform, bearer, platform
from tests.helpers.proxy_kit import RawWorker, echo

SECRET = "hunter2-hunter2"


@pytest_asyncio.fixture
async def up(tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(tmp_path, auth=True) as found:
        yield found


async def rows(
    up: Platform, path: str, enough: Callable[[list[dict[str, Any]]], bool]
) -> list[dict[str, Any]]:
    """The rows of a route, once there are enough."""
    deadline = time.monotonic() + 20
    while True:
        answer = await up.http.get(path)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()
        if enough(found):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


async def test_calls_and_refusals_are_told(up: Platform) -> None:
    await up.function()
    wanted = {"tenant": "public", "namespace": "demo"}
    made = (await up.http.post("/apikeys/", json=wanted)).json()
    async with RawWorker(echo) as worker:
        up.scheduler.worker_port = worker.port
        headers = {**bearer(made["key"]), "X-Request-Id": "call-1"}
        await up.http.post("/funccall/public/demo/f/x", content=b"abc", headers=headers)
    (call,) = await rows(up, "/audit/requests/public/demo/f/", lambda found: len(found) == 1)
    assert (call["principal"], call["status"]) == (f"key:{made['id']}", 200)
    assert (call["request_id"], call["bytes_in"], call["start"]) == ("call-1", 3, "cold")
    assert call["total_ms"] >= call["wait_ms"] >= 0
    await up.http.get("/nodes/", headers=bearer(made["key"]))
    await up.http.get("/funccall/public/demo/f/x", headers=bearer("ix_" + "0" * 64))
    refused = await rows(up, "/audit/logins/?limit=10", lambda found: len(found) >= 3)
    assert {row["outcome"] for row in refused} == {"ok", "forbidden", "401"}
    assert made["key"] not in json.dumps(refused)


async def test_changes_are_told_with_their_difference_and_without_secrets(up: Platform) -> None:
    envs = [["DB_PASSWORD", SECRET], ["MODE", "fast"]]
    await up.function(envs=envs)
    path = "/object/function/public/demo/f/"
    read = (await up.http.get(path)).json()
    assert read["object"]["spec"]["envs"] == [["DB_PASSWORD", "***"], ["MODE", "fast"]]
    listed = (await up.http.get("/objects/function/public/demo/")).text
    assert SECRET not in listed
    read["object"]["spec"]["envs"][1][1] = "slow"
    updated = await up.http.post("/object/", json=read)
    assert (updated.status_code, SECRET in updated.text) == (200, False)
    assert (await up.http.delete(path)).status_code == 200
    found = await rows(
        up, "/audit/changes/public/demo/?kind=function", lambda found: len(found) == 3
    )
    assert [row["action"] for row in found] == ["delete", "update", "create"]
    assert {row["principal"] for row in found} == {"admin"}
    assert found[1]["diff"] == [
        {
            "path": "object.spec.envs",
            "old": [["DB_PASSWORD", "***"], ["MODE", "fast"]],
            "new": [["DB_PASSWORD", "***"], ["MODE", "slow"]],
        }
    ]
    assert SECRET not in json.dumps(found)


async def test_a_value_read_as_stars_is_kept_and_never_stored(up: Platform, tmp_path: Path) -> None:
    await up.function(envs=[["API_KEY", SECRET]])
    read = (await up.http.get("/object/function/public/demo/f/")).json()
    await up.http.post("/object/", json=read)
    stored = await asyncio.to_thread(
        lambda: b"".join(path.read_bytes() for path in tmp_path.glob("state.db*"))
    )
    assert SECRET.encode() in stored
    assert b'["API_KEY","***"]' not in stored
    read["object"]["spec"]["envs"].append(["OTHER_TOKEN", "***"])
    answer = await up.http.post("/object/", json=read)
    assert (answer.status_code, "OTHER_TOKEN" in answer.text) == (400, True)


async def test_applying_a_function_with_secrets_again_changes_nothing(
    up: Platform, tmp_path: Path
) -> None:
    made = await up.function(envs=[["API_KEY", SECRET], ["MODE", "fast"]])
    made["object"]["spec"]["envs"][0][1] = SECRET
    file = tmp_path / "f.json"

    async def apply() -> tuple[str, int]:
        file.write_text(json.dumps({key: made[key] for key in made if key != "revision"}))
        server = ["-f", str(file), "--server", str(up.http.base_url).rstrip("/")]
        done: Result = await asyncio.to_thread(
            lambda: CliRunner().invoke(main, ["apply", *server], env={"INFERX_API_KEY": ADMIN_KEY})
        )
        assert done.exit_code == 0, done.output
        now = (await up.http.get("/object/function/public/demo/f/")).json()
        return done.stdout.split()[-1], now["revision"]

    assert await apply() == ("unchanged", made["revision"])
    made["object"]["spec"]["envs"][0][1] = f"{SECRET}-2"
    told, revision = await apply()
    assert (told, revision > made["revision"]) == ("updated", True)
    assert await apply() == ("unchanged", revision)
    stale = {**made, "revision": made["revision"]}
    assert (await up.http.post("/object/", json=stale)).status_code == 409


async def test_the_life_of_pods_is_told_once(up: Platform) -> None:
    await up.function()
    raw = {
        "spec": {"funcname": "f", "fprevision": 3, "node": "n1"},
        "status": {
            "state": "Failed",
            "reason": "probe failed",
            "since_ms": int(time.time() * 1000),
        },
    }  # fmt: skip
    pod = ixmeta_pb2.Obj(
        kind="pod", tenant="public", namespace="demo", name="pod1", data=json.dumps(raw), revision=5
    )
    for path in ("/podauditlog/public/demo/f/3/pod1/", "/faillogs/public/demo/f/"):
        assert (await up.http.get(path)).json() == []
    up.scheduler.show(pod)
    up.scheduler.show(pod)
    for path in ("/podauditlog/public/demo/f/3/pod1/", "/faillogs/public/demo/f/"):
        (row,) = await rows(up, path, lambda found: len(found) == 1)
        assert (row["state"], row["reason"], row["node"]) == ("Failed", "probe failed", "n1")
    assert (await up.http.get("/SnapshotSchedule/public/demo/f/")).json() == []
    wrong = await up.http.get("/audit/requests/?password=1")
    assert (wrong.status_code, "password" in wrong.text) == (400, True)


async def test_rows_are_shown_as_they_come(up: Platform) -> None:
    path = "/audit/changes/public/demo/?follow=true"
    async with up.http.stream("GET", path) as stream:
        lines = stream.aiter_lines()
        waiting = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0)
        await up.function("g")
        async with asyncio.timeout(20):
            line = await waiting
            while not line:
                line = await anext(lines)
    assert json.loads(line)["name"] == "g"


async def test_the_command_line_shows_the_audit(up: Platform) -> None:
    await up.function()
    server = str(up.http.base_url).rstrip("/")

    def run(*arguments: str) -> Result:
        env = {"INFERX_API_KEY": ADMIN_KEY}
        return CliRunner().invoke(main, ["audit", *arguments, "--server", server], env=env)

    await rows(up, "/audit/changes/public/demo/", lambda found: len(found) == 1)
    shown = await asyncio.to_thread(run, "changes", "-t", "public", "-n", "demo", "--since", "1h")
    assert shown.exit_code == 0, shown.output
    assert "create" in shown.stdout
    refused = await asyncio.to_thread(run, "requests", "-n", "demo")
    assert refused.exit_code == 2
