"""Whose routes keep an agent from using its podCidr."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferx.agent.runtimes import network, tools
from inferx.agent.runtimes.network import PodNetworks
from inferx.errors import ConfigError


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PodNetworks]:
    """Networks of a machine that has these routes and links only; its `ip` changes nothing."""
    for name in ("claims", "namespaces", "links"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(network, "NAMESPACES", tmp_path / "namespaces")
    monkeypatch.setattr(network, "LINKS", tmp_path / "links")

    def make(*routes: dict[str, Any], links: tuple[str, ...] = ()) -> PodNetworks:
        for link in links:
            (tmp_path / "links" / link).mkdir()

        async def run(argv: list[str], **_: object) -> str:
            return json.dumps(routes) if "show" in argv else ""

        monkeypatch.setattr(tools, "run", run)
        return PodNetworks("10.213.0.0/16", tmp_path / "claims")

    return make


async def test_a_network_that_the_machine_uses_is_refused(
    networks: Callable[..., PodNetworks], tmp_path: Path
) -> None:
    used = networks({"dst": "10.213.4.0/24", "dev": "eth1"}, links=("eth1",))
    with pytest.raises(ConfigError, match=r"overlaps 10\.213\.4\.0/24, which eth1 leads to"):
        await used.create(tmp_path)


async def test_a_container_that_goes_meanwhile_is_no_such_use(
    networks: Callable[..., PodNetworks], tmp_path: Path
) -> None:
    # `ip` reads the routes, then asks for each link: one that has gone is named by its number.
    gone = {"dst": "10.213.0.12/30", "dev": "if1369"}
    lives = {"dst": "10.213.0.8/30", "dev": "ifx2"}
    made = await networks(gone, lives, {"dst": "default", "dev": "eth0"}).create(tmp_path)
    assert made.address == "10.213.0.6"
