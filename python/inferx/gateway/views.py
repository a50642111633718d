"""Routes that show the cluster: pods, nodes, logs, models, metrics.

Must never decide anything; a kill is asked of the scheduler.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from inferx.auth import Place, allowed
from inferx.domain import codec
from inferx.domain.meta import SYSTEM, Object
from inferx.domain.objects import Node, Pod
from inferx.errors import InferxError, InvalidState, NotFound, Unavailable
from inferx.gateway.access import (
    Access,
    GuardedRoute,
    caller_of,
    everywhere,
    visible,
)
from inferx.gateway.auditing import Auditor
from inferx.gateway.backends import ask
from inferx.gateway.functions import Functions, model_id
from inferx.gateway.leader import LeaderLink
from inferx.gateway.metrics import render
from inferx.gateway.objects import STATE
from inferx.gateway.replies import flag, names, number, reply, request_id, segments
from inferx.rpc import client, convert, ixmeta_pb2, ixmeta_pb2_grpc, na_pb2_grpc
from inferx.rpc import na_pb2 as pb

_POD_PARTS = ("tenant", "namespace", "function", "revision", "pod")
SCHEDULER = "scheduler"


class ViewRoutes:
    """`/pods/`, `/pod/`, `/nodes/`, `/node/`, `/podlog/`, `/v1/models`, `/metrics`."""

    def __init__(
        self,
        functions: Functions,
        stats: Any,
        state: grpc.aio.Channel,
        link: LeaderLink,
        access: Access,
        auditor: Auditor,
    ) -> None:
        self._auditor = auditor
        self._functions = functions
        self._access = access
        self._stats = stats
        objects: Any = ixmeta_pb2_grpc.IxMetaServiceStub
        self._state = objects(state)
        self._link = link

    def routes(self) -> list[GuardedRoute]:
        """The routes of this part."""
        route = self._access.route
        return [
            route("/pods/{path:path}", self.pods, ["GET"], "object.list", _pods_place),
            route("/pod/{path:path}", self.pod, ["GET"], "pod.read", _pod_place),
            route("/pod/{path:path}", self.kill, ["DELETE"], "pod.kill", _pod_place),
            route(
                "/object/pod/{path:path}", self.pod_object, ["GET"], "pod.read", _pod_object_place
            ),
            route(
                "/objects/pod/{path:path}", self.pod_objects, ["GET"], "object.list", _objects_place
            ),
            route("/nodes/", self.nodes, ["GET"], "node.read", everywhere),
            route("/nodes", self.nodes, ["GET"], "node.read", everywhere),
            route("/node/{path:path}", self.node, ["GET"], "node.read", everywhere),
            route("/podlog/{path:path}", self.log, ["GET"], "log.read", _log_place),
            route("/v1/models", self.models, ["GET"], "model.list", everywhere),
            route("/v1/models/{path:path}", self.model, ["GET"], "model.list", everywhere),
            route("/metrics", self.metrics, ["GET"], "metrics.read", everywhere),
        ]

    # ---- pods ----

    async def pods(self, request: Request) -> Response:
        """All pods; of a tenant, of a namespace, of a function."""
        return reply(await self._list_pods(request, _pods_named(request)))

    async def pod_objects(self, request: Request) -> Response:
        """The same under the name of any other type of object."""
        found = names(request, "type", "tenant", "namespace")[1:]
        return reply(await self._list_pods(request, found))

    async def _list_pods(self, request: Request, found: list[str]) -> list[dict[str, Any]]:
        tenant, namespace, function = [*found, "", "", ""][:3]
        message = ixmeta_pb2.ListRequestMessage(obj_type="pod", tenant=tenant, namespace=namespace)
        answer = await ask(SCHEDULER, self._link.pods.List, message)
        caller = caller_of(request)
        shown = [
            obj
            for obj in answer.objs
            if visible(caller, "pod", (obj.tenant, obj.namespace, obj.name))
        ]
        pods = [convert.manifest_of(obj) for obj in shown]
        if function:
            pods = [pod for pod in pods if pod["object"]["spec"]["funcname"] == function]
        return pods

    async def pod(self, request: Request) -> Response:
        """One pod: `/pod/{tenant}/{namespace}/[{function}/{revision}/]{pod}/`."""
        return reply(convert.manifest_of(await self._find(*_pod_names(request))))

    async def pod_object(self, request: Request) -> Response:
        """The same under the name of any other type of object."""
        _, tenant, namespace, name = names(request, "type", "tenant", "namespace", "name")
        return reply(convert.manifest_of(await self._find(tenant, namespace, name)))

    async def _find(self, tenant: str, namespace: str, name: str) -> ixmeta_pb2.Obj:
        message = ixmeta_pb2.GetRequestMessage(
            obj_type="pod", tenant=tenant, namespace=namespace, name=name
        )
        answer = await ask(SCHEDULER, self._link.pods.Get, message)
        found: ixmeta_pb2.Obj = answer.obj
        return found

    async def kill(self, request: Request) -> Response:
        """DELETE: ends a pod."""
        tenant, namespace, name = _pod_names(request)
        pod = convert.from_proto(await self._find(tenant, namespace, name))
        spec: Pod = pod.spec
        message = pb.KillPodReq(
            tenant=tenant,
            namespace=namespace,
            funcname=spec.funcname,
            fprevision=spec.fprevision,
            id=name,
        )
        answer = await ask(SCHEDULER, self._link.leases.KillPod, message, 30.0)
        if answer.status == pb.NOT_FOUND:
            raise NotFound(f"{pod.meta} does not exist any more")
        if answer.status == pb.INVALID_STATE:
            raise InvalidState(f"{pod.meta} is {spec.status.state} and cannot be ended now")
        if answer.status != pb.OK:
            raise InferxError(f"{pod.meta} could not be ended; see the scheduler's log")
        self._auditor.changed(request, "delete", codec.dump_manifest(pod), codec.dump_manifest(pod))
        return reply({"pod": name, "status": "terminating"})

    # ---- nodes ----

    async def nodes(self, request: Request) -> Response:
        """All nodes; one that the scheduler has put in quarantine as it sees it."""
        message = ixmeta_pb2.ListRequestMessage(obj_type="node")
        answer = await ask(STATE, self._state.List, message)
        judged = await self._quarantined(message)
        return reply([convert.manifest_of(judged.get(obj.name, obj)) for obj in answer.objs])

    async def _quarantined(
        self, message: ixmeta_pb2.ListRequestMessage
    ) -> dict[str, ixmeta_pb2.Obj]:
        try:
            answer = await ask(SCHEDULER, self._link.pods.List, message, 1.0)
        except InferxError:
            return {}  # nodes can be looked at without a scheduler
        return {obj.name: obj for obj in answer.objs if obj.kind == "node"}

    async def node(self, request: Request) -> Response:
        """One node."""
        (name,) = names(request, "node")
        return reply(convert.manifest_of(await self._node(name)))

    async def _node(self, name: str) -> ixmeta_pb2.Obj:
        message = ixmeta_pb2.GetRequestMessage(
            obj_type="node", tenant=SYSTEM, namespace=SYSTEM, name=name
        )
        answer = await ask(STATE, self._state.Get, message)
        found: ixmeta_pb2.Obj = answer.obj
        return found

    # ---- logs ----

    async def log(self, request: Request) -> Response:
        """`/podlog/{tenant}/{namespace}/{function}/{revision}/{pod}?follow=&tail=`"""
        tenant, namespace, function, revision, name = names(request, *_POD_PARTS)
        pod = convert.from_proto(await self._find(tenant, namespace, name))
        message = pb.ReadPodLogReq(
            tenant=tenant,
            namespace=namespace,
            funcname=function,
            fprevision=number(revision, "revision"),
            id=name,
            tail=number(request.query_params.get("tail", "0"), "tail"),
            follow=flag(request, "follow"),
        )
        _check_pod(pod, function, message.fprevision)
        node: Object[Node] = convert.from_proto(await self._node(pod.spec.node))
        text = _follow(f"{node.spec.address}:{node.spec.podmgr_port}", message)
        # The first piece, which comes at once even from an empty log, decides between an error and
        # a stream; only a stream notices that its reader has left.
        first = await anext(text, "")
        return StreamingResponse(_chain(first, text), media_type="text/plain; charset=utf-8")

    # ---- models and metrics ----

    async def models(self, request: Request) -> Response:
        """The functions as OpenAI's list of models."""
        listed = [_model(function.key) for function in self._callable(request)]
        return reply({"object": "list", "data": sorted(listed, key=lambda model: model["id"])})

    async def model(self, request: Request) -> Response:
        """One model."""
        wanted = "/".join(segments(request)[2:])
        for function in self._callable(request):
            if wanted in (model_id(function.key), "/".join(function.key)):
                return reply({**_model(function.key), "id": wanted})
        message = f"The model `{wanted}` does not exist or you do not have access to it."
        error = {"message": message, "type": "invalid_request_error", "param": "model"}
        told = {"code": "model_not_found", "request_id": request_id(request)}
        return reply({"error": {**error, **told}}, 404)

    def _callable(self, request: Request) -> list[Object[Any]]:
        """The functions that the caller may call and that may be called."""
        caller, found = caller_of(request), []
        for function in self._functions.all():
            definition = self._functions.definition(function.key)
            if definition is None or definition.disabled is not None:
                continue
            place = Place(function.meta.tenant, function.meta.namespace)
            if definition.public or allowed(caller, "function.call", place):
                found.append(function)
        return found

    async def metrics(self, request: Request) -> Response:
        """Prometheus text."""
        self._auditor.meter.settle()
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(render(self._stats()), media_type=kind)


