"""A tiny real model server for tests; its behaviour is chosen by a mode on the command line.

Must never outlive its purpose: it serves until it is told to end, and needs nothing but Python.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

from inferx import worker

MODE = sys.argv[1] if len(sys.argv) > 1 else "ok"
KEPT: list[bytearray] = []
CALLS: list[int] = []
EVENTS: list[str] = []
REGIONS: list[worker.Region] = []
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
        elif self.path == "/vram":
            digests = {
                region.name: hashlib.blake2b(region.memory).hexdigest() for region in REGIONS
            }
            self.answer(200, {"digests": digests, "events": EVENTS})
        elif self.path == "/is_sleeping" and MODE == "sleepy":
            self.answer(200, {"is_sleeping": bool(EVENTS and EVENTS[-1].startswith("/sleep"))})
        elif self.path == "/events":
            self.answer(200, {"events": EVENTS})
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
        if MODE == "sleepy" and self.path.startswith(("/sleep", "/wake_up")):
            EVENTS.append(self.path)
            self.answer(500 if ARGUMENT and self.path.startswith(ARGUMENT) else 200, {})
            return
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


def use_gpu(seed: int) -> None:
    """Weights with a content of their own, a cache that need not be kept, and hooks that tell;
    with the mode `hooks` only those, and a first pause that fails."""

    def quiesce(why: str) -> None:
        EVENTS.append(f"quiesce {why}")
        if MODE == "vram" and Path(f"{os.environ['INFERX_POD_DIR']}/hang").exists():
            time.sleep(3600)
        if MODE == "hooks" and len(EVENTS) == 1:
            raise RuntimeError("not now")

    worker.on_pause(quiesce, lambda why: EVENTS.append(f"resume {why}"))
    if MODE == "vram":
        for name, mib in (("weights", 16), ("more", 2)):
            region = worker.allocate(name, mib)
            region.memory[:] = random.Random(f"{seed} {name}").randbytes(mib << 20)
            REGIONS.append(region)
        REGIONS.append(worker.allocate("cache", 4, saved=False))


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
    if MODE == "greedy":
        worker.allocate("everything", 1 << 20)
    if MODE in ("vram", "hooks"):
        use_gpu(int(ARGUMENT or 0))
    if MODE == "write-file":
        Path(ARGUMENT).write_text("written at the start")
    if MODE == "slow":
        time.sleep(float(ARGUMENT))
    address = (os.environ["INFERX_HOST"], int(os.environ["PORT"]))
    Server(address, Handler).serve_forever()


if __name__ == "__main__":
    main()
