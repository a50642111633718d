"""The cluster of services/compose as the tests use it: its gateways, its demo, its containers."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from .engine import ROOT, Engine

GATEWAYS = {"gateway-1": "http://127.0.0.1:4000", "gateway-2": "http://127.0.0.1:4001"}
OURS = (
    "statesvc", "scheduler-1", "scheduler-2", "gateway-1", "gateway-2",
    "node-1", "node-2", "node-3",
)  # fmt: skip
# A model server that streams a number each tenth of a second, for so many as the path says.
STREAMER = """
import http.server, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        count = int(self.path.rsplit("/", 1)[1]) if self.path[-1].isdigit() else 1
        for number in range(count):
            text = f"{number}\\n".encode()
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(text), text))
            time.sleep(0.1 if count > 1 else 0)
        self.wfile.write(b"0\\r\\n\\r\\n")
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""


def eventually(check: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of `check`, asked until the deadline."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            if value := check():
                return value
        except (httpx.HTTPError, AssertionError) as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:.0f} s: {what} (last: {last!r})")


class Cluster:
    """`docker-compose up` of services/compose in a copy of that folder."""

    def __init__(
        self, engine: Engine, folder: Path, images: dict[str, str], *more_files: str
    ) -> None:
        self.engine, self._images = engine, images
        self._files = [part for name in more_files for part in ("-f", name)]
        if more_files:
            self._files = ["-f", "docker-compose.yml", *self._files]
        self.folder = folder / "compose"
        shutil.copytree(ROOT / "services" / "compose", self.folder, ignore=lambda *_: ["secrets.d"])
        subprocess.run([str(self.folder / "secrets")], check=True)
        key = (self.folder / "secrets.d" / "admin-apikey").read_text()
        self.client = httpx.Client(
            headers={"authorization": f"Bearer {key}"}, timeout=120, trust_env=False
        )
        self.compose("up", "-d")

    def compose(self, *arguments: str) -> str:
        return self.engine.compose(self.folder, *self._files, *arguments, **self._images)

    def name(self, service: str) -> str:
        return f"ix_{service}_1"

    def ready(self, gateway: str) -> bool:
        return self.client.get(f"{GATEWAYS[gateway]}/readyz").status_code == 200

    def apply(self) -> None:
        """The demo's objects, and the streaming function."""
        examples = [
            ROOT / "examples" / f"{name}.json" for name in ("tenant", "namespace", "policy")
        ]
        for path in (*examples, self.folder / "minilm.json"):
            self._put(json.loads(path.read_text()))
        streamer = json.loads((self.folder / "minilm.json").read_text())
        streamer["name"] = "streamer"
        streamer["object"]["spec"] |= {
            "entrypoint": ["$(INFERX_PYTHON)", "-c", STREAMER],
            "commands": [],
            "endpoint": {"port": 8000, "schema": "Http", "probe": "/health"},
            "sample_query": {"path": "count/1", "loadingTimeout": 60, "body": {}},
            "policy": {"Obj": {"max_replica": 1, "parallel": 64, "queue_timeout": 60.0}},
        }
        self._put(streamer)

    def _put(self, manifest: dict[str, Any]) -> None:
        answer = self.client.put(f"{GATEWAYS['gateway-1']}/object/", json=manifest)
        assert answer.status_code in (200, 201), answer.text

    def embed(self, gateway: str) -> list[float]:
        """The demo's embedding of a sentence."""
        answer = self.client.post(
            f"{GATEWAYS[gateway]}/v1/embeddings", json={"model": "demo/minilm", "input": "a cat"}
        )
        assert answer.status_code == 200, answer.text
        vector: list[float] = answer.json()["data"][0]["embedding"]
        return vector

    def stream(self, gateway: str, count: int) -> str:
        """The whole answer of the streaming function."""
        url = f"{GATEWAYS[gateway]}/funccall/public/demo/streamer/count/{count}"
        answer = self.client.get(url)
        assert answer.status_code == 200, answer.text
        return answer.text

    def logs(self) -> str:
        return self.compose("logs", "--tail", "20")
