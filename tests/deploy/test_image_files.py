"""The image's and compose's files, as far as they can be judged without an engine; the rest is
`make image-test`."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml

from inferx import config

from .kustomize import ROOT, services, workloads
from .test_manifests_match_code import PORTS

DOCKERFILE = (ROOT / "services" / "Dockerfile").read_text()
COMPOSE = ROOT / "services" / "compose"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())
    return loaded


def test_the_image_runs_as_the_manifests_user_on_the_codes_ports() -> None:
    pod = workloads("base")["gateway"]["securityContext"]
    users = set(re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE))
    assert users == {f"{pod['runAsUser']}:{pod['runAsGroup']}"}
    exposed = re.search(r"^EXPOSE (.*)", DOCKERFILE, re.MULTILINE)
    loaded = config.load(None, {"METRICS_PORT": "1239"})
    listened = {getattr(loaded, entry) for ports in PORTS.values() for entry in ports.values()}
    assert exposed is not None
    assert {int(port) for port in exposed[1].split()} == listened


def test_the_image_is_built_from_files_that_exist_and_no_registry() -> None:
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert source.startswith("dist/image/") or (ROOT / source).exists(), source
    assert re.search(r"^ARG BASE_IMAGE=[a-z]+:[a-z-]+$", DOCKERFILE, re.MULTILINE)
    assert not re.search(r"://|\.(io|com|org)/", DOCKERFILE)
    assert f"ARG VERSION={VERSION}" in DOCKERFILE
    assert services("base")["gateway"]["image"] == f"inferx/inferx:{VERSION}"


def test_the_images_packages_are_the_locked_ones() -> None:
    script = str(ROOT / "scripts" / "runtime-requirements")
    command = [sys.executable, script]
    wanted = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"^([a-z0-9-]+)==", wanted, re.MULTILINE))
    assert names >= {"granian", "grpcio", "uvloop", "httpx", "h11"}
    assert not names & {"pytest", "mypy", "maturin", "ruff", "xllamacpp", "numpy"}
    assert wanted.count("--hash=sha256:") >= len(names)


def test_the_bill_of_materials_lists_everything() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "sbom"), "--lock", str(ROOT / "Cargo.lock")]
    bill = yaml.safe_load(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    purls = {component["purl"].split("@")[0] for component in bill["components"]}
    assert purls >= {"pkg:pypi/granian", "pkg:cargo/pyo3", "pkg:cargo/tokio"}
    assert len(bill["components"]) == len(
        {component["bom-ref"] for component in bill["components"]}
    )


def test_compose_sets_what_the_code_reads(compose: dict[str, Any]) -> None:
    read = {*config.variables(), "INFERX_STOP_PODS"}
    loaded = config.load(COMPOSE / "node.json", {"POD_IP": "10.231.0.9"})
    assert loaded.warnings == ()
    subnet = compose["networks"]["inferx"]["ipam"]["config"][0]["subnet"]
    assert f'"hostIpCidr": "{subnet}"' in (COMPOSE / "node.json").read_text()
    ours = {name: one for name, one in compose["services"].items() if "inferx" in one["image"]}
    started = {config.service_name(one["environment"]["RUN_SERVICE"]) for one in ours.values()}
    assert started == set(config.SERVICES)
    for name, one in ours.items():
        assert one["environment"].keys() <= read, name
        assert one["read_only"], name
        assert one["cap_drop"] == ["ALL"], name
        for variable, value in one["environment"].items():
            if variable.endswith("_FILE"):
                assert value.rsplit("/", 1)[1] in one["secrets"], f"{name}: {variable}"


def test_compose_keeps_secrets_out_of_the_repository() -> None:
    assert "/services/compose/secrets.d/" in (ROOT / ".gitignore").read_text()
    assert not re.search(r"(?i)password\s*[:=]\s*\w", (COMPOSE / "docker-compose.yml").read_text())