def _model(key: tuple[str, str, str]) -> dict[str, Any]:
    return {"id": model_id(key), "object": "model", "created": 0, "owned_by": key[0]}


def _pod_names(request: Request) -> tuple[str, str, str]:
    """Tenant, namespace and pod, from the short or the long path."""
    short = len(segments(request)) == 4
    parts = ("tenant", "namespace", "pod") if short else _POD_PARTS
    found = names(request, *parts)
    return found[0], found[1], found[-1]


def _pods_named(request: Request) -> list[str]:
    count = min(len([part for part in segments(request)[1:] if part]), 3)
    return names(request, *_POD_PARTS[:count]) if count else []


def _pods_place(request: Request) -> Place:
    return Place(*_pods_named(request)[:2])


def _objects_place(request: Request) -> Place:
    return Place(*names(request, "type", "tenant", "namespace")[1:])


def _pod_place(request: Request) -> Place:
    tenant, namespace, name = _pod_names(request)
    return Place(tenant, namespace, f"pod {tenant}/{namespace}/{name}")


def _pod_object_place(request: Request) -> Place:
    _, tenant, namespace, name = names(request, "type", "tenant", "namespace", "name")
    return Place(tenant, namespace, f"pod {tenant}/{namespace}/{name}")


def _log_place(request: Request) -> Place:
    tenant, namespace, *_, name = names(request, *_POD_PARTS)
    return Place(tenant, namespace, f"the log of pod {tenant}/{namespace}/{name}")


def _check_pod(pod: Object[Pod], function: str, revision: int) -> None:
    if (pod.spec.funcname, pod.spec.fprevision) != (function, revision):
        raise NotFound(
            f"{pod.meta} belongs to function {pod.spec.funcname} at revision "
            f"{pod.spec.fprevision}, not to {function} at {revision}"
        )


async def _follow(address: str, message: pb.ReadPodLogReq) -> AsyncIterator[str]:
    """A pod's log from its node; ends with the log, or when the reader goes away."""
    channel = client.channel(address)
    try:
        stub = na_pb2_grpc.NodeAgentServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.StreamPodLog(message)
        try:
            async for piece in call:
                yield piece.log
        except grpc.aio.AioRpcError as error:
            typed = client.typed(error)
            if isinstance(typed, Unavailable):
                raise Unavailable(f"the node at {address} does not answer") from error
            raise typed from error
        finally:
            call.cancel()
    finally:
        await channel.close(None)


async def _chain(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        yield first  # even if it is empty: the answer begins with it
        async for piece in rest:
            yield piece
    finally:
        await rest.aclose()  # type: ignore[attr-defined]
