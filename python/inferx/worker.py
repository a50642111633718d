"""The model server's side of a pause: hooks around it, and device memory that outlives it.

One file that needs only the standard library: import it as `inferx.worker`, or copy it into an
image. Must never change what a server does when it does not run under InferX.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FOLDER = "INFERX_WORKER_DIR"  # where both sockets are; not set outside of InferX
OURS, AGENTS = "worker.sock", "agent.sock"
MESSAGE_BYTES_MAX = 64 << 10
REGIONS_MAX = 64  # their descriptors fit into one message
CALL_TIMEOUT_S = 30.0
MIB = 1 << 20

Hook = Callable[[str], None]


class Region:
    """Memory of a (simulated) GPU under a name. `memory` is another object after each pause."""

    def __init__(self, name: str, device: int, mib: int, saved: bool, descriptor: int) -> None:
        self.name = name
        self.device = device
        self.mib = mib
        self.saved = saved
        self._descriptor = -1
        self._memory: mmap.mmap | None = None
        self._map(descriptor)

    @property
    def memory(self) -> mmap.mmap:
        """The bytes; raises RuntimeError while the worker is paused. Views of it have to be
        released in the quiesce hook."""
        if self._memory is None:
            raise RuntimeError(f"region {self.name} has no memory while the worker is paused")
        return self._memory

    def _map(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, self.mib * MIB)

    def _unmap(self) -> None:
        if self._memory is None:
            return
        try:
            self._memory.close()
        except BufferError as error:
            raise RuntimeError(f"region {self.name} is still in use: {error}") from error
        os.close(self._descriptor)
        self._memory, self._descriptor = None, -1


class _Worker:
    """All state of this process; one thread answers the agent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        self._hooks: list[tuple[Hook | None, Hook | None]] = []
        self._regions: dict[str, Region] = {}
        self._quiesced = ""  # why, while it is
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        _at(folder, OURS, listener.bind, replace=True)
        listener.listen()
        thread = threading.Thread(target=self._serve, args=(listener,), name="inferx", daemon=True)
        thread.start()

    def add(self, quiesce: Hook | None, resume: Hook | None) -> None:
        with self._lock:
            self._hooks.append((quiesce, resume))

    def allocate(self, name: str, mib: int, device: int, saved: bool) -> Region:
        with self._lock:
            if name in self._regions:
                raise ValueError(f"region {name} exists already")
            if len(self._regions) >= REGIONS_MAX:
                raise ValueError(f"a worker has at most {REGIONS_MAX} regions")
            wanted = {"do": "allocate", "name": name, "mib": mib, "device": device, "saved": saved}
            descriptor = self._ask_agent(wanted)
            region = self._regions[name] = Region(name, device, mib, saved, descriptor)
            return region

    def free(self, region: Region) -> None:
        with self._lock:
            region._unmap()
            del self._regions[region.name]
            self._ask_agent({"do": "free", "name": region.name})

    def _ask_agent(self, wanted: dict[str, Any]) -> int:
        """The descriptor in the answer, or -1; raises RuntimeError with what the agent said."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(CALL_TIMEOUT_S)
            _at(self._folder, AGENTS, channel.connect)
            channel.sendall(json.dumps(wanted).encode() + b"\n")
            data, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES_MAX, 1)
        answer = json.loads(data or b'{"error": "the agent hung up"}')
        if "error" in answer:
            raise RuntimeError(f"{wanted['do']} {wanted['name']}: {answer['error']}")
        return descriptors[0] if descriptors else -1

    def _serve(self, listener: socket.socket) -> None:
        while True:
            channel, _ = listener.accept()
            with channel:
                channel.settimeout(CALL_TIMEOUT_S)
                try:
                    self._answer(channel)
                except (OSError, ValueError):
                    continue  # the agent went away, or it was somebody else

    def _answer(self, channel: socket.socket) -> None:
        data, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES_MAX, REGIONS_MAX)
        while data and not data.endswith(b"\n"):
            more = channel.recv(MESSAGE_BYTES_MAX)
            if not more:
                break
            data += more
        sent: Sequence[int] = ()
        try:
            command = json.loads(data)
            if command["do"] == "quiesce":
                self._quiesce(str(command["why"]))
            elif command["do"] == "resume":
                self._resume(command["regions"], descriptors)
            elif command["do"] != "state":
                raise ValueError(f"{command['do']!r} is not known")
            answer: dict[str, Any] = {"quiesced": self._quiesced}
            if command["do"] == "state":
                answer["regions"], answer["unmapped"], sent = self._listed()
        except Exception as error:  # a hook is the server's own code: whatever it raises is told
            answer = {"error": f"{type(error).__name__}: {error}"}
        reply = json.dumps(answer).encode() + b"\n"
        if sent:
            socket.send_fds(channel, [reply], sent)
        else:
            channel.sendall(reply)

    def _listed(self) -> tuple[list[dict[str, Any]], int, list[int]]:
        """The mapped regions, how many others there are, and the mapped ones' descriptors."""
        with self._lock:
            mapped = [region for region in self._regions.values() if region._memory is not None]
            names = ("name", "device", "mib", "saved")
            listed = [{name: getattr(region, name) for name in names} for region in mapped]
            others = len(self._regions) - len(mapped)
            return listed, others, [region._descriptor for region in mapped]

    def _quiesce(self, why: str) -> None:
        """Run the hooks and let go of all memory; when one fails, the others are taken back."""
        with self._lock:
            if self._quiesced:
                return
            done: list[Hook | None] = []
            try:
                for quiesce, resume in self._hooks:
                    if quiesce is not None:
                        quiesce(why)
                    done.append(resume)
                for region in self._regions.values():
                    region._unmap()
            except BaseException:
                if all(region._memory is not None for region in self._regions.values()):
                    _run(reversed(done), why)
                raise
            self._quiesced = why

    def _resume(self, regions: Sequence[dict[str, Any]], descriptors: Sequence[int]) -> None:
        with self._lock:
            if not self._quiesced:
                for descriptor in descriptors:
                    os.close(descriptor)
                return
            for described, descriptor in zip(regions, descriptors, strict=True):
                self._regions[described["name"]]._map(descriptor)
            why, self._quiesced = self._quiesced, ""
            _run(reversed([resume for _, resume in self._hooks]), why)


