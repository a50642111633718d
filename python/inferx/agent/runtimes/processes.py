"""How runtimes start a program whose output is the pod's log, and how they kill processes.

Must never decide which processes those are.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from inferx.agent.logs import PodLog


def spawn(
    argv: Sequence[str], environment: Mapping[str, str], work_dir: Path, pod_folder: Path
) -> subprocess.Popen[bytes]:
    """Start it as the leader of a session of its own, writing to the log of the pod's folder."""
    output = PodLog(pod_folder).open_for_worker()
    try:
        return subprocess.Popen(  # noqa: S603 - running the function's command is the purpose
            argv,
            cwd=work_dir,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)


def kill_each(pids: Iterable[int]) -> None:
    """SIGKILL for each; one that has ended already is fine."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
