"""A real etcd for tests, in a temporary folder, on free ports."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.ports import free_port


class EtcdServer:
    """One member; `stop`, `kill` and `start` again keep its data."""

    def __init__(self, folder: Path, *arguments: str, scheme: str = "http") -> None:
        binary = shutil.which("etcd")
        if binary is None:
            pytest.fail("etcd is not installed: apt-get install -y etcd-server")
        self.port, peer = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._log = folder / "etcd.log"
        client = f"{scheme}://{self.address}"
        self._command = [
            binary, "--data-dir", str(folder / "data"), "--name", "test",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-cluster", f"test=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync", *arguments,
        ]  # fmt: skip
        if "unsafe-no-fsync" not in _help(binary):
            self._command.remove("--unsafe-no-fsync")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            written = log.tell()
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if b"ready to serve client requests" in self._log.read_bytes()[written:]:
                return
            time.sleep(0.02)  # between looks at the log, until the deadline
        pytest.fail(f"etcd did not start:\n{self._log.read_text()[-2000:]}")

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # all of its threads have stopped

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def _help(binary: str) -> str:
    return subprocess.run([binary, "--help"], capture_output=True, text=True, check=False).stdout
