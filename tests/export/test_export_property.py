"""Any mixture survives every writer: each target's arithmetic, written anew here, draws the wanted rows.

Nothing of the writers is used to read: YAML and JSON are parsed, scripts are run by bash and by Python with the
trainer's program or module stood in for.
"""

from __future__ import annotations

import ast
import collections
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import yaml
from builders import write_rows
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
from ideal_proxy.errors import UNSEEN
from ideal_proxy.export.hand_over import TARGETS, export_mixture
from ideal_proxy.mixture.file import DomainVolume, MixtureFile

NASTY = (
    "a b",
    'say "hi"',
    "it's",
    "#1: x",
    "é中文",
    "$(rm -rf x)",
    "a,b;c|d",
    "..",
    "-n",
    "a b: c",
    "`x`",
    "%s{0}",
    "\\",
)
letters = st.characters(exclude_categories=["Cs"]).filter(lambda letter: re.match(f"[{UNSEEN}]", letter) is None)
names = st.one_of(st.sampled_from(NASTY), st.text(letters, min_size=1, max_size=20))
Volumes = list[tuple[str, int, int]]


@st.composite
def volumes(draw: Callable[..., Any]) -> Volumes:
    """Names, available rows, rows: zero, a few, all, and several times over."""
    found = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    domains = []
    for name in found:
        available = draw(st.integers(1, 12))
        most = [st.just(0), st.integers(1, available), st.integers(available, 6 * available)]
        domains.append((name, available, draw(st.one_of(*most))))
    if not any(rows for _, _, rows in domains):
        domains[0] = (*domains[0][:2], 1)
    return domains


def write(folder: Path, domains: Volumes, name: str) -> MixtureFile:
    parts = []
    for number, (domain, available, rows) in enumerate(domains):
        path = folder / f"{number}.jsonl"
        lines = [{"prompt": f"{number} {n} “{domain}”", "completion": f"{domain}\t{n}"} for n in range(available)]
        write_rows(path, lines)
        keys = row_keys(list(read_rows(path)))
        parts.append(
            DomainVolume(
                name=domain, source=str(path), fingerprint=source_fingerprint(keys), available=available, rows=rows
            )
        )
    return MixtureFile(name=name, seed=7, domains=parts)


# ------------------------------------------------------------- what each target does with what was written

Rows = list[list[dict[str, str]]]


def lines(path: Path) -> Rows:
    return [json.loads(line)["messages"] for line in path.read_bytes().splitlines()]


Taken = dict[tuple[str, str], int]


def one(rows: Rows) -> Taken:
    """Count rows by the domain's number and the row's, which every row's first words are."""
    return dict(collections.Counter(tuple(row[0]["content"].split(" ", 2)[:2]) for row in rows))


def merged(parts: list[Taken]) -> Taken:
    total: Taken = collections.Counter()
    for part in parts:
        total.update(part)
    return total


def said(folder: Path, script: str, program: str) -> list[str]:
    """The words that bash gives a program, which is stood in for."""
    place = folder.parent / f"bin-{program}"
    place.mkdir(exist_ok=True)
    fake = place / program
    fake.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done\n')
    fake.chmod(0o755)
    env = {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(folder / script)], env=env, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.decode().split("\0")[:-1]


def option(words: list[str], name: str) -> list[str]:
    start = words.index(name) + 1
    return words[start : next((i for i in range(start, len(words)) if words[i].startswith("--")), len(words))]


def imported(path: Path, modules: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Run a written module with the trainer's modules stood in for."""
    kept = {name: sys.modules.get(name) for name in modules}
    try:
        for name, content in modules.items():
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__dict__.update(content)
        space: dict[str, Any] = {"__file__": str(path)}
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), space)
        return space
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def settings_in(folder: Path, name: str = "sft.yaml") -> dict[str, Any]:
    return yaml.safe_load((folder / name).read_text(encoding="utf-8"))


def llamafactory(folder: Path) -> Taken:
    config = settings_in(folder)
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    assert list(info) == [config["dataset"]]
    assert "num_samples" not in info["mixture"], "it would draw with replacement"
    assert "max_samples" not in config
    return one(lines(Path(config["dataset_dir"]) / info["mixture"]["file_name"]))


def ms_swift(folder: Path) -> Taken:
    (path,) = option(said(folder, "sft.sh", "swift"), "--dataset")
    return one(lines(folder / path))


def open_instruct(folder: Path) -> Taken:
    path, amount = option(said(folder, "sft.sh", "python"), "--dataset_mixer_list")
    rows = lines(Path(path))
    assert amount == str(len(rows)), "a whole number is rows: all of them, once"
    return one(rows)


def megatron_bridge(folder: Path) -> Taken:
    space = imported(
        folder / "mixture_blend.py",
        {
            "megatron": {}, "megatron.bridge": {}, "megatron.bridge.data": {}, "megatron.bridge.data.builders": {},
            "megatron.bridge.data.sources": {},
            "megatron.bridge.data.builders.direct_hf_sft": {"DirectHFSFTDatasetConfig": lambda **k: k},
            "megatron.bridge.data.sources.hf": {"HFDatasetSourceConfig": lambda **k: k},
        },
    )  # fmt: skip
    config = space["dataset_config"](128)
    assert config["do_validation"] is config["do_test"] is False, "no rows may be split off"
    rows = lines(Path(config["source"]["load_kwargs"]["data_files"]))
    assert space["TRAIN_ITERS"] == math.ceil(len(rows) / space["GLOBAL_BATCH_SIZE"])
    return one(rows)


