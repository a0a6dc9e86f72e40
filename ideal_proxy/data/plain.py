"""The plain template: markers, texts and nothing else, for tokenizers without a template of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ideal_proxy.data.messages import Message

Span = tuple[int, int]  # from which to which character
PAD, END = "<|pad|>", "<|end|>"
PLAIN_SPECIALS = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
PLAIN_JINJA = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class PlainWriter:
    """Writes conversations in the plain template with a tokenizer's own special tokens."""

    def __init__(self, tokenizer: Any, specials: Sequence[str]) -> None:
        marked = set(specials).issuperset(PLAIN_SPECIALS[1:])
        self.end = END if marked or not tokenizer.eos_token else str(tokenizer.eos_token)
        self.gap = "" if marked else "\n"  # markers that are plain text are kept apart from what follows by a line end
        self.bos = str(tokenizer.bos_token) if _adds_bos(tokenizer) else ""

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> tuple[str, list[Span]]:
        """Write a conversation, and say which parts of it carry loss."""
        if tools or not all(turn.plain for turn in messages):
            messages = flattened(messages, tools)
        parts, spans, at = [self.bos], [], len(self.bos)
        for turn in messages:
            head, body = f"<|{turn.role}|>{self.gap}", turn.content + self.end
            parts += [head, body, self.gap]
            start = at + len(head)
            at = start + len(body) + len(self.gap)
            if turn.role == "assistant" and turn.content.strip() and turn.trained:
                spans.append((start, start + len(body)))
        return "".join(parts), spans

    def prompt_text(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
        """Write a conversation up to where the assistant is to answer."""
        return self.render(messages, tools)[0] + "<|assistant|>" + self.gap


def flattened(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    """Write thoughts, calls and tools into the texts; a tool's answer is a user's turn."""
    turns = [
        replace(turn, role="user", content=f"<tool_response>\n{turn.content}\n</tool_response>")
        if turn.role == "tool"
        else replace(turn, content=turn.flat(), thoughts="", tool_calls=())
        for turn in messages
    ]
    if tools:
        text = "\n".join(["<tools>", *(json.dumps(tool, ensure_ascii=False) for tool in tools), "</tools>"])
        if turns and turns[0].role == "system":
            turns[0] = replace(turns[0], content=f"{turns[0].content}\n\n{text}")
        else:
            turns.insert(0, Message("system", text))
    return tuple(turns)


def _adds_bos(tokenizer: Any) -> bool:
    """Tell whether the tokenizer opens every text with its begin-of-text token."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id
