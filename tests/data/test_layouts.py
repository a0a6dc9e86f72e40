"""Folders as people have them: small copies of well-known layouts through `init`, `check` and `preview`, as a newcomer.

The domains, their rows, what is told, and which words carry loss are asserted; the sets' rows are ours.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from builders import run, write_rows

from ideal_proxy.config import load_config
from ideal_proxy.data.layout import look
from ideal_proxy.data.rows import read_rows
from ideal_proxy.errors import UserError

N = 60
Rows = list[dict[str, Any]]


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def asked(n: int, answer: str | None = None) -> list[dict[str, Any]]:
    return [turn("user", f"Question {n}?"), turn("assistant", answer or f"Answer {n}.")]


def table(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(rows), path)


def whole(path: Path, rows: Rows, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, **options), encoding="utf-8")


class Newcomer:
    """Somebody who tries the first three commands on a folder beside one set of words."""

    def __init__(self, place: Path, folder: str = "data") -> None:
        self.place, self.data = place, place / folder
        words = [{"messages": asked(n, f"word {n}")} for n in range(1000, 1000 + N)]
        write_rows(self.data / "words.jsonl", words[:40])
        write_rows(self.data / "words.reference.jsonl", words[40:])

    def _run(self, *arguments: str) -> str:
        done = run(*arguments, cwd=self.place)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def init(self, *more: str) -> str:
        return " ".join(self._run("init", str(self.data), "--force", *more).split())

    def check(self) -> dict[str, tuple[int, int]]:
        """Rows of every domain, and how many of them `check` lists as cut."""
        health = json.loads(self._run("check", "mix.yaml", "--json"))
        self.findings = health["findings"]
        assert not any("cannot be read" in finding for finding in self.findings)
        return {entry["name"]: (entry["rows"], entry["truncated"]) for entry in health["domains"]}

    def supervised(self, domain: str, rows: int = 2) -> list[list[str]]:
        """The words that carry loss in the first rows of a domain."""
        shown = json.loads(self._run("preview", "mix.yaml", "--domain", domain, "--rows", str(rows), "--json"))
        assert all(one["left_out"] is None for one in shown)
        return [[one["text"][start:end] for start, end in one["supervised"]] for one in shown]

    def pairs(self, domain: str) -> list[tuple[tuple[str, str], ...]]:
        entry = next(d for d in load_config(self.place / "mix.yaml").domains if d.name == domain)
        return [row.pairs for row in read_rows(entry.path, format=entry.format)]


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    return Newcomer(tmp_path)


def test_packed_rows_that_are_read_are_not_said_to_be_passed_over(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        (tmp_path / "algebra").mkdir(exist_ok=True)
        with gzip.open(tmp_path / "algebra" / f"{part}.jsonl.gz", "wt", encoding="utf-8") as handle:
            handle.writelines(f'{{"prompt": "{part} {n}", "completion": "a"}}\n' for n in range(20))
    assert look(tmp_path).passed_over == []
    (tmp_path / "algebra" / "more.jsonl.zip").write_bytes(b"PK")
    assert "algebra/ in part" in look(tmp_path).passed_over[0]


def test_tulu_3(newcomer):
    """Two parquet shards of one repository, with a source a row."""
    rows = [{"id": f"t{n}", "messages": asked(n), "source": f"ai2-adapt-dev/{n % 2}"} for n in range(N)]
    place = newcomer.data / "tulu-3-sft-mixture"
    for part in range(2):
        table(place / "data" / f"train-{part:05d}-of-00002.parquet", rows[part * 30 : part * 30 + 30])
    (place / "README.md").write_text("---\nlicense: odc-by\n---\n")
    said = newcomer.init()
    assert "tulu-3-sft-mixture: 60 rows (chat), no reference rows" in said
    assert "tulu-3-sft-mixture: not used: id (60 rows), source (60 rows)" in said
    assert "passed over" not in said, "a README is no rows that are not read"
    assert newcomer.check() == {"tulu-3-sft-mixture": (60, 0), "words": (40, 0)}
    assert newcomer.supervised("tulu-3-sft-mixture") == [["Answer 0.<|end|>"], ["Answer 1.<|end|>"]]
    said = newcomer.init("--split-by", "source")
    assert "tulu-3-sft-mixture/ai2-adapt-dev_0: 30 rows (chat)" in said


def test_openhermes(newcomer):
    """One list over 2 million lines, from and value, every key of every source as null."""
    rows = []
    for n in range(N):
        talk = [{"from": "system", "value": "Be kind.", "weight": None}] if n % 5 == 0 else []
        talk += [{"from": "human", "value": f"Ask {n}", "weight": None}]
        talk += [{"from": "gpt", "value": f"Told {n}", "weight": None}]
        keys = ("custom_instruction", "topic", "model_name", "views", "language", "id", "title", "idx", "hash")
        more = {"category": "orca" if n % 3 else None, "skip_prompt_formatting": False if n % 2 else None}
        prompt = "Be kind." if n % 5 == 0 else None
        rows.append({**dict.fromkeys(keys), **more, "conversations": talk, "system_prompt": prompt, "source": "x"})
    whole(newcomer.data / "OpenHermes-2.5" / "openhermes2_5.json", rows, indent=2)
    said = newcomer.init()
    assert "OpenHermes-2.5: 60 rows (chat), no reference rows" in said
    assert "OpenHermes-2.5: 12 rows hold a system column (system_prompt)" in said
    for column, rows in (("skip_prompt_formatting", 30), ("source", 60), ("category", 40)):
        assert f"{column} ({rows} rows)" in said
    assert newcomer.check()["OpenHermes-2.5"] == (60, 0)
    assert newcomer.supervised("OpenHermes-2.5") == [["Told 0<|end|>"], ["Told 1<|end|>"]]
    kind, plain = newcomer.pairs("OpenHermes-2.5")[:2]
    assert kind == (("system", "Be kind."), ("user", "Ask 0"), ("assistant", "Told 0"))
    assert plain == (("user", "Ask 1"), ("assistant", "Told 1"))


def test_ultrachat(newcomer):
    """Texts alone, question and answer by turns, in files named train_0 to train_9."""
    rows = [{"id": str(n), "data": [f"q{n}", f"a{n}", f"q{n} more", f"b{n}"][: 4 if n % 2 else 2]} for n in range(N)]
    for part in range(2):
        write_rows(newcomer.data / "ultrachat" / f"train_{part}.jsonl", rows[part * 30 : part * 30 + 30])
    said = newcomer.init()
    assert "ultrachat: no known layout; data as messages is a guess, see that it is right" in said
    assert newcomer.check()["ultrachat"] == (60, 0)
    assert newcomer.supervised("ultrachat") == [["a0<|end|>"], ["a1<|end|>", "b1<|end|>"]]
    assert newcomer.pairs("ultrachat")[59] == tuple(
        zip(("user", "assistant") * 2, ("q59", "a59", "q59 more", "b59"), strict=True)
    )


def test_ultrachat_200k(newcomer):
    """Four splits of one repository, of which two are to train on, with prompt beside messages."""
    more = [turn("user", "Go on."), turn("assistant", "More.")]
    sft = [{"prompt": f"Question {n}?", "prompt_id": f"{n:064x}", "messages": asked(n) + more} for n in range(N)]
    gen = [row | {"messages": row["messages"][:3]} for row in sft]
    for split, rows in (("train_sft", sft), ("test_sft", sft[:20]), ("train_gen", gen), ("test_gen", gen[:20])):
        table(newcomer.data / "ultrachat_200k" / "data" / f"{split}-00000-of-00001-a3ecf92756993583.parquet", rows)
    said = newcomer.init()
    for split in ("gen", "sft"):
        assert f"ultrachat_200k_{split}: 60 rows (chat), 20 reference rows (few)" in said
    assert "holds 2 training splits (ultrachat_200k_gen, ultrachat_200k_sft): are they the same rows?" in said
    assert newcomer.check() == {"ultrachat_200k_gen": (60, 0), "ultrachat_200k_sft": (60, 0), "words": (40, 0)}
    assert newcomer.supervised("ultrachat_200k_sft", 1) == [["Answer 0.<|end|>", "More.<|end|>"]]
    assert newcomer.supervised("ultrachat_200k_gen", 1) == [["Answer 0.<|end|>"]]


def test_xlam(newcomer):
    """Calls and schemas as JSON text; a row may call twice."""
    tools = json.dumps([{"name": "giveaways", "description": "Get", "parameters": {"kind": {"type": "str"}}}])
    calls = [{"name": "giveaways", "arguments": {"kind": "beta"}}, {"name": "giveaways", "arguments": {"kind": "game"}}]
    rows = [
        {"id": n, "query": f"Find {n}", "answers": json.dumps(calls[: 1 + n % 2]), "tools": tools} for n in range(N)
    ]
    whole(newcomer.data / "xlam-60k" / "xlam_function_calling_60k.json", rows)
    said = newcomer.init()
    assert "xlam-60k: 60 rows hold tool calls (tool_calls)" in said
    assert "xlam-60k: 60 rows hold schemas of tools (tools)" in said
    assert "xlam-60k: not used: id (60 rows)" in said
    assert newcomer.check()["xlam-60k"] == (60, 0)
    written = [f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls]
    assert newcomer.supervised("xlam-60k") == [[f"{written[0]}<|end|>"], ["\n".join(written) + "<|end|>"]]


def test_smoltalk(newcomer):
    """Several configurations, each in a folder of its own with train and test, one of them made of the others."""
    names = {"all": "source", "everyday-conversations": "full_topic", "smol-magpie-ultra": "category"}
    for number, (name, column) in enumerate(names.items()):
        rows = [{"messages": asked(n + 100 * number), column: "x"} for n in range(N)]
        table(newcomer.data / "smoltalk" / "data" / name / "train-00000-of-00001.parquet", rows[:45])
        table(newcomer.data / "smoltalk" / "data" / name / "test-00000-of-00001.parquet", rows[45:])
    said = newcomer.init()
    assert "smoltalk_all: 45 rows (chat), 15 reference rows (few)" in said
    assert (
        "smoltalk/ holds 3 configurations (smoltalk_all, smoltalk_everyday-conversations, smoltalk_smol-magpie-ultra): "
        "are they the same rows?"
    ) in said
    assert "category (smoltalk_smol-magpie-ultra)" in said
    assert newcomer.check() == {f"smoltalk_{name}": (45, 0) for name in names} | {"words": (40, 0)}
    assert newcomer.supervised("smoltalk_everyday-conversations", 1) == [["Answer 100.<|end|>"]]
    assert newcomer.pairs("smoltalk_all")[44][1] == ("assistant", "Answer 44.")


THINKING = {
    "traces": (lambda n: asked(n, f"<think>\nI add {n}.\n</think>\n\n{n}"), "<think> in an answer"),
    "fields": (lambda n: [turn("user", f"{n}?"), turn("assistant", f"{n}", reasoning_content=f"I add {n}.")],
               "reasoning_content"),
    "gpt-oss": (lambda n: [turn("system", "Be short.", thinking=None), turn("user", f"{n}?", thinking=None),
                           turn("assistant", f"{n}", thinking=f"I add {n}.")], "thinking"),
    "harmony": (lambda n: [turn("user", f"{n}?"), turn("assistant", f"I add {n}.", channel="analysis"),
                           turn("assistant", f"{n}", channel="final")], "channel"),
    "parts": (lambda n: [turn("user", f"{n}?"), turn("assistant", [{"type": "thinking", "thinking": f"I add {n}."},
                                                                 {"type": "text", "text": f"{n}"}])],
              "in the content"),
}  # fmt: skip


def test_a_thinking_set_in_five_ways(newcomer):
    for name, (talk, _) in THINKING.items():
        write_rows(newcomer.data / f"{name}.jsonl", [{"messages": talk(n)} for n in range(N)])
    said = newcomer.init()
    for name, (_, how) in THINKING.items():
        assert f"{name}: 60 rows hold thoughts ({how})" in said
    assert newcomer.check() == dict.fromkeys(THINKING, (60, 0)) | {"words": (40, 0)}
    for name in THINKING:
        want = [["<think>\nI add 0.\n</think>\n\n0<|end|>"], ["<think>\nI add 1.\n</think>\n\n1<|end|>"]]
        assert newcomer.supervised(name) == want
    assert not any("not used" in finding for finding in newcomer.findings)


# --- what else lies there ---------------------------------------------------------------------------------------


def test_what_this_program_wrote_is_passed_over_and_listed(tmp_path, monkeypatch):
    """A user who works in the folder with the data finds the same domains the second time."""
    monkeypatch.chdir(tmp_path)
    someone = Newcomer(tmp_path, ".")
    write_rows(tmp_path / "sums.jsonl", [{"messages": asked(n), "topic": "xy"[n % 2]} for n in range(N)])
    someone.init("--hold-out", "10")
    assert [d.name for d in load_config(tmp_path / "mix.yaml").domains] == ["sums", "words"]
    for part in ("config.yaml", "provenance.json"):
        (tmp_path / "runs" / "mix" / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "mix" / part).write_text("{}")
    write_rows(tmp_path / "runs" / "mix" / "bad_rows.jsonl", [{"source": "a", "where": "a:1"}])
    write_rows(tmp_path / "mixed" / "train.jsonl", [{"messages": asked(n)} for n in range(9)])
    (tmp_path / "mixed" / "manifest.json").write_text(json.dumps({"format": "ideal-proxy/rows/1"}))
    (tmp_path / "SmolLM" / "checkpoint").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "SmolLM" / name).write_text("{}")
    (tmp_path / "mix_split").mkdir()
    write_rows(tmp_path / "mix_split" / "sums" / "x.jsonl", [{"messages": asked(1)}])
    found = look(tmp_path)
    assert [domain.name for domain in found.domains] == ["sums", "words"]
    assert found.passed_over == [
        "SmolLM/ (a model)",
        "mix_held_out/ (written by init for mix.yaml)",
        "mix_split/ (written by init for mix.yaml)",
        "mixed/ (rows of a mixture, written by ideal-proxy)",
        "runs/mix/ (a run of ideal-proxy)",
    ]
    said = someone.init("--split-by", "topic")
    assert "mix.yaml written with 3 domains" in said
    assert "passed over: runs/mix/ (a run of ideal-proxy)" in said


@pytest.mark.parametrize("held", ["test", "heldout", "held-out", "held_out", "holdout", "validation"])
@pytest.mark.parametrize("joint", ["_", "-", "."])
def test_files_named_train_and_held_out_are_one_domain(tmp_path, held, joint):
    for name in ("law", "tax"):
        for part in ("train", held):
            write_rows(tmp_path / f"{name}{joint}{part}.jsonl", [{"prompt": f"{name} {part}", "completion": "yes"}])
    write_rows(tmp_path / f"alone{joint}train.jsonl", [{"prompt": "q", "completion": "a"}])
    write_rows(tmp_path / f"law2{joint}train.jsonl", [{"prompt": "q", "completion": "a"}])
    write_rows(tmp_path / "law2.jsonl", [{"prompt": "q", "completion": "a"}])
    seen = look(tmp_path)
    assert {domain.name: (domain.train, domain.reference) for domain in seen.domains} == {
        "alone": (tmp_path / f"alone{joint}train.jsonl", None),
        "law": (tmp_path / f"law{joint}train.jsonl", tmp_path / f"law{joint}{held}.jsonl"),
        "law2": (tmp_path / "law2.jsonl", None),
        f"law2{joint}train": (tmp_path / f"law2{joint}train.jsonl", None),
        "tax": (tmp_path / f"tax{joint}train.jsonl", tmp_path / f"tax{joint}{held}.jsonl"),
    }
    assert not seen.passed_over


@pytest.mark.parametrize("file", ["tales.reference.jsonl", "tales_test.csv", "tales-val.json"])
def test_reference_rows_beside_a_folder_of_parts_are_never_trained_on(tmp_path, file):
    for part in ("part0", "part1"):
        write_rows(tmp_path / "tales" / f"{part}.jsonl", [{"prompt": part, "completion": "yes"}])
    write_rows(tmp_path / file, [{"prompt": "q", "completion": "a"}])
    (domain,) = look(tmp_path).domains
    assert (domain.name, domain.train, domain.reference) == ("tales", tmp_path / "tales", tmp_path / file)


def test_reference_rows_beside_a_folder_that_has_some_or_has_splits(tmp_path):
    for file in ("own/train.jsonl", "own/test.jsonl", "own.reference.jsonl", "own_val.jsonl", "two/train_a.jsonl",
                 "two/train_b.jsonl", "two.reference.jsonl"):  # fmt: skip
        write_rows(tmp_path / file, [{"prompt": file, "completion": "yes"}])
    seen = look(tmp_path)
    assert {domain.name: domain.reference for domain in seen.domains} == {
        "own": tmp_path / "own/test.jsonl", "two_a": None, "two_b": None}  # fmt: skip
    assert seen.references == [("two", tmp_path / "two.reference.jsonl")]
    assert seen.passed_over == [f"{f} (own has other reference rows)" for f in ("own.reference.jsonl", "own_val.jsonl")]


def test_every_name_that_stands_twice_is_told(tmp_path):
    for name in ("code", "maths", "law"):
        write_rows(tmp_path / name / "train.jsonl", [{"messages": asked(1)}])
    for name in ("code.jsonl", "code.ndjson", "maths.jsonl"):
        write_rows(tmp_path / name, [{"messages": asked(1)}])
    with pytest.raises(UserError) as caught:
        look(tmp_path)
    said = str(caught.value)
    assert said.count("named") == 2
    assert "code.ndjson are all named 'code'" in said
    assert said.endswith("maths.jsonl are both named 'maths'; rename all of one name but one")
    assert "law" not in said


def test_one_object_with_two_lists_is_told_by_its_keys(tmp_path):
    whole(tmp_path / "a.json", {"train": [{"messages": asked(1)}], "test": [{"messages": asked(2)}]}, indent=1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"with 2 lists of rows \(train, test\); write each into a file of its own"):
        list(read_rows(tmp_path / "a.json"))


def test_splits_are_told_apart_by_any_word_and_parts_are_not(tmp_path):
    def talks(first: int) -> Rows:
        return [{"messages": asked(n)} for n in range(first, first + 5)]

    layouts = {
        "languages": ("train-en", "train-de", "test-en"), "versions": ("train_v1", "train_v2"),
        "shards": ("train_0", "train_1"), "pieces": ("train_part0", "train_part1", "test_part0"),
        "more": ("train", "train-extra", "test"), "topics": ("train-tickets", "python"),
    }  # fmt: skip
    for folder, names in layouts.items():
        for number, name in enumerate(names):
            write_rows(tmp_path / folder / f"{name}.jsonl", talks(10 * number))
    found = look(tmp_path)
    assert [domain.name for domain in found.domains] == [
        "languages_de", "languages_en", "more", "more_extra", "pieces", "shards", "topics",
        "versions_v1", "versions_v2",
    ]  # fmt: skip
    assert [question.split(" training")[0] for question in found.questions] == [
        "languages/ holds 2", "more/ holds 2", "versions/ holds 2",
    ]  # fmt: skip
    assert found.passed_over == []
    rows = {domain.name: len(list(read_rows(domain.train))) for domain in found.domains}
    assert rows == dict.fromkeys(rows, 5) | {"pieces": 10, "shards": 10, "topics": 10}


def test_what_is_left_out_is_told_where_init_writes_the_rows_anew(newcomer):
    rows = [{"messages": asked(n), "label": n % 2 == 0, "topic": "ab"[n // 2 % 2]} for n in range(80)]
    write_rows(newcomer.data / "kto.jsonl", rows)
    for options in (["--hold-out", "5"], ["--split-by", "topic"]):
        said = newcomer.init(*options)
        assert f"kto: 40 rows left out: preference rows (label is false) (first: {newcomer.data}/kto.jsonl:2)" in said


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"state.json": DEEP, "dataset_info.json": "{}"}, r"state\.json is nested too deeply"),
        ({"dataset_dict.json": DEEP}, r"dataset_dict\.json is nested too deeply"),
        ({"dataset_dict.json": '{"splits": ["train"]}'}, r"state\.json is no file"),
        (
            {"state.json": json.dumps({"_data_files": [{"filename": "a\0" * 99}]}), "dataset_info.json": "{}"},
            r"'a\\x00a\\x00.{,60} is no file",
        ),
    ],
)
def test_a_saved_set_that_is_not_whole_is_told(tmp_path, files, why):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"was not saved whole by the datasets library .{why}"):
        list(read_rows(tmp_path))


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe into which nobody writes; reading it fails the test."""
    os.mkfifo(tmp_path / "pipe")
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a pipe was read"))
    signal.alarm(10)
    yield tmp_path / "pipe"
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_what_is_no_file_is_not_read(pipe: Path) -> None:
    for name in ("model", "text"):
        (place := pipe.parent / "data" / name).mkdir(parents=True)
        write_rows(place / "train.jsonl", [{"prompt": "q", "completion": "a"}])
    (place / "manifest.json").symlink_to(pipe)
    (place.parent / "model" / "export.json").write_text(DEEP)
    (place.parent / "rows.jsonl").symlink_to(pipe)
    assert [domain.name for domain in look(place.parent).domains] == ["model", "text"]
    (saved := pipe.parent / "saved" / "train").mkdir(parents=True)
    (saved.parent / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (saved / "state.json").symlink_to(pipe)
    with pytest.raises(UserError, match=r"state\.json is no file"):
        list(read_rows(saved.parent))
