"""Fast keys of whole blocks: the same rows, keys and errors as the reader that parses every row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideal_proxy.data.rows import ROLES, SourceReader
from ideal_proxy.errors import UserError
from ideal_proxy.mixture import line_keys
from ideal_proxy.mixture.line_keys import BrokenLineError, block_rows, chat_lines


def by_reader(path: Path, block: bytes, format: str) -> tuple[list[tuple[int, bytes]], int, list[dict[str, Any]]]:
    """The slow reference: key and line of every row, rows left out, and the rows as messages."""
    path.write_bytes(block)
    reader = SourceReader(path, format=format)
    found = [(row.key, record.line or b"", row.messages) for record, row in reader]
    chat = [{"messages": [{"role": r, "content": c} for r, c in messages]} for *_, messages in found]
    return [(key, line) for key, line, _ in found], reader.without_answer, chat


def same(path: Path, block: bytes, format: str) -> bool:
    """Compare with the reference; tell whether there were rows."""
    try:
        expected, without, chat = by_reader(path, block, format)
    except UserError as error:
        if "has an answer" in str(error) or "has no rows" in str(error):
            assert len(block_rows(block, format).keys) == 0
        else:
            with pytest.raises(BrokenLineError):
                block_rows(block, format)
        return False
    rows = block_rows(block, format)
    assert rows.keys.dtype == np.uint64
    assert rows.keys.tolist() == [key for key, _ in expected]
    content = block if block.endswith(b"\n") else block + b"\n"
    lines = [content[s : s + n] for s, n in zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True)]
    assert lines == [line if line.endswith(b"\n") else line + b"\n" for _, line in expected]
    assert rows.without_answer == without
    assert chat_lines(block, format) == [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in chat]
    return True


# Text that tries every rule: blanks of every kind, quotes, escapes, controls, DEL, letters of two to four bytes.
texts = st.one_of(
    st.text(st.sampled_from('ab "\\/\n\t\r\b\f\v\x00\x1c\x7f\x85\xa0é\u2028\u3000\ud7ff\ufeff🦓{}[],:'), max_size=12),
    st.text(max_size=8),
    st.sampled_from(["", " ", "plain text", 'x"],["user","y', 'a","b', '"}, {"role"', "\\u00e9", "\\"]),
)
others = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=True), texts, st.lists(st.integers(), max_size=2)
)
roles = st.sampled_from([*ROLES, "User", "GPT"])


@st.composite
def alpaca(draw: st.DrawFn) -> dict[str, Any]:
    row: dict[str, Any] = {"instruction": draw(texts), "output": draw(texts)}
    if draw(st.booleans()):
        row["input"] = draw(st.one_of(st.none(), texts))
    if draw(st.booleans()):
        row["system"] = draw(st.one_of(st.none(), texts))
    return row


prompts = st.fixed_dictionaries({"prompt": texts, "completion": texts})
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": texts}), max_size=4)
chats = st.fixed_dictionaries({"messages": messages})
sharegpt = st.fixed_dictionaries({
    "conversations": st.lists(st.fixed_dictionaries({"from": roles, "value": texts}), max_size=4)
})
KINDS = {"alpaca": alpaca(), "prompt": prompts, "chat": st.one_of(chats, sharegpt)}
writers = st.sampled_from([
    lambda row: json.dumps(row),
    lambda row: json.dumps(row, ensure_ascii=False),
    lambda row: json.dumps(row, separators=(",", ":")),
    lambda row: json.dumps(row, ensure_ascii=False, separators=(" , ", " : ")),
    lambda row: json.dumps(row).replace("/", "\\/").replace("\\u00e9", "\\u00E9"),
])


@settings(max_examples=250, deadline=None)
@given(st.data(), st.sampled_from(sorted(KINDS)))
def test_blocks_give_the_rows_of_the_reader_whatever_they_hold(tmp_path_factory, data, format):
    path = tmp_path_factory.getbasetemp() / "block.jsonl"
    columns = data.draw(st.dictionaries(st.sampled_from(["id", "source", 'a "b"', "é", "score"]), others, max_size=2))
    lines = []
    for row in data.draw(st.lists(KINDS[format], min_size=1, max_size=5)):
        extra = (
            columns if data.draw(st.booleans()) else data.draw(st.fixed_dictionaries(dict.fromkeys(columns, others)))
        )
        whole = {**extra, **row} if data.draw(st.booleans()) else {**row, **extra}
        lines.append(data.draw(writers)(whole).encode("utf-8", "surrogatepass"))
        lines += data.draw(st.lists(st.sampled_from([b"", b"  ", b"\r"]), max_size=1))
    end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    same(path, end.join(lines) + data.draw(st.sampled_from([b"", end])), format)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(sorted(KINDS)))
def test_a_byte_changed_anywhere_never_makes_a_difference_to_the_reader(tmp_path_factory, data, format):
    """Lines that are nearly right: the fast way may not accept what the parser refuses, nor read it otherwise."""
    rows = data.draw(st.lists(KINDS[format], min_size=2, max_size=3))
    block = bytearray(b"".join(json.dumps({**row, "id": 7, "s": "t"}).encode() + b"\n" for row in rows))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(0, len(block) - 1))
        block[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.one_of(st.binary(max_size=2), st.sampled_from([b'"', b"\\", b"\n", b"\\u", b"0", b"{}", b'"id": 1, ']))
        )
    same(tmp_path_factory.getbasetemp() / "block.jsonl", bytes(block), format)


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("alpaca", {"instruction": "i", "input": "", "output": "o", "id": 3, "source": "s", "score": 0.5, "x": None}),
        ("alpaca", {"system": "s", "instruction": "i\n\"é\"", "input": "more", "output": "o\u2028"}),
        ("prompt", {"id": "a/b", "prompt": "p", "completion": "c"}),
        ("chat", {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "é"}], "ok": True}),
        ("chat", {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "v"}]}),
    ],
)  # fmt: skip
def test_usual_lines_are_not_parsed(tmp_path, monkeypatch, format, row):
    """Else the property tests would prove nothing of the fast way."""
    block = (json.dumps(row) + "\n").encode() * 3
    assert same(tmp_path / "a.jsonl", block, format)
    monkeypatch.setattr(line_keys, "_parsed", lambda *_: pytest.fail("a usual line was parsed"))
    assert len(block_rows(block, format).keys) == 3
    assert len(set(block_rows(block, format).keys.tolist())) == 1


def test_one_unusual_line_does_not_slow_the_others(tmp_path, monkeypatch):
    usual = [json.dumps({"prompt": f"p{n}", "completion": "c"}) for n in range(5)]
    block = "\n".join([*usual[:3], '{"completion":"c" , "prompt":"é"}', *usual[3:]]).encode()
    assert same(tmp_path / "a.jsonl", block, "prompt")
    parsed = []
    real = line_keys._parsed
    monkeypatch.setattr(line_keys, "_parsed", lambda line, format: parsed.append(line) or real(line, format))
    assert len(block_rows(block, "prompt").keys) == 6
    assert len(parsed) == 1


def test_an_empty_block_has_no_rows():
    assert [len(part) for part in block_rows(b"", "prompt")[:3]] == [0, 0, 0]
    assert chat_lines(b"\n\n", "prompt") == []
