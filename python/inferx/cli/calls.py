"""call and logs: bytes from a function to the terminal as they arrive.

Must never collect an answer before printing it, nor change it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx

from inferx.cli import EXIT_ERROR
from inferx.cli.client import Gateway, error_of, path
from inferx.cli.options import Scope, function_key, scope_options, server_option
from inferx.errors import BadRequest, NotFound


def _headers(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> Any:
    found = {}
    for value in values:
        name, colon, content = value.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter(f"{value!r} is not like 'Name: value'")
        found[name.strip()] = content.strip()
    return found


def _body(data: str | None) -> bytes | None:
    if data is None:
        return None
    if data == "@-":
        return sys.stdin.buffer.read()
    if data.startswith("@"):
        try:
            return Path(data[1:]).read_bytes()
        except OSError as error:
            raise BadRequest(f"--data: {data[1:]}: {error.strerror}") from error
    return data.encode()


@click.command()
@click.argument("function")
@click.option("-p", "--path", "subpath", metavar="PATH", help="The worker's path, with its query.")
@click.option("-d", "--data", help="The body; @FILE reads a file, @- standard input.")
@click.option("-X", "--method", help="The HTTP method [default: POST with a body, else GET].")
@click.option("-H", "--header", "headers", multiple=True, callback=_headers, help="'Name: value'.")
@click.option("--stream", is_flag=True, help="Ask for progress while a cold worker starts (SSE).")
@click.option("--timeout", type=click.FloatRange(min=0.001), help="Seconds to wait for a worker.")
@click.option("-v", "--verbose", is_flag=True, help="Status, start, pod and times on stderr.")
@scope_options
@server_option
def call(
    function: str,
    subpath: str | None,
    data: str | None,
    method: str | None,
    headers: dict[str, str],
    stream: bool,
    timeout: float | None,
    verbose: bool,
    tenant: str,
    namespace: str | None,
    gateway: Gateway,
) -> None:
    """Call a FUNCTION and print its answer as it arrives.

    FUNCTION is NAME, NAMESPACE/NAME or TENANT/NAMESPACE/NAME. Without --path the path of the
    function's sample query is called. Exit code 1 when the answer's status is 400 or more.

    \b
    inferx call demo/minilm --path v1/embeddings --data '{"input": "a cat sits"}'
    """
    key = function_key(function, Scope(tenant, namespace))
    body = _body(data)
    if subpath is None:
        subpath = _sample_path(gateway, key)
    sent = {"Content-Type": "application/json"} if body is not None else {}
    sent |= {"X-Inferx-Timeout": str(timeout)} if timeout else {}
    sent |= {"X-Inferx-Progress": "sse"} if stream else {}
    sent |= headers
    route = path("funccall", *key) + quote(subpath.lstrip("/"), safe="/?=&%+:@,;!~*'()$")
    started = time.monotonic()
    with gateway.stream(
        method or ("POST" if body is not None else "GET"), route, content=body, headers=sent
    ) as answer:
        if verbose:
            _summary(answer, time.monotonic() - started)
        _copy(answer)
        failed = answer.is_error
    if verbose:
        click.echo(f"done after {time.monotonic() - started:.3f} s", err=True)
    if failed:
        raise click.exceptions.Exit(EXIT_ERROR)


def _sample_path(gateway: Gateway, key: tuple[str, str, str]) -> str:
    document = gateway.json("GET", path("object", "function", *key))
    sample = document["object"].get("spec", {}).get("sample_query") or {}
    return str(sample.get("path") or "")


def _summary(answer: httpx.Response, seconds: float) -> None:
    start = answer.headers.get("x-inferx-start", "-")
    pod = answer.headers.get("x-inferx-pod", "-")
    click.echo(
        f"{answer.status_code} {answer.reason_phrase}  start {start}  pod {pod}  "
        f"headers after {seconds:.3f} s",
        err=True,
    )


def _copy(answer: httpx.Response) -> None:
    out = sys.stdout.buffer
    last = b""
    for chunk in (
        answer.iter_raw() if "content-encoding" not in answer.headers else (answer.iter_bytes())
    ):
        out.write(chunk)
        out.flush()
        last = chunk or last
    if sys.stdout.isatty() and last[-1:] != b"\n":
        click.echo()


@click.command()
@click.argument("function")
@click.option("-f", "--follow", is_flag=True, help="Keep printing what is written from now on.")
@click.option("--tail", type=click.IntRange(min=0), help="Only the last N lines.")
@click.option("--pod", help="The worker's id; without it the newest worker.")
@scope_options
@server_option
def logs(
    function: str,
    follow: bool,
    tail: int | None,
    pod: str | None,
    tenant: str,
    namespace: str | None,
    gateway: Gateway,
) -> None:
    """Print the log of a FUNCTION's worker: of the newest one, or of --pod."""
    key = function_key(function, Scope(tenant, namespace))
    chosen = _choose(gateway, key, pod)
    revision = str(chosen["object"]["spec"]["fprevision"])
    query = [f"follow={'true' if follow else 'false'}"]
    query += [f"tail={tail}"] if tail is not None else []
    route = path("podlog", *key, revision, chosen["name"]).rstrip("/") + "?" + "&".join(query)
    with gateway.stream("GET", route, read_seconds=None if follow else 60.0) as answer:
        if answer.is_error:
            answer.read()
            raise error_of(answer)
        _copy(answer)


def _choose(gateway: Gateway, key: tuple[str, str, str], pod: str | None) -> dict[str, Any]:
    pods: list[dict[str, Any]] = gateway.json("GET", path("pods", *key))
    if pod is not None:
        pods = [each for each in pods if each["name"] == pod]
    if not pods:
        gateway.json("GET", path("object", "function", *key))  # says so when there is no such one
        what = f"pod {pod}" if pod else "worker"
        raise NotFound(f"function {'/'.join(key)} has no {what}; workers start when it is called")
    return max(pods, key=lambda each: each["object"]["status"].get("since_ms", 0))
