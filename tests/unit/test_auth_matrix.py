"""Every route of the gateway times every kind of caller: who gets in is written down here anew.

The expectation does not use the table of rights; a route without an example fails the test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
import pytest_asyncio

from inferx._ext import Proxy
from inferx.audit.sqlite import SqliteSink
from inferx.auth.apikeys import Hasher
from inferx.auth.authenticator import Authenticator
from inferx.config import KeycloakConfig, Secret
from inferx.gateway.access import Access, GuardedRoute
from inferx.gateway.auditroutes import AuditRoutes
from inferx.gateway.callers import Callers
from inferx.gateway.dashboard import DashboardRoutes
from inferx.gateway.functions import Functions
from inferx.gateway.keys import KeyRoutes
from inferx.gateway.objects import ObjectRoutes
from inferx.gateway.views import ViewRoutes
from tests.helpers.gateway_kit import ADMIN_KEY, Platform, bearer, platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

# caller -> (tenant, namespace, role, scope) of its key; None = no key
CALLERS: dict[str, tuple[str, str, str, str] | None] = {
    "nobody": None,
    "caller": ("a", "n", "user", "inference"),
    "reader": ("a", "n", "user", "read"),
    "user": ("a", "n", "user", "full"),
    "admin reader": ("a", "n", "admin", "read"),
    "namespace admin": ("a", "n", "admin", "full"),
    "tenant user": ("a", "", "user", "full"),
    "tenant admin": ("a", "", "admin", "full"),
    "other namespace": ("a", "m", "admin", "full"),
    "other tenant": ("b", "", "admin", "full"),
    "longer name": ("a-large", "", "admin", "full"),
    "platform reader": ("", "", "admin", "read"),
    "platform admin": ("", "", "admin", "full"),
}
EVERYBODY = set(CALLERS)
KNOWN = EVERYBODY - {"nobody"}
READS = KNOWN - {"caller"}
HERE = {"reader", "user", "admin reader", "namespace admin", "tenant user", "tenant admin",
        "platform reader", "platform admin"}  # fmt: skip
ADMINS = {"namespace admin", "tenant admin", "platform admin"}
FULL_HERE = {"user", "namespace admin", "tenant user", "tenant admin", "platform admin"}
FULL = {name for name, key in CALLERS.items() if key and key[3] == "full"}
READ_ADMINS = {"admin reader", "platform reader"}
PLATFORM_READS = {"platform reader", "platform admin"}


def manifest(kind: str, tenant: str, namespace: str, name: str) -> dict[str, Any]:
    worker = {"funcname": "f", "fprevision": 1, "node": "x"}
    specs: dict[str, dict[str, Any]] = {
        "function": {"image": "x", "resources": {"CPU": 1, "Mem": 1}},
        "node": {"address": "127.0.0.1", "podmgr_port": 1, "state_port": 1},
        "pod": worker,
        "snapshot": worker,
        "apikey": {"digest": "0" * 64, "scope": "full", "role": "admin"},
    }
    spec = {} if kind == "funcpolicy" else {"spec": specs.get(kind, {})}
    return {"type": kind, "tenant": tenant, "namespace": namespace, "name": name, "object": spec}


WRITES = {
    ("function", "a", "n", "f"): ADMINS,
    ("funcpolicy", "a", "n", "p"): ADMINS,
    ("funcpolicy", "a", "system", "p"): {"tenant admin", "platform admin"},
    ("namespace", "a", "system", "n"): {"tenant admin", "platform admin"},
    ("tenant", "system", "system", "a"): {"platform admin"},
    ("node", "system", "system", "x"): set(),
    ("pod", "a", "n", "x"): set(),
    ("snapshot", "a", "n", "x"): set(),
    ("apikey", "a", "n", "0123456789ab"): set(),
    ("scheduler", "system", "system", "scheduler"): set(),
}
READABLE = {
    ("function", "a", "n", "f"): HERE,
    ("funcpolicy", "a", "n", "p"): HERE,
    ("funcpolicy", "a", "system", "p"): HERE & {
        "tenant user", "tenant admin", "platform reader", "platform admin",
    },
    ("namespace", "a", "system", "n"): HERE,
    ("tenant", "system", "system", "a"): HERE | {"other namespace"},
    ("node", "system", "system", "x"): PLATFORM_READS,
    ("snapshot", "a", "n", "x"): HERE,
    ("apikey", "a", "n", "0123456789ab"): set(),
    ("scheduler", "system", "system", "scheduler"): PLATFORM_READS,
}  # fmt: skip

# (method, pattern of the route, path, body, who gets in)
Example = tuple[str, str, str, Any, set[str]]
EXAMPLES: list[Example] = [
    ("POST", "/apikeys/", "/apikeys/", {"tenant": "a", "namespace": "n", "note": 5}, KNOWN),
    ("POST", "/apikeys/", "/apikeys/", {"tenant": "a", "namespace": "x"},
     FULL_HERE - {"user", "namespace admin"}),
    ("GET", "/apikeys/", "/apikeys/", None, READS),
    ("DELETE", "/apikey/{path:path}", "/apikey/0123456789ab/", None, FULL),
    ("GET", "/login", "/login", None, EVERYBODY),
    ("GET", "/dashboard", "/dashboard", None, EVERYBODY),
    ("GET", "/dashboard/", "/dashboard/", None, EVERYBODY),
    ("GET", "/dashboard/{name}", "/dashboard/dashboard.js", None, EVERYBODY),
    ("GET", "/whoami", "/whoami", None, KNOWN),
    ("GET", "/pods/{path:path}", "/pods/a/n/", None, HERE),
    ("GET", "/pods/{path:path}", "/pods/", None, READS),
    ("GET", "/pod/{path:path}", "/pod/a/n/x/", None, HERE),
    ("DELETE", "/pod/{path:path}", "/pod/a/n/x/", None, ADMINS),
    ("GET", "/object/pod/{path:path}", "/object/pod/a/n/x/", None, HERE),
    ("GET", "/objects/pod/{path:path}", "/objects/pod/a/n/", None, HERE),
    ("GET", "/nodes/", "/nodes/", None, PLATFORM_READS),
    ("GET", "/nodes", "/nodes", None, PLATFORM_READS),
    ("GET", "/node/{path:path}", "/node/x/", None, PLATFORM_READS),
    ("GET", "/podlog/{path:path}", "/podlog/a/n/f/1/x/", None, HERE),
    ("GET", "/v1/models", "/v1/models", None, EVERYBODY),
    ("GET", "/v1/models/{path:path}", "/v1/models/a/n/f", None, EVERYBODY),
    ("GET", "/audit/{path:path}", "/audit/requests/a/n/", None, ADMINS | READ_ADMINS),
    ("GET", "/audit/{path:path}", "/audit/changes/", None, PLATFORM_READS),
    ("GET", "/podauditlog/{path:path}", "/podauditlog/a/n/f/", None, ADMINS | READ_ADMINS),
    ("GET", "/faillogs/{path:path}", "/faillogs/a/n/", None, ADMINS | READ_ADMINS),
    ("GET", "/SnapshotSchedule/{path:path}", "/SnapshotSchedule/a/n/f/", None,
     ADMINS | READ_ADMINS),
    ("GET", "/metrics", "/metrics", None, PLATFORM_READS),
    ("GET", "/objects/{path:path}", "/objects/function/a/n/", None, HERE),
    ("GET", "/objects/{path:path}", "/objects/tenant/", None, READS),
]  # fmt: skip
for _key, _allowed in WRITES.items():
    _path = f"/object/{'/'.join(_key)}/"
    EXAMPLES += [
        ("PUT", "/object/{path:path}", _path, manifest(*_key), _allowed),
        # A revision that never was: the write is refused, after the caller was let in.
        ("POST", "/object/{path:path}", _path, {**manifest(*_key), "revision": 1 << 40}, _allowed),
        ("DELETE", "/object/{path:path}", f"{_path}?revision={1 << 40}", None, _allowed),
    ]
for _key, _allowed in READABLE.items():
    EXAMPLES.append(("GET", "/object/{path:path}", f"/object/{'/'.join(_key)}/", None, _allowed))


def routes() -> list[GuardedRoute]:
    """All control routes, as the gateway makes them."""
    channel = grpc.aio.insecure_channel("127.0.0.1:1")
    proxy = Proxy("127.0.0.1", 0, "/nonexistent.sock")
    authenticator = Authenticator(Hasher(b"x" * 32), Secret())
    callers = Callers(proxy, authenticator, channel)
    access = Access(authenticator, lambda *_: None)
    sink = SqliteSink(Path("/nonexistent/audit.db"))
    link: Any = None
    auditor: Any = None
    functions = Functions(proxy, channel)
    return [
        *DashboardRoutes(access).routes(),
        *KeyRoutes(authenticator, callers, channel, access, KeycloakConfig(), auditor).routes(),
        *AuditRoutes(sink, access).routes(),
        *ViewRoutes(functions, proxy.stats, channel, link, access, auditor).routes(),
        *ObjectRoutes(functions, channel, access, auditor).routes(),
    ]


async def test_every_route_has_an_example() -> None:
    found = {
        (method, route.path) for route in routes() for method in (route.methods or set()) - {"HEAD"}
    }
    assert found == {(example[0], example[1]) for example in EXAMPLES}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with platform(tmp_path_factory.mktemp("matrix"), auth=True) as found:
        for tenant in ("a", "a-large", "b"):
            await found.put("tenant", "system", "system", tenant, spec={})
        for tenant, namespace in (("a", "n"), ("a", "m"), ("a-large", "n"), ("b", "n")):
            await found.put("namespace", tenant, "system", namespace, spec={})
        for key in (("function", "a", "n", "f"), ("funcpolicy", "a", "n", "p"),
                    ("funcpolicy", "a", "system", "p")):  # fmt: skip
            await found.put(*key, **manifest(*key)["object"])
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def keys(up: Platform) -> dict[str, str]:
    """A key for each kind of caller."""
    made = {}
    for name, wanted in CALLERS.items():
        if wanted is not None:
            tenant, namespace, role, scope = wanted
            body = {"tenant": tenant, "namespace": namespace, "role": role, "scope": scope}
            made[name] = (await up.http.post("/apikeys/", json=body)).json()["key"]
    return made


async def everything(up: Platform) -> Any:
    """All that the platform keeps, as the admin sees it."""
    kinds = ("tenant", "namespace", "function", "funcpolicy", "node", "snapshot")
    listed = [(await up.http.get(f"/objects/{kind}/")).json() for kind in kinds]
    return [*listed, (await up.http.get("/apikeys/")).json(), len(up.scheduler.kills)]


@pytest.mark.parametrize("caller", CALLERS)
async def test_who_gets_in(up: Platform, keys: dict[str, str], caller: str) -> None:
    before = await everything(up)
    wrong = []
    async with httpx.AsyncClient(base_url=up.http.base_url, trust_env=False) as http:
        headers = bearer(keys[caller]) if caller in keys else {}
        for method, _, path, body, allowed in EXAMPLES:
            answer = await http.request(method, path, json=body, headers=headers)
            let_in = answer.status_code not in (401, 403)
            if let_in != (caller in allowed):
                wrong.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
            if not let_in:
                expected = (401, "unauthenticated") if caller == "nobody" else (403, "forbidden")
                found = (answer.status_code, answer.json()["error"]["code"])
                assert found == expected, f"{method} {path}"
            assert answer.status_code < 500, f"{method} {path}: {answer.text}"
    assert not wrong, f"{caller}:\n" + "\n".join(wrong)
    assert await everything(up) == before
    assert ADMIN_KEY not in str(before)


async def test_lists_show_only_what_the_caller_may_see(up: Platform, keys: dict[str, str]) -> None:
    async def names(caller: str, path: str) -> set[str]:
        answer = await up.http.get(path, headers=bearer(keys[caller]))
        assert answer.status_code == 200, answer.text
        return {f"{each['tenant']}/{each['name']}" for each in answer.json()}

    assert await names("reader", "/objects/tenant/") == {"system/a"}
    assert await names("reader", "/objects/namespace/") == {"a/n"}
    assert await names("tenant admin", "/objects/namespace/a/system/") == {"a/n", "a/m"}
    assert await names("reader", "/objects/namespace/a/system/") == {"a/n"}
    assert await names("other tenant", "/objects/function/") == set()
    assert await names("longer name", "/objects/tenant/") == {"system/a-large"}
    models = await up.http.get("/v1/models", headers=bearer(keys["other tenant"]))
    assert models.json()["data"] == []
    models = await up.http.get("/v1/models", headers=bearer(keys["caller"]))
    assert [each["id"] for each in models.json()["data"]] == ["a/n/f"]
