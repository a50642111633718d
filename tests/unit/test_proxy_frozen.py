"""A data plane that was frozen: what came meanwhile counts, although its time was over.

Must never judge a client that took long itself.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

HEAD_S, FROZEN_S, TIMES, CLIENTS = 0.04, 0.06, 80, 6
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
PLANE = f"""
import sys
from pathlib import Path
from inferx._ext import Proxy
plane = Proxy("127.0.0.1", 0, Path(sys.argv[1]), threads=2, head_timeout_ms={HEAD_S * 1000:.0f})
print(plane.start(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with a data plane, and its port."""
    command = [sys.executable, "-c", PLANE, str(tmp_path / "control.sock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def call_until_over(port: int, over: Event) -> list[str]:
    """What became of calls whose request was sent in time, each over its own connection."""
    found = []
    while not over.is_set():
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=30.0) as client:
            try:
                client.sendall(REQUEST)
                in_time = time.monotonic() - begun < HEAD_S / 2
                answer = client.recv(4096)[:15].decode()
            except OSError as error:
                answer = repr(error)
        if in_time:
            found.append(answer)
    return found


def test_a_request_that_came_while_it_was_frozen_is_answered(
    plane: tuple[subprocess.Popen[str], int],
) -> None:
    """It looks at its timers before its sockets then, and the head's time is over."""
    process, port = plane
    over = Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(call_until_over, port, over) for _ in range(CLIENTS)]
        try:
            for number in range(TIMES):
                time.sleep(0.02 + number % 13 / 1000)  # at ever other moments of its work
                os.kill(process.pid, signal.SIGSTOP)
                time.sleep(FROZEN_S)
                os.kill(process.pid, signal.SIGCONT)
        finally:
            over.set()
        answers = [answer for client in clients for answer in client.result(30.0)]
    assert len(answers) > TIMES
    assert set(answers) == {"HTTP/1.1 200 OK"}
