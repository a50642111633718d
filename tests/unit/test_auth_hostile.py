"""Hostile requests to a gateway that asks for keys: each is refused, and nothing changes.

Forged tokens are in `test_auth_oidc.py`, broken framing in the tests of the data plane.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio

from inferx.auth.apikeys import mint
from tests.helpers.gateway_kit import ADMIN_KEY, Platform, bearer, platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

SPEC = {"image": "x", "resources": {"CPU": 1, "Mem": 1}}
SQL = "'; DROP TABLE objects;--"


def manifest(tenant: str = "a", name: str = "new", kind: str = "function", **spec: Any) -> str:
    envelope = {"type": kind, "tenant": tenant, "namespace": "n", "name": name}
    return json.dumps({**envelope, "object": {"spec": {**SPEC, **spec}}})


def nested(depth: int) -> str:
    return '{"type":"function","object":' + '{"a":' * depth + "1" + "}" * (depth + 1)


PUT, GET, POST, DELETE = "PUT", "GET", "POST", "DELETE"
# name -> (whose key, method, path, body, statuses that are a refusal)
Case = tuple[str, str, str, str | None, set[int]]
CASES: dict[str, Case] = {
    # another tenant, and names that begin like one's own
    "read of another tenant": ("admin", GET, "/object/function/b/n/f/", None, {403}),
    "read of a longer name": ("admin", GET, "/object/function/a-large/n/f/", None, {403}),
    "read of a shorter name": ("longer", GET, "/object/function/a/n/f/", None, {403}),
    "write to another tenant": ("admin", PUT, "/object/", manifest("b"), {403}),
    "write to a longer name": ("admin", PUT, "/object/", manifest("a-large"), {403}),
    "delete of another tenant": ("admin", DELETE, "/object/function/b/n/f/", None, {403}),
    "list of another tenant": ("admin", GET, "/objects/function/b/n/", None, {403}),
    "call of another tenant": ("admin", POST, "/funccall/b/n/f/x", "{}", {403}),
    "call of a longer name": ("admin", POST, "/funccall/a-large/n/f/x", "{}", {403}),
    "call of what does not exist elsewhere": ("admin", POST, "/funccall/b/n/g/x", "{}", {403}),
    "call in the body": (
        "admin", POST, "/funccall",
        '{"tenant":"b","namespace":"n","funcname":"f","payload":{}}', {403},
    ),
    "model of another tenant": (
        "admin", POST, "/v1/chat/completions", '{"model":"b/n/f"}', {404},
    ),
    "log of another tenant": ("admin", GET, "/podlog/b/n/f/1/p/", None, {403}),
    "kill in another tenant": ("admin", DELETE, "/pod/b/n/p/", None, {403}),
    "key for another tenant": ("admin", POST, "/apikeys/", '{"tenant":"b"}', {403}),
    "key for a longer name": ("admin", POST, "/apikeys/", '{"tenant":"a-large"}', {403}),
    "key for the platform": ("admin", POST, "/apikeys/", "{}", {403}),
    "key for tenant system": ("admin", POST, "/apikeys/", '{"tenant":"system"}', {400, 403}),
    "key of another, revoked": ("admin", DELETE, "/apikey/KEY_OF_B/", None, {404}),
    # more than one may
    "own limits raised": (
        "admin", POST, "/object/", manifest("system", "a", "tenant"), {400, 403},
    ),
    "own limits raised, well formed": (
        "admin", POST, "/object/",
        '{"type":"tenant","name":"a","object":{"spec":{"limit":{"max_gpu":99}}}}', {403},
    ),
    "own tenant deleted": ("admin", DELETE, "/object/tenant/system/system/a/", None, {403}),
    "user deletes": ("user", DELETE, "/object/function/a/n/f/", None, {403}),
    "user becomes admin": (
        "user", POST, "/apikeys/", '{"tenant":"a","namespace":"n","role":"admin"}', {403},
    ),
    "read key mints a full one": (
        "reader", POST, "/apikeys/", '{"tenant":"a","namespace":"n","scope":"full"}', {403},
    ),
    "read key writes": ("reader", PUT, "/object/", manifest(), {403}),
    "inference key reads": ("caller", GET, "/object/function/a/n/f/", None, {403}),
    "inference key lists keys": ("caller", GET, "/apikeys/", None, {403}),
    "metrics of all tenants": ("admin", GET, "/metrics", None, {403}),
    "nodes": ("admin", GET, "/nodes/", None, {403}),
    # objects that the platform writes about itself
    "forged node": (
        "platform", PUT, "/object/",
        '{"type":"node","name":"evil","object":{"spec":{"address":"169.254.169.254",'
        '"podmgr_port":80,"state_port":80}}}', {403},
    ),
    "forged pod with an address": (
        "platform", PUT, "/object/",
        '{"type":"pod","tenant":"a","namespace":"n","name":"evil","object":{"spec":{'
        '"funcname":"f","fprevision":1,"node":"169.254.169.254:80"}}}', {403},
    ),
    "forged snapshot": (
        "platform", PUT, "/object/",
        '{"type":"snapshot","tenant":"a","namespace":"n","name":"e","object":{"spec":{'
        '"funcname":"f","fprevision":1,"node":"../../etc"}}}', {403},
    ),
    "forged leader": (
        "platform", DELETE, "/object/scheduler/system/system/scheduler/", None, {403},
    ),
    "forged key object": (
        "platform", PUT, "/object/",
        '{"type":"apikey","tenant":"system","namespace":"system","name":"0123456789ab",'
        '"object":{"spec":{"digest":"' + "0" * 64 + '","scope":"full","role":"admin"}}}', {403},
    ),
    "unknown type": ("admin", PUT, "/object/", '{"type":"secret","name":"x","object":{}}', {400}),
    # files of the node
    "mount of the root": (
        "admin", PUT, "/object/", manifest(mounts=[{"hostpath": "/", "mountpath": "/x"}]), {403},
    ),
    "mount of etc": (
        "admin", PUT, "/object/", manifest(mounts=[{"hostpath": "/etc", "mountpath": "/x"}]),
        {403},
    ),
    "mount that climbs out": (
        "admin", PUT, "/object/",
        manifest(mounts=[{"hostpath": "/models/../etc", "mountpath": "/x"}]), {403},
    ),
    "mount with the same beginning": (
        "admin", PUT, "/object/",
        manifest(mounts=[{"hostpath": "/models-private", "mountpath": "/x"}]), {403},
    ),
    "mount of a socket": (
        "admin", PUT, "/object/",
        manifest(mounts=[{"hostpath": "/run/docker.sock", "mountpath": "/x"}]), {403},
    ),
    "mount of a file": (
        "admin", PUT, "/object/", manifest(mountfiles=[{"hostpath": "/etc/shadow"}]), {403},
    ),
    # paths
    "encoded path traversal": (
        "admin", GET, "/object/function/a/n/..%2F..%2Fb%2Fn%2Ff/", None, {400},
    ),
    "path traversal": ("admin", GET, "/object/function/a/n/../../b/n/f/", None, {400, 403, 404}),
    "path traversal in a call": ("admin", POST, "/funccall/a/../b/n/f", "{}", {400, 403}),
    "encoded dots in a call": ("admin", POST, "/funccall/a/n/%2e%2e/b/n/f", "{}", {400, 403}),
    "encoded slash in a call": ("admin", POST, "/funccall/a%2Fn/n/f/x", "{}", {400}),
    "NUL in a name": ("admin", GET, "/object/function/a/n/f%00/", None, {400}),
    "line break in a name": ("admin", GET, "/object/function/a/n/f%0d%0aX:y/", None, {400}),
    "doubled slash": ("admin", GET, "/object/function//b/n/f/", None, {400, 403, 404}),
    "path and body disagree": ("admin", PUT, "/object/function/a/n/f/", manifest("b"), {400, 403}),
    # SQL and friends in every string
    "SQL in a tenant": ("admin", GET, f"/object/function/{quote(SQL, '')}/n/f/", None, {400}),
    "SQL in a name": ("admin", GET, f"/object/function/a/n/{quote(SQL, '')}/", None, {400}),
    "SQL in a type": ("admin", GET, f"/object/{quote(SQL, '')}/a/n/f/", None, {400}),
    "SQL in a written name": ("admin", PUT, "/object/", manifest(name=SQL), {400}),
    "SQL in a revision": (
        "admin", DELETE, f"/object/function/a/n/f/?revision={quote(SQL)}", None, {400},
    ),
    "SQL in a selector": (
        "admin", GET, f"/objects/function/a/n/?label_selector={quote(SQL)}", None, {400},
    ),
    "SQL in a field selector": (
        "admin", GET, f"/objects/function/a/n/?field_selector={quote(SQL)}", None, {400},
    ),
    "SQL in a model": ("admin", POST, "/v1/completions", json.dumps({"model": SQL}), {404}),
    "SQL in a key's scope": (
        "admin", POST, "/apikeys/", json.dumps({"tenant": "a", "scope": SQL}), {400},
    ),
    "SQL in a key's tenant": ("admin", POST, "/apikeys/", json.dumps({"tenant": SQL}), {400}),
    # JSON
    "a large document": ("admin", PUT, "/object/", " " * (1 << 20) + manifest(), {413}),
    "a deep document": ("admin", PUT, "/object/", nested(5000), {400}),
    "a deep document, short": ("admin", PUT, "/object/", nested(150), {400}),
    "a deep model": ("admin", POST, "/v1/completions", '{"a":' * 5000, {400}),
    "a tenant given twice": (
        "admin", PUT, "/object/", manifest().replace("{", '{"tenant":"b",', 1), {400},
    ),
    "a deep key given twice": (
        "admin", PUT, "/object/", manifest().replace('"CPU": 1', '"CPU": 1, "CPU": 2'), {400},
    ),
    "not a number": ("admin", PUT, "/object/", manifest().replace("1", "NaN", 1), {400}),
    "endless number": ("admin", PUT, "/object/", manifest().replace("1", "1e999", 1), {400}),
    "half a character": ("admin", PUT, "/object/", manifest(image="\\ud800").replace(
        "\\\\", "\\"), {400}),
    "not UTF-8": ("admin", PUT, "/object/", "\xff\xfe", {400}),
    "a list": ("admin", PUT, "/object/", "[]", {400}),
    "a key with more fields": (
        "admin", POST, "/apikeys/", '{"tenant":"a","__proto__":{"role":"admin"}}', {400},
    ),
    # look-alikes
    "Cyrillic letter": ("admin", GET, "/object/function/%D0%B0/n/f/", None, {400}),
    "full-width letter": ("admin", GET, "/object/function/%EF%BD%81/n/f/", None, {400}),
    "zero-width joiner": ("admin", GET, "/object/function/a%E2%80%8D/n/f/", None, {400}),
    "Cyrillic letter in a call": ("admin", POST, "/funccall/%D0%B0/n/f/x", "{}", {400}),
    "Cyrillic letter written": ("admin", PUT, "/object/", manifest("\u0430"), {400}),
    "right-to-left override": ("admin", PUT, "/object/", manifest(name="a\u202eb"), {400}),
    "capital letter": ("admin", GET, "/object/function/A/n/f/", None, {403}),
}  # fmt: skip


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    folder = tmp_path_factory.mktemp("hostile")
    async with platform(folder, auth=True, mountRoots=["/models"]) as found:
        for tenant in ("a", "a-large", "b"):
            await found.put("tenant", "system", "system", tenant, spec={})
            await found.put("namespace", tenant, "system", "n", spec={})
            await found.put("function", tenant, "n", "f", spec=SPEC)
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def keys(up: Platform) -> dict[str, str]:
    """The keys of the attackers, and of a victim."""
    made = {"platform": ADMIN_KEY}
    for name, tenant, role, scope in (
        ("admin", "a", "admin", "full"), ("longer", "a-large", "admin", "full"),
        ("user", "a", "user", "full"), ("reader", "a", "admin", "read"),
        ("caller", "a", "user", "inference"), ("victim", "b", "admin", "full"),
    ):  # fmt: skip
        body = {"tenant": tenant, "role": role, "scope": scope}
        made[name] = (await up.http.post("/apikeys/", json=body)).json()["key"]
    return made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def before(up: Platform, keys: dict[str, str]) -> Any:
    """What there was before the first attack; no test may change it."""
    return await everything(up)


async def everything(up: Platform) -> Any:
    """All that the platform keeps, and what the scheduler was asked."""
    kinds = ("tenant", "namespace", "function", "funcpolicy", "node", "snapshot", "scheduler")
    listed = [(await up.http.get(f"/objects/{kind}/")).json() for kind in kinds]
    asked = len(up.scheduler.kills) + len(up.scheduler.leases) + len(up.scheduler.returns)
    return [*listed, (await up.http.get("/apikeys/")).json(), asked]


@pytest.mark.parametrize("name", CASES)
async def test_it_is_refused_and_changes_nothing(
    up: Platform, keys: dict[str, str], before: Any, name: str
) -> None:
    who, method, path, body, refusals = CASES[name]
    path = path.replace("KEY_OF_B", keys["victim"][3:15])
    content = None if body is None else body.encode("latin-1" if "\xff" in body else "utf-8")
    url = httpx.URL(str(up.http.base_url), raw_path=path.encode())
    sent = httpx.Request(method, url, content=content, headers=bearer(keys[who]))
    answer = await up.http.send(sent)
    assert answer.status_code in refusals, answer.text
    assert answer.json()["error"]["code"] not in ("internal", "unavailable"), answer.text
    assert "Traceback" not in answer.text
    assert await everything(up) == before


# name -> Authorization fields; None in the list stands for a good key
def credentials(good: str) -> dict[str, list[str]]:
    other = mint()
    return {
        "nothing": [],
        "an empty field": [""],
        "a made-up key": [f"Bearer {other}"],
        "the first half of a key": [f"Bearer {good[:35]}"],
        "a key without its end": [f"Bearer {good[:-1]}"],
        "a key and more": [f"Bearer {good}0"],
        "a key in capitals": [f"Bearer {good.upper()}"],
        "the id of a key with another rest": [f"Bearer {good[:15]}{other[15:]}"],
        "the id of a key": [f"Bearer {good[3:15]}"],
        "another prefix": [f"Bearer xi_{good[3:]}"],
        "SQL": [f"Bearer {SQL}"],
        "SQL without spaces": ["Bearer '/**/OR/**/1=1--"],
        "a key as a password": [f"Basic {good}"],
        "a key without a scheme": [good],
        "two keys in one field": [f"Bearer {good}, Bearer {good}"],
        "a key after a tab": [f"Bearer\t{good}"],
        "the admin's key without its end": [f"Bearer {ADMIN_KEY[:-1]}"],
        "the admin's key in capitals": [f"Bearer {ADMIN_KEY.upper()}"],
        "an endless key": [f"Bearer ix_{'0' * 20_000}"],
        "look-alike digits": [f"Bearer {good[:-1]}\xb2"],
    }


@pytest.mark.parametrize("name", credentials(mint()))
async def test_wrong_credentials_open_no_door(
    up: Platform, keys: dict[str, str], before: Any, name: str
) -> None:
    fields = credentials(keys["admin"])[name]
    headers = [(b"Authorization", field.encode("latin-1")) for field in fields]
    for method, path in (
        ("GET", "/whoami"), ("DELETE", "/object/function/a/n/f/"), ("POST", "/funccall/a/n/f/x"),
        ("POST", "/v1/completions"),
    ):  # fmt: skip
        sent = httpx.Request(method, up.http.base_url.join(path), headers=headers, content=b"{}")
        answer = await up.http.send(sent)
        expected = (400, 401) if path == "/v1/completions" else (401,)
        assert answer.status_code in expected, f"{path}: {answer.text}"
    assert await everything(up) == before


async def test_a_credential_given_twice_is_refused(up: Platform, keys: dict[str, str]) -> None:
    field = (b"Authorization", f"Bearer {keys['admin']}".encode())
    for path in ("/whoami", "/funccall/a/n/f/x"):
        sent = httpx.Request("GET", up.http.base_url.join(path), headers=[field, field])
        assert (await up.http.send(sent)).status_code == 400


SPOOFED = {
    "X-Forwarded-User": "admin", "X-Inferx-Principal": "admin", "X-Remote-User": "admin",
    "X-Original-URL": "/healthz", "X-Rewrite-URL": "/healthz", "Forwarded": "for=127.0.0.1",
    "X-Forwarded-For": "127.0.0.1", "Cookie": "session=admin", "X-Api-Key": ADMIN_KEY,
    "Proxy-Authorization": f"Bearer {ADMIN_KEY}",
}  # fmt: skip


@pytest.mark.parametrize("name", SPOOFED)
async def test_other_headers_are_no_credential(up: Platform, name: str) -> None:
    headers = [(b"Host", b"x"), (name.encode(), SPOOFED[name].encode())]
    for path in ("/whoami", "/nodes/", "/funccall/a/n/f/x"):
        sent = httpx.Request("GET", up.http.base_url.join(path), headers=headers)
        assert (await up.http.send(sent)).status_code == 401, path


async def test_a_method_is_what_the_request_line_says(up: Platform, keys: dict[str, str]) -> None:
    before = await everything(up)
    for name in ("X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"):
        headers = {**bearer(keys["reader"]), name: "DELETE"}
        answer = await up.http.get("/object/function/a/n/f/", headers=headers)
        assert answer.status_code == 200
    assert await everything(up) == before


async def test_a_request_id_cannot_carry_a_header(up: Platform) -> None:
    answer = await up.http.get("/whoami", headers={"X-Request-Id": "a b; Set-Cookie: x=1"})
    assert "Set-Cookie" not in answer.text
    assert "set-cookie" not in answer.headers


async def test_a_mount_below_an_offered_folder_is_allowed(
    up: Platform, keys: dict[str, str]
) -> None:
    body = manifest(name="m", mounts=[{"hostpath": "/models/llama", "mountpath": "/x"}])
    answer = await up.http.put("/object/", content=body, headers=bearer(keys["admin"]))
    assert answer.status_code == 201, answer.text
    assert (await up.http.delete("/object/function/a/n/m/")).status_code == 200
