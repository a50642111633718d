"""Checks of the container runtimes and CRIU: there, new enough, without known ways out.

Must never start a container.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from inferx.cli.doctor.machine import (
    Finding,
    Machine,
    Version,
    dotted,
    fail,
    none,
    ok,
    version_in,
    warn,
)
from inferx.config import NodeConfig

CRIU_MIN = (4, 2)  # what the node agent accepts
CRIU_INSTALLED = "/opt/inferx/criu/bin/criu"
ENGINE_SOCKETS = {
    "containerd": "/run/containerd/containerd.sock",
    "docker": "/var/run/docker.sock",
}
# The programs that run a runtime's workers; containerd's shims and restored workers need runc.
NEEDED = {"runc": ("runc",), "containerd": ("containerd", "runc")}
# The first safe release of each line, newest line first.
RUNC_SAFE: tuple[Version, ...] = ((1, 4, 0), (1, 3, 3), (1, 2, 8))
RUNC_ESCAPES = "CVE-2024-21626 or CVE-2025-31133, -52565, -52881"
CONTAINERD_SAFE: tuple[Version, ...] = ((2, 2, 0), (2, 1, 5), (2, 0, 7), (1, 7, 29))
CONTAINERD_ESCAPES = "CVE-2024-25621 or CVE-2025-64329"


def check(machine: Machine, config: NodeConfig) -> Iterator[Finding]:
    """All findings about what runs workers."""
    yield _tool(machine, config, "runc", RUNC_SAFE, RUNC_ESCAPES)
    yield _tool(machine, config, "containerd", CONTAINERD_SAFE, CONTAINERD_ESCAPES)
    if config.runtime in ENGINE_SOCKETS:
        socket = str(config.container_socket or ENGINE_SOCKETS[config.runtime])
        if not machine.exists(socket):
            advice = f"start {config.runtime}, or name its socket in `containerSocket`"
            yield fail(f"{config.runtime} socket", f"no {socket}", advice)
    if config.runtime in NEEDED:
        found = machine.program("ip")
        yield (
            ok("iproute2", found)
            if found
            else fail(
                "iproute2", "no program `ip`", "install iproute2; containers get addresses by it"
            )
        )
    yield _criu(machine, config)


def is_safe(version: Version, lines: tuple[Version, ...]) -> bool:
    """Whether a version is at or behind the safe release of its line, or of a newer line."""
    for safe in lines:
        if version[:2] == safe[:2]:
            return version >= safe
    return version > lines[0]


def _tool(
    machine: Machine, config: NodeConfig, name: str, safe: tuple[Version, ...], escapes: str
) -> Finding:
    needed = name in NEEDED.get(config.runtime, ())
    program = machine.program(name)
    if program is None:
        if needed:
            return fail(name, "not installed", f"install {name} or choose another `runtime`")
        return none(name, f"not installed; the runtime is {config.runtime}")
    code, text = machine.output([program, "--version"])
    version = version_in(text)
    if code or version is None:
        return warn(name, text.strip()[:100], f"{program} does not show a version")
    if is_safe(version, safe):
        return ok(name, dotted(version))
    newest = " or ".join(dotted(one) for one in reversed(safe))
    level = fail if needed else warn
    return level(
        name,
        f"{dotted(version)}: {escapes} may let a container out",
        f"update to {newest}, or to your distribution's package that names these fixes",
    )


def _criu(machine: Machine, config: NodeConfig) -> Finding:
    program = machine.program(CRIU_INSTALLED, "criu")
    advice = "run scripts/install-criu as root; without it an idle worker cannot be put on disk"
    if program is None:
        if config.runtime == "process":
            return none("criu", "not installed; the process runtime parks in memory only")
        return warn("criu", "not installed", advice)
    code, text = machine.output([program, "--version"])
    version = version_in(text)
    if code or version is None:
        return warn("criu", text.strip()[:100], f"{program} does not show a version")
    if version < CRIU_MIN:
        return warn("criu", f"{dotted(version)}, older than {dotted(CRIU_MIN)}", advice)
    if os.geteuid() != 0:
        return ok("criu", f"{dotted(version)} (run the doctor as root to check the kernel by it)")
    code, text = machine.output([program, "check"])
    if code:
        reason = (text.strip().splitlines() or ["no reason given"])[-1][:150]
        return fail(
            "criu", f"{dotted(version)}: {reason}", "use a kernel that `criu check` accepts"
        )
    return ok("criu", f"{dotted(version)}, `criu check` is content with the kernel")
