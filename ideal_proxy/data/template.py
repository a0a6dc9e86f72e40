"""Chat templates: messages to token ids, and the mask that says which tokens carry loss.

This is the only place that masks. Loss lies on what the assistant says and on the end-of-turn token. Where that is in
the text is found from the template: from its generation marks where it has them; else an answer is the difference
between the conversation with it and the prompt before it, or what changes in the text where its words are replaced.
The whole text is tokenised once, and answers are found in it by character position, because tokens of a prefix need
not be a prefix of the tokens. Every template is tried on known conversations first and refused where no mask is found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ideal_proxy.data.messages import Message, Said, messages_of
from ideal_proxy.data.rewriting import TEMPLATE_DATE, dated, flattened
from ideal_proxy.errors import UserError

log = logging.getLogger(__name__)

Span = tuple[int, int]
Tools = Sequence[dict[str, Any]]

PAD, END = "<|pad|>", "<|end|>"
PLAIN_SPECIALS = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
PLAIN_JINJA = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


THOUGHTS, TOOLS, CALLS = "thoughts", "tools", "tool calls"
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
OPENINGS = ("<think>", "<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
TOOL, THOUGHT = "count_zebras", "First I look at the herd."
TRIAL_CALL: dict[str, Any] = {"name": TOOL, "arguments": {"place": "river"}, "id": "abcdefgh1"}
TRIAL_TOOLS: Tools = ({"type": "function", "function": {
    "name": TOOL, "description": "Count.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "Where."}}},
}},)  # fmt: skip


GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
STRANGE = "\ue000\ue001"  # no text holds these characters: they are nobody's


class RefusedRowError(UserError):
    """A row that the chat template refuses; `reason` is what it is counted under."""

    reason = "refused by the chat template"


class NoPlaceError(RefusedRowError):
    """A row with calls, and a template that has no place for them."""

    reason = "tool calls without a place in the chat template"


class ChatTemplate:
    """Turns messages into token ids and the mask of supervised tokens, with one tokenizer.

    Args:
        tokenizer: a fast transformers tokenizer.
        plain: True for the plain template, False for the tokenizer's own.

    Attributes:
        plain: whether the plain template is used.
        identity: SHA-256 of the tokenizer, the template and this module's rules.
        merges_system: the template knows no system role, so that text opens the first user message.
        rewrites_earlier: the template changes earlier answers; those are then not supervised.
        generation_marks: the template says itself what the assistant writes, by `{% generation %}`.
        thoughts_key: the key of a turn under which the template looks for thoughts; None where it has no place.
        takes_tools: it shows the schemas of tools.
        takes_calls: it shows the assistant's calls and what the tools answer.
    """

    def __init__(self, tokenizer: Any, *, plain: bool) -> None:
        self.tokenizer = tokenizer
        self.plain = plain
        self.merges_system = False
        self.rewrites_earlier = False
        self.thoughts_key: str | None = None
        self.takes_tools = self.takes_calls = plain
        self._opens_answer = True
        self._end_marks: tuple[str, ...] = ()
        self._closing = ""  # ends an answer that another turn follows, where nothing ends the last (GLM-4's habit)
        self._jinja = "" if plain else dated(str(tokenizer.get_chat_template()))
        self.generation_marks = GENERATION.search(self._jinja) is not None
        special = {*tokenizer.all_special_tokens}
        special |= {str(token) for token in tokenizer.added_tokens_decoder.values()}
        self._specials = sorted((token for token in special if token.strip()), key=len, reverse=True)
        marked = special.issuperset(PLAIN_SPECIALS[1:])
        self._plain_end = END if marked or not tokenizer.eos_token else str(tokenizer.eos_token)
        self._gap = "" if marked else "\n"  # markers that are plain text are kept apart from what follows by a line end
        self._bos = str(tokenizer.bos_token) if plain and _adds_bos(tokenizer) else ""
        self.identity = self._identity()

    def render(self, said: Sequence[Said], tools: Tools = ()) -> tuple[str, list[Span]]:
        """Write a conversation as text.

        Args:
            said: turns, or (role, content) pairs; what follows the last answer is left out.
            tools: schemas of the functions that the assistant may call.

        Returns:
            tuple: the text, and the supervised parts of it as (start, end) in characters.

        Raises:
            UserError: the template cannot write these messages.
        """
        messages = self._prepared(messages_of(said), tools)
        return self._render_plain(messages) if self.plain else self._render_own(messages, tools)

    def encode(self, said: Sequence[Said], tools: Tools = ()) -> tuple[list[int], list[bool]]:
        """Tokenise one conversation; as for `render`.

        Returns:
            tuple: token ids (T,) and for each whether it carries loss (T,).
        """
        return self.tokens_of([self.render(said, tools)])[0]

    def encode_batch(self, conversations: Iterable[Sequence[Said]]) -> list[tuple[list[int], list[bool]]]:
        """Tokenise many conversations without tools; as for `encode`."""
        return self.tokens_of([self.render(said) for said in conversations])

    def tokens_of(self, rendered: Sequence[tuple[str, list[Span]]]) -> list[tuple[list[int], list[bool]]]:
        """Tokenise what `render` wrote; as for `encode`."""
        return [(ids, mask) for ids, mask, _ in self.tokens_with_places(rendered)]

    def tokens_with_places(
        self, rendered: Sequence[tuple[str, list[Span]]]
    ) -> list[tuple[list[int], list[bool], list[Span]]]:
        """Tokenise what `render` wrote, and say from which to which character every token reaches."""
        if not rendered:
            return []
        encoded = self.tokenizer(
            [text for text, _ in rendered],
            add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False,
            return_token_type_ids=False, padding=False, truncation=False, verbose=False,
        )  # fmt: skip
        return [
            (list(ids), _supervised(places, spans), list(places))
            for ids, places, (_, spans) in zip(encoded["input_ids"], encoded["offset_mapping"], rendered, strict=True)
        ]

    def prompt_text(self, said: Sequence[Said], tools: Tools = ()) -> str:
        """Write the conversation up to where the assistant is to answer.

        Args:
            said: turns, or (role, content) pairs, that end with the user's.
            tools: schemas of the functions that the assistant may call.

        Returns:
            str: text to generate from.
        """
        messages = self._with_system(self._placed(messages_of(said), tools))
        if self.plain:
            return self._render_plain(messages)[0] + "<|assistant|>" + self._gap
        return self._apply(messages, tools, prompt=True)

    def lacks(self, messages: Sequence[Message], tools: Tools = ()) -> list[str]:
        """Name what a row holds and this template has no place for: thoughts, tools, tool calls, turns of a tool."""
        if self.plain:
            return []
        found = []
        if self.thoughts_key is None and any(turn.thoughts for turn in messages):
            found.append(THOUGHTS)
        if tools and not self.takes_tools:
            found.append(TOOLS)
        if not self.takes_calls and any(turn.tool_calls or turn.role == "tool" for turn in messages):
            found.append(CALLS)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Describe the template for a mixture file.

        Returns:
            dict: JSON-ready: kind, identity and the template's text.
        """
        text = PLAIN_JINJA if self.plain else self._jinja
        return {"kind": "plain" if self.plain else "tokenizer", "identity": self.identity, "template": text}

    def probe(self) -> None:
        """Find out whether the template opens the answer itself, and what it has a place for."""
        if self.plain:
            return
        asked = (Message("user", QUESTION),)
        self._opens_answer = self._apply(asked, prompt=True) != self._apply(asked)
        if self.generation_marks:
            self._try_marks((*asked, Message("assistant", ANSWER)))
        else:
            text = self._try_apply((*asked, Message("assistant", ANSWER))) or ""
            after = text.partition(ANSWER)[2]
            self._learn_end_marks(after, len(after) - len(after.lstrip()))
        told = self._try_apply((Message("system", SYSTEM), *asked, Message("assistant", ANSWER)))
        self.merges_system = told is None or SYSTEM not in told
        self.thoughts_key = next((key for key in THOUGHT_KEYS if self._shows_thoughts(asked, key)), None)
        if "tool" in self._jinja:
            self.takes_tools = TOOL in (self._try_apply(asked, TRIAL_TOOLS, prompt=True) or "")
            called = (*asked, Message("assistant", tool_calls=(TRIAL_CALL,)))
            answered = (*called, Message("tool", QUESTION_2, name=TOOL, call_id=str(TRIAL_CALL["id"])))
            shown = self._try_apply((*answered, Message("assistant", ANSWER))) or ""
            self.takes_calls = TOOL in (self._try_apply(called) or "") and QUESTION_2 in shown

    def _try_marks(self, messages: tuple[Message, ...]) -> None:
        """See whether the generation marks hold the answer, and learn the end mark that follows it."""
        text, spans = self._write(messages, marks=True)
        marked = "".join(text[start:end] for start, end in spans)
        if ANSWER not in marked or QUESTION in marked:
            log.warning("the generation marks of %s do not hold the answer and are not used", _name(self.tokenizer))
            self.generation_marks = False
            return
        self._learn_end_marks(text, spans[-1][1])

    def _learn_end_marks(self, text: str, at: int) -> None:
        """Take the special tokens from there on as the end marks of an answer."""
        while mark := next((token for token in self._specials if text.startswith(token, at)), ""):
            self._end_marks += (mark,)
            at += len(mark)

    def _learn_closing(self, text: str, spans: Sequence[Span]) -> None:
        """See of two answers whether nothing ends the last and a special token follows the other."""
        if len(spans) == 2 and not self.plain and not any(text[: spans[1][1]].endswith(t) for t in self._specials):
            start = spans[0][1]
            self._closing = next((token for token in self._specials if text.startswith(token, start)), "")

    def _shows_thoughts(self, asked: tuple[Message, ...], key: str) -> bool:
        if key not in self._jinja:
            return False
        self.thoughts_key = key
        return THOUGHT in (self._try_apply((*asked, Message("assistant", ANSWER, THOUGHT))) or "")

    def _prepared(self, messages: tuple[Message, ...], tools: Tools) -> tuple[Message, ...]:
        """Cut what follows the last answer and place the system text."""
        said = (n for n, turn in enumerate(messages) if turn.role == "assistant" and turn.says)
        last = max(said, default=len(messages) - 1)
        return self._with_system(self._placed(messages[: last + 1], tools))

    def _placed(self, messages: tuple[Message, ...], tools: Tools) -> tuple[Message, ...]:
        """Refuse what the template has no place for and cannot do without; leave out thoughts that it cannot show."""
        if self.plain:
            return flattened(messages, tools) if tools or not all(turn.plain for turn in messages) else messages
        lacking = self.lacks(messages, tools)
        if CALLS in lacking:
            raise NoPlaceError(
                "the chat template has no place for tool calls and answers of tools; "
                "use a model whose template has, or the plain template"
            )
        if THOUGHTS in lacking:
            messages = tuple(replace(turn, thoughts="") for turn in messages)
        return messages

    def _with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not self.merges_system or not any(turn.role == "system" for turn in messages):
            return messages
        text = "\n\n".join(turn.content for turn in messages if turn.role == "system")
        rest = tuple(turn for turn in messages if turn.role != "system")
        if rest and rest[0].role == "user":
            return (Message("user", f"{text}\n\n{rest[0].content}"), *rest[1:])
        return (Message("user", text), *rest)

    def _render_plain(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        parts, spans, at = [self._bos], [], len(self._bos)
        for turn in messages:
            head, body = f"<|{turn.role}|>{self._gap}", turn.content + self._plain_end
            parts += [head, body, self._gap]
            start = at + len(head)
            at = start + len(body) + len(self._gap)
            if turn.role == "assistant" and turn.content.strip() and turn.trained:
                spans.append((start, start + len(body)))
        return "".join(parts), spans

    def _render_own(self, messages: tuple[Message, ...], tools: Tools) -> tuple[str, list[Span]]:
        if self.generation_marks:
            text, spans = self._write(messages, tools, marks=True)
            untrained = self._spans(text, messages, tools, trained=False)
            spans = [(start, self._with_end_mark(text, end)) for start, end in spans if text[start:end].strip()]
            return text, [(a, b) for a, b in spans if not any(a < end and start < b for start, end in untrained)]
        text = self._apply(messages, tools)
        spans = self._spans(text, messages, tools, trained=True)
        if self._closing and spans:
            if spans[-1][1] == len(text.rstrip()):
                text = text[: spans[-1][1]] + self._closing
            spans = [(a, b + len(self._closing) * text.startswith(self._closing, b)) for a, b in spans]
        return text, spans

    def _spans(self, text: str, messages: tuple[Message, ...], tools: Tools, *, trained: bool) -> list[Span]:
        """Find the answers, those that carry loss or the others, by differences of conversations."""
        spans: list[Span] = []
        for n, turn in enumerate(messages):
            if turn.role == "assistant" and turn.says and turn.trained == trained:
                until = text if n == len(messages) - 1 else self._try_apply(messages[: n + 1], tools)
                span = None if until is None else self._answer_span(text, until, messages[:n], turn, tools)
                if span is None:
                    span = self._span_by_replacing(text, messages, n, tools)
                if span is not None and (not spans or span[0] >= spans[-1][1]):
                    spans.append(span)
        return spans

    def _span_by_replacing(self, text: str, messages: tuple[Message, ...], n: int, tools: Tools) -> Span | None:
        """Find an answer that is told in another way than where it ends the conversation: put other words there."""
        turn = messages[n]
        if turn.tool_calls:
            return self._span_of_calls(text, messages[:n], turn, tools)
        if not turn.content.strip():
            return None
        other = self._try_apply((*messages[:n], replace(turn, content=STRANGE), *messages[n + 1 :]), tools) or ""
        lead, found, tail = other.partition(STRANGE)
        start, end = len(lead), len(text) - len(tail)
        said = "".join(text[start:end].split())
        known = found and STRANGE not in tail and text.startswith(lead) and text.endswith(tail)
        if not known or not said or not "".join(turn.content.split()).endswith(said):
            return None  # left out, or told in words that are not the answer's
        blank = len(tail) - len(tail.lstrip())
        marked = self._with_end_mark(text, end + blank)
        return start, marked if marked > end + blank else end

    def _span_of_calls(self, text: str, before: tuple[Message, ...], turn: Message, tools: Tools) -> Span | None:
        """Find a turn with calls that is told in another way than where it ends the conversation: to its end mark."""
        prompt = self._try_apply(before, tools, prompt=True) if self._opens_answer else None
        at = text.find(turn.tool_calls[-1]["name"], len(prompt or ""))
        ends = [end + len(mark) for mark in self._end_marks if (end := text.find(mark, at)) >= 0]
        return (len(prompt), min(ends)) if prompt and text.startswith(prompt) and at >= 0 and ends else None

    def _with_end_mark(self, text: str, end: int) -> int:
        """Let an answer reach over the end marks that stand there."""
        while mark := next((token for token in self._end_marks if text.startswith(token, end)), ""):
            end += len(mark)
        return end

    def misses(self, said: Sequence[Said], spans: Sequence[Span]) -> bool:
        """Tell whether an answer that should carry loss has none, because the template does not tell it."""
        wanted = sum(turn.role == "assistant" and turn.says and turn.trained for turn in messages_of(said))
        return len(spans) < wanted

    def _answer_span(
        self, text: str, until: str, before: tuple[Message, ...], turn: Message, tools: Tools
    ) -> Span | None:
        """Find the answer that ends `until` in the whole text, or None where the text tells it otherwise."""
        prompt = self._try_apply(before, tools, prompt=True) if self._opens_answer else None
        if prompt and until.startswith(prompt):  # what the model writes after the generation prompt
            start, written = len(prompt), until[len(prompt) :]
            found = self._locate(written, until, before, turn, tools)
            tail = sum(found) if found else len(written.rstrip())
        else:  # no such prompt: the difference to the conversation before, from the answer's own first character
            earlier = self._try_apply(before, tools) if before else ""
            if earlier is None or not until.startswith(earlier):
                return None
            found = self._locate(until[len(earlier) :], until, before, turn, tools)
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
        self, written: str, until: str, before: tuple[Message, ...], turn: Message, tools: Tools
    ) -> Span | None:
        """Return (position, length) of the answer in what the template wrote for it, whole or stripped."""
        first, found = self._first_piece(written, turn), None
        if turn.tool_calls:
            return None if first is None else (first, len(written.rstrip()) - first)
        for form in (turn.content, turn.content.strip()):
            if not form or written.count(form) == 1:
                found = written.find(form), len(form)
            elif form in written:  # the words stand in the template's own text too: see where another answer stands
                other = self._try_apply((*before, replace(turn, content=ANSWER)), tools) or ""
                lead, _, tail = other.partition(ANSWER)
                at = len(lead) - (len(until) - len(written))
                clear = at >= 0 and until.startswith(lead + form) and until.endswith(form + tail)
                found = at if clear else written.find(form), len(form)
            if found is not None:
                break
        if found is None or first is None or not turn.thoughts or first >= found[0]:
            return found
        return first, found[0] + found[1] - first

    def _first_piece(self, written: str, turn: Message) -> int | None:
        """Return where the first of a turn's thoughts, words and calls stands, with the mark that opens them."""
        pieces = (turn.thoughts.strip(), turn.content.strip(), *(call["name"] for call in turn.tool_calls))
        at = next((found for piece in pieces if piece and (found := written.find(piece)) >= 0), None)
        if at is None:
            return None
        opening = max((written.rfind(mark, 0, at) for mark in OPENINGS), default=-1)
        return (
            opening if (opening >= 0 and not turn.content.strip()) or (opening >= 0 and turn.thoughts.strip()) else at
        )

    def _end_of_turn(self, written: str, tail: int) -> int:
        """Return where the turn's end marker ends: its first special token, else its last visible character."""
        places = [(at, -len(token)) for token in self._specials if (at := written.find(token, tail)) >= 0]
        if places:
            at, length = min(places)
            return self._with_end_mark(written, at - length)
        visible = len(written.rstrip())
        return visible if visible > tail else len(written)

    def _try_apply(self, messages: tuple[Message, ...], tools: Tools = (), *, prompt: bool = False) -> str | None:
        try:
            return self._apply(messages, tools, prompt=prompt)
        except UserError:
            return None

    def _apply(self, messages: tuple[Message, ...], tools: Tools = (), *, prompt: bool = False) -> str:
        return self._write(messages, tools, prompt=prompt)[0]

    def _write(
        self, messages: tuple[Message, ...], tools: Tools = (), *, prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[Span]]:
        """Apply the template; with `marks` also say where its generation marks stand."""
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template  # its annotation says text; it returns two lists

        key = self.thoughts_key or THOUGHT_KEYS[0]
        chat = [turn.as_chat(key) for turn in messages]
        shown = list(tools) if (tools and self.takes_tools) or tools is TRIAL_TOOLS else None
        date = TEMPLATE_DATE.strftime("%d %b %Y")
        try:
            if marks:
                texts, found = render(
                    [chat], tools=shown, chat_template=self._jinja, return_assistant_tokens_mask=True,
                    date_string=date, **self.tokenizer.special_tokens_map,
                )  # fmt: skip
                return str(texts[0]), sorted((int(start), int(end)) for start, end in found[0])
            text = self.tokenizer.apply_chat_template(
                chat, tools=shown, tokenize=False, add_generation_prompt=prompt, chat_template=self._jinja,
                date_string=date,
            )  # fmt: skip
        except Exception as error:  # Jinja and the template's own raise_exception raise what they like
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            roles = ", ".join(turn.role for turn in messages) or "none"
            raise RefusedRowError(
                f"the chat template refuses a conversation with the roles {roles} ({reason}); "
                "change the row or use the plain template"
            ) from error
        return str(text), []

    def _identity(self) -> str:
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state["truncation"] = state["padding"] = None  # settings of the last call, not of the tokenizer
        parts = [
            "template/1" if self.plain else "template/2", json.dumps(state, sort_keys=True), self._bos, self._plain_end,
            self._gap, PLAIN_JINJA if self.plain else self._jinja,
        ]  # fmt: skip
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def make_template(tokenizer: Any, plain: bool | None = None) -> ChatTemplate:
    """Choose and test the template of a tokenizer.

    Args:
        tokenizer: a fast transformers tokenizer.
        plain: True for the plain template, False for the tokenizer's own, None for its own where it has one.

    Returns:
        ChatTemplate: tried on known conversations.

    Raises:
        UserError: the tokenizer has no template of its own, gives no character positions, or no mask can be found.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"the tokenizer {_name(tokenizer)} gives no character positions, so answers cannot be masked; "
            "use its fast version (a tokenizer.json)"
        )
    own = tokenizer.chat_template
    if plain is False and not own:
        raise UserError(f"the tokenizer {_name(tokenizer)} has no chat template; use the plain template")
    plain = (not own or own == PLAIN_JINJA) if plain is None else plain
    template = ChatTemplate(tokenizer, plain=plain)
    self_test(template)
    return template


SYSTEM = "Count with care."
QUESTION, ANSWER = "How many zebras drink?", "Seven zebras drink."
QUESTION_2, ANSWER_2 = "And how many quokkas?", "Only two quokkas do."


def self_test(template: ChatTemplate) -> None:
    """Try a template on conversations whose masks are known, set what it can do, refuse it where a mask is wrong."""
    name = _name(template.tokenizer)
    template.probe()
    one: list[Said] = [("user", QUESTION), ("assistant", ANSWER)]
    two: list[Said] = [*one, ("user", QUESTION_2), ("assistant", ANSWER_2)]
    _check(template, one, [ANSWER], [QUESTION], name)
    with_system: list[Said] = [("system", SYSTEM), *one]
    _check(template, with_system, [ANSWER], [QUESTION, SYSTEM], name)
    try:
        text, spans = template.render(two)
        template._learn_closing(text, spans)
    except UserError as error:
        log.warning("the chat template of %s takes one question and one answer only (%s)", name, error)
        return
    template.rewrites_earlier = len(spans) < 2
    _check(template, two, [ANSWER_2] if len(spans) < 2 else [ANSWER, ANSWER_2], [QUESTION, QUESTION_2], name)
    if template.rewrites_earlier:
        log.warning("the chat template of %s rewrites earlier answers; only the last carries loss", name)


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


def _adds_bos(tokenizer: Any) -> bool:
    """Tell whether the tokenizer opens every text with its begin-of-text token."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


