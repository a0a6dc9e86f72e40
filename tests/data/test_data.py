"""Token rows: truncation, cache and batches, each against a slow reference."""

from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest
from builders import collate
from hypothesis import given, settings
from hypothesis import strategies as st

from ideal_proxy.data.messages import messages_of
from ideal_proxy.data.rows import Row, row_key
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.data.tokenizing import tokenize_rows
from ideal_proxy.data.tokens import TokenRows
from ideal_proxy.errors import UserError


@pytest.fixture(scope="module")
def template():
    return make_template(train_tokenizer(["a b c d e f g h one two three"] * 2, 300))


def row(*turns: str, where: str = "f:1") -> Row:
    roles = ["user", "assistant"] * len(turns)
    return Row(messages_of(zip(roles, turns, strict=False)), {}, where)


def shown(template, rows: TokenRows, n: int) -> tuple[str, str]:
    part = slice(rows.offsets[n], rows.offsets[n + 1])
    ids, on = rows.ids[part], rows.supervised[part]
    return template.tokenizer.decode(ids), template.tokenizer.decode(ids[on])


def test_arrays_lie_end_to_end_and_agree_with_the_template(template):
    rows = [row("a b", "c"), row("one two three", "d e\nf", "g", "h"), row("é", "🦓")]
    made = tokenize_rows(rows, template, 100)
    assert (made.ids.dtype, made.supervised.dtype, made.offsets.dtype) == (np.int32, np.bool_, np.int64)
    assert (made.keys.dtype, len(made), made.truncated, made.dropped) == (np.uint64, 3, 0, 0)
    assert made.keys.tolist() == [row_key(r.messages) for r in rows]
    assert made.source_index.tolist() == [0, 1, 2]
    for n, r in enumerate(rows):
        ids, on = template.encode(r.messages)
        part = slice(made.offsets[n], made.offsets[n + 1])
        assert (made.ids[part].tolist(), made.supervised[part].tolist()) == (ids, on)
        assert made.lengths[n] == len(ids)
        assert made.supervised_tokens[n] == sum(on)
    assert shown(template, made, 1)[1] == "d e\nf<|end|>h<|end|>"


def test_a_row_that_does_not_fit_loses_prompt_from_the_left_first(template, caplog):
    letters = "1234567890"  # digits are tokens of their own
    one = row(letters, "123")
    whole, _ = template.encode(one.messages)
    assert len(whole) == 1 + 10 + 1 + 1 + 3 + 1
    for context in range(5, len(whole)):
        made = tokenize_rows([one], template, context)
        text, said = shown(template, made, 0)
        assert said == "123<|end|>"
        assert made.ids.tolist() == whole[-context:]
        assert (made.truncated, made.answers_cut) == (1, 0)
        assert text.endswith("<|assistant|>123<|end|>")
    assert not caplog.records
    made = tokenize_rows([one, row("1", "2")], template, 4)  # one token stays before the answer, to predict it from
    assert shown(template, made, 0) == ("<|assistant|>123", "123")
    assert (made.truncated, made.answers_cut) == (2, 1)


def test_a_dialogue_loses_whole_earlier_answers_never_the_beginning_of_one(template):
    talk = row("12", "3456", "78", "90")
    whole, mask = template.encode(talk.messages)
    answers = {"3456<|end|>90<|end|>", "90<|end|>"}
    seen = set()
    for context in range(4, len(whole) + 1):
        made = tokenize_rows([talk], template, context)
        assert made.lengths[0] <= context
        text, said = shown(template, made, 0)
        assert said in answers
        assert template.tokenizer.decode(whole).endswith(text)
        lost = sum(mask) - made.supervised_tokens[0]
        assert made.answers_cut == (lost > 0)
        seen.add(said)
        if said == "90<|end|>":
            assert not text.startswith(("3", "4", "5", "6"))
    assert seen == answers


