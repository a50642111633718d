"""Tells the data plane which functions there are: objects of four kinds resolved into one table.

Must never keep a function that is gone, nor push one that has not changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import grpc.aio

from inferx._ext import Proxy
from inferx.domain.codec import resolve_policy
from inferx.domain.meta import PUBLIC, SYSTEM, Key, Object
from inferx.domain.objects import FuncPolicy, FunctionSpec, Tenant, TenantLimit
from inferx.domain.references import may_follow
from inferx.errors import InferxError
from inferx.store.informer import DELETED, Informer

PUBLIC_ANNOTATION = "inferx/public"
ALIASES_ANNOTATION = "inferx/model-aliases"
_KINDS = ("function", "funcpolicy", "tenant", "namespace")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Definition:
    """A function as the data plane is told; times are milliseconds."""

    revision: int
    parallel: int
    queue_len: int
    queue_timeout_ms: int
    wait_ratio: float
    scalein_timeout_ms: int
    model_names: tuple[str, ...] = ()
    served_model: str | None = None
    disabled: str | None = None
    public: bool = False


def join(key: Key) -> str:
    """The data plane's name of a function."""
    return "/".join(key)


def split(name: str) -> Key:
    """The key behind the data plane's name of a function."""
    tenant, namespace, function = name.split("/")
    return (tenant, namespace, function)


def model_id(key: Key, default_tenant: str = PUBLIC) -> str:
    """The name of a function on the OpenAI routes."""
    return "/".join(key[1:]) if key[0] == default_tenant else join(key)


class Functions:
    """The functions of all tenants, kept in step with the state service."""

    def __init__(self, proxy: Proxy, channel: grpc.aio.Channel) -> None:
        self._proxy = proxy
        self._informers = {kind: Informer(channel, kind) for kind in _KINDS}
        self._pushed: dict[Key, Definition] = {}
        self._changed = asyncio.Event()
        self._live = False
        self._part = (1, 0)
        for kind, informer in self._informers.items():
            informer.subscribe(partial(self._on_change, kind))

    async def start(self) -> None:
        """Begin to follow the objects; returns when all of them are known and pushed."""
        for informer in self._informers.values():
            await informer.start()
        for informer in self._informers.values():
            await informer.synced.wait()
        self._live = True
        self._push_all()
        self._proxy.set_synced()

    async def stop(self) -> None:
        """End the streams."""
        await asyncio.gather(*(informer.stop() for informer in self._informers.values()))

    def definition(self, key: Key) -> Definition | None:
        """What the data plane was told of a function, None when it does not know it."""
        return self._pushed.get(key)

    def function(self, key: Key) -> Object[FunctionSpec] | None:
        """The function itself."""
        return self._informers["function"].get(key)

    def all(self) -> list[Object[FunctionSpec]]:
        """All functions."""
        return self._informers["function"].list()

    async def seen(self, kind: str, key: Key, revision: int | None, timeout_s: float = 2.0) -> None:
        """Wait until a write is visible here: an object at `revision`, or None for its absence.

        Returns quietly at the timeout; the write itself has succeeded.
        """
        informer = self._informers.get(kind)
        if informer is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                while not self._is_seen(informer, key, revision):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            _log.warning("%s %s written at %s is not seen here yet", kind, join(key), revision)

    @staticmethod
    def _is_seen(informer: Informer, key: Key, revision: int | None) -> bool:
        known = informer.get(key)
        if revision is None:
            return known is None
        return known is not None and known.revision >= revision

    def _on_change(self, kind: str, event: str, obj: Object[Any]) -> None:
        self._changed.set()
        if kind == "tenant":
            self._limit(obj.meta.name, TenantLimit() if event == DELETED else obj.spec.limit)
        if not self._live:
            return
        if kind == "function" and event == DELETED:
            self._pushed.pop(obj.key, None)
            self._proxy.remove_function(join(obj.key))
            return
        for function in list(self._affected(kind, obj)):
            self._push(function)

    def share_limits(self, gateways: int, rank: int) -> None:
        """So many gateways share the tenants' limits; this is the one at place `rank`."""
        self._part = (gateways, rank)
        for tenant in self._informers["tenant"].list():
            self._limit(tenant.meta.name, tenant.spec.limit)

    def _limit(self, tenant: str, limit: TenantLimit) -> None:
        gateways, rank = self._part
        self._proxy.set_tenant_limits(
            tenant,
            request_rate=limit.max_request_rate,
            concurrency=limit.max_concurrency,
            tokens_per_minute=limit.max_tokens_per_minute,
            gateways=gateways,
            rank=rank,
        )

    def _affected(self, kind: str, obj: Object[Any]) -> Iterator[Object[FunctionSpec]]:
        if kind == "function":
            yield obj
            return
        for function in self._informers["function"].list():
            tenant, namespace, _ = function.key
            if kind == "tenant" and tenant != obj.meta.name:
                continue
            if kind == "namespace" and (tenant, namespace) != (obj.meta.tenant, obj.meta.name):
                continue
            if kind == "funcpolicy" and not may_follow(function, obj.key):
                continue
            yield function

    def _push_all(self) -> None:
        for function in self._informers["function"].list():
            self._push(function)

    def _push(self, function: Object[FunctionSpec]) -> None:
        try:
            definition = self._resolve(function)
        except InferxError as error:
            _log.error("%s cannot be served: %s", function.meta, error)
            return
        if self._pushed.get(function.key) == definition:
            return
        self._pushed[function.key] = definition
        told = asdict(definition)
        told["model_names"] = list(definition.model_names)
        self._proxy.upsert_function(join(function.key), **told)

    def _resolve(self, function: Object[FunctionSpec]) -> Definition:
        tenant_name, namespace_name, _ = function.key
        policy: FuncPolicy = resolve_policy(function, self._informers["funcpolicy"].get)
        tenant = self._informers["tenant"].get((SYSTEM, SYSTEM, tenant_name))
        namespace = self._informers["namespace"].get((tenant_name, SYSTEM, namespace_name))
        disabled, public = None, False
        if tenant is not None and isinstance(tenant.spec, Tenant):
            marked = function.meta.annotations.get(PUBLIC_ANNOTATION) == "true"
            public = marked and tenant.spec.public_calls
            policy = tenant.spec.limit.apply(policy)
            if tenant.spec.disable:
                disabled = f"tenant {tenant_name} is disabled"
        if disabled is None and namespace is not None and namespace.spec.disable:
            disabled = f"namespace {tenant_name}/{namespace_name} is disabled"
        return Definition(
            revision=function.revision,
            parallel=policy.parallel,
            queue_len=policy.queue_len,
            queue_timeout_ms=policy.queue_timeout_ms,
            wait_ratio=policy.wait_ratio,
            scalein_timeout_ms=policy.scalein_timeout_ms,
            model_names=_aliases(function),
            served_model=function.spec.served_model or None,
            disabled=disabled,
            public=public,
        )


def _aliases(function: Object[FunctionSpec]) -> tuple[str, ...]:
    """Other names of the model; only functions of the public tenant may claim one."""
    if function.meta.tenant != PUBLIC:
        return ()
    listed = function.meta.annotations.get(ALIASES_ANNOTATION, "")
    names = [name.strip() for name in listed.split(",")]
    served = function.spec.served_model
    return tuple(dict.fromkeys(name for name in [*names, served] if name))
