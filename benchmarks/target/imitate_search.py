"""Mixtures that a search trained, imitated by interpolation between its other runs: are they ranked alike?

OMP_NUM_THREADS=1 python benchmarks/target/imitate_search.py runs/sft5 sft5 --cache imitated.json

RUN is a search whose runs kept their weights, finished or under way; it is only read. Every mixture of its swarm is
left out in turn: the shares of the other runs (0 or more, sum 1) whose mean mixture is nearest to it give the weights.
One that lies outside what the others span is not imitated. The alternative is the fit of the response to the other
runs, which reads no weights at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from imitate import rank
from scipy.optimize import nnls

from ideal_proxy.config import load_config
from ideal_proxy.provenance import provenance
from ideal_proxy.proxy import blend_weights, evaluate, load_weights
from ideal_proxy.response import ResponseModel
from ideal_proxy.store import atomic_write_json, atomic_write_text, is_complete, read_json
from ideal_proxy.swarm import MODEL, WARM_RUN, build_model, load_context, load_result

HERE = Path(__file__).parent
FAR = 0.06  # of all rows may lie in another domain than in the mixture that is imitated
PULL = 0.003  # to even shares: many answers are as near


def shares_of(volumes: np.ndarray, target: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, float]:
    """Find shares of runs whose mean is nearest to a mixture, and how far that is."""
    unit = np.sqrt(base * base.sum())
    rows = [volumes.T / unit[:, None], PULL * np.eye(len(volumes)), 100.0 * np.ones((1, len(volumes)))]
    aim = np.concatenate([target / unit, np.zeros(len(volumes)), [100.0]])
    found = nnls(np.vstack(rows), aim)[0]
    found = np.where(found < 0.02, 0.0, found)
    found /= found.sum()
    return found, 0.5 * float(np.abs(found @ volumes - target).sum() / target.sum())


def main() -> None:
    """Imitate, compare, write the result beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--cache", type=Path, required=True, help="file that keeps what was imitated, to go on with")
    options = parser.parse_args()
    run = options.run
    config, context = load_config(run / "config.yaml"), load_context(run / "swarm")
    rate = float(read_json(run / "rate.json")["learning_rate"])
    runs = [
        result
        for place in sorted((run / "runs").iterdir())
        if is_complete(place) and (result := load_result(run, place.name)).spec.role in {"design", "sweep"}
        and result.spec.learning_rate == rate and (place / MODEL).exists()
    ]  # fmt: skip
    names = [f"search-{j}" for j in range(len(config.capabilities))]
    volumes = np.array([r.spec.volumes for r in runs])
    truth = np.array([[r.losses[name].mean for name in names] for r in runs])
    seeds = np.array([r.spec.seed for r in runs])
    facts = read_json(run / "prepared" / "facts.json")["domains"]
    base = np.array([float(fact["base"]) for fact in facts])
    at_base = np.isclose(volumes, base, rtol=0.02, atol=2.0 / context.available[0] * facts[0]["available"]).all(axis=1)
    base_J = truth[at_base].mean(axis=0)
    known = read_json(options.cache) if options.cache.exists() else {}
    chosen, told, parts = [], [], []
    for t, result in enumerate(runs):
        others = np.flatnonzero(~np.isclose(volumes, volumes[t]).all(axis=1))
        shares, far = shares_of(volumes[others], volumes[t], base)
        if far > FAR or at_base[t]:
            continue
        blend = [(runs[o].spec.id, float(s)) for o, s in zip(others, shares, strict=True) if s > 0]
        if result.spec.id not in known:
            model = build_model(context, parts=len(blend))
            if context.warm:
                load_weights(model, run / "runs" / WARM_RUN / MODEL)
            blend_weights(model, [(run / "runs" / r / MODEL, s) for r, s in blend], context.lora_rank)
            losses = [evaluate(model, context.reference_rows(name)).mean for name in names]
            known[result.spec.id] = {"losses": losses, "parts": len(blend), "far": far}
            atomic_write_json(options.cache, known)
        chosen.append(t)
        told.append(known[result.spec.id]["losses"])
        parts.append(known[result.spec.id]["parts"])
    model = ResponseModel(unit="rows", base=base, random_state=0)
    model.fit(volumes, truth, seed_id=seeds)
    held_out = (model.location_[:, None] + model.scale_[:, None] * model.held_out_).T
    told_J = np.array(told)
    rng, lines = np.random.default_rng(0), []
    for j, name in enumerate([*(c.name for c in config.capabilities), "mean"]):
        real, *ways = (
            (losses / base_J).mean(axis=1) if name == "mean" else losses[:, j] / base_J[j]
            for losses in (truth[chosen], told_J, held_out[chosen])
        )
        lines.append({
            "capability": name, "spread": float(np.std(np.log(real), ddof=1)),
            **{way: {"spearman": rank(real, told, rng), "bias": float(np.mean(np.log(told / real))),
                     "scatter": float(np.std(np.log(told / real), ddof=1))}
               for way, told in zip(("imitated", "fit"), ways, strict=True)},
        })  # fmt: skip
    origin = provenance()
    found = {
        "table": lines, "mixtures": len(chosen), "runs": len(runs), "parts": float(np.mean(parts)), "rate": rate,
        "noise": (np.asarray(model.residual_scale_) / base_J).tolist(), "trained": truth[chosen].tolist(),
        "imitated": told_J.tolist(), "fit": held_out[chosen].tolist(), "base": base_J.tolist(), "provenance": origin,
    }  # fmt: skip
    atomic_write_json(HERE / f"imitate_search_{options.name}.json", found)
    machine = origin["machine"]
    rows = []
    for line in lines:
        cells = [line["capability"], f"{line['spread']:.2%}"]
        for way in ("imitated", "fit"):
            value, low, high = line[way]["spearman"]
            cells += [f"{value:.2f} [{low:.2f}, {high:.2f}]", f"{line[way]['bias']:+.2%} ± {line[way]['scatter']:.2%}"]
        rows.append("| " + " | ".join(cells) + " |")
    text = [
        f"# Mixtures of a search imitated by its other runs: {options.name}", "",
        f"`python benchmarks/target/imitate_search.py RUN {options.name} --cache FILE`", "",
        f"{machine['processor']}, {machine['cores']} cores, "
        + ", ".join(f"{k} {v}" for k, v in origin["versions"].items() if k in {"python", "torch", "transformers"})
        + f", source {origin['git']}, {origin['time'][:10]}. {context.size} proxies, rate {rate:g}.", "",
        f"{len(runs)} runs of the swarm; {len(chosen)} of them lie among the others and were imitated, each from "
        f"{np.mean(parts):.1f} runs on average, of any seed. Noise of a run by the fit, in the order of the table: "
        + ", ".join(f"{x:.2%}" for x in found["noise"]) + ".", "",
        "Spearman's ρ with the trained losses (90 % by bootstrap over mixtures); error is the mean and the scatter of "
        "the log ratio to the trained loss. Fit: the response fitted to the other runs, in folds.", "",
        "| capability | trained mixtures differ by | ρ imitated | error | ρ fit | error |",
        "|---|---:|---:|---:|---:|---:|", *rows, "",
    ]  # fmt: skip
    atomic_write_text(HERE / f"imitate_search_{options.name}.md", "\n".join(text))


if __name__ == "__main__":
    main()
