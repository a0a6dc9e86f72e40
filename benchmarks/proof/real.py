"""Real runs: contenders that read one and the same table of proxy runs, and their mixtures trained on a larger model.

    python benchmarks/proof/suites.py skills --out runs/suites
    python benchmarks/proof/real.py pool --suite skills       # proxies of 0.1M: the table that every contender reads
    python benchmarks/proof/real.py propose --suite skills    # mixtures and predictions, to be committed now
    python benchmarks/proof/real.py targets --suite skills --seeds 3
    python benchmarks/proof/real.py show --suite skills

Rows are a share φ of the suite's, for proxies and target alike, so that repeats are equal; volumes keep base's tokens
and lie within e^±2 of base, no row more than four times. Base is all rows once (sft5: the uneven base). Proxies are
judged on the search half of the reference rows, targets on the other half, on seeds that no proxy had. Each stage is
kept (`--work`), and a stopped one goes on. `predictions/NAME.json` is not written anew once there are outcomes.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT, ROOT / "benchmarks", ROOT / "benchmarks" / "gradients", ROOT / "benchmarks" / "proof"):
    sys.path.insert(0, str(place))
HERE = Path(__file__).parent
RANGE, CAP = 2.0, 4.0
SETTINGS: dict[str, dict[str, Any]] = {
    "skills": {"fraction": 0.05, "context": 256, "vocabulary": 1024, "runs": 40, "judged": 60},
    "skills_clean": {"fraction": 0.05, "context": 256, "vocabulary": 1024, "runs": 36, "judged": 60},
    "sft5": {"fraction": 0.05, "context": 512, "vocabulary": 2048, "runs": 18, "judged": 60},
}
RATES = {"0.1M": 4e-3, "1M": 2e-3, "3M": 1.4e-3}
UNEVEN = {"mathematics": 1.0, "coding": 0.1, "reasoning": 1.0, "instruction": 0.3, "trust": 1.0}
POISONED = ("shuffled", "copy")
STEP, STEP_SD = 0.75, 0.35  # of log losses from proxies to a larger model, before any is seen


class Setting:
    """A suite's rows at φ, as a task in tokens and as a problem whose proxies can be trained."""

    def __init__(self, suite: str, suites: Path, work: Path, size: str, half: str, workers: int = 1) -> None:
        from peers.task import Task
        from problem import prepare_rows

        from ideal_proxy.data.rows import read_rows

        told = SETTINGS[suite]
        folder = ROOT.parent / "shared" / "data" / suite if suite == "sft5" else suites / "skills"
        without = POISONED if suite == "skills_clean" else ()
        paths = [path for path in sorted(folder.glob("*/train.jsonl")) if path.parent.name not in without]
        train = {path.parent.name: list(read_rows(path)) for path in paths}
        train = {name: rows[: max(30, round(told["fraction"] * len(rows)))] for name, rows in train.items()}
        judge = {path.parent.name: list(read_rows(path)) for path in sorted(folder.glob("*/reference.jsonl"))}
        self.problem = prepare_rows(
            suite, work / f"{suite}-{size}-{half}", train, judge, size=size, context=told["context"],
            vocabulary=told["vocabulary"], learning_rate=RATES[size], workers=workers, half=half,
            most_judged=told["judged"],
        )  # fmt: skip
        self.names, self.capabilities = self.problem.names, tuple(self.problem.references)
        self.per_row = np.array([rows.lengths.mean() for rows in self.problem.domains.values()])
        available = self.problem.base * self.per_row
        base = available * [UNEVEN[name] if suite == "sft5" else 1.0 for name in self.names]
        self.task = Task(base, available, base * np.exp(-RANGE), np.minimum(CAP * available, base * np.exp(RANGE)))

    def rows(self, volumes: np.ndarray) -> np.ndarray:
        """Whole rows of a mixture in tokens."""
        from ideal_proxy.mixture.draws import apportion

        rows = volumes / self.per_row
        return apportion(rows, round(float(rows.sum()))).astype(float)

    def train(self, volumes: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        return self.problem.losses([(self.rows(v), int(s)) for v, s in zip(volumes, seeds, strict=True)])


def pool(given: argparse.Namespace) -> None:
    """Train the table of runs: base with both seeds, and mixtures that fill the bounds."""
    from peers import ours

    from ideal_proxy.store import is_complete

    setting = Setting(given.suite, given.suites, given.work, "0.1M", "search", given.workers)
    volumes, seeds = ours.design(setting.task, SETTINGS[given.suite]["runs"], 0)
    if given.finished:
        runs = setting.problem.run_dir / "runs"
        specs = [setting.problem.spec(setting.rows(v), int(s) + 1) for v, s in zip(volumes, seeds, strict=True)]
        kept = [number for number, spec in enumerate(specs) if is_complete(runs / spec.id)]
        volumes, seeds = volumes[kept], seeds[kept]
    losses = setting.train(volumes, seeds + 1)
    before = setting.problem.losses([(np.zeros(len(setting.names)), 0)])[0]
    told = {
        "suite": given.suite, "size": "0.1M", **SETTINGS[given.suite], "domains": setting.names,
        "capabilities": setting.capabilities, "base_tokens": setting.task.base.round(1).tolist(),
        "tokens_per_row": setting.per_row.round(3).tolist(), "volumes": volumes.round(1).tolist(),
        "seeds": (seeds + 1).tolist(), "losses": losses.round(5).tolist(), "before": before.round(5).tolist(),
    }  # fmt: skip
    (HERE / f"real_{given.suite}_pool.json").write_text(json.dumps(told) + "\n")


def online(given: argparse.Namespace) -> None:
    """Mixtures of contenders that train a proxy of their own: DoReMi, DoGE, IDEAL's rule."""
    import online as rules

    setting = Setting(given.suite, given.suites, given.work, "0.1M", "search", given.workers)
    task, kept = setting.task, HERE / f"real_{given.suite}_online.json"
    told = json.loads(kept.read_text()) if kept.exists() else {}
    makers = {
        "DoReMi": lambda: task.within(rules.doremi(setting.problem)),
        "DoGE": lambda: task.within(rules.doge(setting.problem)),
        "IDEAL's rule, two rounds": lambda: rules.ideal_rule(setting),
    }
    for name, make in makers.items():
        if name not in told:
            told[name] = np.asarray(make()).round(1).tolist()
            kept.write_text(json.dumps(told, indent=1) + "\n")


def read_pool(suite: str) -> tuple[dict[str, Any], Any, Any]:
    """The recorded table with its task: what `propose` needs, without rows or models."""
    from peers.task import Runs, Task

    told = json.loads((HERE / f"real_{suite}_pool.json").read_text())
    base = np.array(told["base_tokens"])
    uneven = np.array([UNEVEN[name] if suite == "sft5" else 1.0 for name in told["domains"]])
    available = base / uneven
    task = Task(base, available, base * np.exp(-RANGE), np.minimum(CAP * available, base * np.exp(RANGE)))
    return told, task, Runs(np.array(told["volumes"]), np.array(told["losses"]), np.array(told["seeds"]))


def mixtures(suite: str) -> tuple[dict[str, np.ndarray], Any, Any]:
    """The mixture of every contender, from one table of runs; and our fit of it."""
    from peers import admire, fixed, olmix, ours, regmix

    told, task, runs = read_pool(suite)
    places = {name: number for number, name in enumerate(told["domains"])}
    own = np.array([places.get(name, -1) for name in told["capabilities"]])
    fitting = {"own": own, "baseline_loss": np.array(told["before"])}
    made = {peer.name: peer.rule(task) for peer in fixed.CONTENDERS[:3]}
    made["best of random"] = fixed.best_seen(task, runs, 0)
    made["RegMix"] = regmix.propose(task, runs, 0)
    made["Olmix, KL 0.05"] = olmix.propose(task, runs, 0, 0.05)
    made["Olmix, KL 0.005"] = olmix.propose(task, runs, 0, 0.005)
    made["GP, lowest mean"] = admire.propose(task, runs, 0)
    kept = HERE / f"real_{suite}_online.json"
    made |= {name: np.array(v) for name, v in (json.loads(kept.read_text()) if kept.exists() else {}).items()}
    model, made["ours"] = ours.Ours(fitting=fitting).propose(task, runs, 0)
    _, made["ours, protected"] = ours.Ours(protect=0.02, fitting=fitting).propose(task, runs, 0)
    return made, task, model


def propose(given: argparse.Namespace) -> None:
    """Write what every contender proposes and what our fit predicts of it, before any target is trained."""
    from scipy.stats import norm

    from ideal_proxy.response import compare

    out = HERE / "predictions" / f"{given.suite}.json"
    if (HERE / f"real_{given.suite}.jsonl").exists():
        sys.exit("there are outcomes: predictions are not written anew")
    made, task, model = mixtures(given.suite)
    told = json.loads((HERE / f"real_{given.suite}_pool.json").read_text())
    z, records = float(norm.ppf(0.95)), {}
    for name, volumes in made.items():
        here = compare(model, volumes, task.base, pairs=given.seeds, chosen=name.startswith("ours"))
        ratios = {}
        for capability, bound in zip(told["capabilities"], here.ratios, strict=True):
            change, half = np.log(bound.value), (bound.upper - bound.lower) / 2 / bound.value
            wide = z * np.hypot(STEP * half / z, STEP_SD * change)
            ratios[capability] = [round(float(np.exp(STEP * change + side * wide)), 5) for side in (0, -1, 1)]
        gain = here.gain
        half = z * np.hypot(STEP * (gain.upper - gain.lower) / 2 / z, STEP_SD * gain.value)
        records[name] = {
            "tokens": volumes.round(1).tolist(), "ratios": ratios,
            "proxy_gain": [round(v, 5) for v in (gain.value, gain.lower, gain.upper)],
            "gain": [round(float(STEP * gain.value + side * half), 5) for side in (0, -1, 1)],
        }  # fmt: skip
    about = (
        "gain and ratios of the target: the proxies' log changes times 0.75 ± 0.35; 90 % intervals of the pairs' mean"
    )
    out.parent.mkdir(exist_ok=True)
    told = {"about": about, "domains": told["domains"], "pairs": given.seeds, "mixtures": records}
    out.write_text(json.dumps(told, indent=1) + "\n")
    for name, record in records.items():
        print(f"{name:28s} " + "{:+.2f} % [{:+.2f}, {:+.2f}]".format(*(100 * v for v in record["gain"])))


def targets(given: argparse.Namespace) -> None:
    """Train every mixture on the target, seed by seed, each pair with base's run of the same seed."""
    setting = Setting(given.suite, given.suites, given.work, given.size, "verify", given.workers)
    told = json.loads((HERE / "predictions" / f"{given.suite}.json").read_text())
    out = HERE / f"real_{given.suite}.jsonl"
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(row["contender"], row["seed"]) for row in rows}
    for seed in range(101, 101 + given.seeds):
        for name, record in {"base": {"tokens": setting.task.base.tolist()}, **told["mixtures"]}.items():
            if (name, seed) in done:
                continue
            losses = setting.train(np.array([record["tokens"]]), np.array([seed]))[0]
            row = {"contender": name, "seed": seed, "size": given.size, "losses": losses.round(5).tolist()}
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    show(given)


