"""Requests and answers of the control routes: strict paths in, JSON and JSON errors out.

Must never show the text of an unexpected error to a client.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from inferx import telemetry
from inferx.domain.meta import check_name
from inferx.errors import BadRequest, BodyTooLarge, InferxError, NotFound

BODY_BYTES_MAX = 1 << 20
_log = logging.getLogger(__name__)


def reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` as JSON."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Response(text, status, headers, "application/json")


def segments(request: Request) -> list[str]:
    """The path's segments, decoded one by one, so that an encoded slash stays inside its name."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    parts = raw.split(b"?", 1)[0].strip(b"/").split(b"/")
    try:
        return [unquote_to_bytes(part).decode() for part in parts]
    except UnicodeDecodeError as error:
        raise BadRequest("the path is not UTF-8") from error


def names(request: Request, *expected: str) -> list[str]:
    """The names after the path's first segment, checked; `NotFound` for another number of them."""
    found = segments(request)[1:]
    if len(found) != len(expected):
        shape = "/".join(f"{{{name}}}" for name in expected)
        raise NotFound(f"there is nothing at {request.url.path}: expected .../{shape}/")
    return [check_name(value, name) for value, name in zip(found, expected, strict=True)]


def number(text: str, what: str) -> int:
    """A non-negative integer of the path or the query."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest(f"{what}: expected a number, got {text!r}")
    return int(text)


def flag(request: Request, name: str) -> bool:
    """A yes/no parameter of the query."""
    value = request.query_params.get(name, "false").lower()
    if value not in ("true", "false", "1", "0", "yes", "no", ""):
        raise BadRequest(f"{name}: expected true or false, got {value!r}")
    return value in ("true", "1", "yes", "")


async def body(request: Request) -> bytes:
    """The request's body, up to 1 MiB."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise BodyTooLarge(f"the request body is over the limit of {BODY_BYTES_MAX} bytes")
        parts.append(part)
    return b"".join(parts)


def request_id(request: Request) -> str:
    """The id that the data plane gave this request."""
    return request.headers.get("x-request-id", "")


def error_reply(request: Request, error: InferxError) -> Response:
    """The one place where an error of the control routes becomes a response."""
    content = {**error.to_dict(), "request_id": request_id(request)}
    headers = {}
    if error.retry_after_ms is not None:
        headers["Retry-After"] = str(max(1, -(-error.retry_after_ms // 1000)))
    return reply({"error": content}, error.http_status, headers)


class RequestIds:
    """Binds the request's id, so that it is in every log line and goes along to other services."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        found = dict(scope.get("headers") or ()).get(b"x-request-id", b"")
        with telemetry.bind(request_id=found.decode("latin-1")):
            await self._app(scope, receive, send)


async def on_inferx_error(request: Request, error: Exception) -> Response:
    """Renders an `InferxError`."""
    if not isinstance(error, InferxError):
        raise error
    if error.http_status >= 500:
        _log.warning("%s %s: %s", request.method, request.url.path, error)
    return error_reply(request, error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Renders what the router raises: unknown paths and methods."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 404 and not request.scope["path"].isprintable():
        # The router does not match across a line break.
        return error_reply(request, BadRequest("the path has a control character in a name"))
    if error.status_code == 404:
        return error_reply(request, NotFound(f"there is nothing at {request.url.path}"))
    code = "method_not_allowed" if error.status_code == 405 else "bad_request"
    content = {"code": code, "message": error.detail, "request_id": request_id(request)}
    return reply({"error": content}, error.status_code, error.headers)


async def on_unexpected(request: Request, error: Exception) -> Response:
    """Renders a bug: logged with its traceback, named `internal` to the client."""
    _log.error("%s %s", request.method, request.url.path, exc_info=error)
    return error_reply(request, InferxError("internal error; see the gateway's log"))
