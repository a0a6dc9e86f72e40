"""Every export is read back: by the target's own package where that is light, else by its arithmetic written anew."""

from __future__ import annotations

import collections
import importlib.util
import itertools
import json
import math
import random
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer import Typer
from typer.testing import CliRunner

from ideal_proxy.batching import Batch, Loss
from ideal_proxy.cli.scaleup import register
from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.export.hand_over import export_mixture, export_table, targets
from ideal_proxy.export.trainers import passes
from ideal_proxy.mixture.draws import domain_order, draw, training_order
from ideal_proxy.mixture.file import DomainVolume, MixtureFile, save_mixture

WANTED = {"maths & sums": 250, "code": 37, "trust": 160}  # 2.5 passes, a share, exactly 2 passes
AVAILABLE = {"maths & sums": 100, "code": 90, "trust": 80, "dropped": 20}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> MixtureFile:
    folder = tmp_path_factory.mktemp("data")
    domains = []
    for name, count in AVAILABLE.items():
        path = folder / f"{name}.jsonl".replace(" ", "_")
        with open(path, "w", encoding="utf-8") as file:
            for n in range(count):
                row: dict[str, Any] = {"instruction": f"{name} {n}?", "input": "", "output": f"é{n}\n“{name}”"}
                if name == "code":
                    row = {
                        "messages": [{"role": "user", "content": f"code {n}"}, {"role": "assistant", "content": f"{n}"}]
                    }
                if name == "trust":
                    row = {"prompt": f"trust {n}", "completion": f"{n}"}
                file.write(json.dumps(row) + "\n")
        domains.append(
            DomainVolume(
                name=name,
                source=str(path),
                fingerprint=source_fingerprint(row_keys(list(read_rows(path)))),
                available=count,
                rows=WANTED.get(name, 0),
                base_rows=count,
            )
        )
    return MixtureFile(name="a 'quoted' mix", seed=11, domains=domains)


def domain_of(messages: list[dict[str, str]]) -> str:
    text = messages[0]["content"]
    return next(name for name in AVAILABLE if text.startswith(name))


def counts(rows: list[list[dict[str, str]]]) -> dict[str, int]:
    return dict(collections.Counter(domain_of(row) for row in rows))


def expected_rows(mixture: MixtureFile) -> list[list[dict[str, str]]]:
    """The draw in training order, from the mixture's own functions and the sources."""
    read = [list(read_rows(d.source)) for d in mixture.domains if d.rows]
    names = [d.name for d in mixture.domains if d.rows]
    parts = []
    for name, rows in zip(names, read, strict=True):
        keys = row_keys(rows)
        parts.append((keys, *draw(domain_order(mixture.seed, name, keys), WANTED[name])))
    domain, row = training_order(mixture.seed, names, parts)
    return [
        [{"role": role, "content": content} for role, content in read[d][r].pairs]
        for d, r in zip(domain, row, strict=True)
    ]


def read_jsonl(path: Path) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in path.read_bytes().splitlines()]


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_target_of_the_issue_is_there(mixture: MixtureFile) -> None:
    assert list(targets()) == [
        "jsonl",
        "parquet",
        "hf",
        "llamafactory",
        "ms-swift",
        "open-instruct",
        "trl",
        "axolotl",
        "megatron-bridge",
        "streaming",
        "interleave",
    ]


@pytest.mark.parametrize("target", ["jsonl", "trl", "axolotl"])
def test_materialised_rows_are_the_draw_in_training_order(mixture: MixtureFile, tmp_path: Path, target: str) -> None:
    report = export_mixture(mixture, target, tmp_path / "out")
    assert read_jsonl(tmp_path / "out" / "train.jsonl") == expected_rows(mixture)
    assert {d.domain: d.draws for d in report.draws} == WANTED
    assert not (tmp_path / "out" / ".rows").exists()


