"""Chat templates: messages to token ids, and the mask that says which tokens carry loss.

This is the only place that masks. Loss lies on what the assistant says and on the end-of-turn token; `answers` finds
where that is in the text. The whole text is tokenised once, and answers are found in it by character position, because
tokens of a prefix need not be a prefix of the tokens. Every template is tried on known conversations first and refused
where no mask is found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from ideal_proxy.data.answers import AnswerFinder
from ideal_proxy.data.messages import Message, Row, Said, messages_of
from ideal_proxy.data.plain import PLAIN_JINJA, PlainWriter, Span
from ideal_proxy.data.writing import (
    ANSWER,
    ANSWER_2,
    QUESTION,
    QUESTION_2,
    SYSTEM,
    Extras,
    NoPlaceError,
    NotAlternatingError,
    RefusedRowError,
    TemplateWriter,
    Tools,
    broken_alternation,
    merged_neighbours,
)
from ideal_proxy.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")

# What becomes of a row, as it is told after their number: "12 rows: …".
MERGED = "neighbouring turns of one role are merged, as the chat template refuses them"
PARTLY = "partly supervised, as the chat template does not tell all of their answers"
FORGOTTEN = "the chat template leaves thoughts out of answers (mostly earlier ones): trained without them"
NO_PLACE = "{name}, for which the chat template has no place: trained without them"
UNREAD = "chat_template_kwargs that the chat template does not read ({names})"
CONTRARY = "thoughts, although enable_thinking is false: trained with them"
IN_CONTENT = re.compile(r"<think>(.*?)</think>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as a template writes it."""

    text: str  # the text
    spans: list[Span]  # parts of it that carry loss, as (start, end) in characters
    told: tuple[str, ...] = ()  # what became of the row that its owner should know, each to be read after "N rows:"


