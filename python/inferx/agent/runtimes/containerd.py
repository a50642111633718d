"""The `containerd` runtime: containers that a node's containerd looks after, restored ones runc.

Must never touch another namespace of containerd than its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inferx.agent.runtimes.boxes import Boxes, Places
from inferx.agent.runtimes.engine import CtrEngine
from inferx.agent.runtimes.protocol import Worker
from inferx.agent.runtimes.runc import RuncRuntime
from inferx.errors import ConfigError

SOCKET = Path("/run/containerd/containerd.sock")
RUNC_ROOT = Path("/run/inferx/containerd")


class ContainerdRuntime(Boxes):
    """Root, network and configuration are made here, as for runc; containerd runs and watches them.

    Its client is `ctr`: it comes with every containerd, and its foreground is the parent that
    carries the output and the exit code, as runc's is. That a worker was killed for its memory
    limit is seen as the signal only.

    CRIU works through runc only, so runc saves what containerd runs, and a worker that is restored
    is one of the runc runtime: its bundle is the same, and a shim could not be its parent.
    """

    name = "containerd"

    def __init__(
        self, places: Places, environment: Mapping[str, str], socket: Path = SOCKET
    ) -> None:
        path = environment.get("PATH") or os.defpath
        found = shutil.which("ctr", path=path)
        if found is None:
            raise ConfigError("runtime: ctr, the client of containerd, is not installed here")
        self._restored = RuncRuntime(places, environment)
        self.checkpoints = self._restored.checkpoints
        RUNC_ROOT.mkdir(parents=True, exist_ok=True, mode=0o700)
        engine = CtrEngine(found, socket, {"PATH": path}, self._restored.engine, RUNC_ROOT)
        super().__init__(engine, places, environment)

    async def adopt(self, folder: Path, record: Mapping[str, Any]) -> Worker | None:
        # The record is not asked which of them it is: the agent may have died before it was right.
        restored = self._restored.container(folder)
        if await restored.running_pid() is not None:
            return await self._restored.adopt(folder, record)
        worker = await super().adopt(folder, record)
        if worker is None:  # nor may anything be left of one that was about to be restored
            await restored.remove()
        return worker
