"""The proxies that `bench/proxy.py` compares: each started on core 0, before the same backends.

Must never tune one of them beyond what its manual says for this kind of traffic.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("BENCH_PEERS", HERE.parent / ".cache" / "bench-peers")) / "bin"
READY_S = 90.0
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


def wait_port(port: int, process: "subprocess.Popen[str]") -> None:
    give_up = time.monotonic() + READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > give_up or process.poll() is not None:
                raise
            time.sleep(0.05)


def start(stack: ExitStack, core: int, *command: str, quiet: bool = False) -> subprocess.Popen:
    process = subprocess.Popen(  # noqa: S603
        ["taskset", "-c", str(core), *command],  # noqa: S607
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else None,
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
    process = start(stack, core, "nginx", "-p", str(folder), "-c", str(config))
    wait_port(port, process)
    return Target(name, port, process.pid)


def start_backends(stack: ExitStack, folder: Path) -> tuple[Target, int]:
    """The unary backend (nginx) and the port of the chat backend, both on core 1."""
    locations = f"location / {{{{ return 200 '{'x' * 1024}'; }}}} {POST}"
    unary = start_nginx(stack, folder, "direct", 1, {"locations": locations})
    chat = start(stack, 1, sys.executable, str(HERE / "proxy_streams.py"), "serve")
    return unary, first_line(chat, "the chat backend")


def start_targets(
    stack: ExitStack, folder: Path, wanted: list[str], unary: Target, chat: int
) -> list[Target]:
    """The wanted ones of those that are installed."""
    starters = {
        "nginx": lambda: proxying_nginx(stack, folder, unary.port, chat),
        "haproxy": lambda: start_haproxy(stack, folder, unary.port, chat),
        "ours": lambda: start_ours(stack, folder, unary.port, chat),
        "ours_auth": lambda: start_ours(stack, folder, unary.port, chat, "auth"),
        "sglang-router": lambda: start_router(stack, "sglang", chat),
        "vllm-router": lambda: start_router(stack, "vllm", chat),
        "litellm": lambda: start_litellm(stack, folder, chat),
    }
    needed = {"nginx": "nginx", "haproxy": "haproxy", "ours": sys.executable,
              "ours_auth": sys.executable}  # fmt: skip
    started = []
    for name in wanted:
        if shutil.which(needed.get(name, str(PEERS / name))):
            started.append(starters[name]())
        else:
            print(f"{name} is not installed: left out (make bench-peers)", file=sys.stderr)
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
    process = start(stack, 0, "haproxy", "-db", "-f", str(config), quiet=True)
    wait_port(port, process)
    return Target("haproxy", port, process.pid)


def start_ours(stack: ExitStack, folder: Path, unary: int, chat: int, *more: str) -> Target:
    script = str(HERE / "proxy_host.py")
    command = (sys.executable, script, str(folder / "c.sock"), str(unary), str(chat), *more)
    process = start(stack, 0, *command)
    port = first_line(process, "the data plane")
    return Target("_".join(("ours", *more)), port, process.pid, process.stdin, process.stdout)


def start_router(stack: ExitStack, maker: str, chat: int) -> Target:
    port = free_port()
    module = f"{maker}_router.launch_router"
    command = (str(PEERS / "python"), "-m", module, "--host", "127.0.0.1", "--port", str(port),
               "--worker-urls", f"http://127.0.0.1:{chat}", "--policy", "round_robin",
               "--prometheus-port", str(free_port()))  # fmt: skip
    process = start(stack, 0, *command, quiet=True)
    wait_port(port, process)
    return Target(f"{maker}-router", port, process.pid)


def start_litellm(stack: ExitStack, folder: Path, chat: int) -> Target:
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(LITELLM.format(chat=chat))
    command = (str(PEERS / "litellm"), "--config", str(config), "--host", "127.0.0.1",
               "--port", str(port), "--num_workers", "1")  # fmt: skip
    process = start(stack, 0, *command, quiet=True)
    wait_port(port, process)
    return Target("litellm", port, process.pid)
