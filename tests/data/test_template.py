"""Masks: what carries loss, decoded, is what the assistant said and the end of turn, for every template."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideal_proxy.data.plain import PLAIN_JINJA
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.errors import UserError

TEXT = [
    "How many zebras drink? Seven zebras drink. And how many quokkas? Only two quokkas do. Count with care.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\n",
    "Ein schöner Tag – naïve café, 東京 and 🦓🦓",
] * 3

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Forgets what earlier answers said before </think>, and opens the last with an empty one (Qwen3's habit).
THINKING = (
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last %}{% set c = c.split('</think>')[-1].strip() %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last and '</think>' not in c %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Drops every earlier answer.
FORGETFUL = (
    "{% for m in messages %}{% if m['role'] != 'assistant' or loop.last %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# No generation prompt, no system role, roles must alternate (Llama 2's and Gemma's habits).
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Ends an earlier answer in another way than the last (gpt-oss's habit).
HARMONY = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|start_header_id|>final' }}{% endif %}"
    "{{ '<|end_header_id|>' + m['content'] }}"
    "{{ '<|eot_id|>' if m['role'] == 'assistant' and loop.last else '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
# Opens the answer with a thought that the conversation does not show (DeepSeek R1's habit).
OPENED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' if m['role'] == 'user' else '<|im_end|>' }}"
    "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|><think>\n' }}{% endif %}"
)
# Gemma's: the assistant is called model.
MODEL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<|im_start|>' + role + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
# Names the role even where it is not asked to open an answer, so a prefix ends before the role's name.
UNPROMPTED = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
DATED = "{{ strftime_now('%Y-%m-%d') }}" + CHATML
UNMASKABLE = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
REVERSED = "{% for m in messages | reverse %}{{ m['content'] }}<|im_end|>{% endfor %}"

MARKS = ["<s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@functools.cache
def trained():
    return train_tokenizer(TEXT, 420)


def tokenizer(jinja: str | None = None):
    made = copy.deepcopy(trained())
    if jinja is not None:
        made.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": MARKS[1:]})
        made.chat_template = jinja
    return made


def supervised_text(template, messages) -> str:
    ids, mask = template.encode(messages)
    assert len(ids) == len(mask)
    return template.tokenizer.decode([i for i, on in zip(ids, mask, strict=True) if on])


TURNS = [("user", "Sort 3 1 2"), ("assistant", "1 2 3"), ("user", "Reverse it"), ("assistant", "3 2 1\n  done é🦓")]

EXPECTED = {
    "plain": (None, "1 2 3<|end|>3 2 1\n  done é🦓<|end|>"),
    "plain as Jinja": (PLAIN_JINJA, "1 2 3<|end|>3 2 1\n  done é🦓<|end|>"),
    "ChatML": (CHATML, "1 2 3<|im_end|>3 2 1\n  done é🦓<|im_end|>"),
    "Llama 3": (LLAMA3, "1 2 3<|eot_id|>3 2 1\n  done é🦓<|eot_id|>"),
    "thinking": (THINKING, "1 2 3<|im_end|><think>\n\n</think>\n\n3 2 1\n  done é🦓<|im_end|>"),
    "forgetful": (FORGETFUL, "3 2 1\n  done é🦓<|im_end|>"),
    "Llama 2": (INST, " 1 2 3 <|end|> 3 2 1\n  done é🦓 <|end|>"),
    "harmony": (
        HARMONY,
        "<|start_header_id|>final<|end_header_id|>1 2 3<|im_end|>"
        "<|start_header_id|>final<|end_header_id|>3 2 1\n  done é🦓<|eot_id|>",
    ),
    "opened": (OPENED, "1 2 3<|eot_id|>3 2 1\n  done é🦓<|eot_id|>"),
    "model": (MODEL, "1 2 3<|im_end|>3 2 1\n  done é🦓<|im_end|>"),
    "unprompted": (UNPROMPTED, " 1 2 3<|im_end|> 3 2 1\n  done é🦓<|im_end|>"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_supervised_tokens_decode_to_answers_and_end_of_turn(name):
    jinja, expected = EXPECTED[name]
    template = make_template(tokenizer(jinja), plain=False if jinja else None)
    assert template.plain == (jinja is None)
    said = supervised_text(template, TURNS)
    if name == "unprompted":  # the space before the answer may belong to its first token or not
        said, expected = said.replace(" ", ""), expected.replace(" ", "")
    assert said == expected or (name == "Llama 2" and said.replace(" ", "") == expected.replace(" ", ""))
    assert template.rewrites_earlier == (name == "forgetful")


@pytest.mark.parametrize("jinja", [None, CHATML, LLAMA3], ids=["plain", "ChatML", "Llama 3"])
def test_whole_text_is_the_templates_own(jinja):
    made = tokenizer(jinja)
    template = make_template(made)
    ids, _ = template.encode(TURNS)
    messages = [{"role": role, "content": content} for role, content in TURNS]
    text = made.apply_chat_template(messages, tokenize=False)
    assert ids == made(text, add_special_tokens=False)["input_ids"]
    assert template.prompt_text(TURNS[:1]) == made.apply_chat_template(
        messages[:1], tokenize=False, add_generation_prompt=True
    )


def test_a_dialogue_whose_earlier_answers_stand_unchanged_keeps_them_under_a_rewriting_template():
    """What the whole text tells of an earlier answer carries loss, without the thought that it forgets."""
    jinja = THINKING.replace(
        "{% if m['role'] == 'assistant' and loop.last and '</think>' not in c %}", "{% if false %}"
    )
    template = make_template(tokenizer(jinja))
    assert not template.rewrites_earlier
    kept = supervised_text(template, TURNS)
    assert kept == "1 2 3<|im_end|>3 2 1\n  done é🦓<|im_end|>"
    thought = [TURNS[0], ("assistant", "<think>hm</think>1 2 3"), *TURNS[2:]]
    assert supervised_text(template, thought) == "1 2 3<|im_end|>3 2 1\n  done é🦓<|im_end|>"
    assert supervised_text(template, thought[:2]) == "<think>hm</think>1 2 3<|im_end|>"


def test_system_text_is_never_supervised_and_moves_to_the_user_where_there_is_no_system_role():
    messages = [("system", "Be brief."), *TURNS[:2]]
    for jinja in (None, CHATML, LLAMA3, INST):
        template = make_template(tokenizer(jinja))
        text, spans = template.render(messages)
        assert "Be brief." in text
        assert ["1 2 3" in text[a:b] for a, b in spans] == [True]
        assert template.merges_system == (jinja == INST)
    assert "[INST] Be brief.\n\nSort 3 1 2 [/INST]" in text


def test_what_follows_the_last_answer_and_empty_answers_carry_nothing():
    template = make_template(tokenizer(CHATML))
    tail = [*TURNS[:2], ("user", "Thanks"), ("assistant", " ")]
    assert template.encode(tail) == template.encode(TURNS[:2])
    gap = [("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")]
    assert supervised_text(template, gap) == "c<|im_end|>"


@pytest.mark.parametrize("answer", ["think", "assistant", "user", "im_end", "end", "n", "</think>", "Sort 3 1 2"])
@pytest.mark.parametrize(
    "jinja", [None, CHATML, LLAMA3, THINKING, UNPROMPTED], ids=["plain", "ChatML", "Llama 3", "thinking", "unprompted"]
)
def test_answers_that_stand_in_the_templates_own_words(jinja, answer):
    template = make_template(tokenizer(jinja))
    text, spans = template.render([("user", "Sort 3 1 2"), ("assistant", answer)])
    end = {None: "<|end|>", LLAMA3: "<|eot_id|>"}.get(jinja, "<|im_end|>")
    (span,) = spans
    said = text[slice(*span)]
    assert said.endswith(answer + end)
    assert said.removesuffix(answer + end) in {"", "<think>\n\n</think>\n\n"}
    assert text[span[1] :].strip() == ""


words = st.text(
    st.one_of(st.characters(codec="utf-8", exclude_categories=["Cs"]), st.sampled_from(" \n\t.é東🦓(0")),
    min_size=1, max_size=24,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=3), st.sampled_from([None, CHATML, LLAMA3]))
def test_any_text_is_masked_to_the_character(templates, pairs, jinja):
    template = templates[jinja]
    if any(mark in word for pair in pairs for word in pair for mark in ("<|", "|>")):
        return
    messages = [m for asked, said in pairs for m in (("user", asked), ("assistant", said))]
    end = {None: "<|end|>", CHATML: "<|im_end|>", LLAMA3: "<|eot_id|>"}[jinja]
    answers = [said.strip() if jinja == LLAMA3 else said for _, said in pairs if said.strip()]
    said = supervised_text(template, messages)
    if jinja is None:
        assert said == "".join(answer + end for answer in answers)
    else:  # a token may hold the line end before an answer and white space that opens it
        parts = said.split(end)
        assert [part.lstrip() for part in parts] == [*(answer.lstrip() for answer in answers), ""]


@pytest.fixture(scope="module")
def templates():
    return {jinja: make_template(tokenizer(jinja)) for jinja in (None, CHATML, LLAMA3)}


@pytest.mark.parametrize("jinja", [UNMASKABLE, REVERSED], ids=["no answer to find", "answers first"])
def test_a_template_that_cannot_be_masked_is_refused_in_one_sentence(jinja):
    with pytest.raises(UserError, match="cannot be masked") as caught:
        make_template(tokenizer(jinja))
    assert "plain template" in str(caught.value)
    assert make_template(tokenizer(jinja), plain=True).plain


def test_refusals_say_what_to_do():
    plain = tokenizer()
    plain.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        make_template(plain, plain=False)
    template = make_template(tokenizer(INST))
    with pytest.raises(UserError, match=r"alternate \(the assistant speaks first\).* roles assistant, user, assistant"):
        template.render([("assistant", "a"), ("user", "b"), ("assistant", "c")])


def test_a_template_with_todays_date_gives_the_same_tokens_on_any_day():
    template = make_template(tokenizer(DATED))
    assert template.render(TURNS)[0].startswith("2024-07-26")


def test_plain_template_with_a_tokenizer_that_lacks_its_marks_uses_its_end_of_text():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())
    other = Tokenizer(
        models.BPE(vocab={t: n for n, t in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet())])}, merges=[])
    )
    other.pre_tokenizer, other.decoder = backend.pre_tokenizer, decoders.ByteLevel()
    other.add_special_tokens(["<s>", "</s>"])
    other.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    template = make_template(PreTrainedTokenizerFast(tokenizer_object=other, bos_token="<s>", eos_token="</s>"))
    assert template.plain
    assert supervised_text(template, TURNS) == "1 2 3</s>3 2 1\n  done é🦓</s>"
    ids, mask = template.encode(TURNS)
    assert ids[0] == 256
    assert not mask[0]


def test_white_space_tokens_without_positions_of_their_own_are_masked_with_what_they_follow():
    """GPT-2's post-processing gives a token of white space an empty position at its end."""
    from tokenizers import processors

    made = tokenizer("{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + ' ' }}{% endfor %}")
    made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    template = make_template(made)
    messages = [("user", "x y"), ("assistant", "if é:\n  pass")]
    ids, mask = template.encode(messages)
    assert made.decode(ids) == "[user] x y [assistant] if é:\n  pass "
    assert made("a ", add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][-1] == (2, 2)
    assert supervised_text(template, messages) == "if é:\n  pass "  # its end of turn is the space
    assert mask[-1]


