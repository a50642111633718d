"""A real API server and controller manager with an etcd of their own, on free loopback ports."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.cluster.etcd_server import EtcdServer
from tests.helpers.ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = ROOT / ".cache" / "kube-test"
TOKEN = "kube-test"  # of this server, which lives as long as the test
SECONDS = 120.0


def eventually(check: Callable[[], Any], what: str) -> Any:
    """The first true value of `check`, asked until the deadline."""
    deadline, last = time.monotonic() + SECONDS, None
    while time.monotonic() < deadline:
        try:
            if value := check():
                return value
        except (httpx.HTTPError, KeyError) as error:
            last = error
        time.sleep(0.2)
    raise AssertionError(f"not within {SECONDS:.0f} s: {what} (last: {last!r})")


class Kubernetes:
    """The control plane; there is no kubelet, a test plays it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._etcd = EtcdServer(folder)
        self._processes: list[subprocess.Popen[bytes]] = []
        port = free_port()
        self.url = f"https://127.0.0.1:{port}"
        self.client = httpx.Client(
            base_url=self.url, verify=False, headers={"authorization": f"Bearer {TOKEN}"},
            trust_env=False, timeout=30,
        )  # fmt: skip
        self._write_files()
        self._start(
            "kube-apiserver", "--etcd-servers", f"http://{self._etcd.address}",
            "--secure-port", str(port), "--bind-address", "127.0.0.1",
            "--cert-dir", str(folder / "certs"), "--service-account-issuer", "https://kube.test",
            "--service-account-key-file", str(folder / "key.pub"),
            "--service-account-signing-key-file", str(folder / "key"),
            "--service-cluster-ip-range", "10.96.0.0/16", "--authorization-mode", "RBAC",
            "--token-auth-file", str(folder / "tokens"), "--allow-privileged",
        )  # fmt: skip
        eventually(lambda: self.client.get("/readyz").status_code == 200, "the API server is ready")
        self._start(
            "kube-controller-manager", "--kubeconfig", str(folder / "config"),
            "--service-account-private-key-file", str(folder / "key"), "--leader-elect=false",
            "--secure-port", str(free_port()), "--bind-address", "127.0.0.1",
            "--cert-dir", str(folder / "certs"),
            "--controllers", "*,-node-lifecycle-controller",  # it would miss the kubelet's leases
        )  # fmt: skip

    def _write_files(self) -> None:
        key, folder = str(self._folder / "key"), self._folder
        (folder / "certs").mkdir()
        (folder / "tokens").write_text(f"{TOKEN},admin,1,system:masters\n")
        for command in (
            ["openssl", "genrsa", "-out", key, "2048"],
            ["openssl", "rsa", "-in", key, "-pubout", "-out", f"{key}.pub"],
        ):
            subprocess.run(command, check=True, capture_output=True)
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url,
                                                      "insecure-skip-tls-verify": True}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }  # fmt: skip
        (folder / "config").write_text(json.dumps(config))

    def _start(self, program: str, *arguments: str) -> None:
        with (self._folder / f"{program}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen([str(PROGRAMS / program), *arguments], stdout=log, stderr=log)
            )

    def kubectl(self, *arguments: str) -> str:
        """kubectl's output; a failure is an assertion that shows it."""
        environment = {**os.environ, "KUBECONFIG": str(self._folder / "config")}
        done = subprocess.run(
            ["kubectl", *arguments], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def create(self, route: str, document: dict[str, Any]) -> None:
        """POST of an object or a subresource."""
        answer = self.client.post(route, json=document)
        assert answer.status_code in (200, 201), answer.text

    def patch(self, route: str, document: dict[str, Any]) -> None:
        """A strategic merge."""
        kind = {"content-type": "application/strategic-merge-patch+json"}
        answer = self.client.patch(route, content=json.dumps(document), headers=kind)
        assert answer.status_code == 200, answer.text

    def get(self, route: str) -> dict[str, Any]:
        """One object or list."""
        answer = self.client.get(route)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def stop(self) -> None:
        """Ends everything."""
        for process in reversed(self._processes):
            process.terminate()
            process.wait(60)
        self.client.close()
        self._etcd.kill()
