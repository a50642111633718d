"""A worker whose "VRAM" is memory of a SoftDevice, handed over as a descriptor by its agent.

`python -m tests.helpers.vram_worker DESCRIPTOR`: one JSON command a datagram on that socket. Must
never keep a mapping or a descriptor after `unmap`, as a worker that gave up its GPU.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import socket
import subprocess
import sys


class VramWorker:
    """The agent's end: a worker process and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.helpers.vram_worker", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(60)
        self._socket = ours

    def _ask(self, command: dict[str, object], descriptors: tuple[int, ...] = ()) -> str:
        socket.send_fds(self._socket, [json.dumps(command).encode()], list(descriptors))
        answer = self._socket.recv(4096).decode()
        assert answer, "the worker died"
        return answer

    def map(self, descriptor: int) -> None:
        """Hand device memory over; the caller's descriptor is closed."""
        self._ask({"do": "map"}, (descriptor,))
        os.close(descriptor)

    def fill(self, seed: int) -> str:
        """Write all of it; returns the digest."""
        return self._ask({"do": "fill", "seed": seed})

    def digest(self) -> str:
        """The digest of what is there now."""
        return self._ask({"do": "digest"})

    def unmap(self) -> None:
        """Let go of the memory."""
        self._ask({"do": "unmap"})

    def end(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.wait(60)


def serve(channel: socket.socket) -> None:
    """Carry commands out until the agent hangs up."""
    memory: mmap.mmap | None = None
    while True:
        data, descriptors, _, _ = socket.recv_fds(channel, 4096, 1)
        if not data:
            return
        command = json.loads(data)
        if command["do"] == "map":
            memory = mmap.mmap(descriptors[0], os.fstat(descriptors[0]).st_size)
            os.close(descriptors[0])
        assert memory is not None, "no memory is mapped"
        if command["do"] == "fill":
            memory[:] = random.Random(command["seed"]).randbytes(len(memory))
        digest = hashlib.blake2b(memory).hexdigest()
        if command["do"] == "unmap":
            memory.close()
            memory = None
        channel.send(digest.encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
