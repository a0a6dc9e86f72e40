"""Where the answers stand in the text that a chat template writes, and with them what carries loss.

From the template's generation marks where it has them; else an answer is the difference between the conversation with
it and the prompt before it, or what changes in the text where its words are replaced.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace

from ideal_proxy.data.messages import Message
from ideal_proxy.data.plain import Span
from ideal_proxy.data.writing import ANSWER, ASKED, QUESTION, Extras, TemplateWriter

log = logging.getLogger(__name__)

OPENINGS = ("<think>", "<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
OBSERVATION = "<|observation|>"  # where a call ends, in templates of that habit
STRANGE = "\ue000\ue001"  # no text holds these characters: they are nobody's


class AnswerFinder:
    """Writes a conversation in a template and finds the answers in it."""

    def __init__(self, writer: TemplateWriter, specials: Sequence[str]) -> None:
        self.writer = writer
        self.generation_marks = GENERATION.search(writer.jinja) is not None
        self._specials = specials  # the longest first
        self._opens_answer = True
        self._openings: dict[str, str] = {}  # what a generation prompt adds, by the settings that it was given
        self._end_marks: tuple[str, ...] = ()
        self._closing = ""  # ends an answer that another turn follows, where nothing ends the last (GLM-4's habit)

    def learn(self, name: str) -> None:
        """Find out whether the template opens the answer itself, and what ends it; `name` is the tokenizer's."""
        asked, told = ASKED, (*ASKED, Message("assistant", ANSWER))
        self._opens_answer = self.writer.text(asked, prompt=True) != self.writer.text(asked)
        if self.generation_marks:
            text, spans = self.writer.marked(told)
            marked = "".join(text[start:end] for start, end in spans)
            if ANSWER not in marked or QUESTION in marked:
                log.warning("the generation marks of %s do not hold the answer and are not used", name)
                self.generation_marks = False
            else:
                self._end_marks = self._marks_at(text, spans[-1][1])
        else:
            after = (self.writer.try_text(told) or "").partition(ANSWER)[2]
            self._end_marks = self._marks_at(after, len(after) - len(after.lstrip()))

    def learn_closing(self, text: str, spans: Sequence[Span]) -> None:
        """See of two answers what ends the first, and whether nothing ends the last and a special token follows it."""
        if len(spans) != 2:
            return
        ends = [next((t for t in self._specials if text[:end].endswith(t)), "") for _, end in spans]
        if not ends[1]:
            self._closing = next((token for token in self._specials if text.startswith(token, spans[0][1])), "")
        elif ends[0] and ends[0] not in self._end_marks:  # gpt-oss ends an earlier answer in another way than the last
            self._end_marks += (ends[0],)

    def render(self, messages: tuple[Message, ...], extras: Extras) -> tuple[str, list[Span]]:
        """Write a conversation, and say which parts of it carry loss."""
        if self.generation_marks:
            text, spans = self.writer.marked(messages, extras)
            untrained = self._spans(text, messages, extras, trained=False)
            spans = [
                (self._after_opening(text, start, extras), self._with_end_mark(text, end))
                for start, end in spans
                if text[start:end].strip()
            ]
            return text, [(a, b) for a, b in spans if not any(a < end and start < b for start, end in untrained)]
        text = self.writer.text(messages, extras)
        spans = self._spans(text, messages, extras, trained=True)
        if self._closing and spans:
            if spans[-1][1] == len(text.rstrip()):
                text = text[: spans[-1][1]] + self._closing
            marks = (self._closing, OBSERVATION)
            spans = [(a, b + sum(len(mark) for mark in marks if text.startswith(mark, b))) for a, b in spans]
        return text, spans

    def _after_opening(self, text: str, start: int, extras: Extras) -> int:
        """Leave out of an answer what its settings put into the generation prompt: the empty thought, mostly."""
        if not extras.settings:
            return start
        key = json.dumps(dict(extras.settings), sort_keys=True, default=str)
        if key not in self._openings:
            asked = self.writer.text(ASKED, extras)
            prompted = self.writer.text(ASKED, extras, prompt=True)
            usual = self.writer.text(ASKED, prompt=True)
            changed = prompted.startswith(asked) and prompted != usual
            self._openings[key] = prompted[len(asked) :] if changed else ""
        opening = self._openings[key]
        at = text.find(opening, max(start - len(opening) + 1, 0), start + len(opening)) if opening else -1
        return at + len(opening) if at >= 0 else start

    def _spans(self, text: str, messages: tuple[Message, ...], extras: Extras, *, trained: bool) -> list[Span]:
        """Find the answers, those that carry loss or the others, by differences of conversations."""
        spans: list[Span] = []
        for n, turn in enumerate(messages):
            if turn.role == "assistant" and turn.says and turn.trained == trained:
                until = text if n == len(messages) - 1 else self.writer.try_text(messages[: n + 1], extras)
                span = None if until is None else self._answer_span(text, until, messages[:n], turn, extras)
                if span is None:
                    span = self._span_by_replacing(text, messages, n, extras)
                if span is not None and (not spans or span[0] >= spans[-1][1]):
                    spans.append(span)
        return spans

    def _span_by_replacing(self, text: str, messages: tuple[Message, ...], n: int, extras: Extras) -> Span | None:
        """Find an answer that is told in another way than where it ends the conversation: put other words there."""
        turn = messages[n]
        if turn.tool_calls:
            return self._span_of_calls(text, messages[:n], turn, extras)
        if not turn.content.strip():
            return None
        changed = (*messages[:n], replace(turn, content=STRANGE), *messages[n + 1 :])
        lead, found, tail = (self.writer.try_text(changed, extras) or "").partition(STRANGE)
        start, end = len(lead), len(text) - len(tail)
        said = "".join(text[start:end].split())
        known = found and STRANGE not in tail and text.startswith(lead) and text.endswith(tail)
        if not known or not said or not "".join(turn.content.split()).endswith(said):
            return None  # left out, or told in words that are not the answer's
        blank = len(tail) - len(tail.lstrip())
        marked = self._with_end_mark(text, end + blank)
        return start, marked if marked > end + blank else end

    def _span_of_calls(self, text: str, before: tuple[Message, ...], turn: Message, extras: Extras) -> Span | None:
        """Find a turn with calls that is told in another way than where it ends the conversation: to its end mark."""
        prompt = self.writer.try_text(before, extras, prompt=True) if self._opens_answer else None
        at = text.find(turn.tool_calls[-1]["name"], len(prompt or ""))
        ends = [end + len(mark) for mark in self._end_marks if (end := text.find(mark, at)) >= 0]
        return (len(prompt), min(ends)) if prompt and text.startswith(prompt) and at >= 0 and ends else None

    def _answer_span(
        self, text: str, until: str, before: tuple[Message, ...], turn: Message, extras: Extras
    ) -> Span | None:
        """Find the answer that ends `until` in the whole text, or None where the text tells it otherwise."""
        prompt = self.writer.try_text(before, extras, prompt=True) if self._opens_answer else None
        if prompt and until.startswith(prompt):  # what the model writes after the generation prompt
            start, written = len(prompt), until[len(prompt) :]
            found = self._locate(written, until, before, turn, extras)
            tail = sum(found) if found else len(written.rstrip())
        else:  # no such prompt: the difference to the conversation before, from the answer's own first character
            earlier = self.writer.try_text(before, extras) if before else ""
            if earlier is None or not until.startswith(earlier):
                return None
            found = self._locate(until[len(earlier) :], until, before, turn, extras)
            if found is None:
                return None
            start, written, tail = len(earlier) + found[0], until[len(earlier) + found[0] :], found[1]
        end = start + (len(written.rstrip()) if turn.tool_calls else self._end_of_turn(written, tail))
        if text[:end] == until[:end]:
            return (start, end) if end > start else None
        said = start + tail  # the same answer, but ended in another way than a last answer is
        if found is None or text[:said] != until[:said]:
            return None
        mark = next((token for token in self._specials if text.startswith(token, said)), "")
        return (start, said + len(mark))

    def _locate(
        self, written: str, until: str, before: tuple[Message, ...], turn: Message, extras: Extras
    ) -> Span | None:
        """Return (position, length) of the answer in what the template wrote for it, whole or stripped."""
        first, found = _first_piece(written, turn), None
        if turn.tool_calls:
            return None if first is None else (first, len(written.rstrip()) - first)
        for form in (turn.content, turn.content.strip()):
            if not form or written.count(form) == 1:
                found = written.find(form), len(form)
            elif form in written:  # the words stand in the template's own text too: see where another answer stands
                other = self.writer.try_text((*before, replace(turn, content=ANSWER)), extras) or ""
                lead, _, tail = other.partition(ANSWER)
                at = len(lead) - (len(until) - len(written))
                clear = at >= 0 and until.startswith(lead + form) and until.endswith(form + tail)
                found = at if clear else written.find(form), len(form)
            if found is not None:
                break
        if found is None or first is None or not turn.thoughts or first >= found[0]:
            return found
        return first, found[0] + found[1] - first

    def _end_of_turn(self, written: str, tail: int) -> int:
        """Return where the turn's end marker ends: its first special token, else its last visible character."""
        places = [(at, -len(token)) for token in self._specials if (at := written.find(token, tail)) >= 0]
        if places:
            at, length = min(places)
            return self._with_end_mark(written, at - length)
        visible = len(written.rstrip())
        return visible if visible > tail else len(written)

    def _with_end_mark(self, text: str, end: int) -> int:
        """Let an answer reach over the end marks that stand there."""
        while mark := next((token for token in self._end_marks if text.startswith(token, end)), ""):
            end += len(mark)
        return end

    def _marks_at(self, text: str, at: int) -> tuple[str, ...]:
        """Return the special tokens that stand there one after another."""
        marks: list[str] = []
        while mark := next((token for token in self._specials if text.startswith(token, at)), ""):
            marks.append(mark)
            at += len(mark)
        return tuple(marks)


def _first_piece(written: str, turn: Message) -> int | None:
    """Return where the first of a turn's thoughts, words and calls stands, with the mark that opens them."""
    pieces = (turn.thoughts.strip(), turn.content.strip(), *(call["name"] for call in turn.tool_calls))
    at = next((found for piece in pieces if piece and (found := written.find(piece)) >= 0), None)
    if at is None:
        return None
    opening = max((written.rfind(mark, 0, at) for mark in OPENINGS), default=-1)
    return opening if opening >= 0 and (turn.thoughts.strip() or not turn.content.strip()) else at
