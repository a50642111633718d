"""A real Keycloak in development mode on a loopback port."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import httpx

from tests.helpers.ports import free_ports

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache" / "keycloak"
START_S = 600.0  # it compiles its configuration first
REALM, CLIENT, USER = "inferx", "inferx", "alice"
REALM_ROLE, CLIENT_ROLE = "/tenant/user/acme", "/namespace/admin/acme/n"


class Keycloak:
    """One server with a realm, a client for the command line, and a user with two roles."""

    def __init__(self, folder: Path) -> None:
        found = sorted(CACHE.glob("keycloak-*/bin/kc.sh"))
        assert found, "Keycloak is not here: scripts/keycloak .cache/keycloak"
        self.password = secrets.token_urlsafe(16)
        self._admin_password = secrets.token_urlsafe(16)
        home = folder / "keycloak"
        shutil.copytree(found[-1].parent.parent, home)
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.issuer = f"{self.url}/realms/{REALM}"
        self.http = httpx.Client(base_url=self.url, timeout=60.0, trust_env=False)
        self._log = folder / "keycloak.log"
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder),
            "KC_BOOTSTRAP_ADMIN_USERNAME": "admin",
            "KC_BOOTSTRAP_ADMIN_PASSWORD": self._admin_password,
            "JAVA_OPTS_APPEND": "-Xmx512m",
        }  # fmt: skip
        command = [str(home / "bin" / "kc.sh"), "start-dev", "--http-host", "127.0.0.1",
                   "--http-port", str(port), "--cache", "local"]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def __enter__(self) -> Keycloak:
        try:
            self._wait()
            self._set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.http.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            try:
                if self.http.get("/realms/master").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)

    # ---- administration ----

    def admin(self, method: str, path: str, content: Any = None) -> httpx.Response:
        """One request to the realm's administration, or to `/admin/realms` itself."""
        form = {"grant_type": "password", "client_id": "admin-cli", "username": "admin",
                "password": self._admin_password}  # fmt: skip
        token = self.http.post("/realms/master/protocol/openid-connect/token", data=form)
        assert token.status_code == 200, token.text
        answer = self.http.request(
            method, f"/admin/realms{path}", json=content,
            headers={"Authorization": f"Bearer {token.json()['access_token']}"},
        )  # fmt: skip
        assert answer.is_success, f"{method} {path}: {answer.text}"
        return answer

    def _set_up(self) -> None:
        self.admin("POST", "", {"realm": REALM, "enabled": True})
        self.admin("POST", f"/{REALM}/clients", {
            "clientId": CLIENT, "publicClient": True, "directAccessGrantsEnabled": True,
            "redirectUris": [], "attributes": {"oauth2.device.authorization.grant.enabled": "true"},
            "protocolMappers": [{
                "name": "audience", "protocol": "openid-connect",
                "protocolMapper": "oidc-audience-mapper",
                "config": {"included.client.audience": CLIENT, "access.token.claim": "true"},
            }],
        })  # fmt: skip
        # A client of the same realm that nobody told of InferX.
        self.admin("POST", f"/{REALM}/clients", {
            "clientId": "other", "publicClient": True, "directAccessGrantsEnabled": True,
        })  # fmt: skip
        self.admin("POST", f"/{REALM}/users", {
            "username": USER, "enabled": True, "email": "alice@example.org", "emailVerified": True,
            "firstName": "Alice", "lastName": "Example",
            "credentials": [{"type": "password", "value": self.password, "temporary": False}],
        })  # fmt: skip
        client = self.admin("GET", f"/{REALM}/clients?clientId={CLIENT}").json()[0]["id"]
        self.user = self.admin("GET", f"/{REALM}/users?username={USER}&exact=true").json()[0]["id"]
        for roles, mapping, role in (
            (f"/{REALM}/roles", "realm", REALM_ROLE),
            (f"/{REALM}/clients/{client}/roles", f"clients/{client}", CLIENT_ROLE),
        ):
            self.admin("POST", roles, {"name": role})
            made = [each for each in self.admin("GET", roles).json() if each["name"] == role]
            self.admin("POST", f"/{REALM}/users/{self.user}/role-mappings/{mapping}", made)

    def rotate(self) -> Callable[[], None]:
        """Sign with a new key from now on; the result withdraws the old ones."""
        realm = self.admin("GET", f"/{REALM}").json()["id"]
        path = f"/{REALM}/components?type=org.keycloak.keys.KeyProvider"
        old = [each for each in self.admin("GET", path).json()
               if each["providerId"] == "rsa-generated"]  # fmt: skip
        self.admin("POST", f"/{REALM}/components", {
            "name": "newer", "providerId": "rsa-generated",
            "providerType": "org.keycloak.keys.KeyProvider", "parentId": realm,
            "config": {"priority": ["500"], "enabled": ["true"], "active": ["true"],
                       "algorithm": ["RS256"], "keySize": ["2048"]},
        })  # fmt: skip

        def withdraw() -> None:
            for each in old:
                self.admin("DELETE", f"/{REALM}/components/{each['id']}")

        return withdraw

    # ---- people ----

    def tokens(self, client: str = CLIENT) -> dict[str, Any]:
        """What the user gets for the password."""
        form = {"grant_type": "password", "client_id": client, "username": USER,
                "password": self.password, "scope": "openid"}  # fmt: skip
        answer = self.http.post(f"/realms/{REALM}/protocol/openid-connect/token", data=form)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def approve(self, address: str, code: str) -> None:
        """What the user does in a browser: enters the code, logs in, and agrees."""
        kept: dict[str, str] = {}

        # By hand: the cookies are for secure places, as which only browsers take the loopback.
        def send(request: httpx.Request) -> None:
            request.headers["Cookie"] = "; ".join(f"{name}={kept[name]}" for name in kept)

        def keep(response: httpx.Response) -> None:
            for cookie in response.headers.get_list("set-cookie"):
                name, _, rest = cookie.partition("=")
                kept[name] = rest.partition(";")[0]

        hooks: dict[str, list[Callable[[Any], None]]] = {"request": [send], "response": [keep]}
        with httpx.Client(
            timeout=60.0, trust_env=False, follow_redirects=True, event_hooks=hooks
        ) as browser:
            page = browser.get(address, params={"user_code": code})
            page = browser.post(_form(page), data={
                "username": USER, "password": self.password, "credentialId": "",
            })  # fmt: skip
            agreed = browser.post(_form(page), data={"accept": "Yes"})
            assert agreed.status_code == 200, agreed.text


def _form(page: httpx.Response) -> str:
    found = re.search(r'<form[^>]*action="([^"]+)"', page.text)
    assert found is not None, page.text
    return str(page.url.join(unescape(found[1])))