class ChatTemplate:
    """Turns messages into token ids and the mask of supervised tokens, with one tokenizer."""

    def __init__(self, tokenizer: Any, *, plain: bool) -> None:
        self.tokenizer = tokenizer
        self.plain = plain
        self.rewrites_earlier = False
        special = {*tokenizer.all_special_tokens}
        special |= {str(token) for token in tokenizer.added_tokens_decoder.values()}
        specials = sorted((token for token in special if token.strip()), key=len, reverse=True)
        self._plain = PlainWriter(tokenizer, specials)
        self._answers = None if plain else AnswerFinder(TemplateWriter(tokenizer), specials)
        self.identity = self._identity()

    @property
    def generation_marks(self) -> bool:
        """Whether the template says itself what the assistant writes, by `{% generation %}`."""
        return self._answers is not None and self._answers.generation_marks

    @property
    def merges_system(self) -> bool:
        """Whether the template knows no system role, so that text opens the first user message."""
        return self._answers is not None and self._answers.writer.merges_system

    def render(
        self, said: Sequence[Said], tools: Tools = (), settings: Mapping[str, Any] | None = None
    ) -> tuple[str, list[Span]]:
        """Write a conversation as text."""
        written = self._rendered(messages_of(said), Extras(tools, settings or {}))
        return written.text, written.spans

    def render_row(self, row: Row) -> Rendered:
        """Write a row as text, and say what becomes of it; raises RefusedRowError where the template refuses it."""
        return self._rendered(row.messages, Extras(row.tools, row.settings))

    def _rendered(self, messages: tuple[Message, ...], extras: Extras) -> Rendered:
        last = max((n for n, turn in enumerate(messages) if turn.role == "assistant" and turn.says), default=-1)
        messages = messages[: last + 1] or messages
        unread = sorted(name for name in extras.settings if not re.search(rf"\b{re.escape(name)}\b", self._jinja))
        told = [UNREAD.format(names=", ".join(unread))] if unread else []
        if self._answers is None:
            return Rendered(*self._plain.render(messages, extras.tools), tuple(told))
        writer, finder = self._answers.writer, self._answers
        (text, spans), written = _alternating(
            messages, lambda turns: finder.render(writer.placed(turns, extras), extras)
        )
        told += [NO_PLACE.format(name=name) for name in writer.lacks(messages, extras)]
        told += [CONTRARY] if extras.settings.get("enable_thinking") is False and any(self._thoughts(messages)) else []
        told += [MERGED] if written is not messages else []
        told += [PARTLY] if len(spans) < sum(_carries_loss(turn) for turn in written) else []
        told += [FORGOTTEN] if not _in_order(text, self._thoughts(messages)) else []
        return Rendered(text, spans, tuple(told))

    def _thoughts(self, messages: Sequence[Message]) -> list[str]:
        """List the thoughts that the template should write, beside the answers and in them."""
        kept = self._answers is not None and self._answers.writer.thoughts_key is not None
        answers = [turn for turn in messages if _carries_loss(turn)]
        thoughts = [turn.thoughts for turn in answers if kept]
        thoughts += [part for turn in answers if "<think>" in turn.content for part in IN_CONTENT.findall(turn.content)]
        return [thought.strip() for thought in thoughts]

    def encode(
        self, said: Sequence[Said], tools: Tools = (), settings: Mapping[str, Any] | None = None
    ) -> tuple[list[int], list[bool]]:
        """Tokenise one conversation; as for `render`."""
        return self.tokens_of([self.render(said, tools, settings)])[0]

    def tokens_of(self, rendered: Sequence[tuple[str, list[Span]]]) -> list[tuple[list[int], list[bool]]]:
        """Tokenise what `render` wrote; as for `encode`."""
        if not rendered:
            return []
        encoded = self._encoded([text for text, _ in rendered], places=False)
        made = []
        for n, (text, spans) in enumerate(rendered):
            ids = encoded["input_ids"][n]
            mask = _between(encoded[n], text, spans)
            made.append((ids, _supervised(encoded[n].offsets, spans) if mask is None else mask))
        return made

    def tokens_with_places(
        self, rendered: Sequence[tuple[str, list[Span]]]
    ) -> list[tuple[list[int], list[bool], list[Span]]]:
        """Tokenise what `render` wrote, and say from which to which character every token reaches."""
        if not rendered:
            return []
        encoded = self._encoded([text for text, _ in rendered], places=True)
        return [
            (list(ids), _supervised(places, spans), list(places))
            for ids, places, (_, spans) in zip(encoded["input_ids"], encoded["offset_mapping"], rendered, strict=True)
        ]

    def _encoded(self, texts: list[str], *, places: bool) -> Any:
        return self.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=places, return_attention_mask=False,
            return_token_type_ids=False, padding=False, truncation=False, verbose=False,
        )  # fmt: skip

    def prompt_text(self, said: Sequence[Said], tools: Tools = (), settings: Mapping[str, Any] | None = None) -> str:
        """Write the conversation up to where the assistant is to answer."""
        messages, extras = messages_of(said), Extras(tools, settings or {})
        if self._answers is None:
            return self._plain.prompt_text(messages, tools)
        writer = self._answers.writer
        return _alternating(messages, lambda turns: writer.text(writer.placed(turns, extras), extras, prompt=True))[0]

    def to_dict(self) -> dict[str, Any]:
        """Describe the template for a mixture file."""
        return {"kind": "plain" if self.plain else "tokenizer", "identity": self.identity, "template": self._jinja}

    @property
    def _jinja(self) -> str:
        return PLAIN_JINJA if self._answers is None else self._answers.writer.jinja

    def _identity(self) -> str:
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state["truncation"] = state["padding"] = None  # settings of the last call, not of the tokenizer
        written = [self._plain.bos, self._plain.end, self._plain.gap] if self.plain else []
        parts = ["template/1" if self.plain else "template/3", json.dumps(state, sort_keys=True), *written, self._jinja]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def self_test(self) -> None:
        """Try the template on conversations whose masks are known; refuse it where a mask is wrong."""
        name = tokenizer_name(self.tokenizer)
        if self._answers is not None:
            self._answers.learn(name)
            self._answers.writer.find_places()
        one: list[Said] = [("user", QUESTION), ("assistant", ANSWER)]
        two: list[Said] = [*one, ("user", QUESTION_2), ("assistant", ANSWER_2)]
        _check(self, one, [ANSWER], [QUESTION], name)
        with_system: list[Said] = [("system", SYSTEM), *one]
        _check(self, with_system, [ANSWER], [QUESTION, SYSTEM], name)
        try:
            text, spans = self.render(two)
        except UserError as error:
            log.warning("the chat template of %s takes one question and one answer only (%s)", name, error)
            return
        if self._answers is not None:
            self._answers.learn_closing(text, spans)
        self.rewrites_earlier = len(spans) < 2
        _check(self, two, [ANSWER_2] if len(spans) < 2 else [ANSWER, ANSWER_2], [QUESTION, QUESTION_2], name)
        if self.rewrites_earlier:
            log.warning("the chat template of %s rewrites earlier answers; only the last carries loss", name)


