"""Logs with request ids, as JSON lines or as text, and the registry of metrics.

Must never write a secret: passwords of URLs and values of secret-looking fields become ***.
"""

from __future__ import annotations

import contextvars
import logging
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from inferx.config import redact

_NO_FIELDS: dict[str, str] = {}
_context: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar(
    "log",
    default=_NO_FIELDS,  # never changed in place
)
_SECRET_FIELD = re.compile(r"(password|passwd|secret|token|api_?key|authorization)", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"(?i)((?:password|passwd|secret|api_?key|access_token)\"?\s*[=:]\s*\"?|bearer\s+)"
    r"[^\s\"',;}&]+"
)
_RECORD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

START_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
WAIT_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60)

registry = CollectorRegistry(auto_describe=True)
"""This process's metrics."""


@contextmanager
def bind(**fields: str) -> Iterator[None]:
    """Add `fields` (such as request_id) to every log line of this task inside the block."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def bound() -> dict[str, str]:
    """The fields in force, for passing them on to another process."""
    return dict(_context.get())


def clean(text: str) -> str:
    """`text` without what looks like a secret."""
    return _SECRET_TEXT.sub(r"\1***", redact(text))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    extra = {k: v for k, v in record.__dict__.items() if k not in _RECORD_FIELDS}
    merged = {**_context.get(), **extra}
    return {name: _shown(name, value) for name, value in merged.items() if value != ""}


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value  # `tokens=178` is a count
    return "***" if _SECRET_FIELD.search(name) else clean(str(value))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, service, logger, message, then fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": _timestamp(record.created, "T") + "Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": clean(record.getMessage()),
        }
        for name, value in _fields(record).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["exception"] = clean(self.formatException(record.exc_info))
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """A line for people: time, level, service, message, then fields as name=value."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record as text; an exception follows on lines of its own."""
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        message = clean(record.getMessage())
        line = (
            f"{_timestamp(record.created, ' ')} {record.levelname:<7} {self._service}: "
            f"{message}{fields}"
        )
        if record.exc_info:
            line += "\n" + clean(self.formatException(record.exc_info))
        return line


def _timestamp(seconds: float, separator: str) -> str:
    moment = time.gmtime(seconds)
    millis = int(seconds * 1000) % 1000
    return time.strftime(f"%Y-%m-%d{separator}%H:%M:%S", moment) + f".{millis:03d}"


def setup_logging(
    service: str, fmt: str = "text", level: str = "info", stream: TextIO | None = None
) -> None:
    """Send all logs of this process to `stream` (default: standard error), once and for all."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(service) if fmt == "json" else TextFormatter(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    logging.getLogger("grpc").setLevel(max(_LEVELS[level], logging.INFO))
    logging.getLogger("asyncio").setLevel(max(_LEVELS[level], logging.WARNING))


def counter(name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
    """A counter `inferx_{name}` in this process's registry."""
    return Counter(name, help_text, labels, namespace="inferx", registry=registry)


def gauge(name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
    """A gauge `inferx_{name}` in this process's registry."""
    return Gauge(name, help_text, labels, namespace="inferx", registry=registry)


def histogram(
    name: str,
    help_text: str,
    labels: Sequence[str] = (),
    buckets: Sequence[float] = WAIT_BUCKETS_S,
) -> Histogram:
    """A histogram `inferx_{name}` (give seconds) in this process's registry."""
    return Histogram(
        name, help_text, labels, namespace="inferx", registry=registry, buckets=tuple(buckets)
    )


def metrics_text() -> bytes:
    """The registry in Prometheus text form."""
    return generate_latest(registry)
