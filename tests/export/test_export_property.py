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
import random
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import yaml
from builders import write_rows
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
from ideal_proxy.export.hand_over import export_mixture, targets
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
    "a\nb: c",
    "`x`",
    "%s{0}",
    "\\",
)
names = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
Volumes = list[tuple[str, int, int]]


@st.composite
def volumes(draw: Callable[..., Any], huge: bool = False) -> Volumes:
    """Names, available rows, rows: zero, a few, all, several times over, and huge where nothing is written out."""
    found = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    domains = []
    for name in found:
        available = draw(st.integers(1, 12))
        most = [st.just(0), st.integers(1, available), st.integers(available, 6 * available)]
        domains.append((name, available, draw(st.one_of(*most, *([st.integers(10**6, 10**9)] if huge else [])))))
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


def passes_and_rest(size: int, count: int) -> np.ndarray:
    """How often each row is taken: whole passes, then a remainder without replacement."""
    taken = np.full(size, count // size)
    taken[random.Random(0).sample(range(size), count % size)] += 1
    return taken


def one(rows: Rows, taken: Any) -> dict[str, int]:
    """Count by the domain's number, which every row's first word is."""
    found: dict[str, int] = collections.Counter()
    for row, times in zip(rows, taken, strict=True):
        found[row[0]["content"].split(" ", 1)[0]] += int(times)
    return found


def merged(parts: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = collections.Counter()
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


def llamafactory(folder: Path) -> dict[str, int]:
    config = yaml.safe_load((folder / "sft.yaml").read_text(encoding="utf-8"))
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    assert config["mix_strategy"] == "concat"
    parts = []
    for name in config["dataset"].split(","):
        rows, count = lines(Path(config["dataset_dir"]) / info[name]["file_name"]), info[name]["num_samples"]
        taken = np.zeros(len(rows), dtype=np.int64)
        taken[: min(count, len(rows))] = 1  # a permutation's first rows, and the rest with replacement
        taken[0] += max(0, count - len(rows))
        parts.append(one(rows, taken))
    return merged(parts)


def ms_swift(folder: Path) -> dict[str, int]:
    parts = []
    for word in option(said(folder, "sft.sh", "swift"), "--dataset"):
        path, _, count = word.rpartition("#")
        rows = lines(folder / path)
        parts.append(one(rows, passes_and_rest(len(rows), int(count))))
    return merged(parts)


def open_instruct(folder: Path) -> dict[str, int]:
    words = option(said(folder, "sft.sh", "python"), "--dataset_mixer_list")
    parts = []
    for path, amount in zip(words[::2], words[1::2], strict=True):
        assert "." not in amount, "a point would make it a share of the set"
        rows = lines(Path(path))
        parts.append(one(rows, passes_and_rest(len(rows), int(amount))))
    return merged(parts)


def megatron_bridge(folder: Path) -> dict[str, int]:
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
    parts = []
    for source, weight in zip(config["source"], config["source_weights"], strict=True):
        rows = lines(Path(source["load_kwargs"]["data_files"]))
        nearest = int(weight) * len(rows) + round(len(rows) * (weight - int(weight)))
        assert math.ceil(weight * len(rows)) == nearest, "the same whether the rest is rounded up or to the nearest row"
        parts.append(one(rows, [nearest, *[0] * (len(rows) - 1)]))
    return merged(parts)


def streaming(folder: Path) -> dict[str, int]:
    class Dataset:
        def __init__(self, **given: Any) -> None:
            self.given = given

    stands = {"streaming": {"Stream": lambda **k: k, "StreamingDataset": Dataset}}
    given = imported(folder / "mixture_streams.py", stands)["dataset"](1).given
    assert "epoch_size" not in given
    parts = []
    for stream in given["streams"]:
        place = Path(stream["local"])
        rows: Rows = []
        for shard in json.loads((place / "index.json").read_text())["shards"]:
            data = (place / shard["raw_data"]["basename"]).read_bytes()
            rows += [json.loads(json.loads(line)["messages"]) for line in data.splitlines()]
            assert shard["samples"] == data.count(b"\n")
        parts.append(one(rows, passes_and_rest(len(rows), stream["choose"])))
    return merged(parts)


def interleave(folder: Path) -> dict[str, int]:
    tree = ast.parse((folder / "mixture_interleave.py").read_text(encoding="utf-8"))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)  # type: ignore[attr-defined]
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
    }
    assert sum(values["PROBABILITIES"]) == pytest.approx(1)
    files = [lines(folder / file) for file in values["FILES"]]
    assert len(files) == len(values["PROBABILITIES"])
    return merged([one(rows, [1] * len(rows)) for rows in files])


