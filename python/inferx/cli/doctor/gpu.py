"""Checks of NVIDIA's driver, devices, container toolkit and Kubernetes device plugin.

Must never open a GPU: that makes a context, and takes memory from a worker.
"""

from __future__ import annotations

from collections.abc import Iterator

from inferx.cli.doctor.machine import Finding, Machine, dotted, fail, none, ok, version_in, warn

DRIVER_FILE = "/proc/driver/nvidia/version"
DRIVER_MIN = (570,)  # the checkpoint functions of the driver's API (CUDA 12.8)
TOOLKIT_SAFE = (1, 17, 8)
# Ways out of a container, by the first version that is safe.
TOOLKIT_ESCAPES = (
    ((1, 16, 2), "CVE-2024-0132"),
    ((1, 17, 4), "CVE-2025-23359"),
    ((1, 17, 8), "CVE-2025-23266"),
)
PLUGIN_SOCKET = "/var/lib/kubelet/device-plugins/nvidia-gpu.sock"


def check(machine: Machine) -> Iterator[Finding]:
    """All findings about GPUs; one that says so on a machine without any."""
    driver = machine.text(DRIVER_FILE)
    if driver is None:
        vendors = machine.file("/sys/bus/pci/devices").glob("*/vendor")
        if any(vendor.read_text().strip() == "0x10de" for vendor in vendors):
            advice = "install the driver, 570 or newer, and reboot"
            yield fail("gpu driver", "an NVIDIA device without a driver", advice)
        else:
            yield none("gpu driver", "no NVIDIA device; node.json can simulate GPUs")
        return
    yield _driver(driver)
    yield _devices(machine)
    yield _persistence(machine)
    yield _toolkit(machine)
    yield _plugin(machine)


def _driver(text: str) -> Finding:
    version = version_in(text)
    if version is None:
        return warn("gpu driver", text.splitlines()[0], f"{DRIVER_FILE} names no version")
    if version < DRIVER_MIN:
        return fail(
            "gpu driver",
            dotted(version),
            "use 570 or newer; older drivers cannot checkpoint GPU memory, workers start cold",
        )
    return ok("gpu driver", dotted(version))


def _devices(machine: Machine) -> Finding:
    found = sorted(path.name for path in machine.file("/dev").glob("nvidia[0-9]*"))
    missing = [
        name
        for name in ("/dev/nvidiactl", "/dev/nvidia-uvm")
        if not machine.exists(name)
    ]  # fmt: skip
    if not found or missing:
        lacking = ", ".join(missing or ["/dev/nvidia0"])
        return fail("gpu devices", f"{lacking} missing", "run nvidia-modprobe -c 0 -u at boot")
    return ok("gpu devices", ", ".join(found))


def _persistence(machine: Machine) -> Finding:
    if machine.exists("/run/nvidia-persistenced/socket"):
        return ok("gpu persistence", "nvidia-persistenced runs")
    advice = "enable nvidia-persistenced; without it the first worker waits for the driver's set-up"
    return warn("gpu persistence", "nvidia-persistenced does not run", advice)


def _toolkit(machine: Machine) -> Finding:
    program = machine.program("nvidia-ctk", "nvidia-container-cli")
    if program is None:
        return none("container toolkit", "not installed; only containers need it")
    code, text = machine.output([program, "--version"])
    version = version_in(text)
    if code or version is None:
        return warn("container toolkit", text.strip()[:100], f"{program} does not show a version")
    escapes = [name for safe, name in TOOLKIT_ESCAPES if version < safe]
    if escapes:
        return fail(
            "container toolkit",
            f"{dotted(version)}: {', '.join(escapes)} let a container reach the host",
            f"update to {dotted(TOOLKIT_SAFE)} or newer before running anybody's images",
        )
    return ok("container toolkit", dotted(version))


def _plugin(machine: Machine) -> Finding:
    if not machine.exists("/var/lib/kubelet"):
        return none("device plugin", "not a Kubernetes node")
    if machine.exists(PLUGIN_SOCKET):
        return ok("device plugin", "registered with the kubelet")
    advice = "install NVIDIA's device plugin, so that no other pod is given InferX's GPUs"
    return fail("device plugin", f"no {PLUGIN_SOCKET}", advice)