def test_parquet_and_hugging_face_hold_the_same(
    mixture: MixtureFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as parquet

    export_mixture(mixture, "parquet", tmp_path / "parquet")
    assert parquet.read_table(tmp_path / "parquet" / "train.parquet")["messages"].to_pylist() == expected_rows(mixture)
    datasets = pytest.importorskip("datasets")
    export_mixture(mixture, "hf", tmp_path / "hf")
    table = datasets.load_dataset(str(tmp_path / "hf"), split="train", cache_dir=str(tmp_path / "cache"))
    assert table["messages"][:] == expected_rows(mixture)


def test_llamafactory_draws_num_samples(mixture: MixtureFile, tmp_path: Path) -> None:
    report = export_mixture(mixture, "llamafactory", tmp_path / "out")
    settings = yaml.safe_load((tmp_path / "out" / "sft.yaml").read_text())
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert settings["mix_strategy"] == "concat"
    assert not settings["streaming"]
    assert "max_samples" not in settings
    rng = np.random.default_rng(0)
    rows = []
    for name in settings["dataset"].split(","):  # loader.py: a permutation's first rows, the rest with replacement
        entry = info[name]
        table = read_jsonl(Path(settings["dataset_dir"]) / entry["file_name"])
        index = rng.permutation(len(table))[: entry["num_samples"]]
        index = np.concatenate([index, rng.choice(len(table), entry["num_samples"] - len(index))])
        rows += [table[i] for i in index]
        tags = entry["tags"]
        assert entry["formatting"] == "sharegpt"
        assert {m[tags["role_tag"]] for m in table[0]} == {tags["user_tag"], tags["assistant_tag"]}
    assert counts(rows) == WANTED == {d.domain: d.draws for d in report.draws}
    assert "with replacement" in report.notes[0]


def test_llamafactory_gets_calls_answers_and_thoughts_in_its_own_roles(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    rows = [{
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}],
        "messages": [
            {"role": "user", "content": "1 + 1, twice"},
            {"role": "assistant", "content": "I add." if n else "", "tool_calls": [call, call]},
            {"role": "tool", "content": "2"}, {"role": "tool", "content": f"two {n}"},
            {"role": "assistant", "content": "2", "reasoning_content": "easy"},
        ],
    } for n in range(3)]  # fmt: skip
    path = tmp_path / "tools.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    fingerprint = source_fingerprint(row_keys(list(read_rows(path))))
    domain = DomainVolume(name="tools", source=str(path), fingerprint=fingerprint, available=3, rows=3)
    report = export_mixture(MixtureFile(domains=[domain]), "llamafactory", tmp_path / "out")
    entry = json.loads((tmp_path / "out" / "dataset_info.json").read_text())["tools"]
    assert entry["columns"] == {"messages": "messages", "tools": "tools"}
    known = {entry["tags"][f"{role}_tag"] for role in ("user", "assistant", "system", "observation", "function")}
    (first, *_) = found = [
        json.loads(line) for line in (tmp_path / "out" / "tools.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert {turn["role"] for row in found for turn in row["messages"]} <= known
    asked, called, answered, said = first["messages"]
    assert (asked["content"], answered["content"]) == ("1 + 1, twice", "2\ntwo 0")
    assert json.loads(called["content"]) == [{"name": "add", "arguments": {"a": 1}}] * 2
    assert said["content"] == "<think>\neasy\n</think>\n\n2"
    assert json.loads(first["tools"]) == rows[0]["tools"]
    assert any(note.startswith("2 turns say something beside a tool call") for note in report.notes)


def arguments(path: Path, option: str) -> list[str]:
    words = shlex.split(path.read_text().replace("\\\n", " "), comments=True)
    start = words.index(option) + 1
    end = next(i for i in range(start, len(words)) if words[i].startswith("--") or words[i] == "$@")
    return words[start:end]


def test_ms_swift_takes_passes_and_a_remainder(mixture: MixtureFile, tmp_path: Path) -> None:
    export_mixture(mixture, "ms-swift", tmp_path / "out")
    script = tmp_path / "out" / "sft.sh"
    rows = []
    for word in arguments(script, "--dataset"):
        path, _, count = word.partition("#")
        table = read_jsonl(tmp_path / "out" / path)
        whole, rest = divmod(int(count), len(table))
        rows += table * whole + random.Random(0).sample(table, rest)
    assert counts(rows) == WANTED
    assert arguments(script, "--split_dataset_ratio") == ["0"], "no rows may go to a validation split"


def test_open_instruct_takes_whole_numbers_as_rows(mixture: MixtureFile, tmp_path: Path) -> None:
    export_mixture(mixture, "open-instruct", tmp_path / "out")
    words = arguments(tmp_path / "out" / "sft.sh", "--dataset_mixer_list")
    rows = []
    for path, amount in zip(words[::2], words[1::2], strict=True):
        table = read_jsonl(tmp_path / "out" / path.removeprefix("$HERE/"))
        count = int(float(amount) * len(table)) if "." in amount else int(amount)
        whole, rest = divmod(count, len(table))
        rows += table * whole + random.Random(0).sample(table, rest)
    assert counts(rows) == WANTED


def bridge_counts(weights: list[float], sizes: list[int]) -> list[int]:
    """blend_sft_rows: int(weight) passes, then round(rows * rest) more."""
    return [int(w) * n + round(n * (w - int(w))) for w, n in zip(weights, sizes, strict=True)]


def test_megatron_bridge_passes_are_exact_rounded_either_way(mixture: MixtureFile, tmp_path: Path) -> None:
    export_mixture(mixture, "megatron-bridge", tmp_path / "out")
    text = (tmp_path / "out" / "mixture_blend.py").read_text()
    compile(text, "mixture_blend.py", "exec")
    weights = json.loads(re.search(r"SOURCE_WEIGHTS = (\[.*\])", text)[1])
    files = re.findall(r"HERE / '([^']+)'", text)
    sizes = [len(read_jsonl(tmp_path / "out" / file)) for file in files]
    assert bridge_counts(weights, sizes) == list(WANTED.values())
    rng = np.random.default_rng(0)
    for _ in range(3000):
        available, rows = int(rng.integers(1, 10**6)), int(rng.integers(1, 4 * 10**6))
        domain = DomainVolume(name="x", source="x", fingerprint="0" * 64, available=available, rows=rows)
        weight = passes(domain)
        assert bridge_counts([weight], [available]) == [rows]
        assert math.ceil(weight * available) == rows


def streaming_counts(choose: int, shard_sizes: list[int]) -> list[int]:
    """get_sampling: shares of the shards, the shortfall to the first ones."""
    share = np.array(shard_sizes) * choose // sum(shard_sizes)
    share[: choose - share.sum()] += 1
    return share.tolist()


def test_streaming_shards_hold_each_row_once_and_choose_the_counts(
    mixture: MixtureFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ideal_proxy.export.formats.SHARD_BYTES", 4000)
    export_mixture(mixture, "streaming", tmp_path / "out")
    text = (tmp_path / "out" / "mixture_streams.py").read_text()
    compile(text, "mixture_streams.py", "exec")
    assert "epoch_size" not in text
    streams = re.findall(r"HERE / \"data\" / '([^']+)'\), choose=(\d+)", text)
    assert [int(count) for _, count in streams] == list(WANTED.values())
    for (name, choose), domain in zip(streams, WANTED, strict=True):
        folder = tmp_path / "out" / "data" / name
        index = json.loads((folder / "index.json").read_text())
        rows = []
        for shard in index["shards"]:
            assert shard["format"] == "json"
            assert shard["columns"] == {"messages": "str"}
            data = (folder / shard["raw_data"]["basename"]).read_bytes()
            meta = (folder / shard["raw_meta"]["basename"]).read_bytes()
            assert (len(data), len(meta)) == (shard["raw_data"]["bytes"], shard["raw_meta"]["bytes"])
            for n in range(shard["samples"]):  # JSONReader.get_sample_data
                begin, end = np.frombuffer(meta[4 * (1 + n) : 4 * (3 + n)], "<u4")
                rows.append(json.loads(json.loads(data[begin:end].decode())["messages"]))
        assert len(index["shards"]) > 1
        assert counts(rows) == {domain: AVAILABLE[domain]}
        assert len({json.dumps(row) for row in rows}) == AVAILABLE[domain]
        assert sum(streaming_counts(int(choose), [s["samples"] for s in index["shards"]])) == WANTED[domain]


def test_interleave_script_takes_every_row_once(
    mixture: MixtureFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", minversion="4.5", reason="the script asks for datasets >= 4.5")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    report = export_mixture(mixture, "interleave", tmp_path / "out")
    table = load(tmp_path / "out" / "mixture_interleave.py").dataset()
    rows = table["messages"][:]
    assert counts(rows) == WANTED
    assert sorted(map(json.dumps, rows)) == sorted(map(json.dumps, expected_rows(mixture))), (
        "the very rows, not only counts"
    )
    assert not report.exact
    first = counts(rows[:200])
    assert len(first) == 3, "mixed, not one after the other"


def test_trl_and_axolotl_take_the_file_whole(mixture: MixtureFile, tmp_path: Path) -> None:
    export_mixture(mixture, "trl", tmp_path / "trl")
    entries = yaml.safe_load((tmp_path / "trl" / "sft.yaml").read_text())["datasets"]
    assert len(entries) == 1
    assert "fraction" not in entries[0]
    assert Path(entries[0]["data_files"]) == (tmp_path / "trl" / "train.jsonl").resolve()
    export_mixture(mixture, "axolotl", tmp_path / "axolotl")
    settings = yaml.safe_load((tmp_path / "axolotl" / "axolotl.yaml").read_text())
    assert settings["dataset_exact_deduplication"] is False, "it would undo the repeats"
    assert settings["val_set_size"] == 0
    datasets = pytest.importorskip("datasets")
    table = datasets.load_dataset(
        entries[0]["path"], data_files=entries[0]["data_files"], split="train", cache_dir=str(tmp_path / "cache")
    )
    assert counts(table["messages"][:]) == WANTED


def test_streaming_itself_draws_the_counts(mixture: MixtureFile, tmp_path: Path) -> None:
    """MosaicML Streaming's own reader and sampler, in a process where what it does not need is stood in for."""
    if importlib.util.find_spec("streaming") is None:
        pytest.skip("mosaicml-streaming is not installed")
    export_mixture(mixture, "streaming", tmp_path / "out")
    worker = Path(__file__).resolve().parents[1] / "streaming_worker.py"
    command = [sys.executable, "-W", "ignore", str(worker), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    size, *lines = done.stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert int(size) == sum(WANTED.values())
    assert counts(rows) == WANTED
    maths = collections.Counter(json.dumps(row) for row in rows if domain_of(row) == "maths & sums")
    assert len(maths) == 100
    assert set(maths.values()) == {2, 3}, "whole passes and a remainder"


def test_trl_itself_reads_its_configuration(
    mixture: MixtureFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's own loader of mixtures takes every row, and every other key is one of its trainer's."""
    datasets = pytest.importorskip("datasets")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if importlib.util.find_spec("trl") is None:
            pytest.skip("trl is not installed")
        from trl import SFTConfig
        from trl.scripts.utils import DatasetMixtureConfig, get_dataset
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    export_mixture(mixture, "trl", tmp_path / "out")
    settings = yaml.safe_load((tmp_path / "out" / "sft.yaml").read_text())
    found = get_dataset(DatasetMixtureConfig(datasets=settings.pop("datasets")))["train"]
    assert found["messages"][:] == expected_rows(mixture)
    assert set(settings) <= set(SFTConfig.__dataclass_fields__)


@pytest.mark.parametrize(("target", "exact"), [(name, known.exact) for name, known in targets().items()])
def test_strict_refuses_before_writing(mixture: MixtureFile, tmp_path: Path, target: str, exact: bool) -> None:
    path = tmp_path / "mixture.json"
    save_mixture(path, mixture)
    out = tmp_path / "out"
    if exact:
        report = export_mixture(mixture, target, out, strict=True)
        assert report.exact
        assert {d.domain: d.draws for d in report.draws} == WANTED
        assert json.loads((out / "export.json").read_text())["target"] == target
    else:
        with pytest.raises(UsageError, match="--strict") as refusal:
            export_mixture(mixture, target, out, strict=True)
        assert refusal.value.exit_code == 2
        assert not out.exists()


def test_table_says_what_the_target_will_draw(mixture: MixtureFile, tmp_path: Path) -> None:
    text = export_table(export_mixture(mixture, "llamafactory", tmp_path / "out"))
    assert re.search(r"maths & sums\s+100\s+250\s+250\s+2\.50x", text)
    assert "dropped" not in text
    assert "(counts in the" in text
    assert "(exact rows" in export_table(export_mixture(mixture, "parquet", tmp_path / "plain"))
    path = tmp_path / "mixture.json"
    save_mixture(path, mixture)
    app = Typer()
    register(app)
    result = CliRunner().invoke(app, ["export", str(path), "--to", "jsonl", "--out", str(tmp_path / "b"), "--json"])
    assert json.loads(result.stdout)["domains"][0] == {
        "name": "maths & sums",
        "available": 100,
        "wanted": 250,
        "draws": 250,
        "how": "",
    }


def test_bad_input_leaves_nothing_behind(mixture: MixtureFile, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be one of jsonl, parquet"):
        export_mixture(mixture, "nemo", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not an empty folder"):
        export_mixture(mixture, "jsonl", tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
    wrong = mixture.domains[1].model_copy(update={"fingerprint": "0" * 64})
    changed = mixture.model_copy(update={"domains": [mixture.domains[0], wrong]})
    for target in targets():
        with pytest.raises(UserError, match="'code' changed since the search"):
            export_mixture(changed, target, tmp_path / target)
        assert not (tmp_path / target).exists()
    empty = mixture.model_copy(update={"domains": [mixture.domains[3]]})
    with pytest.raises(UsageError, match="every volume is 0"):
        export_mixture(empty, "jsonl", tmp_path / "none")


def test_names_are_safe_and_differ(mixture: MixtureFile, tmp_path: Path) -> None:
    from ideal_proxy.export.job import Job

    base = mixture.domains[0]
    names = ["a b", "a,b", "A_B", "../x", "$(rm)", "é"]
    domains = [base.model_copy(update={"name": name}) for name in names]
    safe = Job(mixture.model_copy(update={"domains": domains}), tmp_path, {}).file_names()
    assert len({name.lower() for name in safe.values()}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name) for name in safe.values())


def in_search(mixture: MixtureFile, loss: Loss, batch: Batch, context: int | None = 512) -> MixtureFile:
    told = {"loss": loss, "batch": batch, "epochs": 3, "provenance": {"proxy": {"context": context}}}
    return mixture.model_copy(update=told)


def settings_of(folder: Path) -> dict[str, Any]:
    """Read the options that an exporter wrote, whatever its syntax, as text by name."""
    found: dict[str, Any] = {}
    for path in (*folder.glob("*.yaml"), *folder.glob("*.sh")):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".yaml":
            found |= yaml.safe_load(text)
        else:
            words = shlex.split(text.replace("\\\n", " "), comments=True)
            found |= {a.removeprefix("--"): b for a, b in itertools.pairwise(words) if a.startswith("--")}
    return {key: str(value).lower() for key, value in found.items()}


@pytest.mark.parametrize("target", list(targets()))
def test_epochs_are_never_multiplied_again(mixture: MixtureFile, tmp_path: Path, target: str) -> None:
    """The volumes of base: {epochs: 3} hold all three; whatever reads an export trains them once."""
    told = in_search(mixture, "token", Batch(rows=32))
    report = export_mixture(told, target, tmp_path / "out")
    assert {d.domain: d.draws for d in report.draws} == WANTED
    found = settings_of(tmp_path / "out")
    if target in {"llamafactory", "ms-swift", "open-instruct", "trl", "axolotl"}:
        assert found["num_epochs" if target == "axolotl" else "num_train_epochs"] == "1"
    text = "".join(
        path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("*.*") if path.suffix != ".parquet"
    )
    assert not re.search(
        r"epochs\D{0,4}3|epoch_size=", text.replace("the base's 3 epochs already: train one epoch", "")
    )
    assert any("train one epoch" in note for note in report.notes)
    assert not any(
        "epoch" in note for note in export_mixture(mixture, target, tmp_path / "plain").notes if "leave" not in note
    )


STEPS = {
    "llamafactory": ("per_device_train_batch_size", "packing", "cutoff_len"),
    "ms-swift": ("per_device_train_batch_size", "packing", "max_length"),
    "open-instruct": ("per_device_train_batch_size", "packing", "max_seq_length"),
    "trl": ("per_device_train_batch_size", "packing", "max_length"),
    "axolotl": ("micro_batch_size", "sample_packing", "sequence_len"),
}


@pytest.mark.parametrize("target", STEPS)
def test_a_step_is_said_in_the_trainers_options(mixture: MixtureFile, tmp_path: Path, target: str) -> None:
    one, packing, length = STEPS[target]
    export_mixture(in_search(mixture, "token", Batch(rows=24)), target, tmp_path / "rows")
    found = settings_of(tmp_path / "rows")
    assert (found[one], found["gradient_accumulation_steps"]) == ("1", "24")
    assert found.get(packing, "false") == "false"
    report = export_mixture(in_search(mixture, "token", Batch(tokens=16384)), target, tmp_path / "tokens")
    found = settings_of(tmp_path / "tokens")
    assert (found[one], found["gradient_accumulation_steps"], found[packing], found[length]) == (
        "1",
        "32",
        "true",
        "512",
    )
    assert any("16,384 tokens is 32 packed sequences" in note for note in report.notes)
    lost = export_mixture(in_search(mixture, "token", Batch(tokens=16384), None), target, tmp_path / "lost")
    assert any("names no context" in note for note in lost.notes)
    export_mixture(mixture, target, tmp_path / "older")
    assert "gradient_accumulation_steps" not in settings_of(tmp_path / "older"), "older files do not say"


@pytest.mark.parametrize("target", [*STEPS, "megatron-bridge"])
def test_the_row_loss_is_said_or_told_to_be_lost(mixture: MixtureFile, tmp_path: Path, target: str) -> None:
    report = export_mixture(in_search(mixture, "row", Batch(rows=8)), target, tmp_path / "out")
    can = target in {"open-instruct", "megatron-bridge"}
    assert any("each row counts alike" in note for note in report.notes) is can
    assert any("here each supervised token counts alike" in note for note in report.notes) is not can
    if target == "open-instruct":
        assert settings_of(tmp_path / "out")["reduce_loss"] == "mean"
    if target == "megatron-bridge":
        assert "PER_TOKEN_LOSS = 8, 1, False" in (tmp_path / "out" / "mixture_blend.py").read_text()
    packed = export_mixture(in_search(mixture, "row", Batch(tokens=4096)), target, tmp_path / "packed")
    assert any("here each supervised token counts alike" in note for note in packed.notes)
    if target == "open-instruct":
        assert settings_of(tmp_path / "packed")["reduce_loss"] == "sum", "a mean over a packed sequence counts neither"
    token = export_mixture(in_search(mixture, "token", Batch(rows=8)), target, tmp_path / "token")
    assert not any("counted each row alike" in note for note in token.notes)
    assert "Note: " in export_table(token)