def whole_file(path: Path) -> dict[str, int]:
    rows = lines(path)
    return one(rows, [1] * len(rows))


def trl(folder: Path) -> dict[str, int]:
    config = yaml.safe_load((folder / "sft.yaml").read_text(encoding="utf-8"))
    return merged([whole_file(Path(entry["data_files"])) for entry in config["datasets"]])


def axolotl(folder: Path) -> dict[str, int]:
    config = yaml.safe_load((folder / "axolotl.yaml").read_text(encoding="utf-8"))
    assert config["dataset_exact_deduplication"] is False
    return merged([whole_file(Path(entry["path"])) for entry in config["datasets"]])


def in_parquet(path: Path) -> dict[str, int]:
    rows = parquet.read_table(path)["messages"].to_pylist()
    return one(rows, [1] * len(rows))


def hugging_face(folder: Path) -> dict[str, int]:
    card = (folder / "README.md").read_text(encoding="utf-8").split("---\n")
    files = yaml.safe_load(card[1])["configs"][0]["data_files"][0]["path"]
    table = card[2].split("\n\n")[-1].strip().split("\n")
    assert all(line.replace("\\|", "").count("|") == 4 for line in table), "a name does not break the card's table"
    return merged([in_parquet(path) for path in sorted(folder.glob(files))])


DRAWN: dict[str, Callable[[Path], dict[str, int]]] = {
    "jsonl": lambda folder: whole_file(folder / "train.jsonl"),
    "parquet": lambda folder: in_parquet(folder / "train.parquet"),
    "hf": hugging_face,
    "llamafactory": llamafactory,
    "ms-swift": ms_swift,
    "open-instruct": open_instruct,
    "trl": trl,
    "axolotl": axolotl,
    "megatron-bridge": megatron_bridge,
    "streaming": streaming,
    "interleave": interleave,
}
WRITTEN_OUT = ("jsonl", "parquet", "hf", "trl", "axolotl", "interleave")
CAREFUL = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)  # the same examples on every machine


def check(domains: Volumes, name: str, chosen: list[str]) -> None:
    wanted = {str(n): rows for n, (_, _, rows) in enumerate(domains) if rows}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "it's “here” #1"  # the folder's own name must survive too
        place.mkdir()
        mixture = write(place, domains, name)
        for target in chosen:
            report = export_mixture(mixture, target, place / target)
            assert {d.domain: d.draws for d in report.draws} == {d: rows for d, _, rows in domains if rows}
            drawn = {key: count for key, count in DRAWN[target](place / target).items() if count}
            assert drawn == wanted, target


def test_every_target_is_read_back() -> None:
    assert list(DRAWN) == list(targets())


@CAREFUL
@given(volumes(), st.one_of(st.sampled_from(NASTY), st.text(max_size=30)))
@example([(name, 2, 3) for name in NASTY], "a\n'mix'")
@example([("only", 1, 25)], "x")
def test_written_out_rows_are_the_wanted_ones(domains: Volumes, name: str) -> None:
    check(domains, name, list(WRITTEN_OUT))


@CAREFUL
@given(volumes(huge=True), st.one_of(st.sampled_from(NASTY), st.text(max_size=30)))
@example([(name, 2, 3) for name in NASTY], "a\n'mix'")
@example([("a", 1, 10**9), ("b", 12, 1)], "x")
def test_counts_in_configurations_are_the_wanted_ones(domains: Volumes, name: str) -> None:
    check(domains, name, [target for target in DRAWN if target not in WRITTEN_OUT])
