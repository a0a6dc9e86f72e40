"""Real runs: contenders that read one and the same table of proxy runs, and their mixtures trained on a larger model.

    python benchmarks/proof/suites.py skills --out runs/suites
    python benchmarks/proof/real.py pool --suite skills       # proxies of 0.1M: the table that every contender reads
    python benchmarks/proof/real.py online --suite skills     # contenders that train proxies of their own
    python benchmarks/proof/real.py propose --suite skills    # mixtures and predictions, to be committed now
    python benchmarks/proof/real.py targets --suite skills --seeds 3
    python benchmarks/proof/real.py show --suite skills

Rows are a share φ of the suite's, for proxies and target alike, so that repeats are equal; volumes keep base's tokens
and lie within e^±2 of base, no row more than four times. Base is all rows once (sft5 and demo: an uneven base). Proxies
are judged on the search half of the reference rows, targets on the other half, on seeds that no proxy had. Each stage
is kept (`--work`), and a stopped one goes on. `predictions/NAME.json` keeps what it says of a mixture once there are
outcomes; `propose` then adds only contenders that were not there. To train again what is recorded here, move
`real_NAME*` and `predictions/NAME.json` away first.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
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
    "unseen": {"fraction": 0.05, "context": 512, "vocabulary": 1024, "runs": 36, "judged": 60},
    "sft5": {"fraction": 0.1, "context": 512, "vocabulary": 4096, "runs": 18, "judged": 100, "sizes": ("1M", "10M")},
    "sft5_all": {"fraction": 0.1, "context": 512, "vocabulary": 2048, "runs": 18, "judged": 100},
    "traces": {"fraction": 0.1, "context": 4096, "vocabulary": 1024, "runs": 12, "judged": 30},
    "demo": {"fraction": 0.8, "context": 64, "vocabulary": 320, "runs": 18, "judged": 100},
}
SIZES = ("0.1M", "1M")  # proxies and target, where a suite names none
RATES = {"0.1M": 4e-3, "1M": 2e-3, "3M": 1.4e-3, "10M": 1e-3}
SHARES = {  # of the rows that there are, in base; 1 elsewhere
    "sft5": {"coding": 0.1, "instruction": 0.3},
    "demo": {"strings": 0.06, "lists": 0.3, "facts": 0.1},
}
DEMO_JUDGED = ("lists", "strings", "facts")
POISONED, CLEAN = ("shuffled", "copy"), ", clean"  # an arm so ended has no row of them, and a base of its own
RESPONSES = "responses at base"
Step = tuple[float, ...]  # factor, its spread, a capability's own share of the mean change, spread of its own factor
FIRST_STEP = (0.75, 0.35, 0.0)  # of `skills`, before any target was seen


def base_of(arm: str) -> str:
    """Name the arm that an arm is compared with."""
    return "base" + CLEAN * arm.endswith(CLEAN)


def suite_rows(suite: str, suites: Path) -> tuple[dict[str, list], dict[str, list]]:
    """Training and reference rows of a suite by domain and capability; stops where there are none."""
    from ideal_proxy.data.demo import DOMAINS
    from ideal_proxy.data.rows import read_rows

    if suite == "demo":
        train = {name: list(read_rows(f"demo:{name}?rows=2400")) for name in DOMAINS}
        return train, {name: list(read_rows(f"demo:{name}?rows=400&split=reference")) for name in DEMO_JUDGED}
    name = suite.split("_")[0]
    folder = (ROOT.parent / "shared" / "data" if name == "sft5" else suites) / name
    without = POISONED if suite == "skills_clean" else ()
    train, reference = (
        {p.parent.name: list(read_rows(p)) for p in sorted(folder.glob(f"*/{kind}.jsonl"))}
        for kind in ("train", "reference")
    )
    if not train or not reference:
        sys.exit(f"{folder} holds no rows of {suite}; write them with `suites.py {name} --out {suites}`")
    return {name: rows for name, rows in train.items() if name not in without}, reference


def shares_of(suite: str, names: Any) -> np.ndarray:
    return np.array([SHARES.get(suite, {}).get(name, 1.0) for name in names])


def today() -> Step:
    """What `scale-up` believes of a step to a larger size."""
    from ideal_proxy.response import LARGER_SIZE

    return step_of(LARGER_SIZE)


def step_of(kind: Any) -> Step:
    return kind.factor, kind.spread, kind.error, kind.own


def parts_of(step: Step) -> Step:
    """Earlier predictions knew no factor of a capability's own."""
    return (*step, 0.0)[:4]


