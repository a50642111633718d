"""The house rules as a test: layers, fences, sizes. Must need nothing but the source tree."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "inferx"

LAYERS = {
    # worker runs inside of model servers, where nothing else of the package may be.
    "errors": 0, "_ext": 0, "worker": 0,
    "domain": 1, "config": 1, "procfs": 1,
    "store": 2, "rpc": 2, "telemetry": 2, "health": 2, "auth": 2, "audit": 2, "backup": 2,
    "statesvc": 3, "scheduler": 3, "gateway": 3, "agent": 3, "cli": 3,
    "services": 4, "up": 4, "__main__": 4,
}  # fmt: skip

# What only one place may touch, as (pattern, allowed path prefixes, reason).
FENCES = [
    (
        r"\bos\.(environ|getenv)\b",
        ("python/inferx/config.py", "python/inferx/worker.py"),  # a model server's own
        "the environment",
    ),
    (r"^\s*(import|from) pynvml\b", ("python/inferx/agent/gpus.py",), "NVML"),
    (
        r"^\s*import ctypes\b",
        ("python/inferx/agent/runtimes/rootfs.py", "python/inferx/cli/doctor/"),
        "system calls by hand",
    ),
    (
        r"HTTPTransport\(uds=",
        ("python/inferx/agent/runtimes/docker.py",),
        "the Docker Engine's socket",
    ),
    (r"\betcd_pb2", ("python/inferx/store/etcd",), "etcd's stubs"),
    (r"^\s*(import|from) asyncpg\b", ("python/inferx/audit/postgres.py",), "the PostgreSQL driver"),
    (r"^\s*(import|from) obstore\b", ("python/inferx/agent/blob.py",), "the blob store"),
    (r"^\s*(pub )?use pyo3\b", ("ext/lib.rs", "/src/py.rs", "/src/py/"), "PyO3"),
    (
        r"\bunsafe\s*(\{|fn|impl)",
        # The driver, mapped memory, buffers that the kernel fills on its own, a descriptor that
        # comes from Python as a number, and the data plane's count, which survives a kill without
        # a system call for each call.
        (
            "ext/proxy/src/py.rs",
            "ext/proxy/src/tally.rs",
            "ext/gpu_snapshot/src/cuda",
            "ext/gpu_snapshot/src/map.rs",
            "ext/gpu_snapshot/src/uring.rs",
        ),
        "unsafe code",
    ),
]
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 450  # the aim is 300
TEST_LINES_MAX = 600
LINE_LENGTH_MAX = 100


def tracked(*suffixes: str) -> list[Path]:
    """Source files that belong to the project, generated ones left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [
        ROOT / name
        for name in names.splitlines()
        if name.endswith(suffixes) and not GENERATED.search(name) and (ROOT / name).is_file()
    ]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part_of(path: Path) -> str:
    """The architecture's name of the module that a file belongs to."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every imported `inferx` part and `services`, with its line."""
    package = path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, node.module)) if node.module else ".".join(base)
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "inferx" and len(parts) > 1:
                yield node.lineno, parts[1]
            elif parts[0] == "services":
                yield node.lineno, "services"


def test_layers_import_downwards_only() -> None:
    wrong = []
    for path in tracked(".py"):
        if not path.is_relative_to(PACKAGE) or (path.parent == PACKAGE and path.stem == "__init__"):
            continue
        part = part_of(path)
        assert part in LAYERS, f"{relative(path)}: give `{part}` a layer in tests/test_tidy.py"
        for line, target in imports(path):
            if target not in LAYERS or target == part:
                continue
            same_layer_allowed = LAYERS[part] in (1, 2, 4)
            if LAYERS[target] > LAYERS[part] or (
                LAYERS[target] == LAYERS[part] and not same_layer_allowed
            ):
                wrong.append(f"{relative(path)}:{line}: {part} must not import {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("pattern", "allowed", "what"), FENCES, ids=[f[2] for f in FENCES])
def test_fences_hold(pattern: str, allowed: tuple[str, ...], what: str) -> None:
    wrong = []
    for path in tracked(".py", ".rs"):
        name = relative(path)
        if name.startswith(("tests/", "bench/", "examples/", "scripts/")) or "/tests/" in name:
            continue
        if any(name.startswith(prefix) or prefix in name for prefix in allowed):
            continue
        lines = path.read_text().splitlines()
        wrong += [
            f"{name}:{number}: only {allowed[0]} may touch {what}"
            for number, line in enumerate(lines, 1)
            if re.search(pattern, line) and not line.lstrip().startswith(("//", "#"))
        ]
    assert not wrong, "\n".join(wrong)


def test_files_and_lines_stay_small() -> None:
    wrong = []
    for path in tracked(".py", ".rs"):
        lines = path.read_text().splitlines()
        limit = TEST_LINES_MAX if "tests/" in relative(path) else FILE_LINES_MAX
        if len(lines) > limit:
            wrong.append(f"{relative(path)}: {len(lines)} lines, at most {limit}")
        wrong += [
            f"{relative(path)}:{number}: {len(line)} columns, at most {LINE_LENGTH_MAX}"
            for number, line in enumerate(lines, 1)
            if len(line) > LINE_LENGTH_MAX
        ]
    assert not wrong, "\n".join(wrong)


def test_functions_stay_small() -> None:
    wrong = []
    for path in tracked(".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    wrong.append(f"{relative(path)}:{node.lineno}: {node.name} has {lines} lines")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_for_later() -> None:
    marker = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b|to" r"do!\(|unimplemen" r"ted!\(")
    wrong = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in tracked(".py", ".rs", ".sh", ".proto")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marker.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_say_what_they_are_for() -> None:
    wrong = [
        relative(path)
        for path in tracked(".py")
        if path.is_relative_to(PACKAGE)
        and path.read_text().strip()
        and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    wrong += [
        relative(path)
        for path in tracked(".rs")
        if "/tests/" not in relative(path) and not path.read_text().lstrip().startswith("//!")
    ]
    assert not wrong, "a module docstring is missing in:\n" + "\n".join(wrong)


def test_stubs_are_up_to_date(tmp_path: Path) -> None:
    """`make proto` would change nothing."""
    from grpc_tools import protoc

    sources = [path for path in tracked(".proto") if path.is_relative_to(PACKAGE)]
    arguments = ["protoc", f"-I{ROOT / 'python'}", f"--python_out={tmp_path}",
                 f"--pyi_out={tmp_path}", f"--grpc_python_out={tmp_path}"]  # fmt: skip
    assert protoc.main([*arguments, *map(str, sources)]) == 0
    for made in tmp_path.rglob("*_pb2*"):
        kept = ROOT / "python" / made.relative_to(tmp_path)
        if made.suffix == ".py" or kept.exists():
            assert made.read_text() == kept.read_text(), f"{relative(kept)}: run `make proto`"