def show(given: argparse.Namespace) -> None:
    """The table: what was predicted, what came out, inside or not, also without the poisoned domains' capabilities."""
    from efficiency import text

    told = json.loads((HERE / "predictions" / f"{given.suite}.json").read_text())
    table = json.loads((HERE / f"real_{given.suite}_pool.json").read_text())
    out = HERE / f"real_{given.suite}.jsonl"
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    by = {(row["contender"], row["seed"]): np.array(row["losses"]) for row in rows}
    seeds = sorted({seed for _, seed in by})
    lines, cases, stepped = [], [], []
    for name, record in told["mixtures"].items():
        pairs = [by[name, s] / by["base", s] for s in seeds if (name, s) in by and ("base", s) in by]
        predicted = text(tuple(100 * v for v in record["gain"]), "+")
        tokens = np.array(record["tokens"])
        poison = sum(tokens[told["domains"].index(d)] for d in POISONED if d in told["domains"]) / tokens.sum()
        if not pairs:
            lines.append(f"| {name} | {predicted} | | | | 0 | {100 * poison:.0f} % | |")
            continue
        gains = 100 * (1 - np.array(pairs).mean(axis=1))
        mean, (low, high) = np.mean(pairs, axis=0), np.array([record["ratios"][c][1:] for c in table["capabilities"]]).T
        inside = (low <= mean) & (mean <= high)
        cases += inside.tolist()
        stepped += inside_by_the_step(np.array([record["ratios"][c] for c in table["capabilities"]]), np.log(mean))
        within = "yes" if 100 * record["gain"][1] <= gains.mean() <= 100 * record["gain"][2] else "**no**"
        worst = table["capabilities"][int(mean.argmax())]
        lines.append(
            f"| {name} | {predicted} | {text(pair_interval(gains), '+')} | {within} | {inside.sum()} of {len(inside)} "
            f"| {len(pairs)} | {100 * poison:.0f} % | {worst} {100 * (mean.max() - 1):+.1f} % |"
        )
    page = [
        f"# Contenders on a real model: {given.suite}", "",
        f"`real.py pool`, `online`, `propose`, then `targets --seeds {max(1, len(seeds))}`; settings in `real.py`.",
        f"Proxies {table['size']} ({len(table['volumes'])} runs, one table for all), target {given.size}.", "",
        "Gain over base in per cent of the mean relative loss, on reference rows and seeds that no proxy saw: what was",
        "predicted (committed before) and observed (95 % t-interval of the pairs); capabilities' ratios inside their",
        "90 % intervals. Pairs share a seed.",
        "",
        "| contender | predicted | observed | inside | ratios inside | pairs | poisoned tokens | worst capability |",
        "|---|---|---|---|---|---:|---:|---|", *lines, "",
        f"Ratios inside: {sum(cases)} of {len(cases)}; with what `scale-up` adds for another size since (0.85 ± 0.3 of "
        f"a change, and a quarter of the mean change for a capability alone, set elsewhere): {sum(stepped)}."
        if cases else "No target is trained yet: nothing is observed.",
        "",
    ]  # fmt: skip
    (HERE / f"real_{given.suite}.md").write_text("\n".join(page))


