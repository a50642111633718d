"""A userspace TCP proxy that tests put between two services, to cut or slow their connection.

Must never drop bytes of a connection that goes on: TCP would not either.
"""

from __future__ import annotations

import asyncio
import contextlib


class TcpProxy:
    """Forwards to `target`; `cut` keeps connections open and silent, `delay_s` slows each chunk."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self.delay_s = 0.0
        self.port = 0
        self._target = (target_host, target_port)
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """From now on nothing gets through, and nobody is told."""
        self._open.clear()

    def heal(self) -> None:
        """Everything gets through again; connections that were cut are reset, as after a reboot."""
        if not self._open.is_set():
            for connection in self._connections:
                connection.cancel()
        self.delay_s = 0.0
        self._open.set()

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._open.wait()
            there, back = await asyncio.open_connection(*self._target)
            pipes = [
                asyncio.create_task(self._pipe(reader, back)),
                asyncio.create_task(self._pipe(there, writer)),
            ]
            try:
                await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pipe in pipes:
                    pipe.cancel()
                await asyncio.gather(*pipes, return_exceptions=True)
                back.close()
        except OSError:
            pass  # the target is down: the caller's connection closes, as without a proxy
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            with contextlib.suppress(OSError):
                writer.close()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._open.wait()
                writer.write(data)
                await writer.drain()
