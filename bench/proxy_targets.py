"""The proxies that `bench/proxy.py` compares: each started on core 0, before the same backends.

Must never tune one of them beyond what its manual says for this kind of traffic.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HERE = Path(__file__).parent
PEERS = ("sglang-router", "vllm-router", "litellm")
PEERS_BIN = Path(os.environ.get("BENCH_PEERS", HERE.parent / ".cache" / "bench-peers")) / "bin"
READY_S = 60.0
LOG_TAIL_CHARACTERS = 600
PEERS_ENVIRONMENT = {
    # What it would fetch from the network at its start is not to be measured.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    # It listens on the loopback only, and the others are measured without keys as well.
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}
NGINX = """daemon off; master_process off; worker_processes 1; pid {folder}/{name}.pid;
error_log {folder}/{name}.log;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_requests 100000000; client_max_body_size 8m;
  client_body_temp_path {folder}/{name}-body; proxy_temp_path {folder}/{name}-proxy;
  fastcgi_temp_path {folder}/{name}-f; uwsgi_temp_path {folder}/{name}-u;
  scgi_temp_path {folder}/{name}-s;
  {upstream}
  server {{ listen 127.0.0.1:{port} backlog=4096; {locations} }}
}}
"""
UPSTREAM = """upstream {name} {{
    server 127.0.0.1:{port}; keepalive 256; keepalive_requests 100000000;
  }}"""
FORWARD = "proxy_pass http://{name}; proxy_http_version 1.1; proxy_set_header Connection '';"
# `return` answers before it has read the body; passing the call on without one reads it first.
POST = """location ~ /post$ {{
      client_body_buffer_size 512k; rewrite ^ / break; proxy_pass http://127.0.0.1:{port};
      proxy_pass_request_body off; proxy_set_header Content-Length "";
    }}"""
HAPROXY = """global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  http-reuse always
frontend f
  bind 127.0.0.1:{port} backlog 4096
  use_backend chat if {{ path_beg /v1/ }}
  default_backend unary
backend unary
  server s 127.0.0.1:{unary}
backend chat
  option http-no-delay
  server s 127.0.0.1:{chat}
"""
LITELLM = """model_list:
  - model_name: bench/s
    litellm_params: {{model: openai/bench, api_base: "http://127.0.0.1:{chat}/v1", api_key: x}}
