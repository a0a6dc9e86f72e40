"""`chat_template_kwargs` of a row or a domain: given to the template, part of the key, kept where rows are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ideal_proxy.config import dump_config, parse_config
from ideal_proxy.data import find_duplicates, make_template, read_rows, tokenize_rows, train_tokenizer
from ideal_proxy.data.messages import Message, Row, chat_record
from ideal_proxy.data.rows import SourceReader
from ideal_proxy.data.template import CONTRARY
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture.apply import apply_mixture
from ideal_proxy.mixture.file import DomainVolume, MixtureFile
from ideal_proxy.pipeline.findings import duplicate_findings

# Qwen3's habits: an empty thought before the last answer, which the generation prompt holds where thinking is off.
HYBRID = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{% if loop.last or m.reasoning_content %}{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}"
    "{% endif %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
UNMARKED = HYBRID.replace("{% generation %}", "").replace("{% endgeneration %}", "")
EMPTY = "<think>\n\n</think>\n\n"
ASKED, SAID = Message("user", "Sort 3 1 2"), Message("assistant", "1 2 3")
OFF = {"enable_thinking": False}


def template(jinja: str):
    made = train_tokenizer(["Sort 3 1 2 Reverse it done user assistant think"] * 3, 300)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = jinja
    return make_template(made)


@pytest.mark.parametrize("jinja", [HYBRID, UNMARKED], ids=["generation marks", "differences"])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, f"{EMPTY}1 2 3<|im_end|>"), ({"enable_thinking": True}, f"{EMPTY}1 2 3<|im_end|>"), (OFF, "1 2 3<|im_end|>")],
    ids=["unsaid", "on", "off"],
)
def test_an_empty_thought_carries_loss_unless_the_prompt_holds_it(jinja: str, settings, expected: str) -> None:
    made = template(jinja)
    for turns in ((ASKED, SAID), (ASKED, SAID, ASKED, SAID)):
        written = made.render_row(Row(turns, {}, "x", settings=settings))
        *earlier, last = [written.text[a:b] for a, b in written.spans]
        assert EMPTY in written.text
        assert (earlier, last) == (["1 2 3<|im_end|>"] * (len(turns) // 2 - 1), expected)


def test_thoughts_that_are_there_carry_loss_whatever_the_setting_says() -> None:
    thought = Message("assistant", "1 2 3", "hm")
    for jinja in (HYBRID, UNMARKED):
        written = template(jinja).render_row(Row((ASKED, thought), {}, "x", settings=OFF))
        assert written.told == (CONTRARY,)
        assert [written.text[a:b] for a, b in written.spans] == ["<think>\nhm\n</think>\n\n1 2 3<|im_end|>"]


def test_a_setting_that_the_template_does_not_read_is_counted() -> None:
    rows = [Row((ASKED, SAID), {}, "x", settings=settings) for settings in (OFF, {"thinking_budget": 3}, {})]
    told = tokenize_rows(rows, template(HYBRID), 100).told
    assert told == {"chat_template_kwargs that the chat template does not read (thinking_budget)": 1}


def write(path: Path, *settings: object) -> str:
    records = [{"prompt": f"p{n}", "completion": "c"} | ({} if s is None else {"chat_template_kwargs": s})
               for n, s in enumerate(settings)]  # fmt: skip
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_of_a_row_as_object_or_text_and_of_a_domain_where_the_row_says_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", None, {"enable_thinking": True}, '{"enable_thinking": true, "x": null}')
    config = parse_config({
        "domains": [{"name": "a", "path": source, "chat_template_kwargs": OFF}, {"name": "b", "path": source}],
        "capabilities": [{"name": "a", "path": source}],
    })  # fmt: skip
    assert parse_config(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert "enable_thinking: false" in dump_config(config)
    of_domain, plain = ([r.settings for r in read_rows(source, format=d.format)] for d in config.domains)
    assert of_domain == [OFF, {"enable_thinking": True}, {"enable_thinking": True}]
    assert plain == [{}, {"enable_thinking": True}, {"enable_thinking": True}]
    keys = [[r.key for r in read_rows(source, format=d.format)] for d in config.domains]
    assert keys[0][0] != keys[1][0]
    assert keys[0][1:] == keys[1][1:]
    reader = SourceReader(source, format=config.domains[0].format)
    again = tmp_path / "again.jsonl"
    rows = [row for _, row in reader]
    again.write_text("".join(json.dumps(chat_record(r.messages, r.tools, r.settings)) + "\n" for r in rows))
    assert [r.key for r in read_rows(again)] == keys[0]
    assert reader.tally.used == {"settings of the chat template (enable_thinking)": 3}
    assert not reader.tally.unused


def test_what_is_no_setting_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *[None] * 9, "not JSON", [1], {"tokenize": True})
    reader = SourceReader(source)
    assert len(list(reader)) == 9
    assert {reason: count for reason, (count, _) in reader.tally.bad.items()} == {
        "JSON text is broken": 1, "broken chat_template_kwargs": 2,
    }  # fmt: skip
    with pytest.raises(UserError, match="the run file: 'chat_template_kwargs' holds the key 'tools'"):
        SourceReader(source, format='chat chat_template_kwargs:{"tools": 1}')


def test_rows_that_are_written_keep_them_and_have_one_schema(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", None, None)
    domains = []
    for name, format in (("off", 'auto chat_template_kwargs:{"enable_thinking": false}'), ("unsaid", "auto")):
        reader = SourceReader(source, format=format)
        keys = [row.key for _, row in reader]
        from ideal_proxy.data import source_fingerprint

        domains.append(DomainVolume(
            name=name, source=source, format=format, fingerprint=source_fingerprint(keys), available=2, base_rows=2,
            rows=2,
        ))  # fmt: skip
    applied = apply_mixture(MixtureFile(domains=domains), tmp_path / "out")
    written = [json.loads(line) for line in applied.files[0].read_text().splitlines()]
    assert sorted(json.dumps(row["chat_template_kwargs"]) for row in written) == [
        *['{"enable_thinking": false}'] * 2, *['{"enable_thinking": null}'] * 2,
    ]  # fmt: skip
    assert {tuple(row) for row in written} == {("messages", "chat_template_kwargs")}


def test_prompts_with_thoughts_here_and_without_there_are_told() -> None:
    thinking = [Row((Message("user", f"p{n}"), Message("assistant", "a", "hm")), {}, "t") for n in range(3)]
    without = [Row((Message("user", f" P{n}"), Message("assistant", "a")), {}, "w") for n in range(2)]
    report = find_duplicates({"t": thinking, "w": without})
    assert (report.two_minds, report.told_apart) == (2, False)
    assert "2 rows without thoughts ask what rows with thoughts ask too" in str(duplicate_findings(report)[0])
    assert "enable_thinking: false" in str(duplicate_findings(report)[0])
    switched = [Row(row.messages, {}, "w", settings=OFF) for row in without]
    report = find_duplicates({"t": thinking, "w": switched})
    assert (report.two_minds, report.told_apart) == (2, True)
    apart = find_duplicates({"w": without, "v": switched})
    assert apart.two_minds == 0
    assert not apart.between, "rows that differ in their settings are no duplicates"


def test_enable_thinking_of_a_domain_is_short_for_the_settings_of_the_template():
    entry = {"name": "a", "path": "a.jsonl", "enable_thinking": False}
    others = {"domains": [entry, {"name": "b/x", "path": "b.jsonl"}], "capabilities": [{**entry, "name": "c"}]}
    config = parse_config(others)
    for source in (config.domains[0], config.capabilities[0]):
        assert source.format == 'auto chat_template_kwargs:{"enable_thinking": false}'
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    parent = {**others, "domains": [*others["domains"], {"name": "b", "max": "60%"}]}
    with pytest.raises(UsageError, match=r"b is no domain but the parent of some; .*groups: \['b <= 60%'\]"):
        parse_config(parent)
