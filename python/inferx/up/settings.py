"""What `inferx up` runs with: its options, and the node.json that they become.

Must never guess silently; what was chosen is part of the first line printed.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferx.agent.runtimes import containerd, docker
from inferx.errors import ConfigError
from inferx.up.ports import LOOPBACK

SIMULATED_DEFAULT = "2x24000"
NVIDIA_DEVICE = Path("/dev/nvidiactl")
# Where those runtimes that are services of their own listen.
ENGINE_SOCKETS = {"docker": docker.SOCKET, "containerd": containerd.SOCKET}
_SIMULATED = re.compile(r"(\d{1,4})x(\d{1,9})")


@dataclass(frozen=True)
class Settings:
    """The options of `inferx up`."""

    directory: Path
    port: int
    gpus: str
    runtime: str
    idle_park_ms: int | None
    log_level: str
    log_format: str
    verbose: bool
    auth: bool = False
    listener: str = "rust"


def simulated_gpus(text: str) -> tuple[int, int] | None:
    """(count, MB each) of simulated devices, or None for the machine's own GPUs.

    `text` is COUNTxMB, `real`, or `auto`: the machine's own when it has any, otherwise two
    simulated ones. Raises `ConfigError` for anything else.
    """
    if text == "real":
        if not NVIDIA_DEVICE.exists():
            raise ConfigError(f"--gpus real: this machine has no NVIDIA driver ({NVIDIA_DEVICE})")
        return None
    if text == "auto":
        if NVIDIA_DEVICE.exists():
            return None
        text = SIMULATED_DEFAULT
    match = _SIMULATED.fullmatch(text)
    if match is None or int(match[1]) == 0 or int(match[2]) == 0:
        raise ConfigError(
            f"--gpus {text}: expected auto, real, or COUNTxMB such as {SIMULATED_DEFAULT}"
        )
    return int(match[1]), int(match[2])


def check_runtime(runtime: str) -> None:
    """Raises `ConfigError` when the service that the runtime needs does not listen here."""
    path = ENGINE_SOCKETS.get(runtime)
    if path is None:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            raise ConfigError(
                f"--runtime {runtime}: {path}: {error.strerror}; start it, or leave --runtime out"
            ) from error


def describe_gpus(text: str) -> str:
    """What `simulated_gpus` chose, in words."""
    chosen = simulated_gpus(text)
    if chosen is None:
        return "the GPUs of this machine"
    why = ", because this machine has none" if text == "auto" else ""
    return f"{chosen[0]} simulated GPUs of {chosen[1]} MB{why}"


def node_document(settings: Settings, directory: Path, ports: list[int]) -> dict[str, Any]:
    """node.json for all services of one machine; `ports` are those of `SERVICE_PORTS`."""
    state, scheduler, podmgr, agent_state = ports
    document: dict[str, Any] = {
        "nodeName": "local",
        "hostIp": LOOPBACK,
        "dataDir": str(directory),
        "snapshotDir": str(directory / "snapshots"),
        "gatewayPort": settings.port,
        "listener": settings.listener,
        "statSvcPort": state,
        "schedulerPort": scheduler,
        "podMgrPort": podmgr,
        "qletStateSvcPort": agent_state,
        "stateSvcAddrs": [f"{LOOPBACK}:{state}"],
        "schedulerAddr": f"{LOOPBACK}:{scheduler}",
        "runtime": settings.runtime,
        # There is no standby here; a state service that is being restarted must not end the lead.
        "leaderLeaseMs": 10_000,
        "logLevel": settings.log_level,
        "logFormat": settings.log_format,
    }
    if settings.idle_park_ms is not None:
        document["idleParkMs"] = settings.idle_park_ms
    if settings.auth:
        document["auth"] = {"enable": True}
    chosen = simulated_gpus(settings.gpus)
    if chosen is not None:
        document["simulatedGPUs"] = [{"type": "Simulated", "count": chosen[0], "vramMB": chosen[1]}]
    return document
