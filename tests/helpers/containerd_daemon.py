"""A containerd of the test's own."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

# One daemon is enough: its tests stay in one process.
CONTAINERD = pytest.param("containerd", marks=pytest.mark.xdist_group("containerd"))
# For tests of the `runtime` fixture: both ways to run a worker that can be saved.
ON_BOTH = pytest.mark.parametrize("runtime", ["runc", CONTAINERD], indirect=True)
DEADLINE_S = 60.0
_CONFIG = """version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/containerd.sock"
"""


class Containerd:
    """containerd with its own socket, state and data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "containerd.sock"

    def start(self) -> None:
        """Returns when it listens."""
        config = self.folder / "config.toml"
        config.write_text(_CONFIG.format(folder=self.folder))
        with (self.folder / "log").open("wb") as log:
            command = ["containerd", "--config", str(config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + DEADLINE_S
        while not self._listens():
            said = (self.folder / "log").read_text()[-3000:]
            assert self._process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(DEADLINE_S)
        finally:
            self._process.kill()

    def containers(self) -> list[str]:
        """The names of all containers that it knows."""
        command = ["ctr", "--address", str(self.socket), "--namespace", "inferx"]
        listed = subprocess.run(
            [*command, "containers", "ls", "-q"], check=True, capture_output=True, text=True
        )
        return listed.stdout.split()

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
            return True
