"""Every export is read back: by the target's own package where that is light, else by its arithmetic written anew."""

from __future__ import annotations

import collections
import contextlib
import errno
import importlib.util
import itertools
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ideal_proxy.batching import Batch, Loss
from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.export import hand_over
from ideal_proxy.export.hand_over import TARGETS, export_mixture, export_table
from ideal_proxy.export.job import Job
from ideal_proxy.export.terms import FORMATS
from ideal_proxy.mixture.draws import domain_order, draw, training_order
from ideal_proxy.mixture.file import DomainVolume, MixtureFile

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


KEPT: dict[Any, bytes] = {}


@pytest.fixture
def shared_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the same rows once for all exports: for tests of what is said about them, not of the rows themselves."""
    really = Job.write_drawn

    def write_drawn(job: Job, path: Path, domains: list[DomainVolume] | None = None) -> Path:
        key = (job.mixture.seed, *((d.name, d.source, d.rows) for d in domains or job.domains))
        if key not in KEPT:
            KEPT[key] = really(job, path, domains).read_bytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(KEPT[key])
        return path

    monkeypatch.setattr(Job, "write_drawn", write_drawn)


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


@pytest.mark.parametrize("target", ["jsonl", "axolotl", "ms-swift", "llamafactory"])
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
    entry = json.loads((tmp_path / "out" / "dataset_info.json").read_text())["mixture"]
    assert entry["columns"] == {"messages": "messages", "tools": "tools"}
    known = {entry["tags"][f"{role}_tag"] for role in ("user", "assistant", "system", "observation", "function")}
    found = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {turn["role"] for row in found for turn in row["messages"]} <= known
    first = next(row for row in found if "two 0" in row["messages"][2]["content"])
    asked, called, answered, said = first["messages"]
    assert (asked["content"], answered["content"]) == ("1 + 1, twice", "2\ntwo 0")
    assert json.loads(called["content"]) == [{"name": "add", "arguments": {"a": 1}}] * 2
    assert said["content"] == "<think>\neasy\n</think>\n\n2"
    assert json.loads(first["tools"]) == rows[0]["tools"]
    assert any(note.startswith("2 turns say something beside a tool call") for note in report.notes)


def test_streaming_shards_hold_the_drawn_rows(
    mixture: MixtureFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ideal_proxy.export.formats.SHARD_BYTES", 4000)
    export_mixture(mixture, "streaming", tmp_path / "out")
    text = (tmp_path / "out" / "mixture_streams.py").read_text()
    compile(text, "mixture_streams.py", "exec")
    assert "epoch_size" not in text
    streams = re.findall(r"HERE / \"data\" / '([^']+)'\)\)", text)
    found = []
    for name, domain in zip(streams, WANTED, strict=True):
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
        assert len(index["shards"]) > 1 or domain == "code"
        assert counts(rows) == {domain: WANTED[domain]}
        found += rows
    assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, expected_rows(mixture)))


def test_interleave_script_takes_every_row_once(
    mixture: MixtureFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", minversion="4.5", reason="the script asks for datasets >= 4.5")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    export_mixture(mixture, "interleave", tmp_path / "out")
    table = load(tmp_path / "out" / "mixture_interleave.py").dataset()
    rows = table["messages"][:]
    assert counts(rows) == WANTED
    assert sorted(map(json.dumps, rows)) == sorted(map(json.dumps, expected_rows(mixture))), (
        "the very rows, not only counts"
    )
    first = counts(rows[:200])
    assert len(first) == 3, "mixed, not one after the other"


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
    assert sorted(map(json.dumps, rows)) == sorted(map(json.dumps, expected_rows(mixture)))


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
    for target in TARGETS:
        with pytest.raises(UserError, match="'code' changed since the search"):
            export_mixture(changed, target, tmp_path / target)
        assert not (tmp_path / target).exists()
    empty = mixture.model_copy(update={"domains": [mixture.domains[3]]})
    with pytest.raises(UsageError, match="every volume is 0"):
        export_mixture(empty, "jsonl", tmp_path / "none")


def test_names_are_safe_and_differ(mixture: MixtureFile, tmp_path: Path) -> None:
    from ideal_proxy.export.job import Job
    from ideal_proxy.export.terms import terms_of

    base = mixture.domains[0]
    names = ["a b", "a,b", "A_B", "../x", "$(rm)", "é"]
    domains = [base.model_copy(update={"name": name}) for name in names]
    job = Job(mixture.model_copy(update={"domains": domains}), tmp_path, {}, terms_of(mixture))
    safe = job.file_names()
    assert len({name.lower() for name in safe.values()}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name) for name in safe.values())


def in_search(mixture: MixtureFile, loss: Loss, batch: Batch, context: int | None = 512) -> MixtureFile:
    told = {"loss": loss, "batch": batch, "epochs": 3, "provenance": {"proxy": {"context": context}}}
    return mixture.model_copy(update=told)


def settings_of(folder: Path) -> dict[str, str]:
    """Read the options that an exporter wrote, whatever its syntax, as text by name."""
    found: dict[str, Any] = {}
    for path in folder.glob("*.yaml"):
        found |= flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    for path in folder.glob("*.sh"):
        words = shlex.split(path.read_text(encoding="utf-8").replace("\\\n", " "), comments=True)
        found |= {a.removeprefix("--"): b for a, b in itertools.pairwise(words) if a.startswith("--")}
        found |= dict(word.split("=", 1) for word in words if re.match(r"[a-z_.]+=", word))
    for path in folder.glob("mixture_blend.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.match(r"[A-Z_]+[, A-Z_]* = ", line):
                names, values = line.split(" = ")
                found |= dict(zip(names.lower().split(", "), re.split(r", (?![\d.]+\))", values), strict=True))
    return {key: str(value).lower() for key, value in found.items()}


def flat(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{before}{key}.") if isinstance(inner, dict) else {f"{before}{key}": inner}
    return found


TRAINERS = [target for target in TARGETS if target not in FORMATS]


@pytest.mark.usefixtures("shared_draws")
@pytest.mark.parametrize("target", list(TARGETS))
def test_epochs_are_never_multiplied_again(mixture: MixtureFile, tmp_path: Path, target: str) -> None:
    """The volumes of base: {epochs: 3} hold all three; whatever reads an export trains them once."""
    told = in_search(mixture, "token", Batch(rows=32))
    report = export_mixture(told, target, tmp_path / "out")
    assert {d.domain: d.draws for d in report.draws} == WANTED
    found = settings_of(tmp_path / "out")
    if target in TRAINERS and target != "megatron-bridge":
        assert {value for key, value in found.items() if key.split(".")[-1].endswith("epochs")} == {"1"}
    elif target == "megatron-bridge":
        assert found["train_iters"] == str(math.ceil(sum(WANTED.values()) / 32))
    text = "".join(
        path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("*.*") if path.suffix != ".parquet"
    )
    assert not re.search(
        r"epochs\D{0,4}3|epoch_size=", text.replace("the base's 3 epochs already: train one epoch", "")
    )
    assert any("train one epoch" in note for note in report.notes)
    plain = export_mixture(mixture, target, tmp_path / "plain")
    assert not any("epochs" in note for note in plain.notes)


# Where each trainer is told: rows of a step, context, peak rate, share or steps of warm-up, seed, and what is off.
SAID = {
    "trl": ("gradient_accumulation_steps", "max_length", "learning_rate", ("warmup_steps", "0.05"), "seed"),
    "llamafactory": ("gradient_accumulation_steps", "cutoff_len", "learning_rate", ("warmup_ratio", "0.05"), "seed"),
    "ms-swift": ("gradient_accumulation_steps", "max_length", "learning_rate", ("warmup_ratio", "0.05"), "data_seed"),
    "axolotl": ("gradient_accumulation_steps", "sequence_len", "learning_rate", ("warmup_ratio", "0.05"), "seed"),
    "open-instruct":
        ("gradient_accumulation_steps", "max_seq_length", "learning_rate", ("warmup_ratio", "0.05"), "seed"),
    "megatron-bridge": ("global_batch_size", "seq_length", "learning_rate", ("lr_warmup_iters", "1"), "seed"),
    "automodel": (
        "step_scheduler.global_batch_size", "dataset.seq_length", "optimizer.lr", ("lr_scheduler.lr_warmup_steps", "1"),
        "seed"),
    "verl": (
        "data.train_batch_size", "data.max_length", "optim.lr", ("optim.lr_warmup_steps_ratio", "0.05"),
        "trainer.seed"),
    "skyrl": (
        "batch_size", "max_length", "optimizer_config.lr", ("optimizer_config.num_warmup_steps", "1"), "seed"),
}  # fmt: skip


@pytest.mark.usefixtures("shared_draws")
@pytest.mark.parametrize("target", TRAINERS)
def test_every_trainer_is_told_how_to_train(mixture: MixtureFile, tmp_path: Path, target: str) -> None:
    told = in_search(mixture, "token", Batch(rows=24), 640)
    report = export_mixture(told, target, tmp_path / "out", learning_rate=3e-5)
    found = settings_of(tmp_path / "out")
    step, context, rate, warm, seed = SAID[target]
    assert (found[step], found[context], float(found[rate]), found[seed]) == ("24", "640", 3e-5, str(mixture.seed))
    assert found[warm[0]] == warm[1]
    assert any("cosine" in value for value in found.values())
    for key, value in found.items():
        if re.search(r"push_to_hub|launch|save_to_beaker|with_tracking", key):
            assert value == "false", f"{key}: nothing is pushed, launched or tracked"
        assert "wandb" not in value
    assert not any("not tuned" in note for note in report.notes)
    usual = export_mixture(told, target, tmp_path / "usual")
    assert float(settings_of(tmp_path / "usual")[rate]) == 2e-5
    assert any("not tuned" in note for note in usual.notes)
    assert any("640 tokens of context are the search's" in note for note in usual.notes)
    chosen = export_mixture(told, target, tmp_path / "chosen", context=1024)
    assert not any("tokens of context" in note for note in chosen.notes)
    silent = export_mixture(in_search(mixture, "token", Batch(rows=24), None), target, tmp_path / "silent")
    assert any("names no context" in note for note in silent.notes)


def test_open_instruct_is_kept_from_its_hub_and_its_cluster(mixture: MixtureFile, tmp_path: Path) -> None:
    """Its `finetune.py` pushes to a hub, launches jobs and saves to Beaker unless it is told not to."""
    export_mixture(mixture, "open-instruct", tmp_path / "out")
    found = settings_of(tmp_path / "out")
    for key in ("push_to_hub", "try_launch_beaker_eval_jobs", "try_auto_save_to_beaker"):
        assert found[key] == "false"


def test_schedule_and_optimiser_are_the_proxies() -> None:
    from ideal_proxy.export import terms
    from ideal_proxy.proxy.records import TrainSettings

    ours = TrainSettings()
    assert (
        ours.warmup_fraction, ours.weight_decay, ours.beta1, ours.beta2, ours.grad_clip,
    ) == (terms.WARMUP, terms.WEIGHT_DECAY, terms.BETA1, terms.BETA2, terms.GRAD_CLIP)  # fmt: skip


STEPS = {
    "llamafactory": ("per_device_train_batch_size", "packing", "cutoff_len"),
    "ms-swift": ("per_device_train_batch_size", "packing", "max_length"),
    "open-instruct": ("per_device_train_batch_size", "packing", "max_seq_length"),
    "trl": ("per_device_train_batch_size", "packing", "max_length"),
    "axolotl": ("micro_batch_size", "sample_packing", "sequence_len"),
}


@pytest.mark.usefixtures("shared_draws")
@pytest.mark.parametrize("target", STEPS)
def test_a_packed_step_is_said_in_the_trainers_options(mixture: MixtureFile, tmp_path: Path, target: str) -> None:
    one, packing, length = STEPS[target]
    report = export_mixture(in_search(mixture, "token", Batch(tokens=16384)), target, tmp_path / "tokens")
    found = settings_of(tmp_path / "tokens")
    assert [found[key] for key in (one, "gradient_accumulation_steps", packing, length)] == ["1", "32", "true", "512"]
    assert any("16,384 tokens is 32 packed sequences" in note for note in report.notes)
    lost = export_mixture(in_search(mixture, "token", Batch(tokens=16384), None), target, tmp_path / "lost")
    assert any("names no context" in note for note in lost.notes)
    export_mixture(mixture, target, tmp_path / "older")
    older = settings_of(tmp_path / "older")
    assert older.get(packing, "false") == "false"
    assert "gradient_accumulation_steps" not in older, "older files do not say"


@pytest.mark.usefixtures("shared_draws")
@pytest.mark.parametrize("target", [*STEPS, "megatron-bridge"])
def test_the_row_loss_is_said_or_told_to_be_lost(mixture: MixtureFile, tmp_path: Path, target: str) -> None:
    report = export_mixture(in_search(mixture, "row", Batch(rows=8)), target, tmp_path / "out")
    can = target in {"open-instruct", "megatron-bridge"}
    assert any("each row counts alike" in note for note in report.notes) is can
    assert any("here each supervised token counts alike" in note for note in report.notes) is not can
    if target == "open-instruct":
        assert settings_of(tmp_path / "out")["reduce_loss"] == "mean"
    if target == "megatron-bridge":
        assert settings_of(tmp_path / "out")["per_token_loss"] == "false"
    packed = export_mixture(in_search(mixture, "row", Batch(tokens=4096)), target, tmp_path / "packed")
    assert any("here each supervised token counts alike" in note for note in packed.notes)
    if target == "open-instruct":
        assert settings_of(tmp_path / "packed")["reduce_loss"] == "sum", "a mean over a packed sequence counts neither"
    token = export_mixture(in_search(mixture, "token", Batch(rows=8)), target, tmp_path / "token")
    assert not any("counted each row alike" in note for note in token.notes)
    assert "Note: " in export_table(token)


@pytest.mark.parametrize("target", ["trl", "streaming", "hf"])
def test_a_killed_export_goes_on_with_the_same_command(mixture: MixtureFile, tmp_path: Path, target: str) -> None:
    """Killed before the first file has its name, between any two, and at the last; nothing tidies up behind a kill."""

    def content(place: Path) -> dict[str, bytes]:
        return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}

    out = tmp_path / "out"
    export_mixture(mixture, target, out)
    expected = content(out)
    assert {path.split("/")[0] for path in expected} == {path.name for path in out.iterdir()}
    for killed_at in itertools.count():
        shutil.rmtree(out)
        moves = itertools.count()

        def move(part: Path, path: Path, moves: Iterator[int] = moves, killed_at: int = killed_at) -> None:
            if next(moves) == killed_at:
                raise KeyboardInterrupt
            os.replace(part, path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hand_over, "move", move)
            patch.setattr(hand_over, "_take_away", lambda place: None)
            with contextlib.suppress(KeyboardInterrupt):
                export_mixture(mixture, target, out)
                break
        assert (out / "export.json").exists() is False
        export_mixture(mixture, target, out)
        assert content(out) == expected
    assert killed_at == len(list(out.iterdir())) - 1
    with pytest.raises(UserError, match="not an empty folder"):
        export_mixture(mixture, target, out)
    assert content(out) == expected


def test_what_others_put_into_the_folder_meanwhile_is_kept(
    mixture: MixtureFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()

    def full(*_: object) -> None:
        (tmp_path / "out" / "theirs.txt").write_text("keep")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ideal_proxy.export.trainers.write_yaml", full)
    with pytest.raises(UserError, match="No space left"):
        export_mixture(mixture, "trl", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs.txt"]


@pytest.mark.parametrize(
    ("context", "batch", "words"),
    [
        *(
            (value, Batch(rows=8), "context is .*whole number of 1 to")
            for value in (-7, True, 0.5, 1e308, 10**300, "9")
        ),
        (1, Batch(tokens=10**15), "step is 1000000000000000; it must be a whole number of 1 to 1,000,000"),
        (512, Batch(rows=10**15), "step is 1000000000000000"),
    ],
)
def test_what_a_strange_file_asks_of_a_trainer_is_in_range(
    mixture: MixtureFile, tmp_path: Path, context: Any, batch: Batch, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        export_mixture(in_search(mixture, "token", batch, context), "ms-swift", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1e-5, 0.0, True, "1"])
def test_a_learning_rate_is_a_number_above_0(mixture: MixtureFile, tmp_path: Path, rate: Any) -> None:
    with pytest.raises(UsageError, match=r"learning_rate is .*a number above 0"):
        export_mixture(mixture, "ms-swift", tmp_path / "out", learning_rate=rate)
    told = in_search(mixture, "token", Batch(rows=8))
    told.provenance["proxy"] |= {"model": "m", "learning_rate": rate or -1}
    with pytest.raises(UsageError, match=r"learning_rate is .*a number above 0"):
        export_mixture(told, "ms-swift", tmp_path / "out", model="m")
