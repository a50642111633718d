"""Asking the other services on behalf of a control route.

Must never send a request twice: it waits for a connection, and then asks once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from inferx.errors import Unavailable
from inferx.rpc import client

PATIENCE_S = 5.0
"""How long a service may be away, being restarted, before a route says so."""


async def ask(service: str, method: Any, request: Any, timeout_s: float = PATIENCE_S) -> Any:
    """The answer of a unary stub method; `Unavailable` names the service."""
    try:
        return await client.call(partial(method, wait_for_ready=True), request, timeout_s)
    except Unavailable as error:
        raise _named(service, error) from error


async def write(service: str, method: Any, request: Any) -> tuple[Any, list[str]]:
    """Like `ask`, for a write, with the warnings about the written object."""
    try:
        return await client.write(partial(method, wait_for_ready=True), request, PATIENCE_S)
    except Unavailable as error:
        raise _named(service, error) from error


def _named(service: str, error: Unavailable) -> Unavailable:
    after_ms = error.retry_after_ms or 1000
    return Unavailable(f"the {service} does not answer: {error.message}", retry_after_ms=after_ms)