"""


@dataclass(frozen=True)
class Target:
    """One way to the backends."""

    name: str
    port: int
    pid: int
    stdin: IO[str] | None = None
    stdout: IO[str] | None = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NotStarted(Exception):
    """A target did not start; the message has the end of what it said."""


def wait_port(port: int, process: "subprocess.Popen[str]", log: Path | None = None) -> None:
    give_up = time.monotonic() + READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError as error:
            if time.monotonic() > give_up or process.poll() is not None:
                ended = "does not listen" if process.poll() is None else "has ended"
                tail = log.read_text()[-LOG_TAIL_CHARACTERS:] if log else ""
                raise NotStarted(f"it {ended}\n{tail}") from error
            time.sleep(0.05)


def wait_answer(port: int) -> None:
    """Until a chat call is answered: some listen before they know their worker."""
    body = b'{"model":"bench/s","messages":[{"role":"user","content":"x"}]}'
    give_up = time.monotonic() + READY_S
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 # nosec B310
                answer.read()
                return
        except OSError as error:
            if time.monotonic() > give_up:
                raise NotStarted(f"it answers no chat call: {error}") from error
            time.sleep(0.2)


def start(stack: ExitStack, core: int, *command: str, log: Path | None = None) -> subprocess.Popen:
    """A process on one core; without a log its output is for the caller to read."""
    output = stack.enter_context(log.open("w")) if log else None
    process = subprocess.Popen(  # noqa: S603
        ["taskset", "-c", str(core), *command],  # noqa: S607
        stdin=subprocess.PIPE,
        stdout=output or subprocess.PIPE,
        stderr=output,
        env={**os.environ, **PEERS_ENVIRONMENT},
        text=True,
    )

    def end() -> None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)
    return process


def first_line(process: subprocess.Popen, what: str) -> int:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"bench-proxy: {what} did not start")
    return int(line)


def start_nginx(stack: ExitStack, folder: Path, name: str, core: int, text: dict) -> Target:
    port = free_port()
    config = folder / f"{name}.conf"
    locations = text["locations"].format(port=port)
    config.write_text(
        NGINX.format(folder=folder, name=name, port=port, upstream=text.get("upstream", ""),
                     locations=locations)
    )  # fmt: skip
    log = folder / f"{name}.out"
    process = start(stack, core, "nginx", "-p", str(folder), "-c", str(config), log=log)
    wait_port(port, process, log)
    return Target(name, port, process.pid)


def start_backends(stack: ExitStack, folder: Path) -> tuple[Target, Target]:
    """The unary backend (nginx) and the chat backend, both on core 1."""
    locations = f"location / {{{{ return 200 '{'x' * 1024}'; }}}} {POST}"
    unary = start_nginx(stack, folder, "direct", 1, {"locations": locations})
    chat = start(stack, 1, sys.executable, str(HERE / "proxy_streams.py"), "serve")
    return unary, Target("direct", first_line(chat, "the chat backend"), chat.pid)


def start_targets(
    stack: ExitStack,
    folder: Path,
    wanted: list[str],
    unary: int,
    chat: int,
    say: Callable[[str], None],
) -> list[Target]:
    """Those of the wanted ones that are installed and start; `say` is told of the others."""
    starters = {
        "nginx": lambda: proxying_nginx(stack, folder, unary, chat),
        "haproxy": lambda: start_haproxy(stack, folder, unary, chat),
        "ours": lambda: start_ours(stack, folder, unary, chat),
        "ours_auth": lambda: start_ours(stack, folder, unary, chat, "auth"),
        "sglang-router": lambda: start_router(stack, folder, "sglang", chat),
        "vllm-router": lambda: start_router(stack, folder, "vllm", chat),
        "litellm": lambda: start_litellm(stack, folder, chat),
    }
    started = []
    for name in wanted:
        peer = name in PEERS
        program = str(PEERS_BIN / name) if peer else name
        if not (name.startswith("ours") or shutil.which(program)):
            say(f"{name} is not installed: left out{' (make bench-peers)' if peer else ''}")
            continue
        begun = time.monotonic()
        try:
            started.append(starters[name]())
        except NotStarted as error:
            say(f"{name} did not start: left out: {error}")
        else:
            say(f"{name} runs after {time.monotonic() - begun:.1f} s")
    return started


def proxying_nginx(stack: ExitStack, folder: Path, unary: int, chat: int) -> Target:
    upstream = "\n  ".join(
        UPSTREAM.format(name=name, port=port) for name, port in (("unary", unary), ("chat", chat))
    )
    locations = (
        f"location / {{{{ {FORWARD.format(name='unary')} }}}}"
        f"location /v1/ {{{{ {FORWARD.format(name='chat')} proxy_buffering off; }}}}"
    )
    text = {"upstream": upstream, "locations": locations}
    return start_nginx(stack, folder, "nginx", 0, text)


def start_haproxy(stack: ExitStack, folder: Path, unary: int, chat: int) -> Target:
    port = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, unary=unary, chat=chat))
    log = folder / "haproxy.out"
    process = start(stack, 0, "haproxy", "-db", "-f", str(config), log=log)
    wait_port(port, process, log)
    return Target("haproxy", port, process.pid)


def start_ours(stack: ExitStack, folder: Path, unary: int, chat: int, *more: str) -> Target:
    script = str(HERE / "proxy_host.py")
    command = (sys.executable, script, str(folder / "c.sock"), str(unary), str(chat), *more)
    process = start(stack, 0, *command)
    port = first_line(process, "the data plane")
    return Target("_".join(("ours", *more)), port, process.pid, process.stdin, process.stdout)


def start_router(stack: ExitStack, folder: Path, maker: str, chat: int) -> Target:
    port, log = free_port(), folder / f"{maker}.out"
    module = f"{maker}_router.launch_router"
    command = (str(PEERS_BIN / "python"), "-m", module, "--host", "127.0.0.1", "--port", str(port),
               "--worker-urls", f"http://127.0.0.1:{chat}", "--policy", "round_robin",
               "--prometheus-port", str(free_port()))  # fmt: skip
    process = start(stack, 0, *command, log=log)
    wait_port(port, process, log)
    wait_answer(port)
    return Target(f"{maker}-router", port, process.pid)


def start_litellm(stack: ExitStack, folder: Path, chat: int) -> Target:
    port, log = free_port(), folder / "litellm.out"
    config = folder / "litellm.yaml"
    config.write_text(LITELLM.format(chat=chat))
    command = (str(PEERS_BIN / "litellm"), "--config", str(config), "--host", "127.0.0.1",
               "--port", str(port), "--num_workers", "1")  # fmt: skip
    process = start(stack, 0, *command, log=log)
    wait_port(port, process, log)
    wait_answer(port)
    return Target("litellm", port, process.pid)
