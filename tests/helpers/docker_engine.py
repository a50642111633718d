"""A Docker Engine of the test's own, with one image that borrows this machine's programs."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import httpx

IMAGE = "inferx-test:latest"
DEADLINE_S = 60.0
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}


class DockerEngine:
    """dockerd with its own socket, data and bridge; nothing is shared with another one here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"
        self._bridge = f"ifxd{os.getpid() % 100_000}"
        third = os.getpid() % 250 + 1
        self.address = f"10.214.{third}.1/24"

    def start(self) -> None:
        """Returns when it answers and has the image."""
        ip(f"link add {self._bridge} type bridge")
        ip(f"addr add {self.address} dev {self._bridge}")
        ip(f"link set {self._bridge} up")
        command = ["dockerd", "--host", f"unix://{self.socket}", "--bridge", self._bridge]
        command += ["--data-root", str(self.folder / "data")]
        command += ["--exec-root", str(self.folder / "exec")]
        command += ["--pidfile", str(self.folder / "pid"), "--storage-driver", "vfs"]
        command += ["--iptables=false", "--ip-masq=false", "--userland-proxy=false"]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + DEADLINE_S
        while not self._answers():
            ended = self._process.poll() is not None
            assert not ended, (self.folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.05)
        with self._client() as client:
            answer = client.post(
                f"/images/create?fromSrc=-&repo={IMAGE.partition(':')[0]}&tag=latest",
                content=empty_root(),
                headers={"content-type": "application/x-tar"},
            )
        assert answer.status_code == 200, answer.text

    def stop(self) -> None:
        """Ends it and its containerd, and removes the bridge."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(DEADLINE_S)
        finally:
            self._process.kill()
            ip(f"link del {self._bridge}")

    def containers(self) -> list[str]:
        """The names of all containers, whatever they do."""
        with self._client() as client:
            return [each["Names"][0] for each in client.get("/containers/json?all=1").json()]

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        with self._client() as client:
            return client.get("/_ping").status_code == 200

    def _client(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.socket))
        return httpx.Client(transport=transport, base_url="http://docker", timeout=60)


def mounts(root: Path) -> list[dict[str, str]]:
    """What a worker in that image needs of this machine: its programs and this project."""
    prefixes = (str(root), sys.prefix, sys.base_prefix)
    wanted = dict.fromkeys(["/usr", *(p for p in prefixes if not p.startswith("/usr"))])
    return [{"hostpath": path, "mountpath": path} for path in wanted]


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)


def empty_root() -> bytes:
    """A tar of a root without programs: they are this machine's, by `mounts`."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("usr", "etc", "tmp", "proc", "sys", "dev", "root"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        for name, target in _LINKS.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    return data.getvalue()
