"""Logs carry request ids and no secrets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest

from inferx import telemetry

SECRETS = [
    "connecting to postgresql://audit:hunter2@db:5432/x",
    "config password=hunter2 done",
    'body {"api_key": "hunter2"}',
    "header Authorization: Bearer hunter2",
    "INFERX_ADMIN_APIKEY=hunter2",
]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_no_secret_reaches_the_log(stream: io.StringIO, fmt: str) -> None:
    telemetry.setup_logging("gateway", fmt, "debug", stream)
    log = logging.getLogger("x")
    for secret in SECRETS:
        log.info(secret)
    log.info("field", extra={"admin_token": "hunter2", "url": "http://a:hunter2@b"})
    log.info("counted", extra={"tokens": 178, "pod": ""})
    try:
        raise ValueError("token: secret=hunter2")
    except ValueError:
        log.exception("failed")
    assert stream.getvalue().count("***") >= len(SECRETS)
    assert "hunter2" not in stream.getvalue()
    assert "178" in stream.getvalue(), "a count is no secret"
    assert "pod" not in stream.getvalue(), "nothing is said by an empty field"


async def test_json_lines_carry_the_fields_of_their_task(stream: io.StringIO) -> None:
    telemetry.setup_logging("gateway", "json", "info", stream)
    log = logging.getLogger("inferx.test")

    async def handle(request_id: str) -> None:
        with telemetry.bind(request_id=request_id):
            await asyncio.sleep(0)
            log.info("served %s", request_id, extra={"slots": 3})

    await asyncio.gather(handle("a"), handle("b"))
    log.debug("not shown")
    log.info("outside")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("request_id") for line in lines] == ["a", "b", None]
    first = lines[0]
    assert first["message"] == "served a"
    assert (first["level"], first["service"], first["slots"]) == ("info", "gateway", 3)
    assert first["time"].endswith("Z")


def test_text_lines_are_for_people(stream: io.StringIO) -> None:
    telemetry.setup_logging("scheduler", "text", "warning", stream)
    with telemetry.bind(request_id="r1"):
        logging.getLogger("x").warning("slow")
    assert stream.getvalue().endswith("WARNING scheduler: slow request_id=r1\n")


def test_metrics_have_our_name() -> None:
    calls = telemetry.counter("telemetry_test_calls", "Calls of this test.", ["kind"])
    calls.labels("warm").inc()
    assert b'inferx_telemetry_test_calls_total{kind="warm"} 1.0' in telemetry.metrics_text()
