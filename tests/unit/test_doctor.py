"""`inferx doctor`: what it says of machines that are made up, of this one, and of a real etcd."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from inferx import config
from inferx.agent.runtimes import criu
from inferx.cli import main
from inferx.cli.doctor import cluster, gpu, kernel, runtime, storage
from inferx.cli.doctor.command import node
from inferx.cli.doctor.machine import Finding, Machine
from inferx.config import NodeConfig, ShareMemConfig
from inferx.up.settings import ENGINE_SOCKETS
from tests.cluster.etcd_server import EtcdServer
from tests.helpers.ports import free_port


class Made(Machine):
    """A machine whose files and programs a test writes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "root", str(folder / "bin"))
        (folder / "bin").mkdir()
        self.root.mkdir()

    def write(self, name: str, text: str = "") -> None:
        path = self.file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def install(self, name: str, output: str, code: int = 0) -> None:
        path = Path(self.path or "") / name
        path.write_text(f"#!/bin/sh\necho '{output}'\nexit {code}\n")
        path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> NodeConfig:
    return replace(config.load(None, {}), snapshot_dir=tmp_path / "snapshots")


def one(findings: Any, check: str) -> Finding:
    found = [finding for finding in findings if finding.check == check]
    assert len(found) == 1, f"{check}: {found}"
    assert bool(found[0].advice) == (found[0].level in ("warn", "fail")), "advice for trouble only"
    return found[0]


