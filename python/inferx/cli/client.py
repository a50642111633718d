"""How the command line talks to the gateway: which one, and what its errors mean.

Must never print anything; it raises `InferxError`.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from inferx import config
from inferx.cli import session
from inferx.errors import (
    BadRequest,
    ConfigError,
    InferxError,
    Unauthenticated,
    Unavailable,
    from_code,
)

DEFAULT_SERVER = "http://127.0.0.1:4000"
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0


def find_server(given: str | None, folder: Path) -> tuple[str, str]:
    """The gateway's URL and where it was found.

    In this order: `given`, INFERX_SERVER, `.inferx/up.json` in `folder` or one above, the default.
    """
    if given:
        return _checked(given, "--server"), "--server"
    from_environment = config.environment().get("INFERX_SERVER")
    if from_environment:
        return _checked(from_environment, "INFERX_SERVER"), "INFERX_SERVER"
    state = running_here(folder)
    if state is not None:
        try:
            return str(json.loads(state.read_text())["url"]), str(state)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{state}: not readable as written by `inferx up`") from error
    return DEFAULT_SERVER, "the default"


def running_here(folder: Path) -> Path | None:
    """up.json of the `inferx up` that runs in `folder` or one above."""
    states = (parent / ".inferx" / "up.json" for parent in (folder, *folder.parents))
    return next((state for state in states if state.is_file()), None)


def _checked(url: str, origin: str) -> str:
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"{origin}: {url!r} is not a URL like http://127.0.0.1:4000")
    return url.rstrip("/")


def path(*segments: str) -> str:
    """`/a/b/` with each segment quoted, so that a strange name cannot change the route."""
    return "/" + "".join(quote(segment, safe="") + "/" for segment in segments)


class _Credential(httpx.Auth):
    """The API key of the environment, or the login at this gateway; found when first needed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._found: str | None = None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        """Put the credential into a request unless it is one that needs none."""
        if request.url.path != "/login":
            if self._found is None:
                key = config.environment().get("INFERX_API_KEY")
                self._found = key or session.token(self._url) or ""
            if self._found:
                request.headers["Authorization"] = f"Bearer {self._found}"
        yield request


class Gateway:
    """A connection to one gateway."""

    def __init__(self, url: str, origin: str) -> None:
        self.url = url
        self._origin = origin
        self._http = httpx.Client(
            base_url=url,
            auth=_Credential(url),
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            # A proxy of the environment cannot reach this machine's own loopback address.
            trust_env=urlsplit(url).hostname not in LOOPBACK_NAMES,
        )

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def json(self, method: str, route: str, body: Any = None) -> Any:
        """The answer's JSON; raises the error that the gateway answered."""
        with self.errors():
            answer = self._http.request(method, route, json=body)
        if answer.is_error:
            raise error_of(answer)
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError as error:
            raise Unavailable(f"{self.url} did not answer with JSON; is it InferX?") from error

    @contextmanager
    def stream(
        self,
        method: str,
        route: str,
        *,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        read_seconds: float | None = None,
    ) -> Iterator[httpx.Response]:
        """An answer whose body is read as it arrives, whatever its status."""
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, read=read_seconds)
        with (
            self.errors(),
            self._http.stream(
                method, route, content=content, headers=headers, timeout=timeout
            ) as answer,
        ):
            yield answer

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns the errors of the connection into `Unavailable` that says what to do."""
        try:
            yield
        except httpx.ConnectError as error:
            raise Unavailable(
                f"no InferX answers at {self.url} ({self._origin}); "
                "start one with `inferx up`, or name one with --server"
            ) from error
        except httpx.InvalidURL as error:
            raise BadRequest(f"{error}") from error
        except httpx.TimeoutException as error:
            raise Unavailable(f"{self.url} did not answer in time") from error
        except httpx.TransportError as error:
            raise Unavailable(f"the connection to {self.url} broke: {error}") from error


def error_of(answer: httpx.Response) -> InferxError:
    """The error that an answer carries, of its own class when the code is known.

    The code is part of the message: it tells the platform's errors from those found here.
    """
    try:
        body = answer.json()["error"]
        code, message = str(body["code"]), str(body["message"])
    except (ValueError, KeyError, TypeError):
        return InferxError(f"HTTP {answer.status_code}: {answer.text[:500] or 'no body'}")
    kind = from_code(code)
    if kind is Unauthenticated:
        message += "; set INFERX_API_KEY, or run `inferx login`"
    return kind(f"{message} ({code})", retry_after_ms=body.get("retry_after_ms"))
