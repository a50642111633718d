"""A state service on an embedded store, for the tests that need one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from inferx import config, statesvc
from tests.helpers.state_client import Client


@pytest.fixture
def settings(tmp_path: Path) -> config.NodeConfig:
    return replace(config.load(None, {}), data_dir=tmp_path, statesvc_port=0)


@pytest.fixture
async def service(settings: config.NodeConfig) -> AsyncIterator[statesvc.Running]:
    running = await statesvc.start(settings)
    yield running
    await running.stop(0)


@pytest.fixture
async def api(service: statesvc.Running) -> AsyncIterator[Client]:
    connected = Client(service.port)
    yield connected
    await connected.close()


@pytest.fixture
async def home(api: Client) -> Client:
    """A service with tenant `t` and namespace `t/n`."""
    await api.create("tenant", ("system", "system", "t"))
    await api.create("namespace", ("t", "system", "n"))
    return api
