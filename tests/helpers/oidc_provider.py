"""An OpenID provider on a loopback port: discovery, keys that rotate, password and device login."""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
import warnings
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey

CLIENT = "inferx"
ALL = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
    "Ed25519", "HS256", "none",
]  # fmt: skip


def part(value: Any) -> str:
    """A part of a token as it is written."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Provider(AbstractContextManager["Provider"]):
    """A provider with one RSA, one EC and one Ed25519 key."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {
            "rsa": RSAKey.generate_key(2048, private=True),
            "ec": ECKey.generate_key("P-256", private=True),
            "ed": OKPKey.generate_key("Ed25519", private=True),
        }
        self.requests: list[str] = []
        self.passwords: dict[str, str] = {}
        self.roles: list[str] = []
        self.approved = threading.Event()
        self.broken = False
        self.lifetime_s = 300
        self._refresh: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.issuer = f"http://127.0.0.1:{self._server.server_port}/realms/test"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Provider:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # ---- tokens ----

    def claims(self, *roles: str, **changes: Any) -> dict[str, Any]:
        """The claims of a good token; a change to None leaves the claim out."""
        now = int(time.time())
        claims = {
            "iss": self.issuer, "sub": "alice", "aud": [CLIENT], "azp": CLIENT, "typ": "Bearer",
            "iat": now, "exp": now + self.lifetime_s, "realm_access": {"roles": list(roles)},
            **changes,
        }  # fmt: skip
        return {name: value for name, value in claims.items() if value is not None}

    def sign(
        self, claims: Any, alg: str = "RS256", kid: Any = "rsa", key: Any = None, **header: Any
    ) -> str:
        """A token as the provider, or an attacker, would sign it."""
        head = {"alg": alg, "kid": kid, "typ": "JWT", **header}
        head = {name: value for name, value in head.items() if value is not None}
        registry = jws.JWSRegistry(algorithms=ALL, strict_check_header=False)
        payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)  # an attacker uses what is weak
            return jws.serialize_compact(head, payload, key or self.keys[kid], registry=registry)

    def token(self, *roles: str, **changes: Any) -> str:
        """A good token with these roles."""
        return self.sign(self.claims(*roles, **changes))

    # ---- endpoints ----

    def documents(self, path: str) -> Any:
        """What GET answers."""
        base = self.issuer
        if path.endswith("/.well-known/openid-configuration"):
            return {
                "issuer": base, "jwks_uri": f"{base}/keys", "token_endpoint": f"{base}/token",
                "device_authorization_endpoint": f"{base}/device",
            }  # fmt: skip
        if path.endswith("/keys"):
            return {
                "keys": [
                    {**key.as_dict(private=False), "kid": kid, "use": "sig"}
                    for kid, key in self.keys.items()
                ]
            }
        return None

    def answer(self, path: str, form: dict[str, str]) -> tuple[int, Any]:
        """What POST answers."""
        if path.endswith("/device"):
            return 200, {
                "device_code": "d1", "user_code": "ABCD-EFGH", "interval": 1, "expires_in": 60,
                "verification_uri": f"{self.issuer}/confirm",
            }  # fmt: skip
        kind = form.get("grant_type", "")
        if form.get("client_id") != CLIENT:
            return 401, {"error": "invalid_client"}
        if kind == "password":
            if self.passwords.get(form.get("username", "")) == form.get("password"):
                return 200, self._grant(form["username"])
            return 401, {"error": "invalid_grant", "error_description": "Invalid credentials"}
        if kind == "refresh_token":
            if form.get("refresh_token") not in self._refresh:
                return 400, {"error": "invalid_grant"}
            self._refresh.discard(form["refresh_token"])
            return 200, self._grant("alice")
        if kind == "urn:ietf:params:oauth:grant-type:device_code":
            if not self.approved.is_set():
                return 400, {"error": "authorization_pending"}
            return 200, self._grant("alice")
        return 400, {"error": "unsupported_grant_type"}

    def _grant(self, subject: str) -> dict[str, Any]:
        refresh = secrets.token_hex(16)
        self._refresh.add(refresh)
        return {
            "access_token": self.token(*self.roles, sub=subject), "token_type": "Bearer",
            "expires_in": self.lifetime_s, "refresh_token": refresh,
        }  # fmt: skip


def _handler(provider: Provider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            provider.requests.append(self.path)
            found = provider.documents(self.path)
            if provider.broken:
                self._reply(500, {})
            else:
                self._reply(404 if found is None else 200, found or {})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", "0"))
            form = parse_qs(self.rfile.read(length).decode())
            self._reply(*provider.answer(self.path, {k: v[0] for k, v in form.items()}))

        def _reply(self, status: int, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Handler
