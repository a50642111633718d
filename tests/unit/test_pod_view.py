"""Pods as people see them, made anew only where something has changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from inferx.domain import codec
from inferx.domain.meta import Object
from inferx.domain.objects import Pod
from inferx.rpc import convert
from inferx.scheduler.podview import PodView

ALLOC = {"CPU": 100, "Mem": 200}


def core_pod(name: str, **changes: Any) -> dict[str, Any]:
    """A pod as the core tells of it."""
    pod = {
        "tenant": "t", "namespace": "n", "pod_id": name, "funcname": "f", "revision": 3,
        "node": "n1", "state": "Ready", "reason": "", "since_ms": 5, "slots": 1, "leased": 0,
        "start": "cold", "alloc": dict(ALLOC),
    }  # fmt: skip
    return {**pod, **changes}


def agent_pod(name: str, **status: Any) -> Object[Pod]:
    """A pod as its agent shows it."""
    spec = {"funcname": "f", "fprevision": 3, "node": "n1", "alloc_resources": dict(ALLOC)}
    return codec.new("pod", ("t", "n", name), {"spec": spec, "status": status})


class Platform:
    """A core and one node whose pods a test sets; `made` are the pods that the view made anew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.core: list[dict[str, Any]] = []
        self.agents: list[Object[Pod]] = []
        self.made: list[str] = []
        brain: Any = SimpleNamespace(
            pods=lambda: [dict(pod) for pod in self.core], unix_offset_ms=1_000
        )
        link = SimpleNamespace(pods=SimpleNamespace(list=lambda: self.agents))
        links: Any = SimpleNamespace(all=lambda: [link])
        self.view = PodView(lambda: brain, links, "")
        put = self.view.servicer.put

        def noted(obj: Object[Any]) -> None:
            self.made.append(obj.meta.name)
            put(obj)

        monkeypatch.setattr(self.view.servicer, "put", noted)

    def refresh(self) -> dict[str, Pod]:
        """The pods that are shown afterwards."""
        self.made.clear()
        self.view._refresh()
        shown = self.view.servicer._objects.values()
        return {message.name: convert.from_proto(message).spec for message in shown}


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Platform:
    return Platform(monkeypatch)


def test_only_what_has_changed_is_made_anew(platform: Platform) -> None:
    platform.core = [core_pod("a"), core_pod("b")]
    platform.agents = [agent_pod("a", state="Ready", ip="10.0.0.1")]
    shown = platform.refresh()
    assert platform.made == ["a", "b"]
    assert (shown["a"].status.ip, shown["a"].status.since_ms) == ("10.0.0.1", 1_005)
    platform.core[0]["leased"] = 1  # a lease changes nothing of it
    assert platform.refresh() == shown
    assert platform.made == []
    platform.core[1] = core_pod("b", state="Standby")
    assert platform.refresh()["b"].status.state == "Standby"
    assert platform.made == ["b"]
    platform.agents = [agent_pod("a", state="Ready", ip="10.0.0.2")]
    assert platform.refresh()["a"].status.ip == "10.0.0.2"
    assert platform.made == ["a"]
    platform.core = platform.core[1:]
    assert list(platform.refresh()) == ["b"]


def test_a_failed_pod_is_shown_while_its_agent_keeps_it(platform: Platform) -> None:
    platform.core = [core_pod("a", state="Loading")]
    platform.agents = [agent_pod("a", state="Failed", error="no such file")]
    assert platform.refresh()["a"].status.state == "Loading"
    platform.core = []
    assert platform.refresh()["a"].status.error == "no such file"
    platform.agents = []
    assert platform.refresh() == {}


def test_a_pod_that_comes_back_is_shown_again(platform: Platform) -> None:
    platform.core = [core_pod("a")]
    platform.refresh()
    platform.core = []
    assert platform.refresh() == {}
    platform.core = [core_pod("a")]
    assert list(platform.refresh()) == ["a"]
