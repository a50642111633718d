"""A PyTorch process for `gpu_check`: memory, a captured graph, and the first token of a big model.

One JSON command a line on stdin, one JSON answer a line on stdout. Must never keep CUDA work going
between two commands, so that its agent may lock it.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import Any

import torch
from cuda.bindings import driver as cu

LAYERS, HIDDEN, INNER, HEADS_KV, VOCABULARY = 32, 4096, 14336, 1024, 32000
# Of one layer, in values: q and o, k and v, gate, up and down. 8.0e9 in all with the two ends.
SHAPES = [
    (HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (HEADS_KV, HIDDEN), (HEADS_KV, HIDDEN),
    (INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER),
]  # fmt: skip


def checked(answer: tuple[Any, ...]) -> Any:
    """The value of a driver call; raises with its name and code."""
    error, *values = answer
    if int(error) != 0:
        raise RuntimeError(f"{error!r}")
    return values[0] if values else None


class Pointer:
    """Device memory at an address, as the array interface that PyTorch takes."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


class Worker:
    """What the process holds between two commands."""

    def __init__(self) -> None:
        self.blocks: list[torch.Tensor] = []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.reserved = 0
        self.size_bytes = 0
        self.handle: Any = None

    def allocate(self, mib: int) -> dict[str, Any]:
        """Ordinary memory that the driver has to checkpoint."""
        torch.manual_seed(mib)
        block = torch.randint(0, 255, (mib << 20,), dtype=torch.uint8, device="cuda")
        self.blocks.append(block)
        return self.sum()

    def sum(self) -> dict[str, Any]:
        """A checksum of the ordinary memory."""
        total = sum(int(block.to(torch.int64).sum()) for block in map(_thin, self.blocks))
        torch.cuda.synchronize()
        return {"sum": total}

    def capture(self) -> dict[str, Any]:
        """Record a CUDA graph of some matrix products."""
        torch.manual_seed(1)
        self.left = torch.randn(1024, 1024, device="cuda")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                torch.tanh(self.left @ self.left)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = torch.tanh(torch.tanh(self.left @ self.left) @ self.left)
        return self.replay()

    def replay(self) -> dict[str, Any]:
        """Run the graph; the digest of its output must never change."""
        assert self.graph is not None, "no graph was captured"
        self.graph.replay()
        torch.cuda.synchronize()
        return {"digest": float(self.out.double().sum())}

    def map(self, descriptor: int, size_bytes: int) -> dict[str, Any]:
        """Import the agent's memory and map it where it was before, or anywhere at first."""
        torch.cuda.current_device()
        kind = cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        if not self.reserved:
            self.size_bytes = size_bytes
            self.reserved = int(checked(cu.cuMemAddressReserve(size_bytes, 0, 0, 0)))
        self.handle = checked(cu.cuMemImportFromShareableHandle(descriptor, kind))
        checked(cu.cuMemMap(self.reserved, size_bytes, 0, self.handle, 0))
        access = cu.CUmemAccessDesc()
        access.location.type = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = torch.cuda.current_device()
        access.flags = cu.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        checked(cu.cuMemSetAccess(self.reserved, size_bytes, [access], 1))
        return {"address": self.reserved}

    def unmap(self) -> dict[str, Any]:
        """Give the agent's memory up; the address stays reserved, because graphs know it."""
        torch.cuda.synchronize()
        checked(cu.cuMemUnmap(self.reserved, self.size_bytes))
        checked(cu.cuMemRelease(self.handle))
        return {}

    def fill(self) -> dict[str, Any]:
        """Random weights, small enough that no activation overflows."""
        torch.manual_seed(8)
        weights = self._weights()
        step = 1 << 28
        for start in range(0, weights.numel(), step):
            part = weights[start : start + step]
            part.copy_(torch.randn(part.numel(), dtype=torch.bfloat16, device="cuda") * 0.02)
        return self.token()

    def token(self) -> dict[str, Any]:
        """One token of a dense 8B-class model: every weight is read once."""
        weights, at = self._weights(), 0

        def take(rows: int, columns: int) -> torch.Tensor:
            nonlocal at
            part = weights[at : at + rows * columns].view(rows, columns)
            at += rows * columns
            return part

        with torch.no_grad():
            state = take(VOCABULARY, HIDDEN)[17]
            for _ in range(LAYERS):
                q, o, k, v, gate, up, down = (take(*shape) for shape in SHAPES)
                mixed = torch.softmax((q @ state).view(-1, 128) @ (k @ state).view(-1, 128).T, 1)
                state = state + o @ (mixed @ (v @ state).view(-1, 128)).flatten()
                state = state + down @ (torch.nn.functional.silu(gate @ state) * (up @ state))
                state = torch.nn.functional.rms_norm(state, (HIDDEN,))
            found = int(torch.argmax(take(VOCABULARY, HIDDEN) @ state))
        torch.cuda.synchronize()
        return {"token": found}

    def _weights(self) -> torch.Tensor:
        flat = torch.as_tensor(Pointer(self.reserved, self.size_bytes), device="cuda")
        return flat.view(torch.bfloat16)


def _thin(block: torch.Tensor) -> torch.Tensor:
    return block[::4097]


def model_bytes() -> int:
    """Bytes of the model's weights."""
    layer = sum(rows * columns for rows, columns in SHAPES)
    return 2 * (LAYERS * layer + 2 * VOCABULARY * HIDDEN)


def main(socket_fd: int) -> None:
    """Carry commands out; memory comes over the socket."""
    worker, channel = Worker(), socket.socket(fileno=socket_fd)
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        begun = time.perf_counter()
        try:
            if name == "map":
                _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
                command["descriptor"] = descriptors[0]
            answer = getattr(worker, name)(**command)
        except Exception as error:  # the agent decides what a failure means
            answer = {"error": f"{name}: {type(error).__name__}: {error}"}
        answer["ms"] = (time.perf_counter() - begun) * 1e3
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
