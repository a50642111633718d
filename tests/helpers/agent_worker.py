"""A tiny real model server for tests; its behaviour is chosen by a mode on the command line.

Must never outlive its purpose: it serves until it is told to end, and needs nothing but Python.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

MODE = sys.argv[1] if len(sys.argv) > 1 else "ok"
KEPT: list[bytearray] = []
CALLS: list[int] = []
ARGUMENT = sys.argv[2] if len(sys.argv) > 2 else ""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/env":
            self.answer(200, dict(os.environ))
        elif self.path == "/exit":
            self.answer(200, {})
            print("told to exit", flush=True)
            threading.Timer(0.01, os._exit, (7,)).start()
        elif self.path == "/count":
            CALLS.append(1)
            self.answer(200, {"count": len(CALLS)})
        elif self.path == "/file":
            self.answer(200, {"content": Path(ARGUMENT).read_text()})
        elif self.path == "/eat":
            self.answer(200, {})
            KEPT.append(bytearray(os.urandom(1 << 20)) * int(ARGUMENT))
        elif MODE == "error":
            self.answer(500, {"error": "the weights are broken"})
        elif MODE == "until-file" and not Path(ARGUMENT).exists():
            self.answer(503, {"error": "still loading"})
        else:
            self.answer(200, {"mode": MODE, "pid": os.getpid()})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        if MODE == "prompt" and type(body.get("max_tokens")) is not int:
            self.answer(400, {"error": f"max_tokens is {body.get('max_tokens')!r}"})
        else:
            self.answer(200, {"echo": body})

    def answer(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        print(format % args, flush=True)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without the library's question for the host's name: there may be nobody to answer it."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "worker", int(self.server_address[1])


def main() -> None:
    print(f"model server {MODE} pid {os.getpid()} port {os.environ['PORT']}", flush=True)
    if MODE == "exit":
        print("cannot load the model: out of luck", file=sys.stderr, flush=True)
        sys.exit(3)
    if MODE == "silent":  # never listens
        signal.pause()
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if MODE == "children":  # two more in the group, one of them without a parent that reaps it
        sleeper = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
        child = subprocess.Popen([sys.executable, "-c", sleeper])
        Path(ARGUMENT).write_text(str(child.pid))
    if MODE == "io_uring":
        parameters = ctypes.create_string_buffer(120)
        if ctypes.CDLL(None).syscall(425, 8, parameters) < 0:
            sys.exit("this kernel gives no io_uring")
    if MODE == "ballast":
        KEPT.append(bytearray(os.urandom(int(ARGUMENT) << 20)))
    if MODE == "write-file":
        Path(ARGUMENT).write_text("written at the start")
    if MODE == "slow":
        time.sleep(float(ARGUMENT))
    address = (os.environ["INFERX_HOST"], int(os.environ["PORT"]))
    Server(address, Handler).serve_forever()


if __name__ == "__main__":
    main()
