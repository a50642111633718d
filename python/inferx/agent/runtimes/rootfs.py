"""A container's root: an image (or this machine's own root) that it sees, but never writes to.

Must never write into the lower folder, nor leave a mount behind.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from pathlib import Path

from inferx.agent.runtimes import tools
from inferx.errors import InferxError, Unavailable

SCRATCH_MB = 1024  # what a worker may write into its own root; it is memory
UNMOUNT_BOUND_S = 5.0
RETRY_S = 0.01
_MS_NODEV, _MS_NOSUID = 4, 2
_XATTRS = ("--xattrs", "--xattrs-include=*")
_libc = ctypes.CDLL(None, use_errno=True)


class RootFs:
    """`box/rootfs`: an overlay whose upper layer lies on a tmpfs of its own, `box/scratch`."""

    def __init__(self, box: Path) -> None:
        self.path = box / "rootfs"
        self._scratch = box / "scratch"

    async def mount(self, lower: Path, saved: Path | None = None) -> None:
        """Mount it; `saved` is the archive of a former upper layer, if there is one."""
        for folder in (self.path, self._scratch):
            folder.mkdir(mode=0o700, exist_ok=True)
        await asyncio.to_thread(self._mount_scratch)
        upper, work = self._scratch / "upper", self._scratch / "work"
        upper.mkdir(mode=0o755)
        work.mkdir(mode=0o700)
        if saved is not None:
            await tools.run(["tar", *_XATTRS, "-xpf", str(saved), "-C", str(upper)])
        data = ",".join(
            f"{name}={_escaped(path)}"
            for name, path in (("lowerdir", lower), ("upperdir", upper), ("workdir", work))
        )
        await asyncio.to_thread(_mount, "overlay", self.path, 0, data)

    async def unmount(self) -> None:
        """Unmount all of it; what is not mounted is fine."""
        for folder in (self.path, self._scratch):
            await asyncio.to_thread(_unmount, folder)
            if folder.is_dir():
                folder.rmdir()

    def save_command(self, archive: Path) -> list[str]:
        """The command that writes the upper layer into `archive`."""
        upper = str(self._scratch / "upper")
        return ["tar", *_XATTRS, "-cf", str(archive), "-C", upper, "."]

    @property
    def size_bytes(self) -> int:
        """What the worker has written into its root."""
        status = os.statvfs(self._scratch)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def _mount_scratch(self) -> None:
        flags = _MS_NODEV | _MS_NOSUID
        _mount("tmpfs", self._scratch, flags, f"size={SCRATCH_MB}m,mode=0700")


def _escaped(path: Path) -> str:
    return "".join(f"\\{sign}" if sign in "\\:," else sign for sign in str(path))


def _mount(kind: str, target: Path, flags: int, data: str) -> None:
    done = _libc.mount(
        b"inferx", os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    if done != 0:
        number = ctypes.get_errno()
        raise Unavailable(f"cannot mount {kind} at {target}: {os.strerror(number)}")


def _unmount(target: Path) -> None:
    deadline = time.monotonic() + UNMOUNT_BOUND_S
    while os.path.ismount(target):
        if _libc.umount2(os.fsencode(target), 0) == 0:
            continue  # there may be another one beneath it
        number = ctypes.get_errno()
        if time.monotonic() > deadline:
            raise InferxError(f"cannot unmount {target}: {os.strerror(number)}")
        time.sleep(RETRY_S)  # a process that has just died lets go of it in a moment
