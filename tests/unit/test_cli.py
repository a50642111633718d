"""The command line against a small HTTP gateway that keeps objects: what users see and exit codes.

Every test runs `inferx` in this process through click's runner, and checks text and exit code.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from click.testing import CliRunner, Result

from inferx.cli import COMMANDS, main
from inferx.cli.client import find_server
from inferx.errors import ConfigError

Key = tuple[str, ...]
NAMESPACE = {
    "type": "namespace",
    "tenant": "public",
    "namespace": "system",
    "name": "demo",
    "object": {"spec": {}},
}
TENANT = {
    "type": "tenant",
    "tenant": "system",
    "namespace": "system",
    "name": "public",
    "object": {"spec": {}},
}


def function(name: str = "echo", **spec: Any) -> dict[str, Any]:
    """A small manifest."""
    full = {
        "image": "x",
        "commands": [],
        "resources": {"CPU": 1, "Mem": 1},
        "endpoint": {"port": 1},
        "sample_query": {"path": "v1/echo"},
        **spec,
    }
    return {
        "type": "function",
        "tenant": "public",
        "namespace": "demo",
        "name": name,
        "object": {"spec": full},
    }


class StandIn(ThreadingHTTPServer):
    """Objects with revisions, two pods, a log and an echoing function."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[Key, dict[str, Any]] = {}
        self.revision = 0
        self.conflicts = 0
        self.requests: list[tuple[str, str]] = []
        self.writes: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, document: dict[str, Any], create: bool) -> tuple[int, Any]:
        key = tuple(document[part] for part in ("type", "tenant", "namespace", "name"))
        if document["name"] == "refused":
            return 400, error("bad_request", "object.spec.image: required")
        if create and key in self.objects:
            return 409, error("already_exists", "it is there")
        stale = not create and document["revision"] != self.objects[key]["revision"]
        if stale or (not create and self.conflicts > 0):
            self.conflicts -= 1
            return 409, error("conflict", "the object changed since it was read")
        self.revision += 1
        self.objects[key] = {**document, "revision": self.revision}
        self.writes.append(f"{document['type']} {document['name']}")
        return 200, {"revision": self.revision}


def error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "request_id": "r1"}}


def pod(name: str, state: str, since_ms: int) -> dict[str, Any]:
    spec = {"funcname": "echo", "fprevision": 4, "node": "local"}
    status = {
        "state": state,
        "since_ms": since_ms,
        "gpus": [0, 1],
        "vram_mb": 4500,
        "start": "cold",
    }
    where = {"tenant": "public", "namespace": "demo"}
    return {"type": "pod", **where, "name": name, "object": {"spec": spec, "status": status}}


