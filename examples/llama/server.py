"""One worker: llama.cpp's HTTP server (OpenAI API) for one of the example models on $PORT.

Must never listen on anything but the loopback address it was given, nor outlive a SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

import convert_minilm
import make_chat
import xllamacpp

REPLY_TOKENS_MAX = 256  # a model with random weights would otherwise talk to the end of its context


def default_threads() -> int:
    """Half of the cores, at most 4.

    llama.cpp's threads wait for each other several times per token: when one of them has to wait
    for a busy core, all do, and a small model gets slower than with a single thread.
    """
    return min(4, max(1, (os.cpu_count() or 1) // 2))


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; `--port` may also come as the environment's PORT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model",
        required=True,
        help="minilm (embeddings), babble (chat, random weights), or the path of a GGUF file",
    )
    parser.add_argument("--embedding", action="store_true", help="serve embeddings for a GGUF path")
    parser.add_argument("--host", default=os.environ.get("INFERX_HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=os.environ.get("PORT"))
    parser.add_argument("--parallel", type=int, default=4, help="requests served at a time")
    parser.add_argument("--threads", type=int, default=default_threads())
    parsed = parser.parse_args(argv)
    if parsed.port is None:
        parser.error("give --port or set PORT")
    return parsed


def model_path(name: str) -> Path:
    """The GGUF of an example's name (built on first use) or of a path."""
    builders = {"minilm": convert_minilm.ensure, "babble": make_chat.ensure}
    if name in builders:
        return builders[name]()
    path = Path(name)
    if not path.is_file():
        raise SystemExit(f"no model {name!r}: expected one of {sorted(builders)} or a GGUF file")
    return path


def parameters(options: argparse.Namespace, path: Path) -> xllamacpp.CommonParams:
    """llama.cpp's settings for a small model on few cores."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {options.model}
    params.hostnames = [options.host]
    params.port = options.port
    params.n_parallel = options.parallel
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.cpuparams.poll = 0  # spinning threads would burn the cores that the calls need
    params.cpuparams_batch.poll = 0
    params.fit_params = False  # the settings are known to fit; probing costs start-up time
    params.ui = False
    params.cache_ram_mib = 0
    if options.embedding or options.model == "minilm":
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_ctx = 512 * options.parallel
        params.n_batch = params.n_ubatch = 512 * options.parallel
    else:
        params.n_ctx = 1024 * options.parallel
        params.n_predict = REPLY_TOKENS_MAX
    return params


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean stop."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    options = arguments(argv)
    started = time.monotonic()
    path = model_path(options.model)
    print(f"loading {path}", flush=True)
    server = xllamacpp.Server(parameters(options, path))
    took = time.monotonic() - started
    print(f"ready at {server.listening_address} after {took:.2f} s", flush=True)
    stop.wait()
    print("stopping", flush=True)
    del server  # joins the HTTP threads
    return 0


if __name__ == "__main__":
    sys.exit(main())
