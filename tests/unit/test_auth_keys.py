"""API keys through a real gateway: mint, use, restrict, revoke."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from inferx.auth import Grant, Place, Principal, Role, Scope, allowed
from inferx.auth.apikeys import Hasher, mint
from inferx.auth.principal import parse_role
from inferx.config import load
from inferx.errors import ConfigError
from tests.helpers.gateway_kit import ADMIN_KEY, Platform, bearer, platform
from tests.helpers.proxy_kit import RawWorker, echo


@pytest_asyncio.fixture
async def up(tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(tmp_path, auth=True) as found:
        yield found


async def key(up: Platform, credential: str = ADMIN_KEY, **wanted: Any) -> dict[str, Any]:
    """A new key of public/demo, unless told otherwise."""
    body = {"tenant": "public", "namespace": "demo", **wanted}
    answer = await up.http.post("/apikeys/", json=body, headers=bearer(credential))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def stored_bytes(folder: Path) -> bytes:
    """Everything that the state service keeps."""
    return b"".join(path.read_bytes() for path in folder.glob("state.db*"))


async def test_a_key_is_shown_once_and_stored_as_a_hash(up: Platform, tmp_path: Path) -> None:
    made = await key(up, scope="full", note="ci")
    assert re.fullmatch(r"ix_[0-9a-f]{64}", made["key"])
    listed = (await up.http.get("/apikeys/")).json()
    assert [each["id"] for each in listed] == [made["id"]]
    assert "key" not in listed[0]
    assert "digest" not in listed[0]
    stored = stored_bytes(tmp_path)
    assert made["key"].encode() not in stored
    assert made["key"][20:].encode() not in stored
    assert made["id"].encode() in stored
    for path in (f"/object/apikey/public/demo/{made['id']}/", "/objects/apikey/public/demo/"):
        answer = await up.http.get(path)
        assert answer.status_code == 403 or answer.json() == [], path


async def test_calls_need_a_key_that_covers_the_function(up: Platform) -> None:
    await up.function()
    async with RawWorker(echo) as worker:
        up.scheduler.worker_port = worker.port
        path = "/funccall/public/demo/f/x"
        made = await key(up)
        answer = await up.http.get(path, headers=bearer(made["key"]))
        assert answer.status_code == 200
        assert "authorization" not in answer.text.lower(), "no worker may see the key"
        form = {"tenant": "public", "namespace": "demo", "funcname": "f", "payload": {"a": 1}}
        model = {"model": "demo/f"}
        for method, route, json in (
            ("GET", path, None), ("POST", "/funccall", form), ("POST", "/v1/completions", model),
        ):  # fmt: skip
            sent = up.http.build_request(method, route, json=json, headers=bearer(made["key"]))
            assert (await up.http.send(sent)).status_code == 200, route
            del sent.headers["Authorization"]
            refused = await up.http.send(sent)
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                401, "unauthenticated",
            )  # fmt: skip
    await up.put("namespace", "public", "system", "demo2", spec={})
    other = await key(up, namespace="demo2")
    for route in (path, "/funccall/public/demo/absent/x"):
        refused = await up.http.get(route, headers=bearer(other["key"]))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    hidden = await up.http.post("/v1/completions", json=model, headers=bearer(other["key"]))
    assert (hidden.status_code, hidden.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_revoked_key_ends_within_a_second_everywhere(up: Platform, tmp_path: Path) -> None:
    await up.function()
    parent = await key(up, scope="full")
    child = await key(up, parent["key"])
    async with RawWorker(echo) as worker:
        up.scheduler.worker_port = worker.port
        for each in (parent, child):
            answer = await up.http.get("/funccall/public/demo/f/x", headers=bearer(each["key"]))
            assert answer.status_code == 200
        revoked = await up.http.delete(f"/apikey/{parent['id']}/")
        assert revoked.json() == {"revoked": [parent["id"], child["id"]]}
        begun = time.monotonic()
        for each in (parent, child):
            for path in ("/funccall/public/demo/f/x", "/whoami"):
                answer = await up.http.get(path, headers=bearer(each["key"]))
                assert answer.status_code == 401, path
        assert time.monotonic() - begun < 1.0


async def test_a_key_mints_and_sees_no_more_than_itself(up: Platform) -> None:
    await up.put("namespace", "public", "system", "demo2", spec={})
    user = await key(up, scope="full", expires_in_s=600)
    admin = await key(up, scope="full", role="admin")
    read = await key(up, scope="read", role="admin")
    own = await key(up, user["key"], expires_in_s=60)
    assert own["parent"] == user["id"]
    for minter, wanted in (
        (user, {"role": "admin", "expires_in_s": 60}),
        (user, {}),  # without an end
        (user, {"expires_in_s": 6000}),
        (admin, {"namespace": "demo2"}),
        (admin, {"namespace": ""}),
        (admin, {"namespace": "", "tenant": ""}),
        (read, {"scope": "full"}),
        (read, {"scope": "inference"}),
    ):
        body = {"tenant": "public", "namespace": "demo", **wanted}
        answer = await up.http.post("/apikeys/", json=body, headers=bearer(minter["key"]))
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), wanted

    async def seen(by: dict[str, Any]) -> set[str]:
        answer = await up.http.get("/apikeys/", headers=bearer(by["key"]))
        return {each["id"] for each in answer.json()}

    assert await seen(user) == {user["id"], own["id"]}
    assert await seen(admin) == {each["id"] for each in (user, admin, read, own)}
    assert (await up.http.get("/apikeys/", headers=bearer(own["key"]))).status_code == 403
    gone = await up.http.delete(f"/apikey/{admin['id']}/", headers=bearer(user["key"]))
    assert gone.status_code == 404
    gone = await up.http.delete(f"/apikey/{own['id']}/", headers=bearer(user["key"]))
    assert gone.status_code == 200


async def test_wrong_wishes_for_a_key_are_named(up: Platform) -> None:
    for wanted, what in (
        ({"scope": "all"}, "scope"),
        ({"tennant": "public"}, "tennant"),
        ({"tenant": "system"}, "tenant"),
        ({"tenant": "public", "namespace": "system"}, "namespace"),
        ({"namespace": "demo"}, "namespace"),
        ({"expires_in_s": -1}, "expires_in_s"),
        ({"note": "a\nb"}, "note"),
    ):
        answer = await up.http.post("/apikeys/", json=wanted)
        assert answer.status_code == 400, wanted
        assert what in answer.json()["error"]["message"]
    missing = await up.http.post("/apikeys/", json={"tenant": "absent"})
    assert missing.status_code == 404
    assert (await up.http.get("/apikeys/")).json() == []


async def test_an_expired_key_is_refused(up: Platform) -> None:
    made = await key(up, expires_in_s=1)
    assert (await up.http.get("/whoami", headers=bearer(made["key"]))).status_code == 200

    deadline = time.monotonic() + 10
    while True:
        answer = await up.http.get("/whoami", headers=bearer(made["key"]))
        if answer.status_code == 401:
            break
        assert time.monotonic() < deadline, "the key did not end"
    missing = await up.http.get("/funccall/public/demo/f/x", headers=bearer(made["key"]))
    assert missing.status_code == 401


async def test_the_use_of_a_key_is_noted(up: Platform) -> None:
    await up.function()
    made = await key(up)
    async with RawWorker(echo) as worker:
        up.scheduler.worker_port = worker.port
        await up.http.get("/funccall/public/demo/f/x", headers=bearer(made["key"]))
        deadline = time.monotonic() + 15
        while not (await up.http.get("/apikeys/")).json()[0]["last_used_ms"]:
            assert time.monotonic() < deadline, "the use was not noted"
        again = await up.http.get("/funccall/public/demo/f/x", headers=bearer(made["key"]))
        assert again.status_code == 200


async def test_public_functions_need_no_credential(up: Platform) -> None:
    manifest = {
        "type": "function", "tenant": "public", "namespace": "demo", "name": "open",
        "annotations": {"inferx/public": "true"},
        "object": {"spec": {"image": "x", "resources": {"CPU": 1, "Mem": 1}}},
    }  # fmt: skip
    assert (await up.http.put("/object/", json=manifest)).status_code == 201
    async with RawWorker(echo) as worker:
        up.scheduler.worker_port = worker.port
        sent = up.http.build_request("GET", "/funccall/public/demo/open/x")
        del sent.headers["Authorization"]
        assert (await up.http.send(sent)).status_code == 401
        tenant = (await up.http.get("/object/tenant/system/system/public/")).json()
        tenant["object"]["spec"] = {"public_calls": True}
        assert (await up.http.post("/object/", json=tenant)).status_code == 200
        assert (await up.http.send(sent)).status_code == 200
        models = up.http.build_request("GET", "/v1/models")
        del models.headers["Authorization"]
        answer = await up.http.send(models)
        assert [each["id"] for each in answer.json()["data"]] == ["demo/open"]


async def test_a_tenant_with_keys_cannot_vanish_and_come_back(up: Platform) -> None:
    made = await key(up)
    answer = await up.http.delete("/object/namespace/public/system/demo/")
    assert (answer.status_code, "1 apikey" in answer.text) == (409, True)
    assert (await up.http.delete(f"/apikey/{made['id']}/")).status_code == 200
    assert (await up.http.delete("/object/namespace/public/system/demo/")).status_code == 200


def test_roles_are_read_whole() -> None:
    assert parse_role("/tenant/admin/T") == Grant(Role.ADMIN, "T")
    assert parse_role("namespace/user/T/N") == Grant(Role.USER, "T", "N")
    assert parse_role("/platform/admin") == Grant(Role.ADMIN)
    for wrong in (
        "/tenant/admin", "/tenant/admin/", "/tenant/admin/T/N", "/tenant/owner/T", "tenant",
        "/namespace/admin/T", "/namespace/user/T/N/F", "/platform/user", "/platform/admin/x",
        "/tenant/admin/../x", "/tenant/admin/T\n", "//tenant/admin/T", "/Tenant/admin/T",
        "/tenant/admin/\u03a4", "admin", "", "/",
    ):  # fmt: skip
        assert parse_role(wrong) is None, wrong


def test_what_is_not_in_the_table_is_refused() -> None:
    everything = Principal("p", (Grant(Role.ADMIN),), Scope.FULL)
    assert not allowed(everything, "node.write", Place())
    assert not allowed(everything, "apikey.read", Place())


def test_the_same_key_has_another_hash_under_another_secret() -> None:
    token = mint()
    assert Hasher(b"a" * 32).digest(token) != Hasher(b"b" * 32).digest(token)
    with pytest.raises(ValueError, match="at least 32"):
        Hasher(b"short")


def test_authentication_is_off_on_the_loopback_only() -> None:
    assert not load(None, {}).auth.enable
    assert load(None, {"POD_IP": "10.0.0.1"}).auth.enable
    with pytest.raises(ConfigError, match="INFERX_KEY_SECRET"):
        load(None, {"INFERX_KEY_SECRET": "short"})
