"""The official OpenAI client against the example functions: models, embeddings, streamed chat."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import openai
import pytest

from .conftest import ROOT, Platform, start_platform

pytestmark = pytest.mark.xdist_group("faults")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("examples") / "inferx"
    running = start_platform(folder, "--gpus", "1x24000")
    for path in sorted((ROOT / "examples").glob("*.json")):
        manifest = json.loads(path.read_text())
        for one in manifest if isinstance(manifest, list) else [manifest]:
            running.apply(one)
    yield running
    assert running.stop() == 0, running.output.read_text()


@pytest.fixture
def client(examples: Platform) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{examples.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def cosine(left: list[float], right: list[float]) -> float:
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    return dot / math.hypot(*left) / math.hypot(*right)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert {"demo/minilm", "demo/chat"} <= {model.id for model in client.models.list()}


def test_embeddings_mean_something(client: openai.OpenAI) -> None:
    texts = ["a cat sits", "the kitten is sitting", "quantum physics"]
    answer = client.embeddings.create(model="demo/minilm", input=texts)
    cat, kitten, physics = (item.embedding for item in answer.data)
    assert len(cat) == 384
    assert cosine(cat, kitten) > cosine(cat, physics) + 0.2


def test_chat_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo/chat",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=16,
        stream=True,
    )
    pieces = [chunk for chunk in stream if chunk.choices]
    assert len(pieces) >= 8
    assert any(chunk.choices[0].delta.content for chunk in pieces)


def test_unknown_model_is_a_not_found_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="demo/nobody", input="x")
    assert caught.value.code == "model_not_found"
