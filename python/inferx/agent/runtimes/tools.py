"""Runs the machine's own tools (ip, tar, runc) and makes their failures readable.

Must never pass a text through a shell.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from inferx.errors import Unavailable

TIMEOUT_S = 60.0
SHOWN_CHARS = 600
# Tools at a time. Python's own subprocess starts them by vfork: with a fork, as the event loop
# would do it, the handlers that gRPC has for forks now and then crash the child before its exec.
_THREADS = ThreadPoolExecutor(max_workers=32, thread_name_prefix="tool")


class ToolFailed(Unavailable):
    """A tool could not be run, failed, or did not end in time."""


async def run(
    argv: Sequence[str],
    *,
    text: str = "",
    timeout_s: float = TIMEOUT_S,
    environment: Mapping[str, str] | None = None,
) -> str:
    """What the tool wrote, `text` being its standard input; raises ToolFailed."""
    loop = asyncio.get_running_loop()
    try:
        process = await loop.run_in_executor(_THREADS, _spawn, argv, environment)
    except OSError as error:
        raise ToolFailed(f"cannot run {argv[0]}: {error.strerror}") from error
    done = loop.run_in_executor(_THREADS, process.communicate, text)
    try:
        async with asyncio.timeout(timeout_s):
            output, complaint = await asyncio.shield(done)
    except BaseException as error:
        # Nobody will wait for it any more: a half-done tool must not go on behind our back.
        process.kill()
        await asyncio.wait([done])
        if isinstance(error, TimeoutError):
            raise ToolFailed(f"{_shown(argv)} did not end within {timeout_s:g} s") from error
        raise
    if process.returncode != 0:
        said = (complaint or output).strip()[-SHOWN_CHARS:]
        raise ToolFailed(f"{_shown(argv)} failed ({process.returncode}): {said}")
    return output


def _spawn(argv: Sequence[str], environment: Mapping[str, str] | None) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - the machine's tools, with arguments of our own
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
    )


def _shown(argv: Sequence[str]) -> str:
    words = [argv[0].rpartition("/")[2], *argv[1:]]
    return " ".join(words)[:200]
