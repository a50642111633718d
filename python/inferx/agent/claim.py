"""One agent for one data folder: the lock that it takes before it touches anything there.

Must never outlive its process.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from inferx.errors import ConfigError


def claim(folder: Path) -> int:
    """The descriptor that holds `folder`; raises ConfigError when another agent has it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(f"{path}: another node agent uses this data folder") from error
    return descriptor
