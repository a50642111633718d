"""The OCI configuration of one container: what it runs, sees and may use.

Must never give a container more of this machine than its function's spec and allocation say.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferx.agent.runtimes.command import LINK
from inferx.agent.runtimes.images import Image
from inferx.agent.runtimes.network import PodNetwork
from inferx.agent.runtimes.protocol import WorkerSpec
from inferx.agent.spec import devices_of

# What a container's root user may do, as in the default of the common container engines.
CAPABILITIES = [
    "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
    "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
    "CAP_SYS_CHROOT",
]  # fmt: skip
_FIXED_MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    },
    {
        "destination": "/sys",
        "type": "sysfs",
        "source": "sysfs",
        "options": ["nosuid", "noexec", "nodev", "ro"],
    },
]
_SHM_OPTIONS = ["nosuid", "noexec", "nodev", "mode=1777"]
_MASKED = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware"]
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_NVIDIA_SHARED = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
CGROUP_PARENT = "/inferx"


@dataclass(frozen=True)
class Box:
    """What a container consists of besides its function."""

    name: str
    root: Path
    image: Image
    network: PodNetwork
    criu_config: Path
    work_dir: Path
    hidden: Sequence[Path] = ()  # folders of this machine that no worker may look into


def configuration(
    spec: WorkerSpec, box: Box, argv: Sequence[str], environment: Mapping[str, str]
) -> dict[str, Any]:
    """The content of config.json."""
    cwd = str(box.work_dir) if box.image.is_host else (box.image.work_dir or "/")
    sets = ("bounding", "effective", "permitted")
    return {
        "ociVersion": "1.0.2",
        "hostname": box.name[:63],
        "root": {"path": str(box.root), "readonly": False},
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(argv),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": cwd,
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(sets, CAPABILITIES),
        },
        "mounts": _mounts(spec, box),
        "annotations": {"org.criu.config": str(box.criu_config)},
        "linux": {
            "cgroupsPath": f"{CGROUP_PARENT}/{box.name}",
            "resources": _resources(spec),
            "devices": [device.entry for device in gpu_devices(spec)],
            "namespaces": [
                *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
                {"type": "network", "path": str(box.network.path)},
            ],
            "maskedPaths": _MASKED,
            "readonlyPaths": _READ_ONLY,
        },
    }


@dataclass(frozen=True)
class GpuNode:
    """A device file of a GPU."""

    path: str
    major: int
    minor: int

    @property
    def entry(self) -> dict[str, Any]:
        """It as an entry of `linux.devices`."""
        numbers = {"major": self.major, "minor": self.minor, "fileMode": 0o666}
        return {"path": self.path, "type": "c", "uid": 0, "gid": 0, **numbers}


def gpu_devices(spec: WorkerSpec) -> list[GpuNode]:
    """The device files of the pod's GPUs; none where they are simulated."""
    devices = devices_of(spec.alloc)
    paths = [*_NVIDIA_SHARED, *(f"/dev/nvidia{index}" for index in devices)] if devices else []
    nodes = []
    for path in paths:
        try:
            number = os.stat(path).st_rdev
        except FileNotFoundError:
            continue
        nodes.append(GpuNode(path, os.major(number), os.minor(number)))
    return nodes


def _resources(spec: WorkerSpec) -> dict[str, Any]:
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    rules += [
        {"allow": True, "type": "c", "major": node.major, "minor": node.minor, "access": "rw"}
        for node in gpu_devices(spec)
    ]
    resources: dict[str, Any] = {"devices": rules}
    if spec.alloc.mem_mb:
        resources["memory"] = {"limit": spec.alloc.mem_mb << 20}
    if spec.alloc.cpu_millis:
        # A share, not a quota: what is idle may be used, so that loading is not slowed down.
        resources["cpu"] = {"shares": max(2, spec.alloc.cpu_millis * 1024 // 1000)}
    return resources


def _mounts(spec: WorkerSpec, box: Box) -> list[dict[str, Any]]:
    shm_mb = max(64, spec.alloc.mem_mb // 2)
    # The container's own.
    shm = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}  # noqa: S108 # nosec B108
    mounts = [*_FIXED_MOUNTS, {**shm, "options": [*_SHM_OPTIONS, f"size={shm_mb}m"]}]
    if box.image.is_host:
        mounts += [_bind(path, path, "ro") for path in _elsewhere(box.work_dir)]
        mounts += [_empty(path) for path in box.hidden if path.is_dir()]
    elif Path("/etc/resolv.conf").exists():
        mounts.append(_bind("/etc/resolv.conf", "/etc/resolv.conf", "ro"))
    if spec.link.is_dir():
        mounts.append(_bind(str(spec.link), LINK, "rw"))
    mounts += [_bind(mount.host_path, mount.mount_path, "rw") for mount in spec.launch.mounts]
    return mounts


def _bind(source: str, target: str, mode: str) -> dict[str, Any]:
    options = ["rbind", "rprivate", "nosuid", mode]
    return {"destination": target, "type": "bind", "source": source, "options": options}


def _empty(path: Path) -> dict[str, Any]:
    options = ["nosuid", "nodev", "noexec", "ro", "mode=0700", "size=4k"]
    return {"destination": str(path), "type": "tmpfs", "source": "tmpfs", "options": options}


def _elsewhere(work_dir: Path) -> list[str]:
    """Folders that a worker of this machine's own root needs and that lie on another disk."""
    root = os.stat("/").st_dev
    wanted = dict.fromkeys((str(work_dir), sys.prefix, sys.base_prefix))
    return [path for path in wanted if os.stat(path).st_dev != root]