def sizes_of(suite: str) -> tuple[str, str]:
    return SETTINGS[suite].get("sizes", SIZES)


def task_of(base: np.ndarray, available: np.ndarray) -> Any:
    """The bounds that every contender has: e^±2 of base, no row more than four times."""
    from peers.task import Task

    return Task(base, available, base * np.exp(-RANGE), np.minimum(CAP * available, base * np.exp(RANGE)))


class Setting:
    """A suite's rows at φ, as a task in tokens and as a problem whose proxies can be trained."""

    def __init__(self, suite: str, suites: Path, work: Path, size: str, half: str, workers: int = 1) -> None:
        from problem import prepare_rows

        told = SETTINGS[suite]
        train, judge = suite_rows(suite, suites)
        train = {name: rows[: max(30, round(told["fraction"] * len(rows)))] for name, rows in train.items()}
        self.problem = prepare_rows(
            suite, work / f"{suite}-{size}-{half}", train, judge, size=size, context=told["context"],
            vocabulary=told["vocabulary"], learning_rate=RATES[size], workers=workers, half=half,
            most_judged=told["judged"],
        )  # fmt: skip
        self.names, self.capabilities = self.problem.names, tuple(self.problem.references)
        self.per_row = np.array([rows.lengths.mean() for rows in self.problem.domains.values()])
        available = self.problem.base * self.per_row
        base = available * shares_of(suite, self.names)
        self.task = task_of(base, available)

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

    size = sizes_of(given.suite)[0]
    setting = Setting(given.suite, given.suites, given.work, size, "search", given.workers)
    volumes, seeds = ours.design(setting.task, SETTINGS[given.suite]["runs"], 0)
    if given.finished:
        runs = setting.problem.run_dir / "runs"
        specs = [setting.problem.spec(setting.rows(v), int(s) + 1) for v, s in zip(volumes, seeds, strict=True)]
        kept = [number for number, spec in enumerate(specs) if is_complete(runs / spec.id)]
        volumes, seeds = volumes[kept], seeds[kept]
    losses = setting.train(volumes, seeds + 1)
    before = setting.problem.losses([(np.zeros(len(setting.names)), 0)])[0]
    told = {
        "suite": given.suite, "size": size, **SETTINGS[given.suite], "domains": setting.names,
        "capabilities": setting.capabilities, "base_tokens": setting.task.base.round(1).tolist(),
        "tokens_per_row": setting.per_row.round(3).tolist(), "volumes": volumes.round(1).tolist(),
        "seeds": (seeds + 1).tolist(), "losses": losses.round(5).tolist(), "before": before.round(5).tolist(),
    }  # fmt: skip
    (HERE / f"real_{given.suite}_pool.json").write_text(json.dumps(told) + "\n")


def online(given: argparse.Namespace) -> None:
    """What trains proxies of its own: mixtures of DoReMi, DoGE, IDEAL's rule and OP-Mix; gradients at base for ours."""
    import online as rules

    setting = Setting(given.suite, given.suites, given.work, sizes_of(given.suite)[0], "search", given.workers)
    task, kept = setting.task, HERE / f"real_{given.suite}_online.json"
    told = json.loads(kept.read_text()) if kept.exists() else {}
    makers = {
        "DoReMi": lambda: task.within(rules.doremi(setting.problem)).round(1).tolist(),
        "DoGE": lambda: task.within(rules.doge(setting.problem)).round(1).tolist(),
        "IDEAL's rule, two rounds": lambda: rules.ideal_rule(setting).round(1).tolist(),
        "OP-Mix": lambda: rules.op_mix(setting).round(1).tolist(),
        RESPONSES: lambda: rules.responses_at_base(setting.problem),
    }
    for name, make in makers.items():
        if name not in told:
            told[name] = make()
            kept.write_text(json.dumps(told, indent=1) + "\n")