def inside_by_the_step(ratios: np.ndarray, observed: np.ndarray) -> list[bool]:
    """Which capabilities' changes lie in the intervals that `scale-up` shows of the same predictions."""
    from ideal_proxy.mixture import CapabilityResult, DomainVolume, MixtureFile
    from ideal_proxy.response import LARGER_SIZE
    from ideal_proxy.scaleup.result import predicted_ratios

    change = np.log(ratios[:, 0]) / STEP
    half = np.log(ratios[:, 2] / ratios[:, 1]) / 2
    fit = np.sqrt(np.maximum(half**2 - (1.645 * STEP_SD * change) ** 2, 0)) / STEP
    parts = [
        CapabilityResult(name=f"c{j}", base_loss=1.0, predicted_loss=np.exp(c), predicted_lower=np.exp(c - h),
                         predicted_upper=np.exp(c + h))
        for j, (c, h) in enumerate(zip(change, fit, strict=True))
    ]  # fmt: skip
    domain = DomainVolume(name="d", source="-", fingerprint="0" * 64, available=1, rows=1)
    bounds = predicted_ratios(MixtureFile(domains=[domain], capabilities=parts), LARGER_SIZE)
    return [bool(b["lower"] <= x <= b["upper"]) for b, x in zip(bounds, np.exp(observed), strict=True)]


def pair_interval(gains: np.ndarray) -> tuple[float, float, float]:
    from scipy.stats import t

    if len(gains) < 2:
        return float(gains.mean()), np.nan, np.nan
    half = float(t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains)))
    return float(gains.mean()), float(gains.mean() - half), float(gains.mean() + half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("pool", "online", "propose", "targets", "show"))
    parser.add_argument("--suite", choices=tuple(SETTINGS), default="skills")
    parser.add_argument("--suites", type=Path, default=Path("runs/suites"))
    parser.add_argument("--work", type=Path, default=Path("runs/proof"))
    parser.add_argument("--size", default="1M", help="of the target")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--finished", action="store_true", help="pool: only the runs that a stopped call finished")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    globals()[given.stage](given)


if __name__ == "__main__":
    main()