PODS = [pod("old", "Failed", 1000), pod("new", "Idle", 2000)]


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, format: str, *args: object) -> None:
        """Nothing; the tests read what the client prints."""

    def reply(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Inferx-Start", "cold")
        self.end_headers()
        self.wfile.write(data)

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        match parts:
            case ["object"]:
                self.reply(*self.server.put(json.loads(body), self.command == "PUT"))
            case ["object", *key]:
                found = self.server.objects.get(tuple(key))
                if found is None:
                    self.reply(404, error("not_found", f"no {key[0]} {'/'.join(key[1:])}"))
                    return
                if self.command == "DELETE":
                    del self.server.objects[tuple(key)]
                self.reply(200, found)
            case ["objects", *home]:
                items = self.server.objects.items()
                found = [value for key, value in items if list(key[: len(home)]) == home]
                self.reply(200, found)
            case ["pods", *_, name]:
                self.reply(200, PODS if name == "echo" else [])
            case ["podlog", *_, name]:
                self.reply(200, f"log of {name}\n".encode())
            case ["funccall", "public", "demo", "broken", *_]:
                self.reply(502, error("worker_failed", "it died"))
            case ["funccall", *_]:
                seen = {"method": self.command, "path": self.path, "body": body.decode()}
                self.reply(200, {**seen, "x": self.headers.get("X-Test")})
            case _:
                self.reply(404, error("not_found", "no such route"))

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do


@pytest.fixture
def gateway() -> Iterator[StandIn]:
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def inferx(gateway: StandIn, *words: str, stdin: str | None = None) -> Result:
    """Runs a command against the gateway; an exception that escapes fails the test."""
    result = CliRunner().invoke(main, [*words, "--server", gateway.url], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Manifests of every order-relevant type, named against their order."""
    made = tmp_path / "manifests"
    made.mkdir()
    (made / "a.json").write_text(json.dumps(function()))
    (made / "b.yaml").write_text(yaml.safe_dump_all([NAMESPACE, TENANT]))
    (made / "notes.txt").write_text("not a manifest")
    return made


def test_apply_creates_in_order_then_changes_only_what_differs(
    gateway: StandIn, folder: Path
) -> None:
    first = inferx(gateway, "apply", "-f", str(folder))
    assert first.exit_code == 0, first.output
    assert gateway.writes == ["tenant public", "namespace demo", "function echo"]
    assert "function public/demo/echo created" in first.stdout
    assert inferx(gateway, "apply", "-f", str(folder)).stdout.count("unchanged") == 3
    (folder / "a.json").write_text(json.dumps(function(image="y")))
    changed = inferx(gateway, "apply", "-f", str(folder))
    assert "function public/demo/echo updated" in changed.stdout
    assert changed.stdout.count("unchanged") == 2


def test_apply_reads_standard_input_and_fills_in_the_scope(gateway: StandIn) -> None:
    manifest = {k: v for k, v in function().items() if k not in ("tenant", "namespace")}
    words = ("apply", "-f", "-", "-t", "acme", "-n", "lab")
    result = inferx(gateway, *words, stdin=json.dumps(manifest))
    assert result.stdout == "function acme/lab/echo created\n"


def test_apply_tries_again_after_a_conflict(gateway: StandIn) -> None:
    inferx(gateway, "apply", "-f", "-", stdin=json.dumps(function()))
    gateway.conflicts = 2
    words = json.dumps(function(image="y"))
    assert "updated" in inferx(gateway, "apply", "-f", "-", stdin=words).stdout
    gateway.conflicts = 100
    again = inferx(gateway, "apply", "-f", "-", stdin=json.dumps(function(image="z")))
    assert again.exit_code == 1
    assert "changed by others" in again.stderr


def test_apply_warns_and_goes_on_after_a_refusal(gateway: StandIn, tmp_path: Path) -> None:
    manifests = [function("refused"), function("kept", odd_field=1)]
    (tmp_path / "m.json").write_text(json.dumps(manifests))
    result = inferx(gateway, "apply", "-f", str(tmp_path / "m.json"))
    assert result.exit_code == 1
    assert "m.json item 1: object.spec.image: required" in result.stderr
    assert "odd_field" in result.stderr
    assert "function public/demo/kept created" in result.stdout
    assert "1 of 2 manifests were not applied" in result.stderr


def doubled(twice: str) -> str:
    """YAML whose every line stands for what the line before does, `twice`."""
    lines = [f"x{number + 1}: &x{number + 1} {twice.format(f'*x{number}')}" for number in range(60)]
    return "\n".join(["x0: &x0 {a: 1}", *lines])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.json", '{"type": }', "m.json: manifest: not JSON"),
        ("m.yaml", "a: [", "m.yaml: not JSON or YAML"),
        ("m.yaml", "a: 1\nb: {c: 1, c: 2}", "field 'c' is given twice"),
        ("m.yaml", "a: " + "[" * 3000, "nested too deeply, more than 101 levels"),
        (
            "m.yaml",
            "type: tenant\nobject: &a {spec: *a}",
            "alias 'a' is part of what it stands for",
        ),
        ("m.yaml", doubled("[{0}, {0}]"), "aliases stand for more than 100000 values"),
        ("m.yaml", doubled("{{<<: [{0}, {0}]}}"), "aliases stand for more than 100000 values"),
        ("m.json", json.dumps(function(image=7)), "m.json: object.spec.image"),
        ("m.yaml", yaml.safe_dump_all([TENANT, {"type": "gadget", "name": "x"}]), "document 2"),
        ("m.yaml", "just text", "expected an object with type"),
        ("m.yaml", "", "no manifest in"),
    ],
)
def test_a_wrong_file_is_named_before_anything_is_sent(
    gateway: StandIn, tmp_path: Path, name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    result = inferx(gateway, "apply", "-f", str(tmp_path / name))
    assert result.exit_code == 1
    assert words in result.stderr
    assert gateway.requests == []


def test_missing_files_are_named(gateway: StandIn, tmp_path: Path) -> None:
    result = inferx(gateway, "apply", "-f", str(tmp_path / "none.json"))
    assert (result.exit_code, "No such file" in result.stderr) == (1, True)
    assert "no .json or .yaml file" in inferx(gateway, "apply", "-f", str(tmp_path)).stderr
    assert inferx(gateway, "apply").exit_code == 2


def test_get_and_list(gateway: StandIn, folder: Path) -> None:
    inferx(gateway, "apply", "-f", str(folder))
    one = json.loads(inferx(gateway, "get", "function", "demo/echo", "-o", "json").stdout)
    assert one["object"]["spec"]["image"] == "x"
    rows = inferx(gateway, "list", "functions").stdout.splitlines()
    assert rows[0].split() == ["TENANT", "NAMESPACE", "NAME", "REVISION"]
    assert rows[1].split() == ["public", "demo", "echo", "3"]
    assert yaml.safe_load(inferx(gateway, "get", "ns", "-o", "yaml").stdout)[0]["name"] == "demo"
    missing = inferx(gateway, "get", "function", "nobody", "-n", "demo")
    assert missing.exit_code == 1
    assert "no function public/demo/nobody (not_found)" in missing.stderr
    empty = inferx(gateway, "list", "function", "-n", "other")
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert "no function in public/other" in empty.stderr
    assert json.loads(inferx(gateway, "list", "fn", "-n", "other", "-o", "json").stdout) == []


def test_delete_by_name_and_by_manifest(gateway: StandIn, folder: Path) -> None:
    inferx(gateway, "apply", "-f", str(folder))
    assert inferx(gateway, "delete", "fn", "demo/echo").stdout == (
        "function public/demo/echo deleted\n"
    )
    assert inferx(gateway, "delete", "fn", "demo/echo").exit_code == 1
    result = inferx(gateway, "delete", "-f", str(folder))
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "function", "namespace", "tenant",
    ]  # fmt: skip
    assert gateway.objects == {}
    assert inferx(gateway, "delete", "fn").exit_code == 2


def test_call_passes_method_path_body_and_headers(gateway: StandIn) -> None:
    words = ("call", "demo/echo", "-p", "/v1/x?a=1&b=%20", "-d", "hi", "-H", "X-Test: yes")
    seen = json.loads(inferx(gateway, *words, "-v").stdout)
    assert seen == {
        "method": "POST", "path": "/funccall/public/demo/echo/v1/x?a=1&b=%20",
        "body": "hi", "x": "yes",
    }  # fmt: skip
    assert "200 OK  start cold" in inferx(gateway, *words, "-v").stderr
    assert json.loads(inferx(gateway, "call", "t/n/f", "-p", "").stdout)["method"] == "GET"


def test_call_without_a_path_uses_the_sample_query(gateway: StandIn, tmp_path: Path) -> None:
    inferx(gateway, "apply", "-f", "-", stdin=json.dumps(function()))
    (tmp_path / "body").write_text("from a file")
    result = inferx(gateway, "call", "echo", "-n", "demo", "-d", f"@{tmp_path / 'body'}")
    seen = json.loads(result.stdout)
    assert (seen["path"], seen["body"]) == ("/funccall/public/demo/echo/v1/echo", "from a file")
    assert "No such file" in inferx(gateway, "call", "demo/echo", "-d", "@/none").stderr


def test_a_failed_call_prints_the_answer_and_fails(gateway: StandIn) -> None:
    result = inferx(gateway, "call", "demo/broken", "-p", "x")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "worker_failed"


@pytest.mark.parametrize("name", ["a/b/c/d", "", "a//b", "a/../b", "x\ny"])
def test_strange_names_are_refused_here(gateway: StandIn, name: str) -> None:
    assert inferx(gateway, "call", name, "-p", "x").exit_code in (1, 2)
    assert gateway.requests == []


def test_logs_are_those_of_the_newest_worker(gateway: StandIn) -> None:
    assert inferx(gateway, "logs", "demo/echo").stdout == "log of new\n"
    assert inferx(gateway, "logs", "demo/echo", "--pod", "old", "--tail", "5").stdout == (
        "log of old\n"
    )
    assert gateway.requests[-1][1] == "/podlog/public/demo/echo/4/old?follow=false&tail=5"


def test_pods_show_the_living_unless_asked(gateway: StandIn) -> None:
    rows = inferx(gateway, "pods", "demo/echo").stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["POD", "new"]
    assert "0,1" in rows[1]
    assert len(inferx(gateway, "pods", "demo/echo", "--all").stdout.splitlines()) == 3
    missing = inferx(gateway, "pods", "demo/gone")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "no function public/demo/gone" in missing.stderr


def test_no_gateway_says_what_to_do() -> None:
    result = CliRunner().invoke(main, ["list", "tenants", "--server", "127.0.0.1:1"])
    assert result.exit_code == 3
    assert "no InferX answers at http://127.0.0.1:1" in result.stderr
    assert "inferx up" in result.stderr


def test_the_server_of_this_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INFERX_SERVER", raising=False)
    (tmp_path / ".inferx").mkdir()
    state = tmp_path / ".inferx" / "up.json"
    state.write_text('{"url": "http://127.0.0.1:4321"}')
    deeper = tmp_path / "a" / "b"
    assert find_server(None, deeper) == ("http://127.0.0.1:4321", str(state))
    assert find_server("host:1", deeper)[0] == "http://host:1"
    monkeypatch.setenv("INFERX_SERVER", "https://far/")
    assert find_server(None, deeper) == ("https://far", "INFERX_SERVER")
    monkeypatch.setenv("INFERX_SERVER", "ftp://far")
    with pytest.raises(ConfigError, match="INFERX_SERVER"):
        find_server(None, deeper)
    monkeypatch.delenv("INFERX_SERVER")
    state.write_text("{")
    with pytest.raises(ConfigError, match=r"up\.json"):
        find_server(None, deeper)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_a_help_text(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert COMMANDS[command][1].split()[0].rstrip(":.") in CliRunner().invoke(main).output


def test_unknown_commands_types_and_services_are_listed() -> None:
    def error_of(*words: str) -> str:
        result = CliRunner().invoke(main, list(words))
        assert result.exit_code in (1, 2)
        return result.stderr

    assert "there are up, apply" in error_of("frobnicate")
    assert "there are tenant, namespace" in error_of("list", "gadgets")
    assert "statesvc, scheduler, nodeagent, gateway" in error_of("run", "nothing")
    assert "none.json" in error_of("run", "gateway", "--config", "/none.json")
