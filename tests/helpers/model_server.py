"""A small real model server for tests: HTTP on $PORT, behaviour by flags. Must need no package.

GET /health answers 200 once it is ready; /pid its process; /stream?n=&ms= sends n lines ms apart;
/status?code= answers that status; /die?after= sends that many bytes of a longer body and exits;
anything else is echoed as JSON: method, path, headers and body as they arrived.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

parser = argparse.ArgumentParser()
parser.add_argument("--start-seconds", type=float, default=0.0, help="not ready for so long")
parser.add_argument("--exit-at-start", type=int, help="print a reason and exit with this code")
parser.add_argument("--never-ready", action="store_true")
parser.add_argument("--unhealthy", action="store_true", help="the health probe answers 500")
parser.add_argument("--exit-when-thawed", action="store_true", help="no standby comes back")
arguments = parser.parse_args()
if arguments.exit_when_thawed:
    signal.signal(signal.SIGCONT, lambda *_: os._exit(7))
ready_at = time.monotonic() + arguments.start_seconds
# How many requests run right now and ran at most at once, so that a test can see the limit held.
running = {"now": 0, "max": 0, "total": 0}
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """One request; every method is answered by `answer`."""

    protocol_version = "HTTP/1.1"
    counts = False  # in `running`

    def log_message(self, format: str, *args: object) -> None:
        print(format % args, flush=True)

    def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.leave()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if parts.path == "/health":
            up = not arguments.never_ready and time.monotonic() >= ready_at
            self.reply(500 if arguments.unhealthy else 200 if up else 503, b"{}")
            return
        with lock:
            running["now"] += 1
            running["total"] += 1
            running["max"] = max(running["max"], running["now"])
        self.counts = True
        try:
            self.serve(parts.path, query)
        finally:
            self.leave()

    def leave(self) -> None:
        """Runs no more. Before the last byte goes out: the next call may come right after it."""
        with lock:
            running["now"] -= self.counts
        self.counts = False

    def serve(self, path: str, query: dict[str, str]) -> None:
        body = self.body()
        if path == "/pid":
            self.reply(200, json.dumps({"pid": os.getpid(), **running}).encode())
        elif path == "/status":
            self.reply(int(query["code"]), b'{"from": "worker"}')
        elif path == "/wait":
            time.sleep(float(query["ms"]) / 1000)
            self.reply(200, json.dumps({"pid": os.getpid()}).encode())
        elif path == "/stream":
            self.stream(int(query["n"]), float(query["ms"]) / 1000)
        elif path == "/die":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * int(query["after"]))
            self.wfile.flush()
            os._exit(9)
        else:
            seen = {
                "method": self.command,
                "path": self.path,
                "headers": dict(self.headers),
                "body": body.decode("latin-1"),
            }
            self.reply(200, json.dumps(seen).encode())

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def stream(self, count: int, gap_seconds: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for index in range(count):
            line = f"data: {index}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
            time.sleep(gap_seconds)
        self.leave()
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_HEAD = answer


class Server(ThreadingHTTPServer):
    """Threads end with the process; the backlog holds a burst of first calls."""

    daemon_threads = True
    request_queue_size = 512


if arguments.exit_at_start is not None:
    print("the weights are missing", file=sys.stderr, flush=True)
    sys.exit(arguments.exit_at_start)
Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
