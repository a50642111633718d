"""Calling gRPC services: channels with keepalive, and errors that come back as they were raised.

Must never retry by itself; only the caller knows whether a call may be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio
import orjson

from inferx import telemetry
from inferx.errors import (
    AlreadyExists,
    BadRequest,
    Compacted,
    Conflict,
    Forbidden,
    InferxError,
    InvalidState,
    NoCapacity,
    NotFound,
    NotSupported,
    QueueTimeout,
    Unauthenticated,
    Unavailable,
    from_code,
)
from inferx.rpc import tls
from inferx.rpc.server import (
    ERROR_METADATA,
    MESSAGE_BYTES_MAX,
    METADATA_BYTES_MAX,
    REQUEST_ID_METADATA,
    WARNINGS_METADATA,
)

_ResponseT = TypeVar("_ResponseT")

_BY_STATUS: dict[grpc.StatusCode, type[InferxError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.OUT_OF_RANGE: Compacted,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: NoCapacity,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidState,
    grpc.StatusCode.DEADLINE_EXCEEDED: QueueTimeout,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNIMPLEMENTED: NotSupported,
}


PING_EVERY_S = 2.0
PING_ANSWERED_S = 1.5
SILENCE_S = PING_EVERY_S + PING_ANSWERED_S  # a peer that says nothing is given up after so long


def channel(addr: str | Sequence[str], idle_pings: bool = True) -> grpc.aio.Channel:
    """A channel to host:port that notices a dead peer within seconds and reconnects quickly.

    With several addresses (IPv4; `read_config` sees to it) it goes to one that answers. Without
    `idle_pings` a dead peer is noticed during calls only: for the second channel to one machine.
    """
    addrs = [addr] if isinstance(addr, str) else list(addr)
    addrs = [one.removeprefix("http://") for one in addrs]
    target = addrs[0] if len(addrs) == 1 else f"ipv4:{','.join(addrs)}"
    options: list[tuple[str, Any]] = [
        ("grpc.keepalive_time_ms", int(PING_EVERY_S * 1000)),
        ("grpc.keepalive_timeout_ms", int(PING_ANSWERED_S * 1000)),
        # A process that is frozen answers on TCP and not to pings; this is what notices it.
        ("grpc.http2.ping_timeout_ms", int(PING_ANSWERED_S * 1000)),
        ("grpc.keepalive_permit_without_calls", int(idle_pings)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 3_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    credentials = tls.channel_credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    options.append(("grpc.ssl_target_name_override", tls.SERVER_NAME))
    return grpc.aio.secure_channel(target, credentials, options=options)


async def call(
    method: Any,
    request: Any,
    timeout_s: float | None = 10.0,
    metadata: Sequence[tuple[str, str]] = (),
) -> Any:
    """The response of a unary stub method, or the `InferxError` that the server raised.

    The `request_id` bound in `telemetry` travels along. A peer that cannot be reached gives
    `Unavailable`. With `timeout_s` over, the error is `QueueTimeout` when the server says so and
    `Unavailable` when it does not answer at all.
    """
    try:
        response = await method(request, timeout=timeout_s, metadata=_with_request_id(metadata))
    except grpc.aio.AioRpcError as error:
        raise typed(error) from error
    text = getattr(response, "error", "")
    if text:  # an older server answers with a status of OK and this text only
        raise InferxError(text)
    return response


async def write(method: Any, request: Any, timeout_s: float | None = 10.0) -> tuple[Any, list[str]]:
    """Like `call`, with the warnings of the state service about the written object."""
    pending = method(request, timeout=timeout_s, metadata=_with_request_id(()))
    try:
        response = await pending
        metadata = await pending.trailing_metadata()
    except grpc.aio.AioRpcError as error:
        raise typed(error) from error
    for name, value in metadata or ():
        if name == WARNINGS_METADATA:
            return response, [str(item) for item in orjson.loads(value)]
    return response, []


def _with_request_id(metadata: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """`metadata`, and the request id in force so that the server's logs have it too."""
    request_id = telemetry.bound().get("request_id", "")
    if not request_id or not request_id.isascii() or not request_id.isprintable():
        return tuple(metadata)
    return (*metadata, (REQUEST_ID_METADATA, request_id[:128]))


def fell_silent(error: grpc.aio.AioRpcError) -> bool:
    """Whether the connection was given up because the peer answered no ping, and was not closed by
    it. The library says so in words only."""
    text = (error.details() or "").lower()
    return error.code() is grpc.StatusCode.UNAVAILABLE and ("keepalive" in text or "ping" in text)


def typed(error: grpc.aio.AioRpcError) -> InferxError:
    """The error that a server raised, rebuilt from what came with the status."""
    body = _attached(error.trailing_metadata())
    if body is not None:
        return from_code(str(body.get("code")))(
            str(body.get("message", "")),
            retry_after_ms=body.get("retry_after_ms"),
            details=body.get("details"),
        )
    status, text = error.code(), error.details() or error.code().name
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unavailable(f"no answer in time: {text}")
    return _BY_STATUS.get(status, InferxError)(text)


def _attached(metadata: Iterable[Any] | None) -> dict[str, Any] | None:
    for name, value in metadata or ():
        if name == ERROR_METADATA:
            try:
                body = orjson.loads(value)
            except orjson.JSONDecodeError:
                return None
            return body if isinstance(body, dict) else None
    return None
