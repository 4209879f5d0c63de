"""Tiny byte-level vocabularies with the structural tokens of one family each, and no merges."""

from mull.text import Tokenizer
from mull.text.vocabulary import BYTE_OF_CHAR

QWEN = (
    ["<|endoftext|>", "<|im_end|>", "<|im_start|>"],
    ["<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>", "</tool_response>"],
)
LLAMA = (
    [
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|python_tag|>",
    ],
    [],
)
DEEPSEEK_V2 = (["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"], [])


def tiny(control: list[str], user_defined: list[str], template: str | None = None) -> Tokenizer:
    return Tokenizer.from_gguf(tiny_metadata(control, user_defined, template))


def tiny_metadata(
    control: list[str], user_defined: list[str], template: str | None = None
) -> dict[str, object]:
    """One token a byte, then the control tokens (the first begins, the second ends a text)."""
    metadata: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*BYTE_OF_CHAR, *control, *user_defined],
        "tokenizer.ggml.token_type": [1] * 256 + [3] * len(control) + [4] * len(user_defined),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
    }
    if template is not None:
        metadata["tokenizer.chat_template"] = template
    return metadata
