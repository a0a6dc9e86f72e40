"""Pretrained models as proxies of a search: whole or as LoRA, from one mapped base, killed and resumed."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from builders import interrupted, run_swarm, small_search
from pretrained_folder import CONTEXT, NAMES, pretrained_folder, smollm2

from ideal_proxy.config import dump_config, load_config, parse_config
from ideal_proxy.data.rows import read_rows
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizing import tokenize_rows
from ideal_proxy.data.tokens import TokenRows
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.pipeline.outer_loop import run_search
from ideal_proxy.pipeline.plan import workers_that_fit
from ideal_proxy.pipeline.plan_cost import FULL_RATES, LORA_RATES, gradient_method, sweep_rates
from ideal_proxy.pipeline.prepare import prepare
from ideal_proxy.proxy import model as models
from ideal_proxy.proxy import training
from ideal_proxy.proxy.base_model import (
    WEIGHTS,
    build_pretrained_proxy,
    keep_base,
    map_base,
    place_base,
    trainable_parameters,
)
from ideal_proxy.proxy.cost import count_products
from ideal_proxy.proxy.metric import export_model
from ideal_proxy.proxy.model import batch_loss, collate_across, label_losses
from ideal_proxy.proxy.pretrained import Pretrained, load_causal_lm, load_tokenizer, with_lora
from ideal_proxy.report.text import result_tables
from ideal_proxy.swarm.context import RunSpec, SwarmContext, draw_run, prepare_context
from ideal_proxy.swarm.scheduler import zero_spec
from ideal_proxy.terminal import Reporter

ROOT = Path(__file__).resolve().parents[2]
QUIET = Reporter(quiet=True)
SETTINGS = training.TrainSettings(learning_rate=1e-2, batch_rows=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained_folder(tmp_path_factory.mktemp("pretrained") / "tiny")


@pytest.fixture(scope="module")
def kept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("kept") / "model"
    source = Pretrained(name=str(folder))
    keep_base(load_causal_lm(source, context=CONTEXT, packed=False), source, place)
    return place


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[TokenRows]:
    template = make_template(load_tokenizer(Pretrained(name=str(folder))))
    return [tokenize_rows(read_rows(f"demo:{name}?rows=200"), template, CONTEXT) for name in NAMES]


def order(*counts: int) -> tuple[np.ndarray, np.ndarray]:
    domain = np.repeat(np.arange(len(counts)), counts)
    row = np.concatenate([np.arange(n) for n in counts])
    mixed = np.random.default_rng(0).permutation(len(domain))
    return domain[mixed], row[mixed]


# The mapped base


def test_the_kept_model_is_the_folders_own(folder: Path, kept: Path, tmp_path: Path) -> None:
    own, mapped = load_causal_lm(Pretrained(name=str(folder)), context=CONTEXT), map_base(kept)
    assert {n: p.dtype for n, p in mapped.named_parameters()} == {n: torch.float32 for n, _ in own.named_parameters()}
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), mapped.parameters(), strict=True))
    assert mapped.lm_head.weight is mapped.model.embed_tokens.weight
    if Path("/proc/self/maps").exists():
        assert str(kept / WEIGHTS) in Path("/proc/self/maps").read_text()
    source = Pretrained(name=str(folder))
    same = keep_base(load_causal_lm(source, context=CONTEXT, packed=False), source, tmp_path / "same")
    with torch.no_grad():
        own.model.norm.weight[0] += 1e-3
    assert keep_base(own, source, tmp_path / "other") != same == keep_base(mapped, source, tmp_path / "again")


def test_training_every_weight_leaves_the_file_alone(kept: Path, rows: list[TokenRows], tmp_path: Path) -> None:
    place_base(kept, tmp_path / "base", narrow=False)
    assert (tmp_path / "base" / WEIGHTS).stat().st_ino == (kept / WEIGHTS).stat().st_ino, "one file, two names"
    before = (kept / WEIGHTS).read_bytes()
    model = build_pretrained_proxy(tmp_path / "base", lora_rank=None, seed=0)
    assert trainable_parameters(model) == sum(p.numel() for p in model.parameters())
    training.train(model, order(16, 16, 0), rows, SETTINGS)
    assert not torch.equal(model.model.norm.weight, map_base(kept).model.norm.weight)
    assert (kept / WEIGHTS).read_bytes() == before


def test_a_narrow_base_changes_no_loss_by_a_bit(kept: Path, rows: list[TokenRows], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    place_base(kept, tmp_path / "base", narrow=True)
    found = {n: p.dtype for n, p in map_base(tmp_path / "base").named_parameters()}
    assert {dtype for n, dtype in found.items() if "proj" in n} == {torch.bfloat16}
    assert {dtype for n, dtype in found.items() if "proj" not in n} == {torch.float32}
    assert (tmp_path / "base" / WEIGHTS).stat().st_size < 0.75 * (kept / WEIGHTS).stat().st_size
    losses, weights = [], []
    for place in (kept, tmp_path / "base"):
        model = build_pretrained_proxy(place, lora_rank=4, seed=2)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        log = training.train(
            model, order(32, 32, 32), rows, training.TrainSettings(learning_rate=1e-2, dtype="bfloat16")
        )
        losses.append(log.losses.tolist() + models.evaluate(model, rows[0], autocast=torch.bfloat16).loss_sum.tolist())
        weights.append([p for p in model.parameters() if p.requires_grad])
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_lora_over_a_narrow_base_is_merged_without_rounding_it_away(kept: Path, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    place_base(kept, tmp_path / "base", narrow=True)
    name = "model.layers.1.mlp.up_proj"
    before = map_base(tmp_path / "base").get_submodule(name).weight.detach().float()
    model = build_pretrained_proxy(tmp_path / "base", lora_rank=4, seed=2)
    layer = model.get_base_model().get_submodule(name)
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(1e-4)
    update = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    export_model(model, load_tokenizer(Pretrained(name=str(folder))), tmp_path / "out")
    merged = load_causal_lm(Pretrained(name=str(tmp_path / "out")), context=CONTEXT).get_submodule(name).weight
    torch.testing.assert_close(merged - before, update, rtol=1e-2, atol=1e-7)
    assert not torch.equal(merged.bfloat16().float(), merged)


def test_the_frozen_heads_short_cut_has_the_same_gradients(kept: Path, rows: list[TokenRows]) -> None:
    pytest.importorskip("peft")
    gradients = []
    batch = collate_across(rows, np.array([0, 1, 2, 2]), np.arange(4))
    for way in (batch_loss, None):
        model = build_pretrained_proxy(kept, lora_rank=4, seed=2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.02)
        loss = way(model, batch, 0.1) if way is not None else label_losses(model, batch).sum() * 0.1
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


# Training


@pytest.mark.parametrize("rank", [None, 8], ids=["full", "lora"])
def test_a_starved_domain_is_learnt_less(kept: Path, rows: list[TokenRows], rank: int | None) -> None:
    if rank is not None:
        pytest.importorskip("peft")
    held_out = [part.select(np.arange(150, 200)) for part in rows]
    losses = []
    for counts in ((120, 8, 60), (8, 120, 60)):
        model = build_pretrained_proxy(kept, lora_rank=rank, seed=0)
        before = [models.evaluate(model, part).mean for part in held_out]
        rate = 3e-3 if rank is None else 1e-2
        training.train(model, order(*counts), rows, training.TrainSettings(learning_rate=rate, batch_rows=16))
        losses.append([models.evaluate(model, part).mean for part in held_out])
    assert losses[0][0] < losses[1][0] - 0.02
    assert losses[1][1] < losses[0][1] - 0.02
    assert losses[0][0] < before[0]
    assert losses[1][1] < before[1]


def test_a_lora_checkpoint_holds_what_is_trained_and_resumes_with_the_same_bits(
    kept: Path, rows: list[TokenRows], tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    from safetensors import safe_open

    run = order(40, 20, 20)
    whole = build_pretrained_proxy(kept, lora_rank=4, seed=1)
    log = training.train(whole, run, rows, SETTINGS)
    stopped = build_pretrained_proxy(kept, lora_rank=4, seed=1)
    done: list[int] = []
    with pytest.raises(training.TrainingStopped):
        training.train(
            stopped, run, rows, SETTINGS, checkpoint_dir=tmp_path, on_step=lambda at, *_: done.append(at),
            should_stop=lambda: done[-1] == 2,
        )  # fmt: skip
    with safe_open(str(tmp_path / "checkpoint.safetensors"), framework="pt") as file:
        held = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118
    assert sum(n for name, n in held.items() if name != "losses") == 3 * trainable_parameters(whole)
    assert all("lora_" in name for name in held if name != "losses")
    again = build_pretrained_proxy(kept, lora_rank=4, seed=1)
    resumed = training.train(again, run, rows, SETTINGS, checkpoint_dir=tmp_path)
    assert (resumed.steps_resumed, len(resumed.losses)) == (2, 5)
    assert resumed.losses.tolist() == log.losses.tolist()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    base = map_base(kept)
    frozen = {n.removeprefix("base_model.model.").replace(".base_layer", ""): p for n, p in again.named_parameters()}
    assert all(torch.equal(frozen[name], p) for name, p in base.named_parameters()), "the base is untouched"
    training.save_weights(again, tmp_path / "weights")
    fresh = build_pretrained_proxy(kept, lora_rank=4, seed=5)
    training.load_weights(fresh, tmp_path / "weights")
    assert models.evaluate(fresh, rows[1]).loss_sum.tolist() == models.evaluate(again, rows[1]).loss_sum.tolist()
    with pytest.raises(UserError, match="weights of another proxy"):
        training.load_weights(build_pretrained_proxy(kept, lora_rank=8, seed=5), tmp_path / "weights")


# The search


def config(folder: Path, **changes: object) -> dict[str, object]:
    given = {
        "capabilities": [
            {"name": name, "path": f"demo:{name}?rows=60&split=reference"} for name in ("strings", "formats")
        ],
        "proxy": {
            "model": str(folder), "lora_rank": 8, "context": 48, "fraction": 0.25, "batch_rows": 16,
            "learning_rate": 0.01, "dtype": "float32",
        },
        "swarm": {"runs": 6, "workers": 1},
        "verify": {"pairs": 2, "max_pairs": 2},
    }  # fmt: skip
    return small_search(**{**given, **changes})


def test_a_search_with_lora_proxies_killed_and_resumed(folder: Path, tmp_path: Path) -> None:
    """The same numbers however it was interrupted, and files that say which model the proxies were."""
    pytest.importorskip("peft")
    (tmp_path / "mix.yaml").write_text(dump_config(parse_config(config(folder))), encoding="utf-8")
    files = []
    for out in ("run", "killed"):
        if out == "killed":
            interrupted(tmp_path / "run", tmp_path / "killed", 6)
        result = run_search(load_config(tmp_path / "mix.yaml"), tmp_path / out, QUIET)
        mixture = json.loads((tmp_path / out / "mixture.json").read_text(encoding="utf-8"))
        files.append({key: value for key, value in mixture.items() if key not in ("created", "provenance")})
    assert files[0] == files[1]
    said = [(tmp_path / out / "log.txt").read_text(encoding="utf-8").count("going on: 6 runs finished before")
            for out in ("run", "killed")]  # fmt: skip
    assert said == [0, 1]
    assert result["verdict"]["gain"]["value"] > 0.005
    judged, unjudged = result["domains"][:2], result["domains"][2]
    assert all(domain["proposal_rows"] > domain["base_rows"] for domain in judged)
    assert unjudged["proposal_rows"] < unjudged["base_rows"]
    setting = mixture["provenance"]["proxy"]
    assert (setting["model"], setting["lora_rank"], setting["size"]) == (str(folder), 8, None)
    assert len(setting["weights"]) == 64
    said = " ".join(result_tables(result, tmp_path / "run").split())
    assert "11 runs of tiny (0.14M parameters, LoRA of rank 8 trains 0.02M)" in said
    frame = pd.read_parquet(tmp_path / "run" / "runs.parquet")
    assert frame["role"].tolist().count("zero") == 1
    zero = frame[frame["role"] == "zero"].iloc[0]
    assert zero["tokens"] == 0
    template = make_template(load_tokenizer(Pretrained(name=str(folder))))
    model = load_causal_lm(Pretrained(name=str(folder)), context=48)
    whole = tokenize_rows(read_rows("demo:strings?rows=60&split=reference"), template, 48)
    parts = [TokenRows.load(tmp_path / "run" / "prepared" / f"{half}-0") for half in ("search", "verify")]
    assert sum(len(part) for part in parts) == len(whole)
    assert zero["search_loss/strings"] == pytest.approx(models.evaluate(model, parts[0]).mean, rel=1e-6)
    assert not (tmp_path / "run" / "runs" / "warm").exists()
    facts = json.loads((tmp_path / "run" / "prepared" / "facts.json").read_text(encoding="utf-8"))
    assert [domain["reserved"] for domain in facts["domains"]] == [0, 0, 0]
    assert facts["base_model"]["fingerprint"] == setting["weights"]


def test_a_swarm_that_trains_every_weight(folder: Path, kept: Path, rows: list[TokenRows], tmp_path: Path) -> None:
    """A worker gives the bits of training in this process; the run of no rows is the model as it is."""
    place_base(kept, tmp_path / "context" / "base", narrow=False)
    held_out = rows[0].select(np.arange(150, 200))
    domains = [part.select(np.arange(150)) for part in rows]
    context = prepare_context(
        SwarmContext(
            folder=tmp_path / "context", domains=NAMES, references=("strings",), available=(150, 150, 150), size="",
            vocab_size=300, context=CONTEXT, base="f" * 64,
            train=training.TrainSettings(batch_rows=16, micro_batch_tokens=512),
        ),
        domains=domains, references=[held_out],
    )  # fmt: skip
    many, few = (
        RunSpec(id=name, rows=counts, volumes=counts, seed=3, role="design", learning_rate=3e-3)
        for name, counts in (("many", (120, 8, 40)), ("few", (8, 120, 40)))
    )
    found = run_swarm([zero_spec(context), many, few], context, tmp_path / "run", workers=1).results
    loss = {run: result.losses["strings"].mean for run, result in found.items()}
    assert loss["many"] < loss["zero"]
    assert loss["many"] < loss["few"] - 0.02
    model = load_causal_lm(Pretrained(name=str(folder)), context=CONTEXT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert loss["zero"] == models.evaluate(model, held_out, batch_tokens=512).mean
        settings = dataclasses.replace(context.train, learning_rate=3e-3)
        training.train(model, draw_run(context, domains, many), domains, settings)
        assert loss["many"] == models.evaluate(model, held_out, batch_tokens=512).mean
    finally:
        torch.set_num_threads(threads)


def test_labels_are_those_of_scale_up(folder: Path, tmp_path: Path) -> None:
    from ideal_proxy.scaleup.model import ModelSpec, load_template
    from ideal_proxy.scaleup.source import ProxySetting

    prepared = prepare(parse_config(config(folder)), tmp_path / "prepared", QUIET)
    template = load_template(ModelSpec(name=str(folder)), ProxySetting(), [], tmp_path)
    assert prepared.template["identity"] == template.identity
    assert not template.plain
    for index, name in enumerate(NAMES):
        ours = prepared.domain_rows(index)
        theirs = tokenize_rows(read_rows(f"demo:{name}?rows=900"), template, 48)
        for part in ("ids", "supervised", "offsets", "keys"):
            np.testing.assert_array_equal(getattr(ours, part), getattr(theirs, part))
    assert prepared.vocabulary == 300


def test_scale_up_takes_the_searchs_rate_for_the_same_model_only(tmp_path: Path, monkeypatch) -> None:
    from ideal_proxy.scaleup.model import LORA_RATE, PRETRAINED_RATE, SCRATCH_RATES, ModelSpec
    from ideal_proxy.scaleup.source import ProxySetting

    proxies = ProxySetting(model="org/name", lora_rank=8, learning_rate=1.6e-3)
    assert ModelSpec(name="org/name", lora=8).learning_rate(proxies) == 1.6e-3
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    absolute = ProxySetting(model=str(tmp_path / "tiny"), lora_rank=8, learning_rate=1.6e-3)
    assert ModelSpec(name="tiny", lora=8).learning_rate(absolute) == 1.6e-3, "a folder by its relative name"
    assert ModelSpec(name="org/name", lora=16).learning_rate(proxies) == LORA_RATE
    assert ModelSpec(name="org/larger", lora=8).learning_rate(proxies) == LORA_RATE
    assert ModelSpec(name="org/name").learning_rate(proxies) == PRETRAINED_RATE
    assert ModelSpec(name="scratch:1M").learning_rate(proxies) == SCRATCH_RATES["1M"]
    assert ModelSpec(name="scratch:1M").learning_rate(ProxySetting(learning_rate=5e-4)) == 5e-4


def test_folders_hold_the_same_model_where_settings_and_weights_agree(tmp_path: Path) -> None:
    from ideal_proxy.scaleup.model import same_model

    files = {"config.json": b"{}", "model.safetensors": b"pretrained", "README.md": b"mine"}
    changed = {
        "copy": {"README.md": b"yours"},
        "instruct": {"model.safetensors": b"instructed"},
        "wide": {"config.json": b"[]"},
    }
    for folder, other in {"first": {}, **changed}.items():
        (tmp_path / folder).mkdir()
        for name, content in (files | other).items():
            (tmp_path / folder / name).write_bytes(content)
    same = {name for name in changed if same_model(str(tmp_path / "first"), str(tmp_path / name))}
    assert same == {"copy"}
    (tmp_path / "empty").mkdir()
    assert not same_model(str(tmp_path / "empty"), str(tmp_path / "first"))


# What is refused


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"size": "1M"}, "size is of scratch proxies and model names a pretrained one"),
        ({"vocabulary": 500}, "vocabulary is of scratch proxies"),
        ({"warm_fraction": 0.1}, "warm_fraction is of scratch proxies"),
        ({"model": None, "gguf": "x.gguf"}, "gguf is of a pretrained proxy; name it with model"),
        ({"model": None, "lora_rank": 4}, "lora_rank is of a pretrained proxy"),
        ({"model": None, "trust_remote_code": True}, "trust_remote_code is of a pretrained proxy"),
        ({"model": None, "fraction": 0.9}, "fraction is 0.9; scratch proxies see at most 0.85"),
        ({"lora_rank": 0}, "greater than or equal to 1"),
        ({"lora": 4}, "unknown key 'proxy.lora'; did you mean 'lora_rank'"),
    ],
)
def test_contradictory_keys_get_one_sentence(keys: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_config(config(Path("org/name"), proxy={"model": "org/name", **keys}))
    assert "\n" not in str(caught.value)


def test_the_run_file_keeps_its_defaults_and_finds_the_folder(tmp_path: Path) -> None:
    scratch = parse_config(config(tmp_path, proxy={}))
    assert (scratch.proxy.size, scratch.proxy.vocabulary, scratch.proxy.warm_fraction) == ("1M", 4096, 0.15)
    (tmp_path / "models" / "own").mkdir(parents=True)
    for name, place in (("models/own", str(tmp_path / "models/own")), ("org/name", "org/name")):
        text = yaml.safe_dump(config(tmp_path, proxy={"model": name, "fraction": 1.0}))
        (tmp_path / "mix.yaml").write_text(text, encoding="utf-8")
        found = load_config(tmp_path / "mix.yaml")
        assert found.proxy.model == place
        assert (found.proxy.size, found.proxy.trust_remote_code, found.proxy.fraction) == (None, False, 1.0)
        (tmp_path / "again.yaml").write_text(dump_config(found), encoding="utf-8")
        assert load_config(tmp_path / "again.yaml") == found


def test_the_pages_show_blocks_that_are_right() -> None:
    shown = []
    for page in (ROOT / "README.md", ROOT / "docs" / "how-to-choose.md"):
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            keys = yaml.safe_load(block).get("proxy", {})
            shown += [parse_config(config(Path("x"), proxy=keys)).proxy] if "model" in keys else []
    assert len(shown) == 3
    assert {(entry.model, entry.lora_rank) for entry in shown} == {("HuggingFaceTB/SmolLM2-135M-Instruct", 16)}
    known = load_config(ROOT / "benchmarks" / "verdict" / "sft5_smollm2_lora.yaml").proxy
    assert (known.lora_rank, known.size) == (8, None)


def test_whole_trainings_of_a_pretrained_model_are_not_differentiated(folder: Path, tmp_path: Path) -> None:
    settings = parse_config(config(folder, gradients="unrolled"))
    with pytest.raises(UsageError, match="gradients: unrolled needs scratch proxies") as caught:
        run_search(settings, tmp_path / "run", QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists(), "said before anything is loaded or written"
    auto = parse_config(config(folder, gradients="auto"))
    few = SimpleNamespace(runs=4, parameters=7e9, trainable_parameters=4e7, workers=1, memory=8e9)
    assert gradient_method(auto, few)[0] == "implicit", "a LoRA's curvature is as small as what is trained"
    few.trainable_parameters = None
    assert gradient_method(auto, few)[0] == ""


def test_the_sweep_starts_where_such_models_learn(folder: Path) -> None:
    assert sweep_rates(parse_config(config(folder))) == LORA_RATES
    full = parse_config(config(folder, proxy={"model": str(folder)}))
    assert sweep_rates(full) == FULL_RATES
    assert max(FULL_RATES) <= max(LORA_RATES) / 2


@pytest.mark.parametrize(("each", "workers"), [(1e9, 8), (2e9, 4), (4.1e9, 1), (30e9, 1), (None, 8)])
def test_no_more_workers_than_memory_holds(each: float | None, workers: int) -> None:
    assert workers_that_fit(8, each, 10.1e9) == workers


def test_models_without_attention_are_counted_and_low_ranks_that_do_not_fit_are_refused(folder: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4))
    products = count_products(model)
    assert products.trained > 0
    assert products.attention == 0
    pytest.importorskip("peft")
    with pytest.raises(UserError, match=r"LoRA does not fit a MambaForCausalLM \(.*\); train every weight"):
        with_lora(model, 4, 0)


def test_pickles_and_long_contexts_are_refused_before_any_run(folder: Path, tmp_path: Path) -> None:
    long = parse_config(config(folder, proxy={"model": str(folder), "context": CONTEXT + 1}))
    with pytest.raises(UsageError, match=f"context of {CONTEXT + 1} is more than the {CONTEXT} tokens"):
        prepare(long, tmp_path / "prepared", QUIET)
    place = tmp_path / "pickled"
    place.mkdir()
    for file in folder.glob("*.json"):
        (place / file.name).write_bytes(file.read_bytes())
    torch.save(load_causal_lm(Pretrained(name=str(folder)), context=64).state_dict(), place / "pytorch_model.bin")
    with pytest.raises(UserError, match="with safetensors weights"):
        prepare(parse_config(config(place, proxy={"model": str(place), "context": 48})), tmp_path / "other", QUIET)


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({mark!r}).write_text("ran")
class OwnConfig(LlamaConfig):
    model_type = "own-llama"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_a_models_own_code_runs_only_where_it_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    place, mark = tmp_path / "own", tmp_path / "mark"
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    settings = json.loads((place / "config.json").read_text(encoding="utf-8"))
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    settings |= {"model_type": "own-llama", "architectures": ["OwnForCausalLM"], "auto_map": auto}
    (place / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (place / "own.py").write_text(CODE.format(mark=str(mark)), encoding="utf-8")
    keys = {"model": str(place), "context": 48}
    with pytest.raises(UserError, match="trust_remote_code"):
        prepare(parse_config(config(place, proxy=keys)), tmp_path / "a", QUIET)
    assert not mark.exists()
    prepared = prepare(parse_config(config(place, proxy={**keys, "trust_remote_code": True})), tmp_path / "b", QUIET)
    assert mark.exists()
    model = map_base(prepared.kept_base, trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"
    own = load_causal_lm(Pretrained(name=str(folder)), context=48)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own.parameters(), strict=True))


@pytest.mark.slow
def test_smollm2_as_lora_proxies_from_gguf(tmp_path: Path) -> None:
    """A real pretrained model (135M, quantised) through a whole search of few steps."""
    pytest.importorskip("peft")
    place, file = smollm2()
    keys = {
        "model": str(place), "gguf": file, "lora_rank": 8, "context": 64, "fraction": 0.02,
        "batch_rows": 8, "learning_rate": 1e-3, "dtype": "bfloat16",
    }  # fmt: skip
    capabilities = [{"name": name, "path": f"demo:{name}?rows=20&split=reference"} for name in ("strings", "formats")]
    settings = parse_config(config(place, proxy=keys, capabilities=capabilities, swarm={"runs": 4, "workers": 2}))
    result = run_search(settings, tmp_path / "run", QUIET)
    assert result["proxy"]["parameters"] > 1.3e8 > 50 * result["proxy"]["trainable_parameters"]
    frame = pd.read_parquet(tmp_path / "run" / "runs.parquet").set_index("role")
    assert (frame.loc["design", "search_loss/formats"] < frame.loc["zero", "search_loss/formats"] - 0.3).all()
    assert frame.index.tolist().count("design") == 4
    base = tmp_path / "run" / "swarm" / "base" / WEIGHTS
    assert base.stat().st_size < 0.7 * (tmp_path / "run" / "prepared" / "model" / WEIGHTS).stat().st_size
