"""Masks of the families' own templates against TRL's training templates, and of small ones in their style."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from ideal_proxy.data.messages import Message, Row, messages_of
from ideal_proxy.data.template import FORGOTTEN, MERGED, PARTLY, ChatTemplate, make_template
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.data.tokenizing import tokenize_rows

USER, ANSWER = Message("user", "Sort 3 1 2"), Message("assistant", "1 2 3")
TURNS = [("user", "Sort 3 1 2"), ("assistant", "1 2 3"), ("user", "Reverse it"), ("assistant", "3 2 1 done")]
MARK = re.compile(r"<[|｜][^<>|｜ ]*[|｜]>|<(?:start_of_turn|end_of_turn)>|<\|[A-Z_]+\|>")


def tokenizer(*jinjas: str):
    made = train_tokenizer(["Sort 3 1 2 Reverse it done user assistant system"] * 3, 300)
    marks = sorted({mark for jinja in jinjas for mark in MARK.findall(jinja)})
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": marks})
    made.chat_template = jinjas[0]
    return made


def supervised(template: ChatTemplate, said=TURNS) -> str:
    ids, mask = template.encode(said)
    return template.tokenizer.decode([i for i, on in zip(ids, mask, strict=True) if on])


# Small templates in the families' styles, with and without generation marks.

HEAD = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
TAIL = "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
UNMARKED = HEAD + "{{ m['content'] + '<|im_end|>\n' }}" + TAIL
MARKED = (  # as TRL writes them: the end mark and the line end are inside
    HEAD + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}" + TAIL
)
MARKED_WITHOUT_END = (  # SmolLM3's first template and many fine-tunes leave the end mark outside
    HEAD + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}" + TAIL
)
MARKED_WRONG = (  # the marks hold the question
    HEAD + "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}" + TAIL
)
TWO_ENDS = (  # Cohere2
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '<|begin|>' + m['content'] + '<|end_response|><|end_turn|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|begin|>' }}{% endif %}"
)
ENDED_BY_THE_NEXT = (  # GLM-4: the user's mark ends an answer, and nothing ends the last
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{# <|user|> <|assistant|> #}"
)
FORGETS_THOUGHTS = (  # Qwen3
    HEAD + "{% set c = m['content'] %}{% if m['role'] == 'assistant' %}"
    "{% set t = c.split('</think>')[0].split('<think>')[-1].strip() if '</think>' in c else '' %}"
    "{% set c = c.split('</think>')[-1].strip() %}"
    "{% if loop.last %}{{ '<think>\n' + t + '\n</think>\n\n' }}{% endif %}{% endif %}{{ c + '<|im_end|>\n' }}" + TAIL
)
NEEDS_A_QUESTION = (  # Qwen3.5
    "{% if messages | selectattr('role', 'equalto', 'user') | list | length == 0 %}"
    "{{ raise_exception('No user query found in messages.') }}{% endif %}" + UNMARKED
)
MISTRAL = (  # no generation prompt; calls and answers of tools do not count as turns that alternate
    "{{ bos_token }}{% set said = messages | rejectattr('role', 'equalto', 'tool') | list %}"
    "{% set ns = namespace(n=0) %}"
    "{% for m in said if not m.tool_calls %}{% if (m.role == 'user') != (ns.n % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and loop.last %}{{ '[AVAILABLE_TOOLS]' + tools | tojson }}{% endif %}"
    "{{ '[INST]' + m.content + '[/INST]' }}{% elif m.tool_calls %}"
    "{{ '[TOOL_CALLS] ' + m.tool_calls[0].function | tojson + eos_token }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
SMOLLM3 = (  # its generation marks hold the header as well
    "{% set off = enable_thinking is defined and not enable_thinking %}"
    "{% set empty = '<think>\n\n</think>\n' if off else '' %}{% for m in messages %}"
    "{% set head = '<|im_start|>' + m['role'] + '\n' %}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ head + empty + m['content'] }}"
    "{{ '<|im_end|>\n' }}{% endgeneration %}{% else %}{{ head + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + empty }}{% endif %}"
)
GPT_OSS = (  # thoughts of earlier answers go, and an earlier answer has another end mark
    "{% for m in messages %}{{ '<|start|>' + m.role }}{% if m.thinking and loop.last %}"
    "{{ '<|channel|>analysis<|message|>' + m.thinking + '<|end|><|start|>assistant' }}{% endif %}"
    "{% if m.role == 'assistant' %}{{ '<|channel|>final' }}{% endif %}{{ '<|message|>' + m.content }}"
    "{{ '<|return|>' if m.role == 'assistant' and loop.last else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
GLM = (  # what comes next ends a turn: the user's mark, or after a call what a tool observes
    "{% for m in messages %}{{ '<|observation|>' if m.role == 'tool' else '<|' + m.role + '|>' }}{{ '\n' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '\n<tool_call>' + call.function.name + '</tool_call>' }}{% endfor %}"
    "{% endfor %}{{ tools | tojson if tools else '' }}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{# <|user|> <|assistant|> #}"
)
STYLES = {
    "unmarked": (UNMARKED, "1 2 3<|im_end|>3 2 1 done<|im_end|>"),
    "marked": (MARKED, "1 2 3<|im_end|>\n3 2 1 done<|im_end|>\n"),
    "marked without the end": (MARKED_WITHOUT_END, "1 2 3<|im_end|>3 2 1 done<|im_end|>"),
    "marked wrong": (MARKED_WRONG, "1 2 3<|im_end|>3 2 1 done<|im_end|>"),
    "two ends": (TWO_ENDS, "1 2 3<|end_response|><|end_turn|>3 2 1 done<|end_response|><|end_turn|>"),
    "ended by the next": (ENDED_BY_THE_NEXT, "1 2 3<|user|>3 2 1 done<|user|>"),
    "forgets thoughts": (FORGETS_THOUGHTS, "1 2 3<|im_end|><think>\n\n</think>\n\n3 2 1 done<|im_end|>"),
    "Mistral": (MISTRAL, "1 2 3</s>3 2 1 done</s>"),
    "SmolLM3": (SMOLLM3, "<|im_start|>assistant\n1 2 3<|im_end|>\n<|im_start|>assistant\n3 2 1 done<|im_end|>\n"),
    "gpt-oss": (GPT_OSS, "<|channel|>final<|message|>1 2 3<|end|><|channel|>final<|message|>3 2 1 done<|return|>"),
    "GLM-4": (GLM, "1 2 3<|user|>3 2 1 done<|user|>"),
    "needs a question": (NEEDS_A_QUESTION, "1 2 3<|im_end|>3 2 1 done<|im_end|>"),
}


@pytest.mark.parametrize("name", STYLES)
def test_answers_and_their_end_marks_carry_loss(name: str) -> None:
    jinja, expected = STYLES[name]
    template = make_template(tokenizer(jinja, "<|end_response|><|end_turn|><|user|><|observation|>"))
    assert template.generation_marks == (name in {"marked", "marked without the end", "SmolLM3"})
    assert supervised(template) == expected


@pytest.mark.parametrize("jinja", [MARKED, UNMARKED], ids=["marked", "unmarked"])
def test_a_turn_without_loss_has_none(jinja: str) -> None:
    said = [Message("user", "Sort 3 1 2"), Message("assistant", "1 2 3", trained=False), *TURNS[2:]]
    assert supervised(make_template(tokenizer(jinja)), said).rstrip() == "3 2 1 done<|im_end|>"


@pytest.mark.parametrize("jinja", [FORGETS_THOUGHTS, NEEDS_A_QUESTION], ids=["Qwen3", "Qwen3.5"])
def test_answers_that_the_template_tells_otherwise_when_they_are_not_last(jinja: str) -> None:
    thought = [("assistant", "<think>hm</think>1 2 3"), *TURNS[2:]]
    said = supervised(make_template(tokenizer(jinja)), thought)  # a row that opens with the assistant
    assert said.startswith("1 2 3<|im_end|>" if jinja == FORGETS_THOUGHTS else "<think>hm</think>1 2 3<|im_end|>")
    assert said.endswith("3 2 1 done<|im_end|>")


def test_end_marks_stand_where_answers_are_told_otherwise_and_after_calls() -> None:
    called = Message("assistant", tool_calls=({"name": "add", "arguments": {}, "id": "abcdefgh1"},))
    observed = Message("tool", "3", name="add", call_id="abcdefgh1")
    thought = Message("assistant", "1 2 3", "hm")
    cases = (
        (GPT_OSS, [USER, thought, USER, ANSWER], ["1 2 3<|end|>", "<|channel|>final<|message|>1 2 3<|return|>"]),
        (GPT_OSS, [ANSWER, USER, ANSWER], ["1 2 3<|end|>", "<|channel|>final<|message|>1 2 3<|return|>"]),
        (GLM, [USER, called, observed, ANSWER], ["<tool_call>add</tool_call><|observation|>", "1 2 3<|user|>"]),
        (MISTRAL, [USER, called, observed, ANSWER],
         ['[TOOL_CALLS] {"name": "add", "arguments": {}}</s>', "1 2 3</s>"]),
    )  # fmt: skip
    for jinja, said, expected in cases:
        written = make_template(tokenizer(jinja, "<|observation|><|user|>")).render_row(Row(tuple(said), {}, "x"))
        assert [written.text[a:b].lstrip("\n") for a, b in written.spans] == expected


def test_what_the_generation_prompt_holds_by_a_setting_carries_no_loss_though_marks_hold_it() -> None:
    template = make_template(tokenizer(SMOLLM3))
    text, spans = template.render(TURNS, settings={"enable_thinking": False})
    assert [text[a:b] for a, b in spans] == ["1 2 3<|im_end|>\n", "3 2 1 done<|im_end|>\n"]


def test_rows_of_which_an_answer_is_not_told_are_counted_as_partly_supervised() -> None:
    jinja = HEAD.replace("{{ '<", "{% if m['role'] != 'assistant' or loop.last %}{{ '<")
    jinja += "{{ m['content'] + '<|im_end|>\n' }}{% endif %}" + TAIL
    template = make_template(tokenizer(jinja))
    rows = [Row(tuple(Message(*turn) for turn in TURNS[:n]), {}, f"row {n}") for n in (4, 2, 4)]
    assert tokenize_rows(rows, template, 200).told == {PARTLY: 2}


ALTERNATES = (  # Gemma's and Mistral's: no system role, and turns must alternate
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([USER, ("user", "Reverse it"), ANSWER], ["1 2 3<end_of_turn>"]),
        ([USER, ANSWER, ("assistant", "done")], ["1 2 3\n\ndone<end_of_turn>"]),
        ([("system", "it"), USER, ("user", "Reverse it"), ANSWER, USER, ANSWER], ["1 2 3<end_of_turn>"] * 2),
    ],
    ids=["two questions", "two answers", "system text and two questions"],
)
def test_neighbours_of_one_role_are_merged_where_the_template_demands_it(said, expected: list[str]) -> None:
    strict, free = (make_template(tokenizer(jinja, ALTERNATES)) for jinja in (ALTERNATES, UNMARKED))
    row = Row(messages_of(said), {}, "mine.jsonl:1")
    written = strict.render_row(row)
    assert [written.text[a:b] for a, b in written.spans] == expected
    assert written.told == (MERGED,)
    assert "Sort 3 1 2\n\nReverse it" in written.text or "1 2 3\n\ndone" in written.text
    as_it_is = free.render_row(row)
    assert as_it_is.told == ()
    assert as_it_is.text.count("<|im_start|>") == len(said)


@pytest.mark.parametrize(
    "said",
    [
        [ANSWER, USER, ANSWER],
        [USER, Message("assistant", "hm", trained=False), ANSWER],  # one answer with loss, one without
    ],
    ids=["the assistant first", "an answer without loss before one with"],
)
def test_rows_that_cannot_be_merged_are_left_out_under_that_name(said, caplog: pytest.LogCaptureFixture) -> None:
    template = make_template(tokenizer(ALTERNATES))
    caplog.set_level("INFO")
    rows = [Row((USER, ANSWER), {}, f"mine.jsonl:{n}") for n in range(20)]
    kept = tokenize_rows([*rows, Row(tuple(said), {}, "mine.jsonl:99")], template, 200)
    assert (len(kept), kept.refused) == (20, 1)
    assert (
        "1 row: left out, refused by the chat template, as turns do not alternate (first: mine.jsonl:99" in caplog.text
    )


def test_thoughts_that_the_template_removes_are_counted() -> None:
    template = make_template(tokenizer(FORGETS_THOUGHTS))
    thought = ("assistant", "<think>\nhm\n</think>\n\n1 2 3")
    rows = [[USER, thought, USER, ANSWER], [USER, ANSWER, USER, thought], [USER, thought], [USER, ANSWER, USER, ANSWER]]
    told = tokenize_rows([Row(messages_of(said), {}, "x") for said in rows], template, 200).told
    assert told == {FORGOTTEN: 1}


# The families' own templates. Reasons for every difference stand in docs/templates.md.

LINE_END, HEADER, THOUGHT = "line end", "header", "thought"
FAMILIES = {
    "cohere": (), "cohere2": (), "glm4moe": (), "llama3": (),
    "gemma": (LINE_END,), "gemma3": (LINE_END,), "lfm2": (LINE_END,), "lfm2_v2": (LINE_END,),
    "phi3": (LINE_END,), "phi3_5": (LINE_END,), "qwen2_5": (LINE_END,), "qwen3_instruct_2507": (LINE_END,),
    "deepseekv3": (HEADER,), "deepseek_r1_distill": (HEADER,), "gptoss": (HEADER,), "muse_glimmer": (HEADER,),
    "qwen3": (LINE_END, THOUGHT), "qwen3_5_nothink": (LINE_END, THOUGHT), "qwen3_5_think": (LINE_END, THOUGHT),
    "qwen3_6": (LINE_END, THOUGHT), "qwen3_8": (LINE_END, THOUGHT), "nemotron_3_nano": (LINE_END, THOUGHT),
    "nemotron_3_super": (LINE_END, THOUGHT), "nemotron_3_ultra": (LINE_END, THOUGHT),
}  # fmt: skip
STRIPPED = {
    LINE_END: r"\s+|</s>$",  # white space after the end mark, and the end of text after that
    HEADER: r"<\|start\|>assistant|<｜Assistant｜>",
    THOUGHT: r"(?:<think>)?\s*</think>",  # an empty one
}


def trl_templates() -> Path:
    """Find TRL's templates without importing it."""
    package = importlib.util.find_spec("trl")
    folder = Path(next(iter(package.submodule_search_locations or [""]))) if package else Path()
    if not (folder / "chat_templates" / "qwen3_training.jinja").is_file():
        pytest.skip("TRL, whose training templates are the oracle, is not installed (pip install trl --no-deps)")
    return folder / "chat_templates"


def oracle(made, jinja: str) -> str:
    chat = [{"role": role, "content": content} for role, content in TURNS]
    told = made.apply_chat_template(
        chat, chat_template=jinja, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    marks = zip(told["input_ids"], told["assistant_masks"], strict=True)
    return str(made.decode([i for i, on in marks if on]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_tokens_carry_loss_as_under_trls_training_template(family: str) -> None:
    folder = trl_templates()
    own, training = ((folder / f"{family}{kind}.jinja").read_text(encoding="utf-8") for kind in ("", "_training"))
    made = tokenizer(training, own)
    wanted = oracle(made, training)
    template = make_template(made)
    assert template.generation_marks
    assert supervised(template) == wanted, "a template with generation marks is taken at its word"
    made.chat_template = own
    got = supervised(make_template(made))
    for kind in FAMILIES[family]:
        assert got != wanted, f"{kind} is no difference any more"
        got, wanted = (re.sub(STRIPPED[kind], "", text) for text in (got, wanted))
    assert got == wanted
