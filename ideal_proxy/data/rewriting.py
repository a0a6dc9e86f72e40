"""What is rewritten before a template is applied: turns for the plain template, and the clock of the others."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ideal_proxy.data.messages import Message

TEMPLATE_DATE = datetime.datetime(2024, 7, 26)  # templates that print today's date print this one, on every day


def flattened(messages: tuple[Message, ...], tools: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    """Write thoughts, calls and tools into the texts, for the plain template; a tool's answer is a user's turn."""
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


def dated(jinja: str) -> str:
    """Give a template that prints today's date a fixed one, by a macro that shadows the clock."""
    asked = re.findall(r"""strftime_now\(\s*(['"])(.*?)\1""", jinja)
    if not asked:
        return jinja
    dates = {form: TEMPLATE_DATE.strftime(form) for _, form in asked}
    return f"{{%- macro strftime_now(form) -%}}{{{{ {json.dumps(dates)}[form] }}}}{{%- endmacro %}}{jinja}"
