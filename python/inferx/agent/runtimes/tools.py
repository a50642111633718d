"""Runs the machine's own tools (ip, tar, runc) and makes their failures readable.

Must never pass a text through a shell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from inferx.errors import Unavailable

TIMEOUT_S = 60.0
SHOWN_CHARS = 600


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
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE if text else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
    except OSError as error:
        raise ToolFailed(f"cannot run {argv[0]}: {error.strerror}") from error
    try:
        async with asyncio.timeout(timeout_s):
            output, complaint = await process.communicate(text.encode() or None)
    except BaseException as error:
        # Nobody will wait for it any more: a half-done tool must not go on behind our back.
        if process.returncode is None:
            process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise ToolFailed(f"{_shown(argv)} did not end within {timeout_s:g} s") from error
        raise
    if process.returncode != 0:
        said = (complaint or output).decode(errors="replace").strip()[-SHOWN_CHARS:]
        raise ToolFailed(f"{_shown(argv)} failed ({process.returncode}): {said}")
    return output.decode(errors="replace")


def _shown(argv: Sequence[str]) -> str:
    words = [argv[0].rpartition("/")[2], *argv[1:]]
    return " ".join(words)[:200]
