"""The examples through the platform, as a user of the official `openai` client meets them.

Must never need anything but `inferx up`, `inferx apply -f examples/` and that client.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from .conftest import ROOT, Platform, eventually, running_platform

pytestmark = pytest.mark.xdist_group("examples")
HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("examples") / "inferx"
    with running_platform(folder, "--gpus", "1x24000", "--idle-park-ms", "300") as running:
        command = [sys.executable, "-m", "inferx", "apply", "-f", "examples/",
                   "--server", running.url]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        yield running


@pytest.fixture
def client(platform: Platform) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{platform.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def living(platform: Platform, name: str) -> list[dict[str, Any]]:
    """The status of each of a function's living workers."""
    pods = platform.client.get(f"/pods/public/demo/{name}/").json()
    found = [pod["object"]["status"] for pod in pods]
    return [status for status in found if status["state"] not in ("Terminated", "Failed")]


def test_models_are_the_functions(client: openai.OpenAI) -> None:
    assert {"demo/chat", "demo/minilm"} <= {model.id for model in client.models.list()}


def test_embeddings_mean_something(client: openai.OpenAI) -> None:
    texts = ["a cat sits", "the kitten is sitting", "quantum physics"]
    answer = client.embeddings.create(model="demo/minilm", input=texts)
    cat, kitten, physics = (np.array(item.embedding) for item in answer.data)
    assert cat @ kitten > 0.7
    assert cat @ physics < 0.2


def test_chat_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo/chat", messages=HELLO, max_tokens=10, stream=True
    )
    words = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
    assert len([word for word in words if word]) == 10


def test_an_unknown_model_is_openais_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="demo/nobody", messages=HELLO)
    assert caught.value.code == "model_not_found"


def test_resume_is_three_times_faster_than_cold(platform: Platform, client: openai.OpenAI) -> None:
    def first_answer(start: str) -> float:
        answer = client.chat.completions.with_raw_response.create(
            model="demo/chat", messages=HELLO, max_tokens=1
        )
        assert answer.headers["x-inferx-start"] == start
        return answer.elapsed.total_seconds()

    for pod in platform.client.get("/pods/public/demo/chat/").json():
        platform.client.delete(f"/pod/public/demo/{pod['name']}/")
    eventually(lambda: living(platform, "chat") == [], what="the worker is gone")
    cold = first_answer("cold")
    resumes = []
    for _ in range(3):
        answered_ms = time.time() * 1000

        def stands_by(since: float = answered_ms) -> bool:
            (status,) = living(platform, "chat")
            return status["state"] == "Standby" and status["since_ms"] >= since

        eventually(stands_by, what="the worker stands by again")
        resumes.append(first_answer("resume"))
    assert min(resumes) * 3 <= cold, f"cold {cold:.3f} s, resumes {resumes}"