def overrides(folder: Path, program: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in said(folder, "sft.sh", program) if "=" in word and word[0] != "-")


def skyrl(folder: Path) -> Taken:
    (place,) = (overrides(folder, "python")["train_datasets"].removeprefix("[").removesuffix("]"),)
    return in_parquet(Path(place) / "train.parquet")


def streaming(folder: Path) -> Taken:
    class Dataset:
        def __init__(self, **given: Any) -> None:
            self.given = given

    stands = {"streaming": {"Stream": lambda **k: k, "StreamingDataset": Dataset}}
    given = imported(folder / "mixture_streams.py", stands)["dataset"](1).given
    assert "epoch_size" not in given
    parts = []
    for stream in given["streams"]:
        assert list(stream) == ["local"], "every row once"
        place = Path(stream["local"])
        rows: Rows = []
        for shard in json.loads((place / "index.json").read_text())["shards"]:
            data = (place / shard["raw_data"]["basename"]).read_bytes()
            rows += [json.loads(json.loads(line)["messages"]) for line in data.splitlines()]
            assert shard["samples"] == data.count(b"\n")
        parts.append(one(rows))
    return merged(parts)


def interleave(folder: Path) -> Taken:
    tree = ast.parse((folder / "mixture_interleave.py").read_text(encoding="utf-8"))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)  # type: ignore[attr-defined]
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
    }
    assert sum(values["PROBABILITIES"]) == pytest.approx(1)
    assert len(values["FILES"]) == len(values["PROBABILITIES"])
    return merged([one(lines(folder / file)) for file in values["FILES"]])


def trl(folder: Path) -> Taken:
    (entry,) = settings_in(folder)["datasets"]
    rows = [json.loads(line) for line in Path(entry["data_files"]).read_bytes().splitlines()]
    assert all(set(row) == {"prompt", "completion"} and len(row["completion"]) == 1 for row in rows)
    return one([row["prompt"] + row["completion"] for row in rows])


def axolotl(folder: Path) -> Taken:
    config = settings_in(folder, "axolotl.yaml")
    assert config["dataset_exact_deduplication"] is False
    return merged([one(lines(Path(entry["path"]))) for entry in config["datasets"]])


def in_parquet(path: Path) -> Taken:
    return one(parquet.read_table(path)["messages"].to_pylist())


def hugging_face(folder: Path) -> Taken:
    card = (folder / "README.md").read_text(encoding="utf-8").split("---\n")
    files = yaml.safe_load(card[1])["configs"][0]["data_files"][0]["path"]
    table = card[2].split("\n\n")[-1].strip().split("\n")
    assert all(line.replace("\\|", "").count("|") == 4 for line in table), "a name does not break the card's table"
    return merged([in_parquet(path) for path in sorted(folder.glob(files))])


DRAWN: dict[str, Callable[[Path], Taken]] = {
    "jsonl": lambda folder: one(lines(folder / "train.jsonl")),
    "parquet": lambda folder: in_parquet(folder / "train.parquet"),
    "hf": hugging_face,
    "trl": trl,
    "llamafactory": llamafactory,
    "ms-swift": ms_swift,
    "axolotl": axolotl,
    "open-instruct": open_instruct,
    "megatron-bridge": megatron_bridge,
    "automodel": lambda folder: one(lines(Path(settings_in(folder)["dataset"]["path_or_dataset_id"]))),
    "verl": lambda folder: in_parquet(Path(overrides(folder, "torchrun")["data.train_files"])),
    "skyrl": skyrl,
    "streaming": streaming,
    "interleave": interleave,
}
CAREFUL = settings(
    max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)  # the same examples on every machine


def check(domains: Volumes, name: str) -> None:
    wanted = {str(n): (available, rows) for n, (_, available, rows) in enumerate(domains) if rows}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "it's “here” #1"  # the folder's own name must survive too
        place.mkdir()
        mixture = write(place, domains, name)
        first: Taken = {}
        for target in TARGETS:
            report = export_mixture(mixture, target, place / target)
            assert {d.domain: d.draws for d in report.draws} == {d: rows for d, _, rows in domains if rows}
            drawn = DRAWN[target](place / target)
            first = first or drawn
            assert drawn == first, f"{target}: the very rows, as often as everywhere"
            for number, (available, rows) in wanted.items():
                times = [count for (domain, _), count in drawn.items() if domain == number]
                assert sum(times) == rows
                assert len(times) == min(available, rows)
                assert max(times) - min(times) <= 1, "repeats are even"


def test_every_target_is_read_back() -> None:
    assert list(DRAWN) == list(TARGETS)


@CAREFUL
@given(volumes(), st.one_of(st.sampled_from([*NASTY, "a\nb: c"]), st.text(max_size=30)))
@example([(name, 2, 3) for name in NASTY], "a\n'mix'")
@example([("only", 1, 25)], "x")
def test_every_target_takes_the_drawn_rows_once_each(domains: Volumes, name: str) -> None:
    check(domains, name)