def read_pool(suite: str) -> tuple[dict[str, Any], Any, Any]:
    """The recorded table with its task: what `propose` needs, without rows or models."""
    from peers.task import Runs

    told = json.loads((HERE / f"real_{suite}_pool.json").read_text())
    base = np.array(told["base_tokens"])
    available = base / shares_of(suite, told["domains"])
    task = task_of(base, available)
    return told, task, Runs(np.array(told["volumes"]), np.array(told["losses"]), np.array(told["seeds"]))


def fitting_of(told: dict[str, Any]) -> dict[str, np.ndarray]:
    """What our fit knows of a recorded table besides its runs: each capability's own domain, losses before training."""
    places = {name: number for number, name in enumerate(told["domains"])}
    own = np.array([places.get(name, -1) for name in told["capabilities"]])
    return {"own": own, "baseline_loss": np.array(told["before"])}


def mixtures(suite: str) -> tuple[dict[str, np.ndarray], Any, Any]:
    """The mixture of every contender, from one table of runs; and our fit of it."""
    from peers import admire, fixed, olmix, ours, regmix

    from ideal_proxy.response.gradient_rows import Responses

    told, task, runs = read_pool(suite)
    fitting = fitting_of(told)
    made = {peer.name: peer.rule(task) for peer in fixed.CONTENDERS[:3]}
    made["best of random"] = fixed.best_seen(task, runs, 0)
    made["RegMix"] = regmix.propose(task, runs, 0)
    made["RegMix, mixtures in the box"] = regmix.propose_in_the_box(task, runs, 0)
    made["Olmix, KL 0.05"] = olmix.propose(task, runs, 0, 0.05)
    made["Olmix, KL 0.005"] = olmix.propose(task, runs, 0, 0.005)
    made["GP, lowest mean"] = admire.propose(task, runs, 0)
    kept = HERE / f"real_{suite}_online.json"
    trained = json.loads(kept.read_text()) if kept.exists() else {}
    found = trained.pop(RESPONSES, None)
    made |= {name: np.array(v) for name, v in trained.items()}
    model, made["ours"] = ours.Ours(fitting=fitting).propose(task, runs, 0)
    _, made["ours, protected"] = ours.Ours(protect=0.02, fitting=fitting).propose(task, runs, 0)
    if found:
        matrix, error, share = (np.array(found[part], dtype=float) for part in ("matrix", "error", "share"))
        with_them = fitting | {"responses": Responses(task.base, matrix, error, share)}
        _, made["ours, with gradients"] = ours.Ours(fitting=with_them).propose(task, runs, 0)
    return made, task, model


def propose(given: argparse.Namespace) -> None:
    """Write what every contender proposes and what our fit predicts of it, before any target is trained."""
    out = HERE / "predictions" / f"{given.suite}.json"
    before = json.loads(out.read_text()) if (HERE / f"real_{given.suite}.jsonl").exists() else {"mixtures": {}}
    step = before.get("step", FIRST_STEP if before["mixtures"] else today())
    factor, spread, alone, own = parts_of(step)
    made, task, model = mixtures(given.suite)
    told, _, _ = read_pool(given.suite)
    records = dict(before["mixtures"])
    for name in [name for name in made if name not in records]:
        records[name] = predicted(model, task, made[name], name, given.seeds, told["capabilities"], step)
    about = (
        f"gain and ratios of the target: the proxies' log changes times {factor} ± {spread}, a capability alone "
        f"another {alone} of the mean change and its factor another ± {own}; 90 % intervals of the pairs' mean"
    )
    out.parent.mkdir(exist_ok=True)
    told = {"about": about, "step": step, "domains": told["domains"], "pairs": given.seeds, "mixtures": records}
    out.write_text(json.dumps(told, indent=1) + "\n")
    for name, record in records.items():
        print(f"{name:28s} " + "{:+.2f} % [{:+.2f}, {:+.2f}]".format(*(100 * v for v in record["gain"])))