LONGEST_WORD = 512  # letters; training takes more than linear time in a word's length


def _in_words(text: str) -> str:
    """Break words without end, such as a genome, for the training of a tokenizer."""
    return re.sub(rf"\S{{{LONGEST_WORD}}}(?=\S)", r"\g<0>\n", text) if len(text) > LONGEST_WORD else text


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a byte-level BPE tokenizer with the plain template's special tokens; equal texts give an equal tokenizer.

    Args:
        texts: training texts.
        vocab_size: tokens wanted, at least 261 (256 bytes and the special ones); fewer come out of little text.

    Returns:
        PreTrainedTokenizerFast: with `<|pad|>`, `<|end|>` as end of text, and the plain chat template.

    Raises:
        UserError: the vocabulary is too small.
    """
    least = 256 + len(PLAIN_SPECIALS)
    if vocab_size < least:
        raise UserError(f"the vocabulary is {vocab_size}; it must be at least {least} (256 bytes and special tokens)")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, show_progress=False, special_tokens=list(PLAIN_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator(map(_in_words, texts), trainer)
    made: Any = PreTrainedTokenizerFast
    tokenizer = made(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False,
        additional_special_tokens=[t for t in PLAIN_SPECIALS if t not in (PAD, END)],
    )  # fmt: skip
    tokenizer.chat_template = PLAIN_JINJA
    return tokenizer
