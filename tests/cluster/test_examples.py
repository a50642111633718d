"""The example model servers are real: right embeddings, streamed chat, a clean stop.

Must never need the platform: each server is started as the process runtime would start it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.helpers.ports import free_port

LLAMA = Path(__file__).resolve().parents[2] / "examples" / "llama"
SENTENCES = ["a cat sits", "the kitten is sitting", "quantum physics"]

pytestmark = pytest.mark.xdist_group("examples")


def _wait_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/health", timeout=1).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"not healthy in 60 s:\n{log.read_text()}")


def _serve(model: str, folder: Path) -> Iterator[str]:
    port = free_port()
    log = folder / f"{model}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(LLAMA / "server.py"), "--model", model, "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"]},
        )
    try:
        _wait_healthy(process, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from _serve("minilm", tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="module")
def babble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from _serve("babble", tmp_path_factory.mktemp("babble"))


def _embed(url: str, texts: list[str]) -> np.ndarray:
    answer = httpx.post(f"{url}/v1/embeddings", json={"model": "minilm", "input": texts})
    answer.raise_for_status()
    return np.array([row["embedding"] for row in answer.json()["data"]])


def _wordpiece(text: str, ids: dict[str, int]) -> list[int]:
    found = [ids["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next(e for e in range(len(word), start, -1) if prefix + word[start:e] in ids)
            found.append(ids[prefix + word[start:end]])
            start = end
    return [*found, ids["[SEP]"]]


def _reference(text: str) -> np.ndarray:
    """The embedding by a plain numpy forward pass over the published weights."""
    sys.path.insert(0, str(LLAMA))
    try:
        from convert_minilm import package_dir, read_safetensors
    finally:
        sys.path.remove(str(LLAMA))
    weights = read_safetensors(package_dir() / "model.safetensors")
    vocabulary = (package_dir() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    ids = _wordpiece(text, {token: row for row, token in enumerate(vocabulary)})

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * weights[f"{name}.LayerNorm.weight"] + weights[f"{name}.LayerNorm.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    table = {
        key: weights[f"embeddings.{key}_embeddings.weight"]
        for key in ("word", "position", "token_type")
    }
    x = norm(
        table["word"][ids] + table["position"][: len(ids)] + table["token_type"][0], "embeddings"
    )
    for layer in range(6):
        at = f"encoder.layer.{layer}"
        q, k, v = (
            linear(x, f"{at}.attention.self.{part}").reshape(len(ids), 12, 32).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(32))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        mixed = mixed.swapaxes(0, 1).reshape(len(ids), 384)
        x = norm(linear(mixed, f"{at}.attention.output.dense") + x, f"{at}.attention.output")
        h = linear(x, f"{at}.intermediate.dense")
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = norm(linear(h, f"{at}.output.dense") + x, f"{at}.output")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_a_cat_is_closer_to_a_kitten_than_to_physics(minilm: str) -> None:
    cat, kitten, physics = _embed(minilm, SENTENCES)
    assert cat.shape == (384,)
    assert cat @ kitten > 0.7
    assert cat @ physics < 0.2


@pytest.mark.parametrize("text", [*SENTENCES, "Don't unhyphenate GPU-serverless, please!"])
def test_embeddings_are_those_of_the_published_weights(minilm: str, text: str) -> None:
    assert _embed(minilm, [text])[0] @ _reference(text) > 0.999


def _chunks(url: str, body: dict[str, Any]) -> list[str]:
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
    return [delta["content"] for delta in deltas if delta.get("content")]


def test_chat_streams_one_word_at_a_time(babble: str) -> None:
    messages = [{"role": "user", "content": "hello"}]
    words = _chunks(babble, {"messages": messages, "stream": True, "max_tokens": 12})
    assert len(words) == 12
    assert all(re.fullmatch(r" [a-z]+", word) for word in words)


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(LLAMA / "server.py"), "--model", "nope", "--port", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "no model 'nope'" in done.stderr


def test_without_a_port_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(LLAMA / "server.py"), "--model", "minilm"]
    env = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    assert done.returncode == 2
    assert "give --port or set PORT" in done.stderr
