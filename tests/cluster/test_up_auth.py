"""`inferx up --auth`: nobody gets in without the key that it makes, and the key is its owner's."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from .conftest import Platform, function, running_platform

pytestmark = pytest.mark.xdist_group("up-auth")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("up-auth") / "inferx"
    with running_platform(folder, "--gpus", "1x1000", "--auth", INFERX_ADMIN_APIKEY="") as running:
        yield running


def test_the_key_is_made_once_and_readable_for_its_owner_only(platform: Platform) -> None:
    file = platform.folder / "admin-key"
    key = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(key) > 60
    shown = [platform.output, *platform.folder.rglob("*.log"), *platform.folder.glob("*.json")]
    assert not [path.name for path in shown if key in path.read_text()], "the key is in a file"
    for pid in platform.children().values():
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert key.encode() not in command, "the key is on a command line"


def test_strangers_are_refused_and_the_key_opens_everything(platform: Platform) -> None:
    key = (platform.folder / "admin-key").read_text().strip()
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {key}x"}):
        for path in ("/objects/function/", "/funccall/public/test/f/pid", "/nodes/", "/metrics"):
            answer = httpx.get(f"{platform.url}{path}", headers=headers, timeout=30.0)
            assert answer.status_code == 401, f"{path}: {answer.text}"
    assert httpx.get(f"{platform.url}/healthz").status_code == 200
    platform.client.headers["Authorization"] = f"Bearer {key}"
    platform.start_namespace()
    platform.apply(function("f"))
    assert platform.call("f", "pid").status_code == 200


def test_the_command_line_uses_the_key(platform: Platform) -> None:
    key = (platform.folder / "admin-key").read_text().strip()
    command = [sys.executable, "-m", "inferx", "whoami", "--server", platform.url]
    environment = {name: value for name, value in os.environ.items() if name != "INFERX_API_KEY"}
    done = subprocess.run(
        command, env={**environment, "INFERX_API_KEY": key}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, "admin" in done.stdout) == (0, True), done.stderr
    refused = subprocess.run(
        command, env={**environment, "INFERX_API_KEY": f"{key}x"}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert refused.returncode != 0
    assert "unauthenticated" in refused.stderr