def make_template(tokenizer: Any, plain: bool | None = None) -> ChatTemplate:
    """Choose the template of a fast tokenizer (`plain` None: its own where it has one) and try it on conversations."""
    name = tokenizer_name(tokenizer)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"the tokenizer {name} gives no character positions, so answers cannot be masked; "
            "use its fast version (a tokenizer.json)"
        )
    own = tokenizer.chat_template
    if plain is False and not own:
        raise UserError(f"the tokenizer {name} has no chat template; use the plain template")
    template = ChatTemplate(tokenizer, plain=(not own or own == PLAIN_JINJA) if plain is None else plain)
    template.self_test()
    return template


def tokenizer_name(tokenizer: Any) -> str:
    """Name a tokenizer for messages."""
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def _carries_loss(turn: Message) -> bool:
    return turn.role == "assistant" and turn.says and turn.trained


def _in_order(text: str, parts: Sequence[str]) -> bool:
    """Tell whether all parts stand in a text, one after another."""
    at = 0
    for part in parts:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _alternating(
    messages: tuple[Message, ...], write: Callable[[tuple[Message, ...]], T]
) -> tuple[T, tuple[Message, ...]]:
    """Write turns as they are, or merged where the template refuses them because they do not alternate."""
    try:
        return write(messages), messages
    except NoPlaceError:
        raise
    except RefusedRowError as error:
        broken = broken_alternation(messages)
        if not broken:
            raise
        merged = merged_neighbours(messages)
        if merged != messages:
            with suppress(RefusedRowError):
                return write(merged), merged
            broken = broken_alternation(merged) or broken
        raise NotAlternatingError(f"turns do not alternate ({broken}): {error}") from error


def _check(template: ChatTemplate, messages: Sequence[Said], answers: list[str], prompts: list[str], name: str) -> None:
    """Compare the decoded supervised tokens of one conversation with its answers."""
    ids, supervised = template.encode(messages)
    said = template.tokenizer.decode([i for i, on in zip(ids, supervised, strict=True) if on])
    tight = "".join(said.split())
    if any("".join(a.split()) not in tight for a in answers) or any("".join(p.split()) in tight for p in prompts):
        raise UserError(
            f"the chat template of {name} cannot be masked: of a test conversation it would train on {said!r} "
            f"where the answer is {answers[-1]!r}; use the plain template or another tokenizer"
        )


def _between(encoding: Any, text: str, spans: Sequence[Span]) -> list[bool] | None:
    """Mark the tokens of spans by their first and last characters alone; None where those do not tell."""
    # A letter of ASCII is one byte, so one token holds it. Characters of more bytes may have tokens of their bytes.
    marks = [False] * len(encoding)
    for start, end in spans:
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1) if end > start else None
        if first is None or last is None or not (text[start] + text[end - 1]).isascii():
            return None
        marks[first : last + 1] = [True] * (last + 1 - first)
    return marks


def _supervised(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Mark the tokens that hold a character of a span; both are in order."""
    # Byte-level tokenizers may cut white space from a token's positions, so a token reaches back to where the one
    # before it ended; the bytes of one character share its position.
    marks, before, n = [], 0, 0
    for start, end in offsets:
        start = min(start, before)
        while n < len(spans) and spans[n][1] <= start:
            n += 1
        marks.append(n < len(spans) and end > spans[n][0])
        before = max(before, end)
    return marks