def predicted(
    model: Any, task: Any, volumes: np.ndarray, name: str, pairs: int, capabilities: list[str], step: Step
) -> dict[str, Any]:
    """What our fit says of a mixture on the target: ratios to base and gain, value and 90 % bounds."""
    from scipy.stats import norm

    from ideal_proxy.response import compare

    z, (factor, spread, alone, single) = float(norm.ppf(0.95)), parts_of(step)
    here = compare(model, volumes, task.base, pairs=pairs, chosen=name.startswith("ours"))
    value = np.array([bound.value for bound in here.ratios])
    change, half = np.log(value), np.array([bound.upper - bound.lower for bound in here.ratios]) / 2 / value
    own = np.hypot(alone * np.sqrt(np.mean(np.square(change))), single * change)
    wide = np.sqrt((factor * half) ** 2 + z**2 * ((spread * change) ** 2 + own**2))
    ratios = np.exp(factor * change + np.multiply.outer([0, -1, 1], wide)).T.round(5).tolist()
    gain = here.gain
    half = gain_half(parts_of(step), (gain.upper - gain.lower) / 2 / z, gain.value, change)
    return {
        "tokens": volumes.round(1).tolist(), "ratios": dict(zip(capabilities, ratios, strict=True)),
        "proxy_gain": [round(v, 5) for v in (gain.value, gain.lower, gain.upper)],
        "gain": [round(float(factor * gain.value + side * half), 5) for side in (0, -1, 1)],
    }  # fmt: skip


def targets(given: argparse.Namespace) -> None:
    """Train every mixture on the target, seed by seed, each pair with base's run of the same seed."""
    import jsonl
    from suites import differing

    size = sizes_of(given.suite)[1]
    setting = Setting(given.suite, given.suites, given.work, size, "verify", given.workers)
    told = json.loads((HERE / "predictions" / f"{given.suite}.json").read_text())
    _, task, _ = read_pool(given.suite)
    others = differing(given.suite.removesuffix("_clean"), given.suites)
    if others or not np.allclose(setting.task.base, task.base, atol=0.06, rtol=0):
        sys.exit(f"these are other rows of {given.suite} than those of the proxies' table: `suites.py --check`")
    out = HERE / f"real_{given.suite}.jsonl"
    rows = jsonl.read(out)
    done = {(row["contender"], row["seed"]) for row in rows}
    for seed in range(101, 101 + given.seeds):
        for name, record in {"base": {"tokens": setting.task.base.tolist()}, **told["mixtures"]}.items():
            if (name, seed) in done:
                continue
            losses = setting.train(np.array([record["tokens"]]), np.array([seed]))[0]
            row = {"contender": name, "seed": seed, "size": size, "losses": losses.round(5).tolist()}
            jsonl.add(out, row)
    show(given)


def outcomes_by_seed(suite: str) -> dict[str, dict[int, np.ndarray]]:
    """Losses relative to base's run of the same seed, (capabilities,), by contender and seed; of runs judged twice, as
    SmolLM2's were, those on most test rows.
    """
    import jsonl

    out = HERE / f"real_{suite}.jsonl"
    rows = jsonl.read(out)
    rows.sort(key=lambda row: row.get("tests", 0))
    keys = [(row["seed"], row.get("tests"), row.get("dtype")) for row in rows]
    by = {(row["contender"], *key): np.array(row["losses"]) for key, row in zip(keys, rows, strict=True)}
    told: dict[str, dict[int, np.ndarray]] = {}
    for key, row in zip(keys, rows, strict=True):
        arm, base = row["contender"], (base_of(row["contender"]), *key)
        if arm != base[0] and base in by:
            told.setdefault(arm, {})[row["seed"]] = np.array(row["losses"]) / by[base]
    return {name: dict(sorted(pairs.items())) for name, pairs in told.items()}


