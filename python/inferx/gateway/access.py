"""The door of the control routes: every route names its action and its place, or does not exist.

Must never run a handler before the caller was found to be allowed.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from inferx.auth import LOCAL, Place, Principal, allowed, require
from inferx.auth.authenticator import Authenticator
from inferx.domain.meta import Key
from inferx.errors import Forbidden, InferxError, Unauthenticated

Endpoint = Callable[[Request], Awaitable[Response]]
Where = Callable[[Request], Place | Awaitable[Place]]
Which = str | Callable[[Request], str | Awaitable[str]]
Refused = Callable[[Request, str, str, InferxError], None]


class GuardedRoute(Route):
    """A route whose handler runs only for callers that the table allows."""

    def __init__(self, path: str, endpoint: Endpoint, methods: list[str], action: Which) -> None:
        super().__init__(path, endpoint, methods=methods, include_in_schema=False)
        self.action = action


class Access:
    """Finds the caller of a request and asks the table; `authenticator` None lets everybody in."""

    def __init__(self, authenticator: Authenticator | None, on_refused: Refused) -> None:
        self._authenticator = authenticator
        self._on_refused = on_refused

    def route(
        self, path: str, endpoint: Endpoint, methods: list[str], action: Which, where: Where
    ) -> GuardedRoute:
        """A route; `action` and `where` are asked with the request, the caller comes first."""

        async def guarded(request: Request) -> Response:
            name, principal = "", ""
            try:
                caller = await self._caller(request)
                principal = caller.name
                # A stranger is told nothing about the form of a good request.
                if caller.anonymous and action not in ANONYMOUS_ACTIONS:
                    raise Unauthenticated("send `Authorization: Bearer` and a key or token")
                name = await _value(action, request)
                place = await _value(where, request)
                if not (caller.anonymous and name in ANONYMOUS_ACTIONS):
                    require(caller, name, place)
            except (Unauthenticated, Forbidden) as error:
                self._on_refused(request, principal, name, error)
                raise
            request.state.principal = caller
            return await endpoint(request)

        return GuardedRoute(path, guarded, methods, action)

    async def _caller(self, request: Request) -> Principal:
        if self._authenticator is None:
            return LOCAL
        return await self._authenticator.of_headers(request.headers.getlist("authorization"))


ANONYMOUS_ACTIONS = frozenset({"model.list", "login.see", "dashboard.see"})
"""What callers without a credential may ask for; they see what is public."""


async def _value(given: Any, request: Request) -> Any:
    value = given(request) if callable(given) else given
    return await value if inspect.isawaitable(value) else value


def caller_of(request: Request) -> Principal:
    """The caller of a guarded route."""
    principal: Principal = request.state.principal
    return principal


def everywhere(request: Request) -> Place:
    """The place of what belongs to no tenant."""
    return Place()


def place_of(kind: str, tenant: str, namespace: str, name: str) -> Place:
    """Where an object is for the table: a tenant is itself one, and so is a namespace."""
    title = f"{kind} {tenant}/{namespace}/{name}"
    if kind == "tenant":
        return Place(name, "", title)
    if kind == "namespace":
        return Place(tenant, name, title)
    return Place(tenant, namespace, title)


def visible(principal: Principal, kind: str, key: Key) -> bool:
    """Whether the caller may read an object."""
    return allowed(principal, f"{kind}.read", place_of(kind, *key))
