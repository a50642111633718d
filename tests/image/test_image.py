"""The image itself: what is in it, and each service in it as the Kubernetes manifest runs it."""

from __future__ import annotations

import json
import time

import pytest

from tests.deploy.kustomize import environment, rendered, services, workloads

from .engine import Engine

SERVICES = ("statesvc", "scheduler", "gateway", "nodeagent")
PROBE = (
    "import sys,urllib.request as r;"
    "print(r.urlopen(f'http://{sys.argv[1]}:{sys.argv[2]}/healthz',timeout=5).status)"
)


def shell(engine: Engine, version: str, command: str) -> str:
    return engine.docker(
        "run", "--rm", "--network", "none", "--entrypoint", "sh", f"inferx/inferx:{version}",
        "-c", command,
    )  # fmt: skip


def test_it_runs_as_nobody_special_and_has_no_build_tools(engine: Engine, images: str) -> None:
    assert shell(engine, images, "id -u") == "10001"
    tools = "cc gcc g++ make ld cargo rustc pip pip3 git curl wget node"
    assert shell(engine, images, f"command -v {tools} || true") == ""
    listed = shell(engine, images, "ls /opt/inferx/venv/lib/python3*/site-packages")
    for package in ("pytest", "mypy", "maturin", "pip", "setuptools", "xllamacpp"):
        assert package not in listed.splitlines()
    writable = "find / -xdev -writable -not -path '/proc/*' -not -type l -not -type c"
    found = set(shell(engine, images, f"{writable} 2>/dev/null || true").splitlines())
    ours = {"/var/lib/inferx", "/opt/inferx/snapshot"}
    assert {path for path in found if path.startswith(("/opt", "/var/lib", "/etc"))} == ours


def test_its_labels_and_its_bill_of_materials(engine: Engine, images: str) -> None:
    labels = json.loads(
        engine.docker(
            "inspect", "-f", "{{json .Config.Labels}}", f"inferx/inferx:{images}"
        )
    )  # fmt: skip
    assert labels["org.opencontainers.image.version"] == images
    assert len(labels["org.opencontainers.image.revision"]) == 40
    bill = json.loads(shell(engine, images, f"cat {labels['io.inferx.sbom']}"))
    purls = {one["purl"].split("@")[0] for one in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX"
    assert purls >= {"pkg:pypi/granian", "pkg:cargo/pyo3", "pkg:deb/debian/python3"}


@pytest.fixture(scope="module")
def network(engine: Engine) -> str:
    engine.docker("network", "create", "--subnet", "10.231.1.0/24", "probes")
    return "probes"


@pytest.mark.parametrize("service", SERVICES)
def test_it_runs_each_service_as_the_manifest_says(
    engine: Engine,
    images: str,
    network: str,
    service: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The manifest's user, capabilities, read-only root, variables, node.json; an orderly end."""
    pod, container = workloads("base")[service], services("base")[service]
    folder = tmp_path_factory.mktemp(service)
    maps = [one for one in rendered("base") if one["kind"] == "ConfigMap"]
    document = json.loads(maps[0]["data"]["node.json"])
    # This machine has no GPU and no etcd with certificates.
    document |= {"simulatedGPUs": {"count": 1, "vramMB": 1000}}
    document |= {"hostIpCidr": "10.231.1.0/24", "etcdconfig": {}}
    (folder / "node.json").write_text(json.dumps(document))
    (folder / "secret").write_text("postgresql://user@db/a-name-as-long-as-a-key")
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    context = {**pod["securityContext"], **container["securityContext"]}
    user = f"{context['runAsUser']}:{context.get('runAsGroup', context['runAsUser'])}"
    options = ["--read-only", "--user", user, "--cap-drop", "ALL", "--network", network]
    for capability in context["capabilities"].get("add", ()):
        options += ["--cap-add", capability]
    if not context["allowPrivilegeEscalation"]:
        options += ["--security-opt", "no-new-privileges"]
    for name, value in environment(container).items():
        if name.endswith("_FILE"):
            value = "/opt/inferx/config/secret"
        if value != "(field)" and name != "ETCD_ADDRS":
            options += ["-e", f"{name}={value}"]
    options += ["-v", f"{folder}:/opt/inferx/config:ro", "--tmpfs", "/tmp"]
    options += ["--tmpfs", f"/var/lib/inferx:uid={context['runAsUser']}"]
    name = f"one-{service}"
    engine.docker("run", "-d", "--init", "--name", name, *options, f"inferx/inferx:{images}",
                  *container["args"])  # fmt: skip
    address = engine.docker(
        "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name
    )
    deadline, answer = time.monotonic() + 60, ""
    while answer != "200" and time.monotonic() < deadline:
        answer = engine.docker("exec", name, "python3", "-c", PROBE, address, "1239", check=False)
    log = engine.docker("logs", name)
    assert answer == "200", log
    engine.docker("stop", "-t", "60", name)
    code = engine.docker("inspect", "-f", "{{.State.ExitCode}}", name)
    assert code == "0", engine.docker("logs", name)
