"""Real models whose answer is known: every layer adds nothing, and the head names the next token.

With output projections of zero a transformer is a table: what follows a token depends on that token
alone. A text cut into pieces that never repeat is then recited word for word, through the real
tokenizer, engine, cache and sampler, whatever was asked.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import torch

from mull.model import CausalLM, ModelConfig
from mull.text.vocabulary import BYTE_OF_CHAR
from mull.weights import save_folder

_BEGIN, _END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_USER, _ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
_OPEN, _CLOSE = "<think>", "</think>"
_WIDTH = 256
_CERTAINTY = 40.0  # the right token's logit; others lie around 0 +- 3
_CHAR_OF_BYTE = {byte: char for char, byte in BYTE_OF_CHAR.items()}


def write_scripted_model(
    folder: Path,
    *,
    thinking: str | None,
    answer: str,
    context: int = 4096,
    endless: bool = False,
    layers: int = 2,
) -> Path:
    """A model in Hugging Face layout that recites `thinking` (None: it has no thinking), `answer`.

    Told to answer at once it begins with the answer. `endless`: its thinking never closes by
    itself, it starts again from its beginning; without a thinking that holds for its answer.
    More `layers` say the same more slowly.
    """
    thoughts, words = _pieces([f"{thinking or ''}\n" if thinking else "", answer])
    control = [_BEGIN, _END, _USER, _ASSISTANT]
    control += [_OPEN, _CLOSE] if thinking is not None else []
    texts = [*BYTE_OF_CHAR, *thoughts, *words, *control]
    ids = {text: index for index, text in enumerate(texts)}
    chain = [*words, _END]
    follows = list(pairwise(chain))
    if thinking is None:
        follows.append((_ASSISTANT, words[0]))
        if endless:
            follows = [*pairwise(words), (words[-1], words[0]), (_ASSISTANT, words[0])]
    else:
        follows += [*pairwise(thoughts), (thoughts[-1], thoughts[0] if endless else _CLOSE)]
        # The prompt ends with a newline after <think>, or with a blank line after </think>.
        line, blank = _CHAR_OF_BYTE[ord("\n")], _byte_level("\n\n")
        texts.append(blank)
        ids[blank] = len(texts) - 1
        follows += [(line, thoughts[0]), (_CLOSE, blank), (blank, words[0])]
    _save(
        folder, texts, [(ids[one], ids[other]) for one, other in follows], control, context, layers
    )
    return folder


def _pieces(sections: list[str]) -> list[list[str]]:
    """Each text cut into words, those that occurred already joined with the next one."""
    seen: set[str] = set(BYTE_OF_CHAR)
    cut: list[list[str]] = []
    for section in sections:
        pieces: list[str] = []
        piece = ""
        for word in re.findall(r"\s*\S+|\s+$", section):
            piece += _byte_level(word)
            if piece not in seen:
                seen.add(piece)
                pieces.append(piece)
                piece = ""
        if piece and pieces:
            seen.discard(pieces[-1])
            pieces[-1] += piece
            seen.add(pieces[-1])
        cut.append(pieces)
    return cut


def _byte_level(text: str) -> str:
    return "".join(_CHAR_OF_BYTE[byte] for byte in text.encode())


def _save(
    folder: Path,
    texts: list[str],
    follows: list[tuple[int, int]],
    control: list[str],
    context: int,
    layers: int,
) -> None:
    config = ModelConfig.from_dict(
        {
            "model_type": "deepseek_v3",
            "vocab_size": len(texts),
            "hidden_size": _WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": context,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "bos_token_id": texts.index(_BEGIN),
            "eos_token_id": texts.index(_END),
        }
    )
    torch.manual_seed(5)
    model = CausalLM(config)
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")) or "experts" in name:
            tensor.zero_()
        elif "norm" in name:
            tensor.fill_(1.0)
        elif tensor.dtype.is_floating_point:
            tensor.normal_(0, 0.05)
    signs = torch.randint(0, 2, (len(texts), _WIDTH)).mul(2).sub(1).float()
    state["model.embed_tokens.weight"].copy_(signs)
    head = state["lm_head.weight"]
    head.zero_()
    for token, following in follows:
        head[following] += signs[token] * (_CERTAINTY / _WIDTH)
    model.load_state_dict(state)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": texts.index(text),
                "content": text,
                "special": text not in (_OPEN, _CLOSE),
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for text in control
        ],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {t: i for i, t in enumerate(texts) if t not in control},
            "merges": _merges(texts),
        },
    }
    settings = {"bos_token": _BEGIN, "eos_token": _END, "add_bos_token": True}
    save_folder(
        model,
        folder,
        tokenizer_files={
            "tokenizer.json": json.dumps(tokenizer),
            "tokenizer_config.json": json.dumps(settings),
        },
    )


def _merges(texts: list[str]) -> list[str]:
    """The blank line must be one token: as two newlines its end would look like the thinking's."""
    line = _CHAR_OF_BYTE[ord("\n")]
    return [f"{line} {line}"] if line + line in texts else []
