"""Checks of the kernel: version, what restores and containers need of it, huge pages, the clock.

Must never load a module or set a value.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator

from inferx.cli.doctor.machine import Finding, Machine, dotted, fail, none, ok, version_in, warn
from inferx.config import NodeConfig

KERNEL_MIN = (5, 9)  # CAP_CHECKPOINT_RESTORE
HUGEPAGE_KB_DEFAULT = 2048
TIME_ERROR = 5  # adjtimex: the clock is not synchronised
_TIMEX_BYTES = 256  # struct timex has 208 and is only written to


def check(machine: Machine, config: NodeConfig) -> Iterator[Finding]:
    """All findings about the kernel."""
    yield _version(machine)
    yield _cgroups(machine)
    yield from _features(machine, config)
    yield _hugepages(machine, config)
    yield _locked_memory(machine)
    yield clock()


def _version(machine: Machine) -> Finding:
    text = machine.text("/proc/sys/kernel/osrelease") or platform.release()
    version = version_in(text)
    if version is None or version < KERNEL_MIN:
        return fail("kernel", text, f"use Linux {dotted(KERNEL_MIN)} or newer")
    return ok("kernel", text)


def _cgroups(machine: Machine) -> Finding:
    if machine.exists("/sys/fs/cgroup/cgroup.controllers"):
        return ok("cgroups", "version 2")
    if machine.exists("/sys/fs/cgroup/memory"):
        return warn("cgroups", "version 1", "boot with systemd.unified_cgroup_hierarchy=1")
    return fail("cgroups", "no hierarchy in /sys/fs/cgroup", "mount cgroup2 there")


def _features(machine: Machine, config: NodeConfig) -> Iterator[Finding]:
    containers = config.runtime != "process"
    filesystems = machine.text("/proc/filesystems") or ""
    if "overlay" in filesystems:
        yield ok("overlayfs", "available")
    elif containers:
        yield fail("overlayfs", "not in /proc/filesystems", "load it: modprobe overlay")
    scope = machine.text("/proc/sys/kernel/yama/ptrace_scope") or "0"
    if scope == "3":
        advice = "boot without kernel.yama.ptrace_scope=3; checkpoints read processes by ptrace"
        yield fail("ptrace", "forbidden until the next boot", advice)
    else:
        yield ok("ptrace", f"ptrace_scope {scope}")
    fault = machine.text("/proc/sys/vm/unprivileged_userfaultfd")
    if fault is not None or machine.exists("/dev/userfaultfd"):
        yield ok("userfaultfd", "available")
    else:
        yield warn(
            "userfaultfd",
            "not in this kernel",
            "use a kernel with CONFIG_USERFAULTFD; restores cannot load memory lazily without",
        )
    if (disabled := machine.text("/proc/sys/kernel/io_uring_disabled")) in ("1", "2"):
        yield warn(
            "io_uring",
            f"io_uring_disabled={disabled}",
            "set kernel.io_uring_disabled=0; restores read snapshots more slowly without it",
        )
    else:
        yield ok("io_uring", "available")


def meminfo(machine: Machine) -> dict[str, int]:
    """/proc/meminfo: names to numbers (kB, or pages)."""
    lines = (machine.text("/proc/meminfo") or "").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name: int(rest.split()[0]) for name, rest in pairs if rest.split()}


def _hugepages(machine: Machine, config: NodeConfig) -> Finding:
    known = meminfo(machine)
    page_kb = known.get("Hugepagesize", HUGEPAGE_KB_DEFAULT)
    total, free = known.get("HugePages_Total", 0), known.get("HugePages_Free", 0)
    found = f"{total} of {page_kb} kB, {free} free"
    if not config.sharemem.hugepage or not config.sharemem.size_gb:
        return none("hugepages", f"{found}; sharemem in node.json asks for none")
    needed = -(-config.sharemem.size_gb * 1024 * 1024 // page_kb)
    if total < needed:
        return fail(
            "hugepages",
            f"{found}; sharemem.size needs {needed}",
            f"reserve them at boot: vm.nr_hugepages={needed} in /etc/sysctl.d, then reboot",
        )
    return ok("hugepages", found)


def _locked_memory(machine: Machine) -> Finding:
    limits = machine.text("/proc/self/limits") or ""
    line = next((one for one in limits.splitlines() if one.startswith("Max locked memory")), "")
    soft = line.removeprefix("Max locked memory").split()[0] if line else "unknown"
    if soft == "unlimited":
        return ok("locked memory", soft)
    return warn(
        "locked memory",
        f"this shell: {soft} bytes",
        "give the node agent LimitMEMLOCK=infinity (its systemd unit does) or CAP_IPC_LOCK",
    )


def clock() -> Finding:
    """Whether a time service keeps the kernel's clock."""
    state = int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    if state == TIME_ERROR:
        return warn(
            "clock",
            "not synchronised",
            "run chrony or systemd-timesyncd; tokens, keys and logs need the right time",
        )
    if state < 0:
        return none("clock", "its state cannot be read here")
    return ok("clock", "synchronised")
