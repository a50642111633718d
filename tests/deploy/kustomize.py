"""Renders a folder of k8s/ as an installer would, once a session."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("base", "eks", "options/keycloak", "options/monitoring")
OUR_IMAGE = "inferx/inferx:"
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")


@functools.cache
def rendered(folder: str) -> tuple[dict[str, Any], ...]:
    """The objects of `kubectl kustomize k8s/FOLDER`."""
    command = ["kubectl", "kustomize", str(ROOT / "k8s" / folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def find(folder: str, kind: str, name: str) -> dict[str, Any]:
    """One object by its name."""
    found = [one for one in rendered(folder) if one["kind"] == kind and _name(one) == name]
    assert len(found) == 1, f"{folder}: {len(found)} objects {kind}/{name}"
    return found[0]


def workloads(folder: str) -> dict[str, dict[str, Any]]:
    """The pod template's spec of each workload, by name."""
    return {
        _name(one): one["spec"]["template"]["spec"]
        for one in rendered(folder)
        if one["kind"] in WORKLOADS
    }


def services(folder: str) -> dict[str, dict[str, Any]]:
    """The container of each of our own services, by the workload's name."""
    return {
        name: pod["containers"][0]
        for name, pod in workloads(folder).items()
        if pod["containers"][0]["image"].startswith(OUR_IMAGE)
    }


def environment(container: dict[str, Any]) -> dict[str, str]:
    """Names and values; `(field)` for what the cluster fills in."""
    return {one["name"]: one.get("value", "(field)") for one in container.get("env", [])}


def _name(one: dict[str, Any]) -> str:
    return str(one["metadata"]["name"])
