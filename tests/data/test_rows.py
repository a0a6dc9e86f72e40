"""Reading rows: every format and container gives the same rows, and bad input one sentence with its place."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from ideal_proxy.data import duplicates
from ideal_proxy.data.duplicates import find_duplicates
from ideal_proxy.data.messages import Row, messages_of, row_key, row_keys, source_fingerprint
from ideal_proxy.data.rows import look_through, read_rows, scan
from ideal_proxy.errors import UserError

ALPACA = [
    {"instruction": "Add", "input": "1 2", "output": "3", "source": "x"},
    {"instruction": "Say é🦓", "input": "", "output": "é🦓"},
    {"instruction": "Third", "output": "three"},
]
MESSAGES = [
    (("user", "Add\n\n1 2"), ("assistant", "3")),
    (("user", "Say é🦓"), ("assistant", "é🦓")),
    (("user", "Third"), ("assistant", "three")),
]
CHAT = [{"messages": [{"role": r, "content": c} for r, c in m]} for m in MESSAGES]
SHAREGPT = [
    {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[r], "value": c} for r, c in m]} for m in MESSAGES
]
PROMPT = [{"prompt": m[0][1], "completion": m[1][1]} for m in MESSAGES]
TRL = [{"prompt": c["messages"][:1], "completion": c["messages"][1:]} for c in CHAT]


def key_by_json(messages) -> int:
    """The documented form of a key, written out: SHA-256 over the messages as compact ASCII JSON."""
    text = json.dumps([list(message) for message in messages], ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big")


def test_keys_are_the_hash_of_compact_json_whatever_the_text_holds() -> None:
    every = "".join(map(chr, [*range(0x300), 0x2028, 0xFFFF, 0x1F993]))
    texts = ["", '"', "\\", "\\u00e9", every, *every]
    rows = [(("user", text), ("assistant", text[::-1])) for text in texts]
    rows += [(), (("system", "a"), ("user", "b"), ("assistant", "c"))]
    assert [row_key(row) for row in rows] == [key_by_json(row) for row in rows]
    assert len({row_key(row) for row in rows}) == len(set(rows))


def lines(values) -> bytes:
    return b"".join(json.dumps(v, ensure_ascii=False).encode() + b"\n" for v in values)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("values", "format"),
    [(ALPACA, "alpaca"), (CHAT, "chat"), (SHAREGPT, "chat"), (PROMPT, "prompt"), (TRL, "prompt")],
    ids=["alpaca", "chat", "sharegpt", "prompt", "prompt as messages"],
)
@pytest.mark.parametrize("container", ["jsonl", "jsonl.gz", "json", "json lines", "parquet", "bom", "crlf"])
def test_every_format_in_every_container_gives_the_same_rows(tmp_path, values, format, container, caplog):
    path = tmp_path / "rows.jsonl"
    if container == "parquet":
        path = tmp_path / "rows.parquet"
        parquet.write_table(arrow.Table.from_pylist(values), path)
    elif container == "json":
        path = write(tmp_path / "rows.json", json.dumps(values, indent=1).encode())
    else:
        content = lines(values)
        packed = {"jsonl.gz": gzip.compress(content), "bom": b"\xef\xbb\xbf" + content,
                  "crlf": content.replace(b"\n", b"\r\n") + b"\r\n"}.get(container, content)  # fmt: skip
        path = write(
            tmp_path / f"rows.{ {'jsonl.gz': 'jsonl.gz', 'json lines': 'json'}.get(container, 'jsonl') }", packed
        )
    with caplog.at_level(logging.INFO):
        rows = list(read_rows(path))
    assert [row.pairs for row in rows] == MESSAGES
    assert f"{format} format" in caplog.text
    assert scan(path).format == format
    assert [row.pairs for row in read_rows(path, format=format)] == MESSAGES
    assert scan(path).fingerprint == source_fingerprint([row_key(m) for m in MESSAGES])


def test_keys_are_the_documented_hash_and_tell_roles_from_content():
    text = '[["user","a\\u00e9"],["assistant","b"]]'
    row = Row(messages_of((("user", "aé"), ("assistant", "b"))), {}, "x:1")
    assert row.key == int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    others = [(("user", "aéb"), ("assistant", "")), (("system", "aé"), ("assistant", "b")), (("user", "aé"),)]
    assert len({row.key, *map(row_key, others)}) == 4
    assert row_keys([row]).dtype == np.uint64
    keys = [row_key(m) for m in MESSAGES]
    prints = {source_fingerprint(k) for k in (keys, keys[::-1], keys[:-1], [*keys, keys[0]])}
    assert len(prints) == 4
    assert source_fingerprint([1]) == hashlib.sha256((1).to_bytes(8, "big")).hexdigest()


def test_where_names_file_and_line_past_blank_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", b"\n" + lines(ALPACA[:1]) + b"  \n" + lines(ALPACA[1:2]))
    assert [row.where for row in read_rows(path)] == [f"{path}:2", f"{path}:4"]
    assert next(iter(read_rows(path))).raw == ALPACA[0]


def test_globs_and_folders_are_read_in_name_order_and_held_out_files_passed_over(tmp_path):
    for name, value in [("b", 1), ("a", 0), ("deep/c", 2), ("test", 9), (".hidden", 9)]:
        write(tmp_path / "set" / f"{name}.jsonl", lines([{"prompt": "p", "completion": str(value)}]))
    write(tmp_path / "set" / "notes.txt", b"nothing")
    answers = [row.answer for row in read_rows(tmp_path / "set")]
    assert answers == ["0", "1", "2"]
    assert [row.answer for row in read_rows(f"{tmp_path}/set/[ab].jsonl")] == ["0", "1"]
    write(tmp_path / "set" / "train-0.jsonl", lines([{"prompt": "p", "completion": "train"}]))
    info = scan(tmp_path / "set")
    assert (info.rows, [Path(f).name for f in info.files]) == (1, ["train-0.jsonl"])
    write(tmp_path / "only" / "reference.jsonl", lines(PROMPT))
    assert scan(tmp_path / "only").rows == 3


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path, caplog):
    empty = [{"prompt": "p", "completion": c} for c in ("", " \n", None)]
    path = write(tmp_path / "a.jsonl", lines([empty[0], *PROMPT, *empty[1:]]))
    info = scan(path)
    assert (info.rows, info.without_answer) == (3, 3)
    assert info.tally.lines() == ["3 rows left out: no answer"], "told by the caller, and once"
    assert not [entry for entry in caplog.records if entry.levelname == "WARNING"]
    path = write(tmp_path / "b.jsonl", lines(empty))
    with pytest.raises(UserError, match=r"none of the 3 rows .* has an answer; fill the `completion`"):
        scan(path)


def test_system_text_and_dialogues(tmp_path):
    said = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    parts = [{"role": r, "content": [{"type": "text", "text": c}] if r == "user" else c} for r, c in said]
    (row,) = read_rows(write(tmp_path / "a.jsonl", lines([{"messages": parts, "conversations": None}])))
    assert row.pairs == tuple(said)
    assert (row.prompt, row.answer) == ("s\na\nb\nc", "d")
    (row,) = read_rows(
        write(tmp_path / "b.jsonl", lines([{"system": "s", "instruction": "", "input": "a", "output": "b"}]))
    )
    assert row.pairs == tuple(said[:3])


BAD = {
    "broken line": (lines(ALPACA[:1]) + b'{"instruction": "x", "outp\n', r"a\.jsonl:2 is not valid JSON \(.*column"),
    "not an object": (b"[1, 2]\n", r"a\.jsonl:1 holds a list, not a JSON object"),
    "not UTF-8": (lines(ALPACA[:2]) + b'{"instruction": "\xff"}\n', r"a\.jsonl:3 is not UTF-8 \(byte 18"),
    "UTF-16": ('{"prompt": 1}\n'.encode("utf-16"), r"a\.jsonl:1 is not UTF-8"),
    "half a character": (b'{"prompt": "a", "completion": "\\ud83e"}\n', r"a\.jsonl:1: 'completion' holds half a char"),
    "empty": (b"", "has no rows"),
    "blank": (b"\n \n", "has no rows"),
    "unknown columns": (b'{"question": "a", "text": "b"}\n', r"a\.jsonl:1: columns question, text are no known format"),
    "missing column": (
        lines(ALPACA) + b'{"instruction": "a"}\n',
        r"a\.jsonl:4: column 'output' is missing \(found instr",
    ),
    "number": (b'{"prompt": "a", "completion": 3.5}\n', r"a\.jsonl:1: 'completion' holds a number; it must be text"),
    "role": (lines([{"messages": [{"role": "judge", "content": "a"}]}]), r"messages\[0\] has the role 'judge'"),
    "no role": (lines([{"messages": [{"content": "a"}]}]), r"messages\[0\] has no role and content"),
    "no message": (lines([{"messages": ["hello"]}]), r"messages\[0\] holds text"),
    "deep": (b"[" * 100_000 + b"\n", r"a\.jsonl:1 is (nested too deeply|not valid JSON)"),
    "long number": (
        lines(ALPACA[:1]) + b'{"id": ' + b"1" * 5000 + b"}\n",
        r"a\.jsonl:2 holds a whole number that is too",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_get_one_sentence_with_the_place(tmp_path, name):
    content, words = BAD[name]
    path = write(tmp_path / "a.jsonl", content)
    with pytest.raises(UserError, match=words) as caught:
        list(read_rows(path, on_bad_rows="refuse"))
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # what is wrong; what to do
    assert caught.value.exit_code == 1


def test_bad_files_and_paths(tmp_path):
    (tmp_path / "empty").mkdir()
    half = gzip.compress(lines(ALPACA * 50))
    cases = [
        (tmp_path / "no.jsonl", "does not exist"),
        (tmp_path / "empty", "has no data file"),
        (f"{tmp_path}/*.jsonl", "no data file matches"),
        ("*" + "a/" * 1800, r"^.{,300} \(maximum recursion depth exceeded.*; check the path"),
        ("a" * 5000, r"^cannot look for a{100,200}\.\.\. \(File name too long\); check the path"),
        (write(tmp_path / "a.txt", b"a,b\n"), "is not a data file"),
        (write(tmp_path / "a.csv", b"a,b\n"), "has no rows"),
        (write(tmp_path / "b.parquet", b"PAR1 nonsense"), "broken parquet file"),
        (write(tmp_path / "c.jsonl.gz", half[: len(half) // 2]), "broken gzip file"),
        (write(tmp_path / "d.jsonl.gz", b"plain"), "broken gzip file"),
        (write(tmp_path / "e.json", b'[{"prompt": "a",\n "completion": }]'), r"e\.json:2 is not valid JSON"),
        (write(tmp_path / "f.json", b"[" + b"1" * 5000 + b"]"), r"f\.json holds a whole number that is too long"),
    ]
    for source, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            scan(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="must be auto, alpaca, chat or prompt"):
        scan(tmp_path, format="csv")


def test_a_format_given_overrides_what_is_found(tmp_path):
    both = {"instruction": "i", "output": "o", "prompt": "p", "completion": "c"}
    path = write(tmp_path / "a.jsonl", lines([both]))
    assert next(iter(read_rows(path))).answer == "o"
    assert next(iter(read_rows(path, format="prompt"))).answer == "c"
    assert next(iter(read_rows(path, format="chat"))).answer == "o", "a row without those columns is read by its own"
    path = write(tmp_path / "b.jsonl", lines([{"prompt": "p"}]))
    with pytest.raises(UserError, match="column 'messages' is missing"):
        list(read_rows(path, format="chat"))


def rows_of(*pairs: tuple[str, str], name: str = "f") -> list[Row]:
    return [Row(messages_of((("user", a), ("assistant", b))), {}, f"{name}:{n + 1}") for n, (a, b) in enumerate(pairs)]


def test_duplicates_and_leaks_are_counted_after_space_and_case_are_evened():
    domains = {
        "a": rows_of(("Sum 1", "2"), ("sum  1\n", "2"), ("other", "x"), ("SUM 1", "3"), name="a"),
        "b": rows_of(("OTHER", " X"), ("new", "y"), ("other", "x"), name="b"),
        "c": rows_of(("c", "z"), name="c"),
    }
    references = {
        "r": rows_of(("new", "Y"), ("sum 1", "9"), ("sum 1", "3"), ("fresh", "2"), name="r"),
        "s": rows_of(("ne", "wy"), name="s"),
    }
    report = find_duplicates(domains, references)
    assert report.within == {"a": 1, "b": 1, "c": 0}
    assert report.between == {("a", "b"): 2}
    assert report.leaks == {("r", "a"): 1, ("r", "b"): 1}
    assert report.prompt_leaks == {("r", "a"): 2, ("r", "b"): 1}
    assert report.examples == {("r", "a"): ("r:2", "a:1"), ("r", "b"): ("r:1", "b:2")}
    assert report.any
    assert not find_duplicates({"c": domains["c"]}, {"s": references["s"]}).any


def test_of_many_rows_sixteen_bytes_are_kept_and_few_more_needed(monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 700)
    drawn = np.random.default_rng(0).integers(0, 9_000, (2, 6_000))
    finder = duplicates.DuplicateFinder(["a", "b"], {"r": rows_of(("8", "8"), ("9999", "9999"), name="r")})
    numbers_of = dict(zip("ab", drawn.tolist(), strict=True))
    tracemalloc.start()
    for name, numbers in numbers_of.items():
        for row in rows_of(*((str(n), str(n)) for n in numbers), name=name):
            finder.add(name, row)
    del row
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    report = finder.report()
    more = tracemalloc.get_traced_memory()[1] - kept
    tracemalloc.stop()
    assert kept < 40 * drawn.size
    assert more < 6 * drawn.size
    a, b = map(set, drawn.tolist())
    assert report.within == {"a": 6_000 - len(a), "b": 6_000 - len(b)}
    assert report.between == {("a", "b"): int(np.isin(drawn[1], drawn[0]).sum())}
    assert report.leaks == {("r", name): 1 for name, numbers in (("a", a), ("b", b)) if 8 in numbers}


def test_sft5_has_the_rows_that_its_manifest_says():
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "sft5"
    if not folder.is_dir():
        pytest.skip("the data set sft5 does not stand beside this checkout")
    info = scan(folder / "coding")
    assert (info.rows, info.format, info.without_answer) == (3996, "alpaca", 0)
    assert [Path(f).name for f in info.files] == ["train.jsonl"]
    domain, reference = list(read_rows(folder / "trust")), list(read_rows(folder / "trust" / "reference.jsonl"))
    report = find_duplicates({"trust": domain}, {"trust": reference})
    assert not report.leaks  # its README: no prompt occurs twice, across splits
    assert report.within == {"trust": 0}


def test_a_column_of_settings_is_not_the_rows_of_a_table(tmp_path):
    table = {
        "id": ["7", "8"], "prompt": ["What?", "Who?"], "completion": ["That.", "They."],
        "chat_template_kwargs": [{"enable_thinking": True}, {"enable_thinking": False}],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(table), encoding="utf-8")
    found = list(read_rows(tmp_path / "a.json"))
    assert [row.messages[-1].content for row in found] == ["That.", "They."]
    assert [row.settings["enable_thinking"] for row in found] == [True, False]
    del table["prompt"], table["completion"]
    (tmp_path / "b.json").write_text(json.dumps(table | {"data": [["a?", "a"], ["b?", "b"]]}), encoding="utf-8")
    assert look_through(tmp_path / "b.json").rows == 2