def test_identity_tells_tokenizers_and_templates_apart_and_nothing_else():
    made = tokenizer(CHATML)
    first = make_template(made)
    made(["a", "b c d"], padding=True, truncation=True, max_length=3)
    assert make_template(made).identity == first.identity
    others = {
        make_template(t, plain=p).identity
        for t, p in [(tokenizer(LLAMA3), None), (tokenizer(CHATML), True), (train_tokenizer(TEXT, 400), None)]
    }
    assert len(others | {first.identity}) == 4


def test_training_a_tokenizer_is_deterministic_across_processes_and_threads():
    script = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[1] + '/tests/data')\n"
        "from test_template import TEXT\nfrom ideal_proxy.data.tokenizer import train_tokenizer\n"
        "print(hashlib.sha256(train_tokenizer(TEXT, 420).backend_tokenizer.to_str().encode()).hexdigest())"
    )
    root = str(Path(__file__).resolve().parents[2])
    seen = set()
    for threads in ("1", "4"):
        done = subprocess.run(
            [sys.executable, "-c", script, root], check=True, capture_output=True, text=True,
            env={"RAYON_NUM_THREADS": threads, "PATH": "", "PYTHONHASHSEED": threads},
        )  # fmt: skip
        seen.add(done.stdout.strip())
    assert len(seen) == 1
    made, shuffled = train_tokenizer(TEXT, 420), train_tokenizer(TEXT[::-1], 420)
    assert made.get_vocab() == shuffled.get_vocab()
    text = "naïve 東京 🦓\n\tx = 12"
    assert made.decode(made(text)["input_ids"]) == text
    assert made.pad_token_id != made.eos_token_id


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused():
    with pytest.raises(UserError, match="at least 261"):
        train_tokenizer(TEXT, 260)


@pytest.mark.slow
def test_a_real_tokenizer_and_its_own_template():
    from pretrained_folder import smollm2
    from transformers import AutoTokenizer

    folder, file = smollm2()
    made = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    template = make_template(made)
    assert not template.plain
    assert not template.rewrites_earlier
    assert supervised_text(template, TURNS) == "1 2 3<|im_end|>3 2 1\n  done é🦓<|im_end|>"
    code = [("user", "indent"), ("assistant", "if x:\n    \n        y = ' '\n\n\n")]
    assert supervised_text(template, code) == code[1][1] + "<|im_end|>"
