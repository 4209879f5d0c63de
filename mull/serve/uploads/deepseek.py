"""DeepSeek's export: a tree of nodes; a message is fragments, or content with its thinking."""

from __future__ import annotations

from typing import Any

from mull.serve.uploads.trees import kept_tree, text_of

_ASKED, _THOUGHT, _SAID = "REQUEST", "THINK", "RESPONSE"


def is_one(conversation: dict[str, Any]) -> bool:
    return "inserted_at" in conversation


def convert(conversation: dict[str, Any]) -> dict[str, Any]:
    mapping = conversation["mapping"]
    messages, _ = kept_tree(mapping, _message)
    roles: dict[str | None, str] = {None: "assistant"}
    for message in messages:
        # Older exports do not say who speaks: people begin, and take turns.
        turn = "assistant" if roles[message["parent"]] == "user" else "user"
        message["role"] = roles[message["id"]] = message["role"] or turn
    return {
        "origin": f"deepseek:{conversation.get('id')}",
        "title": text_of(conversation.get("title")),
        "created": conversation.get("inserted_at"),
        "updated": conversation.get("updated_at"),
        "model": None,
        "head": messages[-1]["id"] if messages else None,
        "messages": messages,
    }


def _message(_id: str, node: dict[str, Any]) -> dict[str, Any] | None:
    message = node.get("message")
    if not isinstance(message, dict):
        return None
    parts: dict[str, list[str]] = {_ASKED: [], _THOUGHT: [], _SAID: []}
    for fragment in message.get("fragments") or ():
        kind = fragment.get("type")
        if kind in parts and (content := text_of(fragment.get("content"))):
            parts[kind].append(content)
    role = text_of(message.get("role")).lower()
    if any(parts.values()):
        role = "user" if parts[_ASKED] else "assistant"
        text = "\n\n".join(parts[_ASKED] or parts[_SAID])
        thinking = "\n\n".join(parts[_THOUGHT])
    else:
        text = text_of(message.get("content"))
        thinking = text_of(message.get("reasoning_content") or message.get("thinking_content"))
    if not text and not thinking:
        return None
    return {
        "role": role if role in ("user", "assistant") else None,
        "text": text,
        "thinking": thinking,
        "model": text_of(message.get("model")) or None,
        "created": message.get("inserted_at"),
    }
