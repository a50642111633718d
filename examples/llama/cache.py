"""Where the example models are kept, and how one is written exactly once.

Must never leave a half-written model where a server could find it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/inferx` when that is set, otherwise `.cache/inferx` in the project."""
    base = os.environ.get("XDG_CACHE_HOME")
    path = (Path(base) if base else PROJECT / ".cache") / "inferx"
    path.mkdir(parents=True, exist_ok=True)
    return path


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The cached file `name`, built by `build(temporary_path)` when it is not there yet.

    Many workers may ask at the same time: one builds under a file lock, the others wait for it.
    The finished file appears by a rename, so a build that dies leaves nothing behind that counts.
    """
    final = cache_dir() / name
    if final.exists():
        return final
    with (cache_dir() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if final.exists():
            return final
        started = time.monotonic()
        temporary = final.with_suffix(".part")
        build(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.rename(final)
        size_mb = final.stat().st_size / 1e6
        print(f"wrote {final} ({size_mb:.0f} MB) in {time.monotonic() - started:.1f} s", flush=True)
    return final
