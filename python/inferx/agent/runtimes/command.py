"""The command line and environment of a worker, the same on every runtime.

Must never let a function's own variables replace the platform's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from inferx.agent.runtimes.protocol import WorkerSpec
from inferx.agent.spec import devices_of, expand
from inferx.worker import FOLDER as WORKER_DIR

# Names the pod beyond doubt: its folder is locked by one agent.
FOLDER = "INFERX_POD_DIR"
# Where a container sees the folder of the sockets that it shares with the agent.
LINK = "/run/inferx"
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR")


def command_of(
    spec: WorkerSpec,
    inherited: Mapping[str, str],
    defaults: tuple[Sequence[str], Sequence[str]] = ((), ()),
    *,
    link: str = "",
) -> tuple[list[str], dict[str, str]]:
    """The command line and the whole environment of a worker, with `$(NAME)` expanded.

    `defaults` are an image's entrypoint and command, for a function that names none; `link` is
    where the worker sees its link folder, if not where the agent does.
    """
    devices = ",".join(str(index) for index in devices_of(spec.alloc))
    given = {
        "PORT": str(spec.port),
        "INFERX_PORT": str(spec.port),
        "INFERX_HOST": spec.host,
        "INFERX_POD": spec.pod_id,
        FOLDER: str(spec.folder),
        "INFERX_PYTHON": sys.executable,
        # Empty hides every GPU: a pod without devices must not find the others' ones.
        "NVIDIA_VISIBLE_DEVICES": devices or "void",
        "CUDA_VISIBLE_DEVICES": devices,
    }
    if spec.link.is_dir():
        given[WORKER_DIR] = link or str(spec.link)
    environment = {**inherited, **given}
    for name, value in spec.launch.envs:
        # The platform's own names win: a pod that listens elsewhere could never be reached.
        if name not in given:
            environment[name] = expand(value, environment)
    entrypoint = spec.launch.entrypoint or defaults[0]
    # As everywhere with images: an entrypoint of one's own takes the image's command away, too.
    commands = spec.launch.commands or (() if spec.launch.entrypoint else defaults[1])
    return [expand(word, environment) for word in (*entrypoint, *commands)], environment