def test_begin_of_text_stays_when_the_prompt_is_cut():
    made = train_tokenizer(["a b c"] * 2, 300)
    made.add_special_tokens({"bos_token": "<s>"})
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    template = make_template(made)
    assert not template.plain
    for context, text in [(8, "<s>0<|end|><|assistant|>123<|end|>"), (5, "<s>123<|end|>"), (4, "<s>123")]:
        rows = tokenize_rows([row("1234567890", "123")], template, context)
        assert shown(template, rows, 0)[0] == text
        assert shown(template, rows, 0)[1] == "123" + "<|end|>" * (context > 4)


def test_rows_without_a_supervised_token_are_dropped_and_counted(template, caplog):
    rows = [row("a", "b"), row("a", " "), row("a"), row("c", "d")]
    made = tokenize_rows(rows, template, 50)
    assert (len(made), made.dropped, made.source_index.tolist()) == (2, 2, [0, 3])
    assert made.keys.tolist() == [rows[0].key, rows[3].key]
    assert made.told == {"left out, no token of it carries loss": 2}
    assert not caplog.records, "told by the caller, and once"
    assert len(tokenize_rows([], template, 50)) == 0


def test_rows_that_the_template_refuses_are_left_out_and_counted_up_to_a_tenth(template, caplog):
    made = train_tokenizer(["a"], 300)
    made.chat_template = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('odd') }}"
        "{% endif %}{{ m['content'] + '<|end|>' }}{% endfor %}"
    )
    caplog.set_level("INFO")
    odd = Row(messages_of([("assistant", "a"), ("user", "b"), ("assistant", "c")]), {}, "mine.jsonl:7")
    rows = [odd, *(row("a", str(n)) for n in range(20)), odd]
    kept = tokenize_rows(rows, make_template(made), 50)
    assert (len(kept), kept.refused, kept.source_index.tolist()) == (20, 2, list(range(1, 21)))
    assert (
        "2 rows: left out, refused by the chat template, as turns do not alternate (first: mine.jsonl:7: turns"
        in caplog.text
    )
    with pytest.raises(UserError, match=r"refuses 2 of 12 rows, more than 10% .the first: mine\.jsonl:7: .*\(odd\)"):
        tokenize_rows(rows[:11] + rows[-1:], make_template(made), 50)
    with pytest.raises(UserError, match="at least 2"):
        tokenize_rows(rows, template, 1)


def same(a: TokenRows, b: TokenRows) -> bool:
    arrays = ("ids", "supervised", "offsets", "keys", "source_index")
    counts = ("truncated", "dropped", "answers_cut")
    equal = all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays)
    return equal and all(getattr(a, n) == getattr(b, n) for n in counts)


