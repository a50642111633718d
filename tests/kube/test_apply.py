"""`kubectl apply -k --server-side` against a real API server, and the pods that come of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.kustomize import rendered

from .api import PROGRAMS, ROOT, Kubernetes, eventually

PODS = "/api/v1/namespaces/inferx/pods"
APPS = "/apis/apps/v1/namespaces/inferx"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Kubernetes]:
    running = Kubernetes(tmp_path)
    for name in ("servicemonitors", "prometheusrules"):
        running.kubectl("create", "-f", str(PROGRAMS / f"{name}.yaml"))
    running.create(
        "/apis/node.k8s.io/v1/runtimeclasses",
        {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
         "metadata": {"name": "nvidia"}, "handler": "nvidia"},
    )  # fmt: skip
    yield running
    running.stop()


def add_node(cluster: Kubernetes, name: str, labels: dict[str, str]) -> None:
    """A ready GPU node, as a kubelet would register it."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
    cluster.create("/api/v1/nodes", node)
    amounts = {"cpu": "64", "memory": "256Gi", "pods": "110", "hugepages-2Mi": "16Gi",
               "nvidia.com/gpu": "4"}  # fmt: skip
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
    status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
    cluster.patch(f"/api/v1/nodes/{name}/status", {"status": status})
    # The API server marks a new node as not ready, for the controller that is not running here.
    cluster.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": None}})


def pods(cluster: Kubernetes, name: str) -> list[dict[str, Any]]:
    selector = f"{PODS}?labelSelector=app.kubernetes.io/name={name}"
    found: list[dict[str, Any]] = cluster.get(selector)["items"]
    return found


def run(cluster: Kubernetes, pod: dict[str, Any], node: str) -> None:
    """What scheduler and kubelet do with a pod that starts well."""
    name = pod["metadata"]["name"]
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
    cluster.create(f"{PODS}/{name}/binding", binding)
    ready = {"type": "Ready", "status": "True"}
    status = {"phase": "Running", "conditions": [ready], "podIP": "10.1.2.3"}
    cluster.patch(f"{PODS}/{name}/status", {"status": status})


@pytest.mark.parametrize(
    ("folder", "label"), [("base", "inferx_file"), ("eks", "inferx_blob")]
)  # fmt: skip
def test_everything_is_accepted_and_pods_are_made(
    cluster: Kubernetes, folder: str, label: str
) -> None:
    shown = cluster.kubectl("apply", "--server-side", "-k", str(ROOT / "k8s" / folder))
    assert len(shown.splitlines()) == len(rendered(folder))
    labels = {
        "inferx_nodeType": label,
        "karpenter.sh/nodepool": "inferx-gpu",
        "node.kubernetes.io/instance-type": "g4dn.12xlarge",
    }
    add_node(cluster, "gpu-1", labels)
    add_node(cluster, "gpu-2", labels)
    add_node(cluster, "other", {})
    agents = eventually(
        lambda: len(found := pods(cluster, "nodeagent")) == 2 and found,
        "an agent for each GPU node",
    )
    wanted = [
        pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        ["nodeSelectorTerms"][0]["matchFields"][0]["values"][0]
        for pod in agents
    ]  # fmt: skip
    assert sorted(wanted) == ["gpu-1", "gpu-2"]
    for pod, node in zip(agents, wanted, strict=True):
        assert pod["spec"]["priority"] == 1_000_000
        run(cluster, pod, node)
    eventually(
        lambda: cluster.get(f"{APPS}/daemonsets/nodeagent")["status"].get("numberReady") == 2,
        "both agents count as ready",
    )
    counts = {"etcd": 3, "postgres": 1, "statesvc": 2, "scheduler": 2}
    for name, count in counts.items():
        eventually(
            lambda name=name, count=count: len(pods(cluster, name)) == count, f"{count} of {name}"
        )
    events = cluster.get("/api/v1/namespaces/inferx/events")["items"]
    refused = [event["message"] for event in events if event["reason"] == "FailedCreate"]
    assert refused == [], "quota, limits and pod security let every pod in"


def test_applying_again_changes_nothing(cluster: Kubernetes) -> None:
    path = str(ROOT / "k8s" / "base")
    cluster.kubectl("apply", "--server-side", "-k", path)
    before = cluster.get(f"{APPS}/deployments")["items"]
    cluster.kubectl("apply", "--server-side", "-k", path)
    after = cluster.get(f"{APPS}/deployments")["items"]
    assert [one["metadata"]["generation"] for one in before] == [
        one["metadata"]["generation"] for one in after
    ]
