"""The dashboard: served without a key, closed to foreign content, asking routes that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from inferx.gateway.access import Access
from inferx.gateway.dashboard import DashboardRoutes

ROOT = Path(__file__).resolve().parent.parent.parent
GATEWAY = ROOT / "python" / "inferx" / "gateway"
SCRIPT = GATEWAY / "pages" / "dashboard.js"


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = httpx.ASGITransport(
        Starlette(routes=DashboardRoutes(Access(None, lambda *_: None)).routes())
    )
    return httpx.AsyncClient(transport=app, base_url="http://gateway")


async def test_the_page_and_its_files_are_served(client: httpx.AsyncClient) -> None:
    page = await client.get("/dashboard/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name in re.findall(r'(?:href|src)="([^"]+)"', page.text):
        found = await client.get(f"/dashboard/{name}")
        assert found.status_code == 200, name
        assert found.headers["content-security-policy"].startswith("default-src 'self'")
    assert (await client.get("/dashboard")).headers["location"] == "/dashboard/"


async def test_nothing_else_is(client: httpx.AsyncClient) -> None:
    for name in ("__init__.py", "../dashboard.py", "%2e%2e%2fdashboard.py", "nothing"):
        assert (await client.get(f"/dashboard/{name}")).status_code == 404, name


def test_the_page_keeps_to_its_policy() -> None:
    """No inline script or style, no foreign address, no text that could become markup."""
    page, script = (SCRIPT.parent / "index.html").read_text(), SCRIPT.read_text()
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=|//[\w.]+/", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_the_script_is_well_formed_and_asks_routes_that_exist() -> None:
    node = shutil.which("node")
    assert node is not None, "node is not installed: run scripts/test-deps"
    done = subprocess.run(
        [node, "--input-type=module", "--check"], input=SCRIPT.read_text(), text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    asked = set(re.findall(r'(?:json|ask)\("(/\w+/?)', SCRIPT.read_text()))
    served = "".join(path.read_text() for path in (GATEWAY / "views.py", GATEWAY / "objects.py"))
    assert asked == {"/objects/", "/pods/", "/nodes/", "/metrics"}
    assert all(f'"{route}' in served for route in asked)
