"""A worker that holds as many MiB of random memory as its argument says and answers for all of it.

Must never allocate lazily: each page is written before the worker listens.
"""

from __future__ import annotations

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MIB = 1 << 20


def main() -> int:
    """Serve until SIGTERM."""
    size_mib = int(sys.argv[1])
    memory = bytearray(size_mib * MIB)
    for start in range(0, len(memory), MIB):
        memory[start : start + MIB] = os.urandom(MIB)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Some bytes of the memory, from all over it."""
            step = max(1, len(memory) // 16)
            text = f'{{"sample": "{bytes(memory[::step]).hex()}"}}'.encode()
            self.send_response(200)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            """Calls are not logged."""

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    address = (os.environ["INFERX_HOST"], int(os.environ["PORT"]))
    ThreadingHTTPServer(address, Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
