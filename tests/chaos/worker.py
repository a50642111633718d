"""A model server that writes down each execution. Must need no package.

Each line of its file is JSON: what (begin, end), the call's id, the pod, the monotonic time, which
all processes of a machine share, and how many calls ran at that moment.
"""

from __future__ import annotations

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

POD = os.environ["INFERX_POD"]
FILE = os.open(
    Path(os.environ["CHAOS_DIR"]) / f"executions-{os.getpid()}.jsonl",
    os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    0o644,
)
lock = threading.Lock()
running = 0


def note(what: str, call: str, change: int) -> None:
    """One line, in one write."""
    global running
    with lock:
        running += change
        line = {"what": what, "call": call, "pod": POD, "at": time.monotonic(), "now": running}
        os.write(FILE, json.dumps(line).encode() + b"\n")


class Handler(BaseHTTPRequestHandler):
    """`/run?call=ID&ms=N` works for so long; everything else is the probe."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """The executions are the log."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        body = b"{}"
        if "call" in query:
            note("begin", query["call"], 1)
            time.sleep(float(query["ms"]) / 1000)
            body = json.dumps({"call": query["call"], "pod": POD}).encode()
            note("end", query["call"], -1)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST


class Server(ThreadingHTTPServer):
    """Threads end with the process."""

    daemon_threads = True


Server(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
