"""A tokenizer's own chat template, applied: what it is given, what it has a place for, and what it refuses."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import resource
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ideal_proxy.data.messages import Message
from ideal_proxy.data.plain import Span
from ideal_proxy.errors import UserError

Tools = Sequence[dict[str, Any]]

THOUGHTS, TOOLS, CALLS = "thoughts", "tools", "tool calls"
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
TEMPLATE_SECONDS, TEMPLATE_BYTES = 2.0, 1 << 31  # that one conversation may take
STATM = Path("/proc/self/statm")
TEMPLATE_DATE = datetime.datetime(2024, 7, 26)  # templates that print today's date print this one, on every day

# A conversation that templates are tried on.
SYSTEM = "Count with care."
QUESTION, ANSWER = "How many zebras drink?", "Seven zebras drink."
QUESTION_2, ANSWER_2 = "And how many quokkas?", "Only two quokkas do."
TOOL, THOUGHT = "count_zebras", "First I look at the herd."
ASKED = (Message("user", QUESTION),)
TRIAL_CALL: dict[str, Any] = {"name": TOOL, "arguments": {"place": "river"}, "id": "abcdefgh1"}
TRIAL_TOOLS: Tools = ({"type": "function", "function": {
    "name": TOOL, "description": "Count.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "Where."}}},
}},)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Extras:
    """What a template is given besides the turns: tool schemas, and settings such as `enable_thinking`."""

    tools: Tools = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


NO_EXTRAS = Extras()


class RefusedRowError(UserError):
    """A row that the chat template refuses; `reason` is what it is counted under."""

    reason = "refused by the chat template"


class NoPlaceError(RefusedRowError):
    """A row with calls, and a template that has no place for them."""

    reason = "tool calls without a place in the chat template"


class NotAlternatingError(RefusedRowError):
    """A row that the template refuses because its turns do not alternate."""

    reason = "refused by the chat template, as turns do not alternate"


class TemplateWriter:
    """Applies a tokenizer's own template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.jinja = dated(str(tokenizer.get_chat_template()))
        self.merges_system = False
        self.thoughts_key: str | None = None
        self.takes_tools = self.takes_calls = False

    def find_places(self) -> None:
        """Find out what the template has a place for."""
        told = self.try_text((Message("system", SYSTEM), *ASKED, Message("assistant", ANSWER)))
        self.merges_system = told is None or SYSTEM not in told
        self.thoughts_key = next((key for key in THOUGHT_KEYS if self._shows_thoughts(key)), None)
        if "tool" in self.jinja:
            self.takes_tools = TOOL in (self.try_text(ASKED, Extras(TRIAL_TOOLS), prompt=True) or "")
            called = (*ASKED, Message("assistant", tool_calls=(TRIAL_CALL,)))
            answered = (*called, Message("tool", QUESTION_2, name=TOOL, call_id=str(TRIAL_CALL["id"])))
            shown = self.try_text((*answered, Message("assistant", ANSWER))) or ""
            self.takes_calls = TOOL in (self.try_text(called) or "") and QUESTION_2 in shown

    def _shows_thoughts(self, key: str) -> bool:
        if key not in self.jinja:
            return False
        self.thoughts_key = key
        return THOUGHT in (self.try_text((*ASKED, Message("assistant", ANSWER, THOUGHT))) or "")

    def lacks(self, messages: Sequence[Message], extras: Extras) -> list[str]:
        """Name what a row holds and the template has no place for: thoughts, tools, tool calls, turns of a tool."""
        found = []
        if self.thoughts_key is None and any(turn.thoughts for turn in messages):
            found.append(THOUGHTS)
        if extras.tools and not self.takes_tools:
            found.append(TOOLS)
        if not self.takes_calls and any(turn.tool_calls or turn.role == "tool" for turn in messages):
            found.append(CALLS)
        return found

    def placed(self, messages: tuple[Message, ...], extras: Extras) -> tuple[Message, ...]:
        """Refuse calls without a place, leave out thoughts without one, and put the system text where it belongs."""
        lacking = self.lacks(messages, extras)
        if CALLS in lacking:
            raise NoPlaceError(
                "the chat template has no place for tool calls and answers of tools; "
                "use a model whose template has, or the plain template"
            )
        if THOUGHTS in lacking:
            messages = tuple(replace(turn, thoughts="") for turn in messages)
        if not self.merges_system or not any(turn.role == "system" for turn in messages):
            return messages
        text = "\n\n".join(turn.content for turn in messages if turn.role == "system")
        rest = tuple(turn for turn in messages if turn.role != "system")
        if rest and rest[0].role == "user":
            return (replace(rest[0], content=f"{text}\n\n{rest[0].content}"), *rest[1:])
        return (Message("user", text), *rest)

    def try_text(
        self, messages: tuple[Message, ...], extras: Extras = NO_EXTRAS, *, prompt: bool = False
    ) -> str | None:
        """Write a conversation; None where the template refuses it."""
        try:
            return self.text(messages, extras, prompt=prompt)
        except UserError:
            return None

    def text(self, messages: tuple[Message, ...], extras: Extras = NO_EXTRAS, *, prompt: bool = False) -> str:
        """Write a conversation; with `prompt` up to where the assistant is to answer."""
        return self._write(messages, extras, prompt=prompt)[0]

    def marked(self, messages: tuple[Message, ...], extras: Extras = NO_EXTRAS) -> tuple[str, list[Span]]:
        """Write a conversation, and say where the template's generation marks stand."""
        return self._write(messages, extras, marks=True)

    def _write(
        self, messages: tuple[Message, ...], extras: Extras, *, prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[Span]]:
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template  # its annotation says text; it returns two lists

        chat = [turn.as_chat(self.thoughts_key or THOUGHT_KEYS[0]) for turn in messages]
        shown = list(extras.tools) if self.takes_tools or extras.tools is TRIAL_TOOLS else []
        settings = {"date_string": TEMPLATE_DATE.strftime("%d %b %Y"), **extras.settings}
        try:
            with bounded():
                return self._rendered(render, chat, shown, settings, prompt=prompt, marks=marks)
        except Exception as error:  # Jinja and the template's own raise_exception raise what they like
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if isinstance(error, MemoryError):
                reason = f"it asks for more than {TEMPLATE_BYTES >> 30} GiB"
            roles = ", ".join(turn.role for turn in messages) or "none"
            raise RefusedRowError(
                f"the chat template refuses a conversation with the roles {roles} ({reason}); "
                "change the row or use the plain template"
            ) from error

    def _rendered(
        self, render: Any, chat: list[dict[str, Any]], shown: list[dict[str, Any]], settings: Mapping[str, Any], *,
        prompt: bool, marks: bool,
    ) -> tuple[str, list[Span]]:  # fmt: skip
        if marks:
            texts, found = render(
                [chat], tools=shown or None, chat_template=self.jinja, return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map, **settings,
            )  # fmt: skip
            return str(texts[0]), sorted((int(start), int(end)) for start, end in found[0])
        text = self.tokenizer.apply_chat_template(
            chat, tools=shown or None, tokenize=False, add_generation_prompt=prompt, chat_template=self.jinja,
            **settings,
        )  # fmt: skip
        return str(text), []


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Give a template's code two seconds of this process and 2 GiB: Jinja's sandbox bounds neither."""
    # Where they are not to be had (no /proc, another thread than the main one), the template runs unbounded.
    before = resource.getrlimit(resource.RLIMIT_AS) if STATM.exists() else None
    if before is not None:
        held = int(STATM.read_text().split()[0]) * resource.getpagesize()
        most = held + TEMPLATE_BYTES
        if before[0] == resource.RLIM_INFINITY or most < before[0]:
            resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    timed = threading.current_thread() is threading.main_thread()
    if timed:
        old = signal.signal(signal.SIGVTALRM, _too_long)
        signal.setitimer(signal.ITIMER_VIRTUAL, TEMPLATE_SECONDS)
    try:
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, old)
        if before is not None:
            resource.setrlimit(resource.RLIMIT_AS, before)


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"it takes more than {TEMPLATE_SECONDS:g} s")


def dated(jinja: str) -> str:
    """Give a template that prints today's date a fixed one, by a macro that shadows the clock."""
    asked = re.findall(r"""strftime_now\(\s*(['"])(.*?)\1""", jinja)
    if not asked:
        return jinja
    dates = {form: TEMPLATE_DATE.strftime(form) for _, form in asked}
    return f"{{%- macro strftime_now(form) -%}}{{{{ {json.dumps(dates)}[form] }}}}{{%- endmacro %}}{jinja}"


def broken_alternation(messages: Sequence[Message]) -> str:
    """Say how the turns of user and assistant do not alternate; empty where they do."""
    said = [turn.role for turn in messages if turn.role != "system"]
    if said[:1] == ["assistant"]:
        return "the assistant speaks first"
    twice = next((a for a, b in pairwise(said) if a == b and a != "tool"), "")
    return f"two {twice} turns in a row" if twice else ""


def merged_neighbours(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Join neighbouring turns of one role by a blank line, as ms-swift joins them, where nothing is lost by it."""
    turns: list[Message] = []
    for turn in messages:
        last = turns[-1] if turns else None
        # A call is followed by its answer, and a turn that carries loss does not swallow one that carries none.
        joined = last is not None and last.role == turn.role != "tool" and last.trained == turn.trained
        if last is None or not joined or last.tool_calls:
            turns.append(turn)
            continue
        turns[-1] = replace(
            turn,
            content="\n\n".join(part for part in (last.content, turn.content) if part.strip()),
            thoughts="\n\n".join(part for part in (last.thoughts, turn.thoughts) if part.strip()),
        )
    return tuple(turns)
