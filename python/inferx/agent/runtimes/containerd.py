"""The `containerd` runtime: containers that a node's containerd looks after.

Must never touch another namespace of containerd than its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from inferx.agent.runtimes.boxes import Boxes, Places
from inferx.agent.runtimes.engine import CtrEngine
from inferx.agent.runtimes.protocol import Checkpoints
from inferx.errors import ConfigError

SOCKET = Path("/run/containerd/containerd.sock")


class ContainerdRuntime(Boxes):
    """Root, network and configuration are made here, as for runc; containerd runs and watches them.

    Its client is `ctr`: it comes with every containerd, and its foreground is the parent that
    carries the output and the exit code, as runc's is. That a worker was killed for its memory
    limit is seen as the signal only.
    """

    name = "containerd"
    checkpoints: Checkpoints | None = None  # CRIU works through runc only: see the runc runtime

    def __init__(
        self, places: Places, environment: Mapping[str, str], socket: Path = SOCKET
    ) -> None:
        path = environment.get("PATH") or os.defpath
        found = shutil.which("ctr", path=path)
        if found is None:
            raise ConfigError("runtime: ctr, the client of containerd, is not installed here")
        super().__init__(CtrEngine(found, socket, {"PATH": path}), places, environment)