def test_the_cache_gives_back_the_same_rows_mapped_and_is_keyed_by_all_that_matters(template, tmp_path, monkeypatch):
    rows = [row("1234567890", "123"), row("a", "b"), row("a", "")]
    first = tokenize_rows(rows, template, 8, tmp_path)
    monkeypatch.setattr(type(template), "tokens_of", lambda *_: pytest.fail("tokenised although cached"))
    again = tokenize_rows(rows, template, 8, tmp_path)
    assert same(first, again)
    assert isinstance(again.ids, np.memmap)
    assert not again.ids.flags.writeable
    monkeypatch.undo()
    other = make_template(train_tokenizer(["x y"], 280))
    for changed in [(rows, template, 9), (rows[::-1], template, 8), (rows[:2], template, 8), (rows, other, 8)]:
        tokenize_rows(*changed, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("damage", ["flipped byte", "cut", "no meta", "half meta", "other dtype", "stray file"])
def test_a_damaged_cache_entry_is_made_anew(template, tmp_path, caplog, damage):
    rows = [row("a b c", "d e f"), row("g", "h")]
    first = tokenize_rows(rows, template, 50, tmp_path)
    (entry,) = tmp_path.iterdir()
    ids = entry / "ids.npy"
    if damage == "flipped byte":
        content = bytearray(ids.read_bytes())
        content[-3] ^= 1
        ids.write_bytes(content)
    elif damage == "cut":
        os.truncate(ids, ids.stat().st_size - 5)
    elif damage == "no meta":
        (entry / "meta.json").unlink()
    elif damage == "half meta":
        (entry / "meta.json").write_text((entry / "meta.json").read_text()[:20])
    elif damage == "other dtype":
        np.save(ids, first.ids.astype(np.int64))
    else:
        for file in entry.iterdir():
            file.unlink()
        entry.rmdir()
        entry.write_text("a file where a folder belongs")
    with caplog.at_level(logging.WARNING):
        again = tokenize_rows(rows, template, 50, tmp_path)
    assert same(first, again)
    assert "damaged" in caplog.text
    caplog.clear()
    assert same(first, tokenize_rows(rows, template, 50, tmp_path))
    assert not caplog.records
    assert len(list(tmp_path.iterdir())) == 1


def test_save_and_load_say_what_is_wrong(template, tmp_path):
    made = tokenize_rows([row("a", "b")], template, 50)
    made.save(tmp_path / "x")
    assert same(TokenRows.load(tmp_path / "x", mmap=False), made)
    with pytest.raises(UserError, match="cannot be read"):
        TokenRows.load(tmp_path / "y")
    meta = json.loads((tmp_path / "x" / "meta.json").read_text())
    (tmp_path / "x" / "meta.json").write_text(json.dumps(meta | {"format": "tokens/0"}))
    with pytest.raises(UserError, match="not what was written"):
        TokenRows.load(tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        made.save(tmp_path / "file" / "x")


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def random_rows(lengths: list[int], seed: int) -> TokenRows:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    return TokenRows(
        ids=rng.integers(0, 1000, total).astype(np.int32),
        supervised=rng.random(total) < 0.5,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        keys=rng.integers(0, 2**63, len(lengths)).astype(np.uint64),
        source_index=np.arange(len(lengths)),
    )


@settings(max_examples=100, deadline=None)
@given(sizes, st.integers(0, 99), st.data())
def test_batches_equal_a_loop_over_rows(lengths, seed, data):
    rows = random_rows(lengths, seed)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=6))
    batch = collate(rows, chosen)
    ids, position, labels, starts = [], [], [], [0]
    for n in chosen:
        one = rows.ids[rows.offsets[n] : rows.offsets[n + 1]].tolist()
        on = rows.supervised[rows.offsets[n] : rows.offsets[n + 1]].tolist()
        ids += one
        position += range(len(one))
        labels += [one[t + 1] if on[t + 1] else -100 for t in range(len(one) - 1)] + [-100]
        starts.append(len(ids))
    assert batch.input_ids.tolist() == ids
    assert batch.position_ids.tolist() == position
    assert batch.labels.tolist() == labels
    assert batch.starts.tolist() == starts
    assert batch.rows.tolist() == chosen
    assert {a.dtype for a in (batch.input_ids, batch.labels, batch.position_ids, batch.starts, batch.rows)} == {
        np.dtype(np.int64)
    }


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(0, 99), st.data())
def test_selecting_rows_equals_taking_them_one_by_one(lengths, seed, data):
    rows = random_rows(lengths, seed)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    part = rows.select(chosen)
    assert len(part) == len(chosen)
    for k, n in enumerate(chosen):
        here, there = slice(*part.offsets[k : k + 2]), slice(*rows.offsets[n : n + 2])
        assert part.ids[here].tolist() == rows.ids[there].tolist()
        assert part.supervised[here].tolist() == rows.supervised[there].tolist()
        assert (part.keys[k], part.source_index[k]) == (rows.keys[n], n)
    assert part.supervised_tokens.sum() == part.supervised.sum()
    mask = np.isin(np.arange(len(lengths)), chosen)
    assert same(rows.select(mask), rows.select(np.flatnonzero(mask)))


def test_a_batch_trains_on_every_supervised_token_of_a_tokenised_row(template):
    rows = tokenize_rows([row("a", "b c"), row("1234567890", "123")], template, 7)
    batch = collate(rows, [1, 0, 1])
    counts = np.add.reduceat(batch.labels >= 0, batch.starts[:-1])
    assert counts.tolist() == rows.supervised_tokens[[1, 0, 1]].tolist()
    assert template.tokenizer.decode(batch.labels[batch.labels >= 0]) == "123<|end|>b c<|end|>123<|end|>"
