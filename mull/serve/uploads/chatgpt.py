"""ChatGPT's export: a tree of nodes, among them tools, hidden context and thoughts."""

from __future__ import annotations

import datetime
from typing import Any

from mull.serve.uploads.trees import kept_tree, text_of


def convert(conversation: dict[str, Any]) -> dict[str, Any]:
    mapping = conversation["mapping"]
    nodes, nearest = kept_tree(mapping, _message)
    messages, stands_for = _joined(nodes)
    head = nearest.get(str(conversation.get("current_node")))
    last = messages[-1]["id"] if messages else None
    return {
        "origin": f"chatgpt:{conversation.get('conversation_id') or conversation.get('id')}",
        "title": text_of(conversation.get("title")),
        "created": _time(conversation.get("create_time")),
        "updated": _time(conversation.get("update_time")),
        "model": text_of(conversation.get("default_model_slug")) or None,
        "head": stands_for.get(head, last) if head is not None else last,
        "messages": messages,
    }


def _message(_id: str, node: dict[str, Any]) -> dict[str, Any] | None:
    message = node.get("message")
    if not isinstance(message, dict):
        return None
    metadata = message.get("metadata") or {}
    role = text_of((message.get("author") or {}).get("role"))
    if role not in ("user", "assistant") or metadata.get("is_visually_hidden_from_conversation"):
        return None
    if message.get("recipient") not in (None, "all"):
        return None  # said to a tool, not to anybody
    content = message.get("content") or {}
    text, thinking = _content(content)
    if not text.strip() and not thinking.strip():
        return None
    return {
        "role": role,
        "text": text,
        "thinking": thinking,
        "model": text_of(metadata.get("model_slug")) or None,
        "created": _time(message.get("create_time")),
    }


def _content(content: dict[str, Any]) -> tuple[str, str]:
    """Text and thinking."""
    kind = content.get("content_type")
    if kind == "thoughts":
        thoughts = [
            "\n\n".join(
                part
                for part in (text_of(thought.get("summary")), text_of(thought.get("content")))
                if part
            )
            for thought in content.get("thoughts") or ()
        ]
        return "", "\n\n".join(thoughts)
    if kind == "code":
        return f"```{text_of(content.get('language'))}\n{text_of(content.get('text'))}\n```", ""
    if kind in ("text", "multimodal_text"):
        parts = (_part(part) for part in content.get("parts") or ())
        return "\n\n".join(part for part in parts if part), ""
    return "", ""


def _part(part: Any) -> str:
    if isinstance(part, dict):
        return text_of(part.get("text")) or f"[{text_of(part.get('content_type')) or 'attachment'}]"
    return text_of(part)


def _joined(nodes: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What an assistant said in several pieces (thoughts, then words) is one message. The second
    value: for every node the message it became part of."""
    followers: dict[str | None, int] = {}
    for node in nodes:
        followers[node["parent"]] = followers.get(node["parent"], 0) + 1
    messages: dict[str, dict[str, Any]] = {}
    stands_for: dict[str, str] = {}
    for node in nodes:
        parent = stands_for.get(node["parent"])
        above = messages.get(parent or "")
        is_more = above is not None and above["role"] == node["role"] == "assistant"
        if is_more and above is not None and followers[node["parent"]] == 1:
            above["text"] = "\n\n".join(t for t in (above["text"], node["text"]) if t)
            above["thinking"] = "\n\n".join(t for t in (above["thinking"], node["thinking"]) if t)
            above["model"] = above["model"] or node["model"]
            stands_for[node["id"]] = above["id"]
            continue
        messages[node["id"]] = {**node, "parent": parent}
        stands_for[node["id"]] = node["id"]
    return list(messages.values()), stands_for


def _time(seconds: Any) -> str | None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return None
