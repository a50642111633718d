"""The scheduler's one port: leases are served by the extension, the rest by grpc.aio behind it.

Must never leave the socket between the two where somebody else can open it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from inferx._ext import SchedulerServer
from inferx.errors import Unavailable
from inferx.rpc import rights, tls
from inferx.rpc.server import Registration, Server, serve_behind

_PATH_BYTES_MAX = 100  # the system's limit is 107
_GRACE_MS = 2_000
_numbers = itertools.count(1)


class Port:
    """`server` in front, a grpc.aio server of `registrations` behind; `number` is the port."""

    def __init__(self, server: SchedulerServer, folder: Path) -> None:
        self.number = 0
        self._server = server
        self._folder = folder
        self._path: Path | None = None
        self._behind: Server | None = None

    async def open(self, address: str, registrations: Iterable[Registration]) -> None:
        """Listen; raises Unavailable that names a taken address."""
        self._path = _private_path(self._folder)
        self._behind = await serve_behind(self._path, registrations)
        callers = rights.callers("na.SchedulerService")
        found = tls.files()
        files = None if found is None else (Path(found.ca), Path(found.cert), Path(found.key))
        try:
            self.number = self._server.start(address, self._path, callers, files)
        except OSError as error:
            raise Unavailable(f"cannot listen on {address}: is it in use? ({error})") from error

    async def close(self) -> None:
        """Refuse new calls, let running ones end for two seconds, then cancel them."""
        await asyncio.to_thread(self._server.stop, _GRACE_MS)
        if self._behind is not None:
            await self._behind.stop(0)
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another scheduler has its socket there
                self._path.parent.rmdir()


def _private_path(folder: Path) -> Path:
    """A path that only this user can open; sockets of schedulers that were killed are removed."""
    folder = folder.absolute() / "scheduler"
    name = f"{os.getpid()}-{next(_numbers)}.sock"
    if len(os.fsencode(folder / name)) > _PATH_BYTES_MAX:
        folder = Path(tempfile.mkdtemp(prefix="inferx-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for left in folder.glob("*.sock"):
        if not Path("/proc", left.stem.partition("-")[0]).exists():
            left.unlink(missing_ok=True)
    return folder / name
