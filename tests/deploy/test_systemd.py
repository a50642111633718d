"""The systemd units: understood by systemd, locked up, and setting what the code reads."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from inferx import config

from .kustomize import ROOT, services

UNITS = ROOT / "services" / "systemd"
STARTED = ("inferx@statesvc.service", "inferx@scheduler.service", "inferx@gateway.service",
           "inferx-nodeagent.service")  # fmt: skip
EXPOSURE_MAX = 20  # tenths, of 100; systemd calls 20 and less "OK" at 2.0


def values(name: str, option: str) -> list[str]:
    """All values of an option in a unit of ours."""
    lines = (UNITS / name).read_text().splitlines()
    return [line.split("=", 1)[1] for line in lines if line.startswith(f"{option}=")]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units, with a program that exists here in place of the installed one."""
    folder = tmp_path / "units"
    shutil.copytree(UNITS, folder)
    for path in folder.glob("*.service"):
        text = path.read_text().replace("/opt/inferx/venv/bin/inferx", shutil.which("true") or "")
        text = re.sub(r"^(User|Group)=.*\n", "", text, flags=re.MULTILINE)
        path.write_text(text)
    return folder


def test_systemd_accepts_them(installed: Path) -> None:
    for name in (*STARTED, "inferx.target"):
        path = installed / name
        if "@" in name:
            shutil.copy(installed / "inferx@.service", path)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        complaints = [line for line in done.stderr.splitlines() if str(installed) in line]
        assert not complaints, "\n".join(complaints)


def test_the_services_are_locked_up(installed: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}",
               str(installed / "inferx@.service")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert values("inferx@.service", "User") == ["inferx"]


def test_each_capability_of_the_agent_has_its_reason() -> None:
    """On bare metal it may run containers and checkpoint them, which takes more than in a pod."""
    text = (UNITS / "inferx-nodeagent.service").read_text()
    granted = " ".join(values("inferx-nodeagent.service", "CapabilityBoundingSet")).split()
    in_a_pod = services("base")["nodeagent"]["securityContext"]["capabilities"]["add"]
    assert {f"CAP_{name}" for name in in_a_pod} <= set(granted)
    for capability in granted:
        assert re.search(rf"^# {capability.removeprefix('CAP_')}: \w{{3,}}", text, re.MULTILINE)


def test_every_variable_is_read_and_every_service_exists() -> None:
    read = {*config.variables(), "INFERX_STOP_PODS"}
    for path in UNITS.rglob("*.*"):
        if path.is_dir():
            continue
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(path.read_text())
        for line in values(path.relative_to(UNITS).as_posix(), "Environment"):
            assert line.split("=")[0] in read, f"{path.name}: nothing reads {line}"
    for name in STARTED:
        service = re.sub(r"inferx[@-](\w+)\.service", r"\1", name)
        assert config.service_name(service) == service
