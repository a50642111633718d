"""Builds a small chat model with seeded random weights: it speaks, but its text is meaningless.

Must never be mistaken for a trained model; it exists to have real weights to load and tokens to
stream without a download.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import gguf
import numpy as np
from cache import build_once

NAME = "babble-q8_0.gguf"
SEED = 20_240_601
WIDTH, HEADS, LAYERS, FEED_FORWARD, CONTEXT = 768, 12, 12, 2048, 2048
# Tokens other than words get zero rows in the output matrix, so a sampled token is a whole word.
LOGIT_SPREAD = 6.0
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
ONSETS = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "tr", "st"]
VOWELS = ["a", "e", "i", "o", "u"]
CODAS = ["", "n", "r", "l"]


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Texts, scores and types of a SentencePiece vocabulary: control, bytes, letters, words."""
    kinds = gguf.TokenType
    rows: list[tuple[str, float, int]] = [
        ("<unk>", 0.0, kinds.UNKNOWN),
        ("<s>", 0.0, kinds.CONTROL),
        ("</s>", 0.0, kinds.CONTROL),
    ]
    rows += [(f"<0x{byte:02X}>", 0.0, kinds.BYTE) for byte in range(256)]
    rows += [(chr(code), -1e4 - code, kinds.NORMAL) for code in range(33, 127)]
    rows.append(("\u2581", -1e4, kinds.NORMAL))
    syllables = ["".join(parts) for parts in itertools.product(ONSETS, VOWELS, CODAS)]
    rng = np.random.default_rng(SEED)
    doubles = rng.permutation([a + b for a in syllables for b in syllables])[:1200]
    words = list(dict.fromkeys([*syllables, *(str(word) for word in doubles)]))
    rows += [("\u2581" + word, -float(rank), kinds.NORMAL) for rank, word in enumerate(words)]
    texts, scores, types = zip(*rows, strict=True)
    return list(texts), list(scores), [int(kind) for kind in types]


def _tensors(types: list[int], texts: list[str]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(SEED)

    def random(rows: int, columns: int, scale: float) -> np.ndarray:
        return rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale)

    unit = WIDTH**-0.5
    output = random(len(types), WIDTH, LOGIT_SPREAD * unit)
    speakable = [len(text) > 2 and text[0] == "\u2581" for text in texts]
    output[~np.array(speakable)] = 0.0
    tensors = {
        "token_embd.weight": random(len(types), WIDTH, 1.0),
        "output_norm.weight": np.ones(WIDTH, dtype=np.float32),
        "output.weight": output,
    }
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"blk.{layer}.{name}.weight"] = random(WIDTH, WIDTH, unit)
        for name in ("ffn_gate", "ffn_up"):
            tensors[f"blk.{layer}.{name}.weight"] = random(FEED_FORWARD, WIDTH, unit)
        tensors[f"blk.{layer}.ffn_down.weight"] = random(WIDTH, FEED_FORWARD, FEED_FORWARD**-0.5)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = np.ones(WIDTH, dtype=np.float32)
    return tensors


def make(target: Path) -> None:
    """Write the model (about 90 million parameters, 8-bit blocks) as one GGUF file to `target`."""
    texts, scores, types = vocabulary()
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name("babble (random weights, meaningless text)")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(texts))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, array in _tensors(types, texts).items():
        if array.ndim == 1:
            writer.add_tensor(name, array)
            continue
        blocks = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ensure() -> Path:
    """The built model; builds on the first call only."""
    return build_once(NAME, make)


if __name__ == "__main__":
    print(ensure())
