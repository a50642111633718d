"""Routes of API keys: mint, list, revoke, and who am I.

Must never show a key but in the answer to its making, nor let a key make more than it is itself.
"""

from __future__ import annotations

from typing import Any

import grpc.aio
from starlette.requests import Request
from starlette.responses import Response

from inferx.auth import Place, Principal, Role, Scope, allowed
from inferx.auth.apikeys import CHAIN_MAX, KeyTable, home_of, key_id, mint, place_of
from inferx.auth.authenticator import Authenticator, now_ms
from inferx.config import KeycloakConfig
from inferx.domain import codec
from inferx.domain.apikey import ROLES, SCOPES, ApiKey
from inferx.domain.meta import SYSTEM, Object, check_name
from inferx.domain.reader import Fields
from inferx.errors import BadRequest, Forbidden, NotFound
from inferx.gateway.access import Access, GuardedRoute, caller_of, everywhere
from inferx.gateway.auditing import Auditor
from inferx.gateway.backends import ask, write
from inferx.gateway.callers import Callers
from inferx.gateway.objects import STATE
from inferx.gateway.replies import body, names, reply
from inferx.rpc import convert, ixmeta_pb2, ixmeta_pb2_grpc

LIFETIME_S_MAX = 10 * 366 * 86_400
NOTE_CHARS_MAX = 200


class KeyRoutes:
    """`/apikeys/`, `/apikey/{id}/`, `/login`, `/whoami`."""

    def __init__(
        self,
        authenticator: Authenticator,
        callers: Callers,
        state: grpc.aio.Channel,
        access: Access,
        provider: KeycloakConfig,
        auditor: Auditor,
    ) -> None:
        self._auditor = auditor
        self._provider = provider
        self._authenticator = authenticator
        self._callers = callers
        self._access = access
        make: Any = ixmeta_pb2_grpc.IxMetaServiceStub
        self._stub = make(state)

    @property
    def _keys(self) -> KeyTable:
        return self._authenticator.keys

    def routes(self) -> list[GuardedRoute]:
        """The routes of this part."""
        route = self._access.route
        return [
            route("/apikeys/", self.create, ["POST"], "key.create", _wanted_place),
            route("/apikeys/", self.list, ["GET"], "key.list", everywhere),
            route("/apikey/{path:path}", self.revoke, ["DELETE"], "key.revoke", everywhere),
            route("/login", self.login, ["GET"], "login.see", everywhere),
            route("/whoami", self.whoami, ["GET"], "whoami", everywhere),
        ]

    async def create(self, request: Request) -> Response:
        """POST {tenant, namespace, role, scope, expires_in_s, note}: a new key, shown once."""
        wanted, tenant, namespace = await _wanted(request)
        caller = caller_of(request)
        self._check_no_more(caller, wanted, tenant, namespace)
        token = mint()
        digest = self._authenticator.digest(token)
        spec = ApiKey(
            digest=digest,
            scope=wanted.scope,
            role=wanted.role,
            created_ms=wanted.created_ms,
            created_by=caller.name,
            expires_ms=wanted.expires_ms,
            parent=caller.key_id,
            note=wanted.note,
        )
        obj = codec.new("apikey", (*home_of(tenant, namespace), key_id(token)), spec.to_raw())
        message = ixmeta_pb2.CreateRequestMessage(obj=convert.to_proto(obj))
        await write(STATE, self._stub.Create, message)
        await self._callers.seen(obj.key, present=True)
        self._auditor.changed(request, "create", _manifest(obj))
        headers = {"Cache-Control": "no-store"}
        return reply({**_shown(obj), "key": token}, 201, headers)

    def _check_no_more(
        self, caller: Principal, wanted: ApiKey, tenant: str, namespace: str
    ) -> None:
        """A caller hands on at most what it has: role, place, scope and time."""
        role, scope = Role[wanted.role.upper()], Scope[wanted.scope.upper()]
        if scope > caller.scope or not any(
            grant.role >= role and grant.covers(tenant, namespace) for grant in caller.grants
        ):
            raise Forbidden(f"{caller.name} may not mint a key that may more than itself")
        if not caller.key_id:
            return
        if caller.expires_ms and not 0 < wanted.expires_ms <= caller.expires_ms:
            raise Forbidden("expires_in_s: the new key may not outlive the one that mints it")
        if self._depth(caller.key_id) >= CHAIN_MAX - 1:
            raise Forbidden(f"at most {CHAIN_MAX} keys may mint each other in a row")

    def _depth(self, key_id: str) -> int:
        depth, obj = 0, self._keys.get(key_id)
        while obj is not None and obj.spec.parent and depth < CHAIN_MAX:
            depth, obj = depth + 1, self._keys.get(obj.spec.parent)
        return depth

    async def list(self, request: Request) -> Response:
        """GET: the keys that the caller may see, without what makes them keys."""
        caller = caller_of(request)
        mine = self._own(caller)
        shown = [
            _shown(obj)
            for obj in self._keys.all()
            if obj.meta.name in mine or allowed(caller, "key.see", _place(obj))
        ]
        return reply(sorted(shown, key=lambda each: (each["created_ms"], each["id"])))

    def _own(self, caller: Principal) -> set[str]:
        """The ids of the caller itself, of what it minted, and of what those did."""
        mine = {obj.meta.name for obj in self._keys.all() if obj.spec.created_by == caller.name}
        for each in list(mine):
            mine |= self._keys.descendants(each)
        return mine | ({caller.key_id} if caller.key_id else set())

    async def revoke(self, request: Request) -> Response:
        """DELETE: ends a key and all that it minted."""
        (wanted,) = names(request, "key")
        caller = caller_of(request)
        obj = self._keys.get(wanted)
        managed = obj is not None and (
            wanted in self._own(caller) or allowed(caller, "key.manage", _place(obj))
        )
        if obj is None or not managed:
            raise NotFound(f"there is no key {wanted} that {caller.name} may revoke")
        ended = [wanted]
        await self._delete(request, obj)
        for each in sorted(self._keys.descendants(wanted)):
            child = self._keys.get(each)
            if child is not None:
                await self._delete(request, child)
                ended.append(each)
        return reply({"revoked": ended})

    async def _delete(self, request: Request, obj: Object[ApiKey]) -> None:
        tenant, namespace, name = obj.key
        message = ixmeta_pb2.DeleteRequestMessage(
            obj_type="apikey", tenant=tenant, namespace=namespace, name=name
        )
        await ask(STATE, self._stub.Delete, message)
        self._auditor.changed(request, "delete", _manifest(obj), _manifest(obj))
        await self._callers.seen(obj.key, present=False)

    async def login(self, request: Request) -> Response:
        """GET: where to log in; "" when there is no identity provider."""
        provider = self._provider
        return reply({"issuer": provider.issuer_url, "client_id": provider.client_id})

    async def whoami(self, request: Request) -> Response:
        """GET: the caller as the platform sees it."""
        caller = caller_of(request)
        grants = [
            {"role": it.role.name.lower(), "tenant": it.tenant, "namespace": it.namespace}
            for it in caller.grants
        ]
        found: dict[str, Any] = {
            "name": caller.name,
            "scope": caller.scope.name.lower(),
            "grants": grants,
        }
        if caller.expires_ms:
            found["expires_ms"] = caller.expires_ms
        return reply(found)


