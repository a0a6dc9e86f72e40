"""Chat templates: messages to token ids, and the mask that says which tokens carry loss.

This is the only place that masks. Loss lies on what the assistant says and on the end-of-turn token. Where that is in
the text is found from the template: an answer is the difference between the conversation with it and the prompt before
it. The whole text is tokenised once, and answers are found in it by character position, because tokens of a prefix need
not be a prefix of the tokens. Every template is tried on known conversations first and refused where no mask is found.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ideal_proxy.data.rows import Message
from ideal_proxy.errors import UserError

log = logging.getLogger(__name__)

Span = tuple[int, int]

PAD, END = "<|pad|>", "<|end|>"
PLAIN_SPECIALS = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
PLAIN_JINJA = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TEMPLATE_DATE = datetime.datetime(2024, 7, 26)  # templates that print today's date print this one, on every day


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
    """

    def __init__(self, tokenizer: Any, *, plain: bool) -> None:
        self.tokenizer = tokenizer
        self.plain = plain
        self.merges_system = False
        self.rewrites_earlier = False
        self._opens_answer = True
        self._jinja = "" if plain else _dated(str(tokenizer.get_chat_template()))
        special = {*tokenizer.all_special_tokens}
        special |= {str(token) for token in tokenizer.added_tokens_decoder.values()}
        self._specials = sorted((token for token in special if token.strip()), key=len, reverse=True)
        marked = special.issuperset(PLAIN_SPECIALS[1:])
        self._plain_end = END if marked or not tokenizer.eos_token else str(tokenizer.eos_token)
        self._gap = "" if marked else "\n"  # markers that are plain text are kept apart from what follows by a line end
        self._bos = str(tokenizer.bos_token) if plain and _adds_bos(tokenizer) else ""
        self.identity = self._identity()

    def render(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Write a conversation as text.

        Args:
            messages: (role, content) pairs; what follows the last answer is left out.

        Returns:
            tuple: the text, and the supervised parts of it as (start, end) in characters.

        Raises:
            UserError: the template cannot write these messages.
        """
        messages = self._prepared(messages)
        return self._render_plain(messages) if self.plain else self._render_own(messages)

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Tokenise one conversation.

        Args:
            messages: (role, content) pairs.

        Returns:
            tuple: token ids (T,) and for each whether it carries loss (T,).
        """
        return self.encode_batch([messages])[0]

    def encode_batch(self, conversations: Iterable[Sequence[Message]]) -> list[tuple[list[int], list[bool]]]:
        """Tokenise many conversations.

        Args:
            conversations: each a sequence of (role, content).

        Returns:
            list: for each the token ids (T,) and the mask (T,).
        """
        rendered = [self.render(messages) for messages in conversations]
        if not rendered:
            return []
        encoded = self.tokenizer(
            [text for text, _ in rendered],
            add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False,
            return_token_type_ids=False, padding=False, truncation=False, verbose=False,
        )  # fmt: skip
        return [
            (list(ids), _supervised(offsets, spans))
            for ids, offsets, (_, spans) in zip(encoded["input_ids"], encoded["offset_mapping"], rendered, strict=True)
        ]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Write the conversation up to where the assistant is to answer.

        Args:
            messages: (role, content) pairs that end with the user's.

        Returns:
            str: text to generate from.
        """
        messages = self._with_system(tuple(messages))
        if self.plain:
            return self._render_plain(messages)[0] + "<|assistant|>" + self._gap
        return self._apply(messages, prompt=True)

    def to_dict(self) -> dict[str, Any]:
        """Describe the template for a mixture file.

        Returns:
            dict: JSON-ready: kind, identity and the template's text.
        """
        text = PLAIN_JINJA if self.plain else self._jinja
        return {"kind": "plain" if self.plain else "tokenizer", "identity": self.identity, "template": text}

    def probe(self) -> None:
        """Find out whether the template opens the answer itself and whether it knows the system role."""
        if self.plain:
            return
        asked: list[Message] = [("user", QUESTION)]
        self._opens_answer = self._apply(asked, prompt=True) != self._apply(asked)
        told = self._try_apply([("system", SYSTEM), *asked, ("assistant", ANSWER)], prompt=False)
        self.merges_system = told is None or SYSTEM not in told

    def _prepared(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Cut what follows the last answer and place the system text."""
        said = (n for n, (role, content) in enumerate(messages) if role == "assistant" and content.strip())
        last = max(said, default=len(messages) - 1)
        return self._with_system(tuple(messages[: last + 1]))

    def _with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not self.merges_system or not any(role == "system" for role, _ in messages):
            return messages
        text = "\n\n".join(content for role, content in messages if role == "system")
        rest = [message for message in messages if message[0] != "system"]
        if rest and rest[0][0] == "user":
            return (("user", f"{text}\n\n{rest[0][1]}"), *rest[1:])
        return (("user", text), *rest)

    def _render_plain(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        parts, spans, at = [self._bos], [], len(self._bos)
        for role, content in messages:
            head, body = f"<|{role}|>{self._gap}", content + self._plain_end
            parts += [head, body, self._gap]
            start = at + len(head)
            at = start + len(body) + len(self._gap)
            if role == "assistant" and content.strip():
                spans.append((start, start + len(body)))
        return "".join(parts), spans

    def _render_own(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        text = self._apply(messages)
        spans: list[Span] = []
        for n, (role, content) in enumerate(messages):
            if role == "assistant" and content.strip():
                until = text if n == len(messages) - 1 else self._apply(messages[: n + 1])
                span = self._answer_span(text, until, messages[:n], content)
                if span is not None and (not spans or span[0] >= spans[-1][1]):
                    spans.append(span)
        return text, spans

    def _answer_span(self, text: str, until: str, before: Sequence[Message], content: str) -> Span | None:
        """Find the answer that ends `until` in the whole text, or None where the text tells it otherwise."""
        prompt = self._try_apply(before, prompt=True) if self._opens_answer else None
        if prompt and until.startswith(prompt):  # what the model writes after the generation prompt
            start, written = len(prompt), until[len(prompt) :]
            found = self._locate(written, until, before, content)
            tail = sum(found) if found else len(written.rstrip())
        else:  # no such prompt: the difference to the conversation before, from the answer's own first character
            earlier = self._try_apply(before, prompt=False) if before else ""
            if earlier is None or not until.startswith(earlier):
                return None
            found = self._locate(until[len(earlier) :], until, before, content)
            if found is None:
                return None
            start, written, tail = len(earlier) + found[0], until[len(earlier) + found[0] :], found[1]
        end = start + self._end_of_turn(written, tail)
        if text[:end] == until[:end]:
            return (start, end) if end > start else None
        said = start + tail  # the same answer, but ended in another way than a last answer is
        if found is None or text[:said] != until[:said]:
            return None
        mark = next((token for token in self._specials if text.startswith(token, said)), "")
        return (start, said + len(mark))

    def _locate(self, written: str, until: str, before: Sequence[Message], content: str) -> Span | None:
        """Return (position, length) of the answer in what the template wrote for it, whole or stripped."""
        for form in (content, content.strip()):
            if written.count(form) == 1:
                return written.find(form), len(form)
            if form in written:  # the words stand in the template's own text too: see where another answer stands
                other = self._try_apply([*before, ("assistant", ANSWER)], prompt=False) or ""
                lead, _, tail = other.partition(ANSWER)
                at = len(lead) - (len(until) - len(written))
                if at >= 0 and until.startswith(lead + form) and until.endswith(form + tail):
                    return at, len(form)
                return written.find(form), len(form)
        return None

    def _end_of_turn(self, written: str, tail: int) -> int:
        """Return where the turn's end marker ends: its first special token, else its last visible character."""
        places = [(at, -len(token)) for token in self._specials if (at := written.find(token, tail)) >= 0]
        if places:
            at, length = min(places)
            return at - length
        visible = len(written.rstrip())
        return visible if visible > tail else len(written)

    def _try_apply(self, messages: Sequence[Message], *, prompt: bool) -> str | None:
        try:
            return self._apply(messages, prompt=prompt)
        except UserError:
            return None

    def _apply(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in messages],
                tokenize=False, add_generation_prompt=prompt,
                chat_template=self._jinja, date_string=TEMPLATE_DATE.strftime("%d %b %Y"),
            )  # fmt: skip
        except Exception as error:  # Jinja and the template's own raise_exception raise what they like
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            roles = ", ".join(role for role, _ in messages) or "none"
            raise UserError(
                f"the chat template refuses a conversation with the roles {roles} ({reason}); "
                "change the row or use the plain template"
            ) from error
        return str(text)

    def _identity(self) -> str:
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state["truncation"] = state["padding"] = None  # settings of the last call, not of the tokenizer
        parts = [
            "template/1", json.dumps(state, sort_keys=True), self._bos, self._plain_end, self._gap,
            PLAIN_JINJA if self.plain else self._jinja,
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
    """Try a template on conversations whose masks are known, and set what it can and cannot do.

    Args:
        template: changed in place: `merges_system` and `rewrites_earlier`.

    Raises:
        UserError: the mask of a conversation is not its answers.
    """
    name = _name(template.tokenizer)
    template.probe()
    one: list[Message] = [("user", QUESTION), ("assistant", ANSWER)]
    two: list[Message] = [*one, ("user", QUESTION_2), ("assistant", ANSWER_2)]
    _check(template, one, [ANSWER], [QUESTION], name)
    with_system: list[Message] = [("system", SYSTEM), *one]
    _check(template, with_system, [ANSWER], [QUESTION, SYSTEM], name)
    try:
        _, spans = template.render(two)
    except UserError as error:
        log.warning("the chat template of %s takes one question and one answer only (%s)", name, error)
        return
    template.rewrites_earlier = len(spans) < 2
    _check(template, two, [ANSWER_2] if len(spans) < 2 else [ANSWER, ANSWER_2], [QUESTION, QUESTION_2], name)
    if template.rewrites_earlier:
        log.warning("the chat template of %s rewrites earlier answers; only the last carries loss", name)


def _check(template: ChatTemplate, messages: list[Message], answers: list[str], prompts: list[str], name: str) -> None:
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


def _dated(jinja: str) -> str:
    """Give a template that prints today's date a fixed one, by a macro that shadows the clock."""
    asked = re.findall(r"""strftime_now\(\s*(['"])(.*?)\1""", jinja)
    if not asked:
        return jinja
    dates = {form: TEMPLATE_DATE.strftime(form) for _, form in asked}
    return f"{{%- macro strftime_now(form) -%}}{{{{ {json.dumps(dates)}[form] }}}}{{%- endmacro %}}{jinja}"


def _adds_bos(tokenizer: Any) -> bool:
    """Tell whether the tokenizer opens every text with its begin-of-text token."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


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
    backend.train_from_iterator(texts, trainer)
    made: Any = PreTrainedTokenizerFast
    tokenizer = made(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False,
        additional_special_tokens=[t for t in PLAIN_SPECIALS if t not in (PAD, END)],
    )  # fmt: skip
    tokenizer.chat_template = PLAIN_JINJA
    return tokenizer
