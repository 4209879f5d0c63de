"""Writes the DeepSeek-architecture model that the benchmarks run: 1.55 billion random weights.

Multi-head latent attention (latent 512, roped key 64), one dense layer, then layers of 64 routed
experts (6 per token) and 2 shared ones, DeepSeek-V3's router. bfloat16, Hugging Face layout, with
the vocabulary of a model in the store. Every shape is a multiple of 64, so that each peer's 4-bit
format can hold it. Run: .venv/bin/python bench/moe_model.py FOLDER [--layers N] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models

from mull import weights
from mull.model.config import ModelConfig
from mull.model.transformer import CausalLM
from mull.text import pretokenizers
from mull.weights.save import TOKENIZER_FILES, save_folder

_CONTROL = 3  # GGUF's token type of structural tokens


def moe_config(layers: int, vocab_size: int, tokens: Mapping[str, Any]) -> ModelConfig:
    """7 layers are 1.55 billion parameters, 0.46 of them active for a token (with embedding)."""
    return ModelConfig.from_dict(
        {
            "model_type": "deepseek_v3",
            "vocab_size": vocab_size,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": layers,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "q_lora_rank": 512,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "first_k_dense_replace": 1,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "n_shared_experts": 2,
            "moe_intermediate_size": 512,
            # One group: not every peer limits the choice to the best groups.
            "n_group": 1,
            "topk_group": 1,
            "max_position_embeddings": 16384,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
            **tokens,
        }
    )


def random_model(config: ModelConfig, seed: int) -> CausalLM:
    model = CausalLM(config, dtype=torch.bfloat16, device="meta").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator=generator)
    with torch.no_grad():
        for buffer in model.buffers():  # selection biases: small, but not all alike
            buffer.normal_(0.0, 0.01, generator=generator)
    return model


def write_tokenizer(source: Path | Mapping[str, Any], folder: Path) -> tuple[int, dict[str, Any]]:
    """A model's tokenizer as Hugging Face files; (vocabulary size, its bos and eos ids)."""
    if isinstance(source, Path):
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copy(source / name, folder / name)
        size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
        config = json.loads((source / "config.json").read_text())
        return size, {name: config.get(name) for name in ("bos_token_id", "eos_token_id")}
    ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in source.items()}
    texts = list(ggml["tokens"])
    merges = [tuple(merge.split(" ")) for merge in ggml["merges"]]
    backend = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, merges))
    backend.pre_tokenizer = pretokenizers.build(pretokenizers.pre_tokenizer(ggml["pre"]))
    backend.decoder = decoders.ByteLevel()
    kinds = zip(texts, ggml["token_type"], strict=True)
    backend.add_tokens([AddedToken(text, special=True) for text, kind in kinds if kind == _CONTROL])
    backend.save(str(folder / "tokenizer.json"))
    ids = {f"{name}_token_id": int(ggml[f"{name}_token_id"]) for name in ("bos", "eos")}
    settings = {name.removesuffix("_id"): texts[index] for name, index in ids.items()}
    if "tokenizer.chat_template" in source:
        settings["chat_template"] = source["tokenizer.chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return len(texts), ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=7, help="the first is dense")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokenizer", default="smollm2-135m", help="a model mull knows")
    options = parser.parse_args()
    start = time.perf_counter()
    source = weights.tokenizer_source(weights.resolve(options.tokenizer))
    with tempfile.TemporaryDirectory() as name:
        tokenizer = Path(name)
        vocab_size, tokens = write_tokenizer(source, tokenizer)
        config = moe_config(options.layers, vocab_size, tokens)
        save_folder(random_model(config, options.seed), options.folder, tokenizer_files=tokenizer)
    total, active = config.parameter_count()
    print(
        f"{options.folder}: {total / 1e9:.2f} billion parameters, {active / 1e9:.2f} active, "
        f"written in {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