def _run(hooks: Any, why: str) -> None:
    for hook in hooks:
        if hook is not None:
            hook(why)


def _at(folder: Path, name: str, use: Callable[[str], None], *, replace: bool = False) -> None:
    """Use a socket's path, which may be longer than an address can be."""
    path = folder / name
    if replace:
        path.unlink(missing_ok=True)
    if len(os.fsencode(path)) < 100:
        use(str(path))
        return
    opened = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        use(f"/proc/self/fd/{opened}/{name}")
    finally:
        os.close(opened)


_worker: _Worker | None = None
_starting = threading.Lock()


def start() -> bool:
    """Answer the agent from now on; False, and nothing happens, outside of InferX."""
    global _worker
    folder = os.environ.get(FOLDER, "")
    with _starting:
        if _worker is None and folder:
            _worker = _Worker(Path(folder))
        return _worker is not None


def on_pause(quiesce: Hook | None = None, resume: Hook | None = None) -> bool:
    """Call `quiesce` before this process is parked or saved, and `resume` when it goes on.

    Both get the reason, "park" or "snapshot". A `resume` may run in another container, on another
    address, long after. Quiesce hooks run in the order of their registration, resume hooks in the
    opposite one. False outside of InferX, where neither is ever called.
    """
    if not start():
        return False
    assert _worker is not None
    _worker.add(quiesce, resume)
    return True


def allocate(name: str, mib: int, *, device: int = 0, saved: bool = True) -> Region:
    """Memory of the pod's (simulated) GPU number `device`, counted from 0 for each pod.

    It comes back after a pause with its content, or zeroed where `saved` is false, as for a cache.
    Raises RuntimeError when the pod's share of the GPU is used up, and outside of InferX.
    """
    if not start():
        raise RuntimeError(f"{FOLDER} is not set: there is no GPU memory outside of InferX")
    assert _worker is not None
    return _worker.allocate(name, mib, device, saved)


def free(region: Region) -> None:
    """Give memory back."""
    if _worker is not None:
        _worker.free(region)
