"""Serving gRPC: one wrapper turns every `InferxError` into a status, details and `resp.error`.

Must never let an unexpected exception's text reach a client; it is logged and named `internal`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool, message_factory

from inferx import telemetry
from inferx.errors import InferxError, NotSupported, Unavailable
from inferx.rpc import rights, tls

ERROR_METADATA = "inferx-error"
WARNINGS_METADATA = "inferx-warnings"
REQUEST_ID_METADATA = "x-request-id"
PEER_METADATA = "inferx-peer-name"
"""Who calls, as the server in front of this one has proven it: one entry a common name."""
MESSAGE_BYTES_MAX = 64 << 20
METADATA_BYTES_MAX = 64 << 10
MESSAGE_CHARS_MAX = 16 << 10

Registration = Callable[[grpc.aio.Server], None]
NamesOf = Callable[[Any], list[str]]
_log = logging.getLogger(__name__)


class _Errors(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps every handler, once, so that servicers simply raise; `names_of` says who calls."""

    def __init__(self, names_of: NamesOf) -> None:
        self._names_of = names_of
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        method = str(details.method)
        known = self._wrapped.get(method)
        if known is not None:
            return known  # type: ignore[no-any-return]
        handler: Any = await continuation(details)
        if handler is None or handler.request_streaming:
            return handler  # type: ignore[no-any-return]
        if handler.response_streaming:
            wrapped = grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream, method, self._names_of),
                handler.request_deserializer,
                handler.response_serializer,
            )
        else:
            wrapped = grpc.unary_unary_rpc_method_handler(
                _unary(handler, method, self._names_of),
                handler.request_deserializer,
                handler.response_serializer,
            )
        self._wrapped[method] = wrapped
        return wrapped


def _names_in_certificate(context: Any) -> list[str]:
    return [name.decode() for name in context.auth_context().get("x509_common_name", [])]


def _names_from_front(context: Any) -> list[str]:
    metadata = context.invocation_metadata() or ()
    return [str(value) for name, value in metadata if name == PEER_METADATA]


def _check_peer(method: str, request: Any, context: Any, names_of: NamesOf) -> None:
    """With certificates in use, a method is served to whom it is meant for."""
    if tls.in_use():
        rights.check(method, request, names_of(context))


def _request_id(context: Any) -> dict[str, str]:
    """The caller's request id, to be in every log line of this call."""
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID_METADATA:
            return {"request_id": str(value)[:128]}
    return {}


def _response_type(method: str) -> Any:
    """The message class that `method` answers with, None when it has no `error` field."""
    try:
        found = descriptor_pool.Default().FindMethodByName(method.strip("/").replace("/", "."))
    except KeyError:
        return None
    if "error" not in found.output_type.fields_by_name:
        return None
    return message_factory.GetMessageClass(found.output_type)


def _unary(handler: Any, method: str, names_of: NamesOf) -> Callable[..., Awaitable[Any]]:
    behaviour = handler.unary_unary
    response_type = _response_type(method)

    async def call(request: Any, context: Any) -> Any:
        with telemetry.bind(**_request_id(context)):
            try:
                _check_peer(method, request, context, names_of)
                return await behaviour(request, context)
            except Exception as error:
                typed = _typed(error, method)
        if response_type is None:
            return await _abort(context, typed)
        # Status and message both travel: older clients read only the message's `error`.
        code, text, metadata = _rendered(typed)
        context.set_code(code)
        context.set_details(text)
        context.set_trailing_metadata(metadata)
        return response_type(error=text)

    return call


def _stream(
    behaviour: Callable[..., AsyncIterator[Any]], method: str, names_of: NamesOf
) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        messages = behaviour(request, context)
        try:
            _check_peer(method, request, context, names_of)
            async for message in messages:
                yield message
        except Exception as error:
            await _abort(context, _typed(error, method))
        finally:
            if inspect.isasyncgen(messages):
                await messages.aclose()

    return call


def _typed(error: Exception, method: str) -> InferxError:
    if isinstance(error, InferxError):
        return error
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, NotImplementedError):
        return NotSupported(f"{method} is not served here")
    _log.error("unexpected error in %s", method, exc_info=error)
    return InferxError(f"internal error in {method.rsplit('/', 1)[-1]}; see the service's log")


def _rendered(error: InferxError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Status, details and trailing metadata; cut so that they fit what peers accept as headers."""
    body = error.to_dict()
    body["message"] = error.message[:MESSAGE_CHARS_MAX]
    text = json.dumps(body, default=str)
    if len(text) > METADATA_BYTES_MAX // 2:  # rare: much non-ASCII text, or large details
        body = {"code": error.code, "message": error.message[:1000]}
        text = json.dumps(body)
    return (
        grpc.StatusCode[error.grpc_code],
        error.message[:1000],
        ((ERROR_METADATA, text),),
    )


async def _abort(context: Any, error: InferxError) -> None:
    code, text, metadata = _rendered(error)
    await context.abort(code, text, trailing_metadata=metadata)


class Server:
    """A listening gRPC server; `port` is the one in use (for address `host:0`)."""

    def __init__(self, server: grpc.aio.Server, port: int) -> None:
        self._server = server
        self.port = port

    async def stop(self, grace_s: float = 2.0) -> None:
        """Refuse new calls, let running ones end for `grace_s` seconds, then cancel them."""
        await self._server.stop(grace_s)

    async def wait(self) -> None:
        """Wait until the server has stopped."""
        await self._server.wait_for_termination()


async def serve(addr: str, registrations: Iterable[Registration]) -> Server:
    """Listen on `addr` (host:port) with the given servicers.

    A registration is a function of the server, such as
    `lambda server: add_IxMetaServiceServicer_to_server(servicer, server)`.
    Raises `Unavailable` naming the address when it is taken.
    """
    taken = f"cannot listen on {addr}: is it in use, or not an address of this machine?"
    server = _new(_names_in_certificate, registrations)
    try:
        credentials = tls.server_credentials()
        if credentials is None:
            port = server.add_insecure_port(addr)
        else:
            port = server.add_secure_port(addr, credentials)
    except RuntimeError as error:
        raise Unavailable(
            f"cannot listen on {addr}: is it in use, or another machine's?"
        ) from error
    if port == 0:
        raise Unavailable(taken)
    await server.start()
    return Server(server, port)


async def serve_behind(path: Path, registrations: Iterable[Registration]) -> Server:
    """Listen on a Unix socket for calls of `SchedulerServer`, which names its callers.

    Whoever can open the socket can claim to be anybody: `path` must lie in a folder of our own.
    """
    server = _new(_names_from_front, registrations)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {path}") from error
    await server.start()
    return Server(server, 0)


def _new(names_of: NamesOf, registrations: Iterable[Registration]) -> grpc.aio.Server:
    server = grpc.aio.server(
        interceptors=[_Errors(names_of)],
        options=[
            ("grpc.so_reuseport", 0),  # two servers on one port must be an error, not a lottery
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_metadata_size", METADATA_BYTES_MAX),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 2_000),
            ("grpc.http2.max_ping_strikes", 0),
        ],
    )
    for register in registrations:
        register(server)
    return server


def set_warnings(context: Any, warnings: list[str]) -> None:
    """Send `warnings` with the response, as many as fit into its trailing metadata."""
    kept: list[str] = []
    for warning in warnings[:50]:
        kept.append(warning[:300])
    if kept:
        context.set_trailing_metadata(((WARNINGS_METADATA, json.dumps(kept)),))


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set, for the main coroutine of a service."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
