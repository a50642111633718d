"""A real nginx before a worker, as the proxy that others are compared with."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tests.helpers.ports import free_port

CONFIG = """daemon off; master_process off; worker_processes 1; pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream worker {{ server 127.0.0.1:{worker}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{port};
    location /funccall/ {{
      proxy_pass http://worker; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $http_host; proxy_request_buffering off;
      proxy_ignore_client_abort on;
    }}
    location / {{ return 404; }}
  }}
}}
"""
READY_S = 20.0


@contextlib.asynccontextmanager
async def nginx(folder: Path, worker_port: int) -> AsyncIterator[int]:
    """Runs nginx before the worker; gives its port."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, worker=worker_port, port=port))
    command = ["nginx", "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        deadline = time.monotonic() + READY_S
        while True:
            assert process.returncode is None, (folder / "error.log").read_text()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                assert time.monotonic() < deadline, "nginx does not listen"
                await asyncio.sleep(0.02)
        yield port
    finally:
        process.terminate()
        await process.wait()
