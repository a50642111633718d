"""One worker: a byte-level transformer in JAX on $PORT, whose start really takes several seconds.

Must never claim to be useful: its weights are random (the same ones every time). What is real is
what a model server does before it can answer: imports, reading weights, compiling its graphs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

VOCABULARY = 256  # bytes
WIDTH, HEADS, LAYERS = 256, 4, 24
CONTEXT = 128
SEED = 20261125
PROMPT_SIZES = (16, 32, 64, CONTEXT)  # a graph is compiled for each
TOKENS_MAX = 32


def weights_file() -> Path:
    """The weights on disk, written once."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path(__file__).resolve().parents[2] / ".cache")
    path = base / "inferx" / f"jax-{LAYERS}x{WIDTH}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.part")
        with temporary.open("wb") as file:
            np.savez(file, **_random_weights())
        temporary.rename(path)
    return path


def _random_weights() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(SEED)
    shapes = {"embed": (VOCABULARY, WIDTH), "place": (CONTEXT, WIDTH)}
    for layer in range(LAYERS):
        shapes[f"{layer}.qkv"] = (WIDTH, 3 * WIDTH)
        shapes[f"{layer}.out"] = (WIDTH, WIDTH)
        shapes[f"{layer}.up"] = (WIDTH, 4 * WIDTH)
        shapes[f"{layer}.down"] = (4 * WIDTH, WIDTH)
    return {
        name: draw.normal(0, 0.7 / np.sqrt(shape[0]), shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def _norm(x: jax.Array) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def _heads(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], HEADS, -1).transpose(1, 0, 2)


def logits(weights: dict[str, jax.Array], tokens: jax.Array, length: jax.Array) -> jax.Array:
    """The logits of the byte that follows the first `length` of `tokens`."""
    size = tokens.shape[0]
    x = weights["embed"][tokens] + weights["place"][:size]
    places = jnp.arange(size)
    mask = (places[None, :] <= places[:, None]) & (places[None, :] < length)
    for layer in range(LAYERS):
        q, k, v = map(_heads, jnp.split(_norm(x) @ weights[f"{layer}.qkv"], 3, axis=-1))
        scores = jnp.where(mask, q @ k.transpose(0, 2, 1) / jnp.sqrt(q.shape[-1]), -1e9)
        mixed = (jax.nn.softmax(scores) @ v).transpose(1, 0, 2).reshape(size, WIDTH)
        x = x + mixed @ weights[f"{layer}.out"]
        x = x + jax.nn.gelu(_norm(x) @ weights[f"{layer}.up"]) @ weights[f"{layer}.down"]
    return _norm(x)[length - 1] @ weights["embed"].T


class Model:
    """The weights in memory and a compiled graph for each prompt size."""

    def __init__(self) -> None:
        with np.load(weights_file()) as stored:
            self._weights = {name: jnp.asarray(stored[name]) for name in stored.files}
        step = jax.jit(partial(logits))
        self._graphs = {}
        for size in PROMPT_SIZES:
            example = jnp.zeros(size, jnp.int32)
            lowered = step.lower(self._weights, example, jnp.int32(1))
            self._graphs[size] = lowered.compile()
        self._lock = threading.Lock()
        self.generate("warm up", 2)

    def generate(self, prompt: str, count: int) -> bytes:
        """The likeliest `count` bytes after the prompt, one by one."""
        known = list(prompt.encode())[-(PROMPT_SIZES[-1] - count) :] or [0]
        made = []
        with self._lock:
            for _ in range(count):
                size = next(size for size in PROMPT_SIZES if size >= len(known))
                padded = np.zeros(size, np.int32)
                padded[: len(known)] = known
                scores = self._graphs[size](self._weights, padded, np.int32(len(known)))
                known.append(int(np.asarray(scores).argmax()))
                made.append(known[-1])
        return bytes(made)


def handler_of(model: Model) -> type[BaseHTTPRequestHandler]:
    """A handler class that answers with this model."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """The health path."""
            self._answer(200 if self.path == "/health" else 404, {"status": "ok"})

        def do_POST(self) -> None:
            """POST /generate {"prompt", "tokens"}: the continuation in hexadecimal."""
            try:
                body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
                prompt, count = str(body["prompt"]), int(body.get("tokens", 8))
                if not 0 < count <= TOKENS_MAX:
                    raise ValueError(f"tokens: expected 1 to {TOKENS_MAX}, got {count}")
            except (ValueError, KeyError, TypeError) as error:
                self._answer(400, {"error": str(error)})
                return
            self._answer(200, {"bytes": model.generate(prompt, count).hex()})

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Calls are not logged; the platform does that."""

    return Handler


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default=os.environ.get("INFERX_HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=os.environ.get("PORT"))
    options = parser.parse_args()
    if options.port is None:
        parser.error("give --port or set PORT")
    begun = time.monotonic()
    handler = handler_of(Model())
    ThreadingHTTPServer.daemon_threads = True
    server = ThreadingHTTPServer((options.host, options.port), handler)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    took = time.monotonic() - begun
    print(f"JAX {jax.__version__}: weights and graphs after {took:.1f} s", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
