"""Which template a model gets: told by the tokens of its vocabulary and marks in its own source.

A model whose source says something we do not know renders through the sandbox, even when its
tokens look familiar: better slower than subtly wrong.
"""

import re

from .opening import without_opening
from .template_chatml import (
    ChatMLTemplate,
    Qwen3Template,
    Qwen25Template,
    QwenThinkingTemplate,
    SmolLM2Template,
)
from .template_deepseek import (
    DeepSeekR1Template,
    DeepSeekR10528Template,
    DeepSeekV2Template,
    DeepSeekV3Template,
    DeepSeekV31Template,
)
from .template_jinja import JinjaTemplate
from .template_llama3 import Llama3Template, Llama31Template
from .templates import ChatTemplate
from .tokenizer import Tokenizer

_SPACE = re.compile(r"\s+")


def recognise(tokenizer: Tokenizer, source: str | None) -> ChatTemplate:
    """The family of `source` (Jinja) and `tokenizer`, else the source in its sandbox."""
    if source is None:
        return _by_vocabulary(tokenizer)
    base = without_opening(source)
    template = _of(tokenizer, source if base is None else base)
    if base is not None:
        template.set_to_open_thinking()
    return template


def _of(tokenizer: Tokenizer, source: str) -> ChatTemplate:
    return _by_source(tokenizer, source) or JinjaTemplate(tokenizer, source)


def _by_vocabulary(tokenizer: Tokenizer) -> ChatTemplate:
    tokens = tokenizer.special_ids
    if "<｜Assistant｜>" in tokens:
        thinks = "<think>" in tokens
        return DeepSeekR1Template(tokenizer) if thinks else DeepSeekV3Template(tokenizer)
    if "<|start_header_id|>" in tokens:
        return Llama3Template(tokenizer)
    if "<|im_start|>" in tokens and "<think>" in tokens:
        return Qwen3Template(tokenizer)
    return ChatMLTemplate(tokenizer)


def _by_source(tokenizer: Tokenizer, source: str) -> ChatTemplate | None:
    for written in (ChatMLTemplate, Llama3Template, DeepSeekV3Template):
        if source.strip() == written.source:
            return written(tokenizer)
    tokens = tokenizer.special_ids
    if "<｜Assistant｜>" in tokens and "<｜Assistant｜>" in source:
        return _deepseek(tokenizer, source)
    if "<|start_header_id|>" in tokens and "<|start_header_id|>" in source:
        return _llama(tokenizer, source)
    if "<|im_start|>" in tokens and "<|im_start|>" in source:
        return _chatml(tokenizer, source)
    if "'User: ' + message['content'] + '\\n\\n'" in source and "'Assistant:'" in source:
        return DeepSeekV2Template(tokenizer)
    return None


def _deepseek(tokenizer: Tokenizer, source: str) -> ChatTemplate | None:
    if "｜DSML｜" in source:
        return None
    if "thinking is defined" in source or "enable_thinking" in source:
        return DeepSeekV31Template(tokenizer)
    if "<｜Assistant｜><think>" in source:
        return DeepSeekR1Template(tokenizer)
    if "</think>" in source:
        return DeepSeekR10528Template(tokenizer)
    return DeepSeekV3Template(tokenizer)


def _llama(tokenizer: Tokenizer, source: str) -> ChatTemplate | None:
    if "Cutting Knowledge Date" in source:
        dated = "strftime_now" in source
        return Llama31Template(tokenizer, None) if dated else Llama31Template(tokenizer)
    plain = "message['role'] + '<|end_header_id|>" in source and len(source) < 1000
    return Llama3Template(tokenizer) if plain else None


def _chatml(tokenizer: Tokenizer, source: str) -> ChatTemplate | None:
    if "named SmolLM, trained by Hugging Face" in source and len(source) < 1000:
        return SmolLM2Template(tokenizer)
    if "<tool_response>" in source and "<tools></tools>" in source:
        if "enable_thinking" in source:
            return Qwen3Template(tokenizer)
        if "assistant\\n<think>\\n' }}" in source:
            return QwenThinkingTemplate(tokenizer)
        if "You are Qwen, created by Alibaba Cloud." in source:
            return Qwen25Template(tokenizer)
        return None
    return _plain_chatml(tokenizer, source)


def _plain_chatml(tokenizer: Tokenizer, source: str) -> ChatTemplate | None:
    """ChatML in its one-line form, with or without a system message of its own."""
    bare = _SPACE.sub("", source)
    loop = "'<|im_start|>'+message['role']+'\\n'+message['content']+'<|im_end|>'"
    if loop not in bare or len(source) > 600 or bare.count("{%if") > 3:
        return None
    said = re.search(r"<\|im_start\|>system\\n([^<>{}]*)<\|im_end\|>", source)
    if "system" in source and said is None:
        return None
    return ChatMLTemplate(tokenizer, said.group(1) if said else None)