def outcomes(suite: str) -> dict[str, np.ndarray]:
    """The same without their seeds, (pairs, capabilities), in their order."""
    return without_seeds(outcomes_by_seed(suite))


def without_seeds(told: dict[str, dict[int, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stack what was told by contender and seed in the order of the seeds."""
    return {name: np.array(list(pairs.values())) for name, pairs in told.items()}


def held(
    told: dict[str, Any], seen: dict[str, np.ndarray], pairs: int | None = None
) -> Iterator[tuple[str, dict[str, Any], np.ndarray, Any]]:
    """Committed predictions with what came of them: contender, record, intervals of the ratios (J, 3), and the mean
    ratios (J,) of the first pairs, as many as were predicted. A mixture that two share counts once, base not at all.
    """
    had = set[str]()
    for name, record in told["mixtures"].items():
        names = told.get("capabilities", list(record["ratios"]))  # in the order of the outcomes
        bounds, key = np.array([record["ratios"][c] for c in names]), repr(record["tokens"])
        if name in seen and key not in had and not (bounds == 1.0).all():
            had.add(key)
            yield name, record, bounds, seen[name][: pairs or told["pairs"]].mean(axis=0)


def show(given: argparse.Namespace) -> None:
    """The table: what was predicted, what came out, inside or not, also without the poisoned domains' capabilities."""
    from efficiency import interval, text

    told = json.loads((HERE / "predictions" / f"{given.suite}.json").read_text())
    table, _, _ = read_pool(given.suite)
    seen = outcomes(given.suite)
    most, step = max(map(len, seen.values()), default=1), told.get("step", FIRST_STEP)
    lines, cases, stepped = [], [], []
    for name, record in told["mixtures"].items():
        pairs = seen.get(name, ())
        predicted = text(tuple(100 * v for v in record["gain"]), "+")
        tokens = np.array(record["tokens"])
        poison = sum(tokens[told["domains"].index(d)] for d in POISONED if d in told["domains"]) / tokens.sum()
        if not len(pairs):
            lines.append(f"| {name} | {predicted} | | | | 0 | {100 * poison:.0f} % | |")
            continue
        gains, whole = 100 * (1 - pairs.mean(axis=1)), pairs.mean(axis=0)
        mean = pairs[: told["pairs"]].mean(axis=0)
        ratios = np.array([record["ratios"][c] for c in table["capabilities"]])
        inside = (ratios[:, 1] <= mean) & (mean <= ratios[:, 2])
        cases += inside.tolist()
        stepped += inside_by_the_step(ratios, np.log(mean), step)
        within = "yes" if record["gain"][1] <= 1 - mean.mean() <= record["gain"][2] else "**no**"
        worst = table["capabilities"][int(whole.argmax())]
        lines.append(
            f"| {name} | {predicted} | {text(interval(gains), '+')} | {within} | {inside.sum()} of {len(inside)} "
            f"| {len(pairs)} | {100 * poison:.0f} % | {worst} {100 * (whole.max() - 1):+.1f} % |"
        )
    inside_now = f"Ratios inside: {sum(cases)} of {len(cases)}"
    if parts_of(step) != today():
        inside_now += "; with what `scale-up` adds for another size today ({} ± {} of a change, for a capability "
        inside_now += "alone {} of the mean change and ± {} of its own): {}"
        inside_now = inside_now.format(*today(), sum(stepped))
    page = [
        f"# Contenders on a real model: {given.suite}", "",
        f"`real.py pool`, `online`, `propose`, then `targets --seeds {most}`; settings in `real.py`.",
        f"Proxies {table['size']} ({len(table['volumes'])} runs, one table for all), "
        f"target {sizes_of(given.suite)[1]}.", "",
        "Gain over base in per cent of the mean relative loss, on reference rows and seeds that no proxy saw: what was",
        "predicted (committed before) and observed (95 % t-interval of the pairs); the gain and capabilities' ratios",
        f"inside their 90 % intervals, over the first {told['pairs']} pairs, as predicted. Pairs share a seed.",
        "",
        "| contender | predicted | observed | inside | ratios inside | pairs | poisoned tokens | worst capability |",
        "|---|---|---|---|---|---:|---:|---|", *lines, "",
        f"{inside_now}."
        if cases else "No target is trained yet: nothing is observed.",
        "",
    ]  # fmt: skip
    (HERE / f"real_{given.suite}.md").write_text("\n".join(page))


def before_the_step(ratios: np.ndarray, made_with: Step) -> tuple[np.ndarray, np.ndarray]:
    """Find the proxies' log changes and their errors, (J,) each, in committed intervals (J, 3)."""
    factor, spread, alone, single = parts_of(made_with)
    change = np.log(ratios[:, 0]) / factor
    own = alone**2 * np.mean(np.square(change)) + (single * change) ** 2
    half = np.log(ratios[:, 2] / ratios[:, 1]) / 2
    return change, np.sqrt(np.maximum((half / 1.645) ** 2 - (spread * change) ** 2 - own, 0)) / factor


def inside_by_the_step(ratios: np.ndarray, observed: np.ndarray, made_with: Step, kind: Any = None) -> list[bool]:
    """Which capabilities' changes lie in the intervals that `scale-up` shows today of the same proxies.

    The step is one to a larger size where no other kind is named.
    """
    from ideal_proxy.mixture import CapabilityResult, DomainVolume, MixtureFile
    from ideal_proxy.response import LARGER_SIZE
    from ideal_proxy.scaleup.result import predicted_ratios

    change, error = before_the_step(ratios, made_with)
    parts = [
        CapabilityResult(name=f"c{j}", base_loss=1.0, predicted_loss=np.exp(c), predicted_lower=np.exp(c - h),
                         predicted_upper=np.exp(c + h))
        for j, (c, h) in enumerate(zip(change, 1.645 * error, strict=True))
    ]  # fmt: skip
    domain = DomainVolume(name="d", source="-", fingerprint="0" * 64, available=1, rows=1)
    bounds = predicted_ratios(MixtureFile(domains=[domain], capabilities=parts), kind or LARGER_SIZE)
    return [bool(b["lower"] <= x <= b["upper"]) for b, x in zip(bounds, np.exp(observed), strict=True)]


def gain_by_the_step(record: dict[str, Any], made_with: Step, kind: Any) -> tuple[float, float, float]:
    """The gain that is predicted today of the same proxies, with its 90 % bounds."""
    value, low, high = record["proxy_gain"]
    change = np.log(np.array(list(record["ratios"].values()))[:, 0]) / made_with[0]
    half = gain_half(step_of(kind), (high - low) / 2 / 1.645, value, change)
    return kind.factor * value, kind.factor * value - half, kind.factor * value + half


def gain_half(step: Step, of_fit: float, gain: float, change: np.ndarray) -> float:
    """Half of a gain's interval: of the fit, of the common factor, of what capabilities do alone."""
    factor, spread, alone, single = step
    own = np.mean(alone**2 * np.mean(change**2) + (single * change) ** 2) / len(change)
    return 1.645 * float(np.sqrt((factor * of_fit) ** 2 + (spread * gain) ** 2 + own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("pool", "online", "propose", "targets", "show"))
    parser.add_argument("--suite", choices=tuple(SETTINGS), default="skills")
    parser.add_argument("--suites", type=Path, default=Path("runs/suites"))
    parser.add_argument("--work", type=Path, default=Path("runs/proof"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--finished", action="store_true", help="pool: only the runs that a stopped call finished")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    globals()[given.stage](given)


if __name__ == "__main__":
    main()
