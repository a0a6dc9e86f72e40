"""One schema in one file: `datasets` reads what `apply` writes, whole, by shard and as parquet; so do we."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import read_back

from ideal_proxy.data.rows import read_rows, row_keys, scan
from ideal_proxy.errors import UsageError
from ideal_proxy.mixture.apply import apply_mixture, base_of
from ideal_proxy.mixture.file import DomainVolume, MixtureFile

datasets = pytest.importorskip("datasets", reason="datasets is not installed")


def call(name: str, **arguments: Any) -> list[dict[str, Any]]:
    return [{"id": f"call-{name}", "type": "function", "function": {"name": name, "arguments": arguments}}]


def turns(n: int, **answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n}", **answer}]


ROWS: dict[str, list[dict[str, Any]]] = {
    "alpaca": [{"instruction": f"a{n}", "input": "", "output": f"{n}", "id": n} for n in range(40)],
    "plain": [{"messages": turns(n), "id": f"m{n}"} for n in range(40)],
    "prompt": [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(40)],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": f"s{n}"}, {"from": "gpt", "value": "x"}], "system": "be kind"}
        for n in range(40)
    ],
    "thoughts": [{"messages": turns(n, reasoning_content=f"hm {n}")} for n in range(40)],
    "calls": [
        {
            "messages": turns(n, tool_calls=call("add", x=n, y="two") if n % 2 else call("find", x=f"{n}", deep=[1])),
            "tools": [{"type": "function", "function": {"name": "add", "parameters": {"x": {"type": "integer"}}}}],
        }
        for n in range(40)
    ],
    "untrained": [{"messages": [*turns(n, weight=0), *turns(n + 100)]} for n in range(40)],
}


def made(folder: Path, names: list[str]) -> MixtureFile:
    domains = []
    for name in names:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]), encoding="utf-8")
        info = scan(path)
        domains.append(DomainVolume(
            name=name, source=str(path), fingerprint=info.fingerprint, available=info.rows, rows=60, base_rows=info.rows
        ))  # fmt: skip
    return MixtureFile(name="mix", seed=3, domains=domains, verdict="improves")


@pytest.mark.parametrize(
    "names",
    [list(ROWS), ["alpaca", "prompt"], ["plain", "thoughts"], ["calls"], ["plain", "calls"], ["sharegpt", "untrained"]],
)
@pytest.mark.parametrize("shards", [1, 7])
def test_datasets_reads_every_shard_and_all_of_them(tmp_path: Path, names: list[str], shards: int) -> None:
    mixture = made(tmp_path, names)
    done = apply_mixture(mixture, tmp_path / "out", shards=shards)
    wanted = apply_mixture(mixture, tmp_path / "plain", row_format="as-is")
    keys = row_keys([row for file in wanted.files for row in read_rows(file)] if len(names) == 1 else _rows(wanted))
    assert list(row_keys([row for file in done.files for row in read_rows(file)])) == list(keys)
    files = [str(f) for f in done.files]
    read = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    whole = datasets.load_dataset("json", data_files=files, **read)
    assert whole.num_rows == done.rows == 60 * len(names)
    columns = {tuple(sorted(row)) for row in read_back(done)}
    assert columns == {tuple(sorted(whole.column_names))}
    for file in files:
        assert datasets.load_dataset("json", data_files=file, **read).column_names == whole.column_names
    whole.to_parquet(str(tmp_path / "all.parquet"))
    assert datasets.load_dataset("parquet", data_files=str(tmp_path / "all.parquet"), **read).num_rows == done.rows
    again = tmp_path / "again.jsonl"
    again.write_text("".join(json.dumps(dict(row)) + "\n" for row in whole), encoding="utf-8")
    assert list(row_keys(list(read_rows(again)))) == list(keys)


def _rows(applied: Any) -> list[Any]:
    """Rows of a file that holds several dialects, each line read for itself."""
    rows = []
    for number, line in enumerate(applied.files[0].read_text(encoding="utf-8").splitlines()):
        path = applied.folder / f"line-{number}.jsonl"
        path.write_text(line + "\n", encoding="utf-8")
        rows += list(read_rows(path))
        path.unlink()
    return rows


def test_lines_with_one_schema_are_kept_and_the_others_become_messages(tmp_path: Path) -> None:
    same = apply_mixture(made(tmp_path, ["alpaca"]), tmp_path / "same")
    assert same.row_format == "as-is"
    assert {tuple(row) for row in read_back(same)} == {("instruction", "input", "output", "id")}
    mixed = apply_mixture(made(tmp_path, ["alpaca", "calls", "untrained"]), tmp_path / "mixed")
    assert mixed.row_format == "chat"
    turn = {"role", "content", "tool_calls", "weight"}
    rows = list(read_back(mixed))
    assert {frozenset(t) for row in rows for t in row["messages"]} == {frozenset(turn)}
    called = [t["tool_calls"] for row in rows for t in row["messages"] if t["tool_calls"]]
    assert all(isinstance(calls[0]["function"]["arguments"], str) for calls in called)  # x is a number and a text
    again = apply_mixture(made(tmp_path, ["alpaca", "calls", "untrained"]), tmp_path / "mixed")
    assert again.already_there
    assert again.row_format == "chat"


def test_the_base_mixture_is_written_with_the_same_options(tmp_path: Path) -> None:
    mixture = made(tmp_path, ["alpaca", "prompt"])
    base = apply_mixture(base_of(mixture), tmp_path / "base", shards=2)
    assert base.domain_rows == {"alpaca": 40, "prompt": 40}
    keys = row_keys([row for file in base.files for row in read_rows(file)])
    assert sorted(keys) == sorted(
        k for name in ("alpaca", "prompt") for k in row_keys(list(read_rows(tmp_path / f"{name}.jsonl")))
    )
    bare = mixture.model_copy(update={"domains": [d.model_copy(update={"base_rows": 0}) for d in mixture.domains]})
    with pytest.raises(UsageError, match="tells no base"):
        base_of(bare)
