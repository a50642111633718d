"""What CRIU has found out about the kernel, kept: each of its commands looks for it first.

Must never outlive a boot, nor lie where another user could have written it.
"""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import time
from pathlib import Path

log = logging.getLogger("inferx.agent.criu")

RUN = Path("/run")  # CRIU keeps its findings there, but only in a memory file system
MEMORY = Path("/dev/shm")  # noqa: S108 # nosec B108 - containers have one too
NAME = "criu.kdat"
ABANDONED_S = 60.0
CHECK_BOUND_S = 30.0
# In a mount namespace of its own, whose /run is such a file system.
_COLLECT = """
[ "$(stat -f -c %T "$3")" = tmpfs ] || { echo "$3 is no memory file system" >&2; exit 1; }
mount -t tmpfs inferx "$2" || exit 1
"$1" check >&2
[ -e "$2/criu.kdat" ] || exit 1
cp "$2/criu.kdat" "$3/new.$$" && mv "$3/new.$$" "$3/criu.kdat"
"""


def keep(program: str, run: Path = RUN, memory: Path = MEMORY) -> None:
    """Make sure that the findings are kept, or say in the log why each restore has to make them
    again, twice, which takes as long as the rest of it.

    Where `run` lies on a disk they are put into `memory`, and `run` has a link that leads nowhere
    after a boot. Needs root.
    """
    cache, unfinished = run / NAME, run / f"{NAME}.tmp"
    if _age_s(unfinished) > ABANDONED_S:
        unfinished.unlink(missing_ok=True)  # a killed CRIU left it: no other would write its own
    if cache.exists():
        return
    try:
        _run([program, "check"])
        if cache.exists():
            return
        folder = _private(memory / "inferx-criu")
        done = _run(["unshare", "--mount", "sh", "-c", _COLLECT, "sh", program, run, folder])
        if done.returncode != 0:
            raise OSError(done.stderr.strip() or f"{program} check leaves no {NAME}")
        _link(cache, folder / NAME)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("restores take longer, CRIU's findings cannot be kept: %s", error)


def _run(argv: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - CRIU, and a script of ours with paths as its arguments
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=CHECK_BOUND_S,
        check=False,
    )


def _age_s(file: Path) -> float:
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _private(folder: Path) -> Path:
    """The folder, which only this user can write; raises OSError for one of somebody else."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise OSError(f"{folder} is not ours alone")
    return folder


def _link(link: Path, target: Path) -> None:
    """Put the link there in one step; one that leads nowhere is replaced."""
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    fresh.symlink_to(target)
    fresh.replace(link)