def _shown(obj: Object[ApiKey]) -> dict[str, Any]:
    tenant, namespace = place_of(obj.key)
    raw = obj.spec.to_raw()
    spec = {name: value for name, value in raw["spec"].items() if name != "digest"}
    return {"id": obj.meta.name, "tenant": tenant, "namespace": namespace, **spec, **raw["status"]}


def _manifest(obj: Object[ApiKey]) -> dict[str, Any]:
    """The key as the audit has it: its hash is nobody's business."""
    manifest = codec.dump_manifest(obj)
    spec = {name: value for name, value in obj.raw["spec"].items() if name != "digest"}
    return {**manifest, "object": {**obj.raw, "spec": spec}}


def _place(obj: Object[ApiKey]) -> Place:
    return Place(*place_of(obj.key), f"key {obj.meta.name}")


async def _wanted(request: Request) -> tuple[ApiKey, str, str]:
    """What the body asks for, and the place of the key; read once."""
    cached: tuple[ApiKey, str, str] | None = getattr(request.state, "wanted", None)
    if cached is not None:
        return cached
    warnings: list[str] = []
    fields = Fields(codec.parse_json(await body(request)), "", warnings)
    tenant, namespace = fields.string("tenant", ""), fields.string("namespace", "")
    for name, what in ((tenant, "tenant"), (namespace, "namespace")):
        if name and check_name(name, what) == SYSTEM:
            raise BadRequest(f"{what}: {SYSTEM!r} is the platform's; leave it out for a wider key")
    if namespace and not tenant:
        raise BadRequest("namespace: give the tenant too")
    now = now_ms()
    lifetime_s = fields.integer("expires_in_s", 0, unit="seconds", high=LIFETIME_S_MAX)
    wanted = ApiKey(
        digest="",
        scope=fields.choice("scope", SCOPES, SCOPES[0]),
        role=fields.choice("role", ROLES, ROLES[0]),
        created_ms=now,
        created_by="",
        expires_ms=now + 1000 * lifetime_s if lifetime_s else 0,
        note=fields.string("note", ""),
    )
    fields.finish()
    if len(wanted.note) > NOTE_CHARS_MAX or not wanted.note.isprintable():
        raise BadRequest(f"note: at most {NOTE_CHARS_MAX} printable characters")
    if warnings:
        # A restriction that was misspelt must not be taken for none.
        raise BadRequest(warnings[0])
    request.state.wanted = (wanted, tenant, namespace)
    return wanted, tenant, namespace


async def _wanted_place(request: Request) -> Place:
    _, tenant, namespace = await _wanted(request)
    return Place(tenant, namespace)