def test_a_machine_without_gpus_is_no_trouble(machine: Made) -> None:
    assert [finding.level for finding in gpu.check(machine)] == ["none"]
    machine.write("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    assert one(gpu.check(machine), "gpu driver").level == "fail"


@pytest.mark.parametrize(
    ("version", "level"), [("535.129.03", "fail"), ("570.86.15", "ok"), ("580.126", "ok")]
)
def test_the_driver_must_checkpoint(machine: Made, version: str, level: str) -> None:
    machine.write(
        gpu.DRIVER_FILE, f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Tue"
    )
    for name in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"):
        machine.write(name)
    assert one(gpu.check(machine), "gpu driver").level == level
    assert one(gpu.check(machine), "gpu devices").level == "ok"
    machine.file("/dev/nvidia-uvm").unlink()
    assert "nvidia-uvm missing" in one(gpu.check(machine), "gpu devices").found


@pytest.mark.parametrize(
    ("version", "escapes"),
    [
        ("1.16.1", ["CVE-2024-0132", "CVE-2025-23359", "CVE-2025-23266"]),
        ("1.17.3", ["CVE-2025-23359", "CVE-2025-23266"]),
        ("1.17.7", ["CVE-2025-23266"]),
        ("1.17.8", []),
        ("1.18.0", []),
    ],
)
def test_toolkits_that_let_containers_out_are_named(
    machine: Made, version: str, escapes: list[str]
) -> None:
    machine.write(gpu.DRIVER_FILE, "Kernel Module  580.1")
    machine.install("nvidia-ctk", f"NVIDIA Container Toolkit CLI version {version}")
    found = one(gpu.check(machine), "container toolkit")
    assert found.level == ("fail" if escapes else "ok")
    assert all(name in found.found for name in escapes)
    assert ("CVE" in found.found) == bool(escapes)


def test_a_kubernetes_node_needs_the_device_plugin(machine: Made) -> None:
    machine.write(gpu.DRIVER_FILE, "Kernel Module  580.1")
    assert one(gpu.check(machine), "device plugin").level == "none"
    machine.write("/var/lib/kubelet/config.yaml")
    assert one(gpu.check(machine), "device plugin").level == "fail"
    machine.write(gpu.PLUGIN_SOCKET)
    assert one(gpu.check(machine), "device plugin").level == "ok"


@pytest.mark.parametrize(
    ("version", "safe"),
    [("1.1.5", False), ("1.2.7", False), ("1.2.8", True), ("1.3.2", False), ("1.3.3", True),
     ("1.4.0", True), ("1.5.0", True), ("2.0.0", True), ("1.0.9", False)],
)  # fmt: skip
def test_runc_must_hold(machine: Made, settings: NodeConfig, version: str, safe: bool) -> None:
    machine.install("runc", f"runc version {version}")
    found = one(runtime.check(machine, replace(settings, runtime="runc")), "runc")
    assert found.level == ("ok" if safe else "fail"), found
    found = one(runtime.check(machine, settings), "runc")
    assert found.level == ("ok" if safe else "warn"), "no worker runs in it here"


def test_what_the_runtime_needs_is_missed(machine: Made, settings: NodeConfig) -> None:
    for name in ("runc", "containerd"):
        chosen = replace(settings, runtime=name)
        assert one(runtime.check(machine, chosen), name).level == "fail"
        for beside in ("runc", "iproute2"):
            assert one(runtime.check(machine, chosen), beside).level == "fail"
        assert one(runtime.check(machine, settings), name).level == "none"
    for name, socket in ENGINE_SOCKETS.items():
        assert runtime.ENGINE_SOCKETS[name] == str(socket)
        chosen = replace(settings, runtime=name)
        assert one(runtime.check(machine, chosen), f"{name} socket").level == "fail"
        chosen = replace(chosen, container_socket=Path("/run/other.sock"))
        machine.write("/run/other.sock")
        assert not [one for one in runtime.check(machine, chosen) if "socket" in one.check]
        machine.file("/run/other.sock").unlink()


def test_criu_is_judged_as_the_agent_does(machine: Made, settings: NodeConfig) -> None:
    assert runtime.CRIU_MIN == criu.VERSION_MIN
    assert Path(runtime.CRIU_INSTALLED) == criu.INSTALLED / "criu"
    chosen = replace(settings, runtime="runc")
    assert one(runtime.check(machine, chosen), "criu").level == "warn"
    machine.install("criu", "Version: 3.17.1")
    assert "older than 4.2" in one(runtime.check(machine, chosen), "criu").found
    machine.install("criu", "Version: 4.2")
    assert one(runtime.check(machine, chosen), "criu").level == "ok"


def test_hugepages_must_cover_the_shared_memory(machine: Made, settings: NodeConfig) -> None:
    chosen = replace(settings, sharemem=ShareMemConfig(size_gb=2, hugepage=True))
    text = "MemTotal: 100 kB\nHugePages_Total: {}\nHugePages_Free: 7\nHugepagesize: 2048 kB\n"
    machine.write("/proc/meminfo", text.format(1023))
    found = one(kernel.check(machine, chosen), "hugepages")
    assert found.level == "fail"
    assert "vm.nr_hugepages=1024" in found.advice
    machine.write("/proc/meminfo", text.format(1024))
    assert one(kernel.check(machine, chosen), "hugepages").level == "ok"
    assert one(kernel.check(machine, settings), "hugepages").level == "none"


def test_kernels_that_are_too_old_or_too_closed(machine: Made, settings: NodeConfig) -> None:
    machine.write("/proc/sys/kernel/osrelease", "5.4.0-generic\n")
    machine.write("/proc/sys/kernel/yama/ptrace_scope", "3\n")
    machine.write("/proc/sys/kernel/io_uring_disabled", "2\n")
    found = list(kernel.check(machine, settings))
    assert one(found, "kernel").level == "fail"
    assert one(found, "ptrace").level == "fail"
    assert one(found, "cgroups").level == "fail"
    assert one(found, "io_uring").level == "warn"
    assert one(found, "userfaultfd").level == "warn"
    machine.write("/proc/sys/kernel/osrelease", "6.12.1\n")
    machine.write("/sys/fs/cgroup/cgroup.controllers", "cpu memory\n")
    found = list(kernel.check(machine, settings))
    assert one(found, "kernel").level == one(found, "cgroups").level == "ok"


def test_the_disk_is_measured_and_left_clean(settings: NodeConfig, tmp_path: Path) -> None:
    found = list(storage.check(settings))
    assert {finding.check for finding in found} == {"disk space", "disk speed", "disk sync"}
    assert "MB/s read" in one(found, "disk speed").found
    assert list(tmp_path.iterdir()) == []


def test_this_machine_is_checked_without_surprises(settings: NodeConfig) -> None:
    found = list(node(Machine(), settings))
    assert one(found, "kernel").level == "ok"
    assert len({finding.check for finding in found}) == len(found) > 10


def test_a_real_etcd(settings: NodeConfig, tmp_path: Path) -> None:
    server = EtcdServer(tmp_path)
    try:
        chosen = replace(settings, etcd_addrs=(server.address,))
        found = list(cluster.etcd(chosen))
        member = one(found, f"etcd {server.address}")
        assert member.level in ("ok", "warn")
        assert "healthy" in member.found
        assert one(found, "etcd members").level == "warn", "one member has no other"
    finally:
        server.kill()
    assert one(cluster.etcd(chosen), f"etcd {server.address}").level == "fail"


def test_the_command_prints_json_and_fails_with_what_fails(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    document = {"dataDir": str(tmp_path), "sharemem": {"size": 1_000_000, "hugepage": True}}
    path.write_text(json.dumps(document))
    result = CliRunner().invoke(main, ["doctor", "--config", str(path), "-o", "json"])
    assert result.exit_code == 1, result.output
    findings = {one["check"]: one for one in json.loads(result.output)}
    assert findings["hugepages"]["level"] == "fail"
    assert "vm.nr_hugepages" in findings["hugepages"]["advice"]


def test_a_cluster_that_is_not_there() -> None:
    server = f"http://127.0.0.1:{free_port()}"
    result = CliRunner().invoke(main, ["doctor", "cluster", "--server", server])
    assert result.exit_code == 1
    assert "FAIL  gateway" in result.output
    assert "--server" in result.output


def test_entries_without_effect_are_named(machine: Made, settings: NodeConfig) -> None:
    odd = replace(settings, warnings=("dataDirr: unknown field",))
    found = one(node(machine, odd), "configuration")
    assert (found.level, found.found) == ("warn", "dataDirr: unknown field")
