"""A thin client of etcd's v3 API: endpoints, TLS, authentication, typed errors.

Must never repeat a write by itself; after a broken connection its outcome is unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from inferx.config import EtcdConfig
from inferx.errors import (
    BadRequest,
    Compacted,
    ConfigError,
    Forbidden,
    InferxError,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from inferx.store import etcd_pb2, etcd_pb2_grpc

EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009 (the stubs do not know it)
CALL_TIMEOUT_S = 5.0
_WATCH_SILENCE_S = 30.0
_WATCH_PROGRESS_S = 10.0
_PAGE = 500


class _Endpoint:
    """One member of the cluster."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.kv = etcd_pb2_grpc.KVStub(channel)  # type: ignore[no-untyped-call]
        self.watch = etcd_pb2_grpc.WatchStub(channel)  # type: ignore[no-untyped-call]
        self.lease = etcd_pb2_grpc.LeaseStub(channel)  # type: ignore[no-untyped-call]
        self.auth = etcd_pb2_grpc.AuthStub(channel)  # type: ignore[no-untyped-call]


class EtcdClient:
    """Calls go to one endpoint until it fails, then to the next."""

    def __init__(self, addresses: Sequence[str], config: EtcdConfig) -> None:
        self._config = config
        credentials = _credentials(addresses, config)
        self._endpoints = [
            _Endpoint(address, _channel(address, credentials)) for address in addresses
        ]
        self._current = 0
        self._token = ""
        self.closed = False

    async def close(self) -> None:
        """Close all connections."""
        self.closed = True
        await asyncio.gather(*(endpoint.channel.close(None) for endpoint in self._endpoints))

    @property
    def endpoint(self) -> _Endpoint:
        """The endpoint in use."""
        return self._endpoints[self._current]

    def next_endpoint(self, failed: _Endpoint) -> None:
        """Go on with another endpoint, unless somebody has done so already."""
        if self.endpoint is failed:
            self._current = (self._current + 1) % len(self._endpoints)

    async def metadata(self) -> tuple[tuple[str, str], ...]:
        """What authenticates a call; logs in when that has not happened yet."""
        if not self._config.username:
            return ()
        if not self._token:
            request = etcd_pb2.AuthenticateRequest(
                name=self._config.username, password=self._config.password.reveal()
            )
            endpoint = self.endpoint
            try:
                answer = await endpoint.auth.Authenticate(request, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    self.next_endpoint(endpoint)
                raise translated(error, endpoint.address) from error
            self._token = answer.token
        return (("token", self._token),)

    def forget_token(self) -> None:
        """Log in again with the next call."""
        self._token = ""

    async def read(
        self, call: Callable[[_Endpoint], Callable[..., Awaitable[Any]]], request: Any
    ) -> Any:
        """A call that changes nothing: tried once at each endpoint."""
        problem: InferxError = Unavailable("etcd: no endpoints")
        for _ in self._endpoints:
            try:
                return await self.once(call, request)
            except Unavailable as error:
                problem = error
        raise problem

    async def once(
        self, call: Callable[[_Endpoint], Callable[..., Awaitable[Any]]], request: Any
    ) -> Any:
        """A call that is sent once; an expired token is renewed, as it was refused unexecuted."""
        if self.closed:
            raise Unavailable("the store is closed")
        for attempt in (1, 2):
            metadata = await self.metadata()
            endpoint = self.endpoint
            try:
                return await call(endpoint)(request, timeout=CALL_TIMEOUT_S, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                expired = _is_expired_token(error)
                if expired:
                    self.forget_token()
                    if attempt == 1:
                        continue
                if error.code() in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                ):
                    self.next_endpoint(endpoint)
                raise translated(error, endpoint.address) from error
        raise AssertionError("unreachable")

    async def pages(
        self, key: bytes, range_end: bytes, revision: int
    ) -> tuple[list[etcd_pb2.KeyValue], int]:
        """All keys of a range as of one revision, read page by page, and that revision."""
        found: list[etcd_pb2.KeyValue] = []
        while True:
            request = etcd_pb2.RangeRequest(
                key=key, range_end=range_end, limit=_PAGE, revision=revision
            )
            answer = await self.read(lambda e: e.kv.Range, request)
            revision = revision or answer.header.revision
            found.extend(answer.kvs)
            if not answer.more:
                return found, revision
            key = found[-1].key + b"\0"

    def failed(self, endpoint: _Endpoint, error: grpc.aio.AioRpcError) -> InferxError:
        """What to raise for a stream that broke; the next one goes elsewhere."""
        self.next_endpoint(endpoint)
        if _is_expired_token(error):
            self.forget_token()
        return translated(error, endpoint.address)

    async def watch_once(
        self, key: bytes, range_end: bytes, start_revision: int
    ) -> AsyncIterator[etcd_pb2.WatchResponse]:
        """Answers of one watch stream; ends when the stream is silent, raises when it breaks."""
        metadata = await self.metadata()
        endpoint = self.endpoint
        call = endpoint.watch.Watch(metadata=metadata)
        create = etcd_pb2.WatchCreateRequest(
            key=key,
            range_end=range_end,
            start_revision=start_revision,
            progress_notify=True,
            prev_kv=True,
            fragment=True,
        )
        asking: asyncio.Task[None] | None = None
        try:
            # A channel that is closed before the call has begun leaves the writer waiting for ever.
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await call.write(etcd_pb2.WatchRequest(create_request=create))
            asking = asyncio.create_task(_ask_for_progress(call))
            while True:
                async with asyncio.timeout(_WATCH_SILENCE_S):
                    answer = await call.read()
                if answer is EOF:
                    return
                yield answer
        except TimeoutError:
            self.next_endpoint(endpoint)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.closed and (task is None or not task.cancelling()):
                raise Unavailable("the store is closed") from None  # close() cancelled the call
            raise
        except grpc.aio.AioRpcError as error:
            raise self.failed(endpoint, error) from error
        except asyncio.InvalidStateError as error:
            self.next_endpoint(endpoint)
            raise Unavailable(f"etcd {endpoint.address} closed the stream") from error
        finally:
            if asking is not None:
                asking.cancel()
            call.cancel()


async def _ask_for_progress(call: Any) -> None:
    """Make a healthy but idle stream say so, well before its silence would count as broken."""
    request = etcd_pb2.WatchRequest(progress_request=etcd_pb2.WatchProgressRequest())
    while not call.done():
        await asyncio.sleep(_WATCH_PROGRESS_S)
        try:
            await call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the reader of the stream learns of it and acts


def _credentials(addresses: Sequence[str], config: EtcdConfig) -> grpc.ChannelCredentials | None:
    if not (config.ca or config.cert or any(one.startswith("https://") for one in addresses)):
        return None

    def content(entry: str, path: str) -> bytes | None:
        if not path:
            return None
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"etcdconfig.{entry}: {path}: {error.strerror}") from error

    return grpc.ssl_channel_credentials(
        content("ca", config.ca), content("key", config.key), content("cert", config.cert)
    )


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    target = address.removeprefix("https://").removeprefix("http://").rstrip("/")
    options = [
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        # A process that is frozen answers on TCP and not to pings; this is what notices it.
        ("grpc.http2.ping_timeout_ms", 3_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 3_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.max_receive_message_length", 64 << 20),
        ("grpc.enable_http_proxy", 0),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)


def _is_expired_token(error: grpc.aio.AioRpcError) -> bool:
    text = error.details() or ""
    return error.code() is grpc.StatusCode.UNAUTHENTICATED or "invalid auth token" in text


def translated(error: grpc.aio.AioRpcError, address: str) -> InferxError:
    """etcd's error as ours."""
    code, text = error.code(), error.details() or error.code().name
    message = f"etcd {address}: {text}"
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in text:
        return Compacted(message)
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFound(message)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        if "authentication" in text:
            return Unauthenticated(message)
        return BadRequest(message)
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return Forbidden(message)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return Unauthenticated(message)
    return Unavailable(message)
