"""What the fit loses beside the best mixture and the best single form of the response, on surfaces of known truth.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/response/forms.py

Four surfaces: the law's own at 3 % noise of a run, interactions at 0.6 % and at 3 % (`benchmarks/surfaces.py`, one
a repeat), and RegMix's tables (a random subset of the training runs; the best of the 256 test mixtures is
asked for, of each loss by itself). One fit serves the blend as it is used and each form alone, on the same runs.
A row a fit is appended to `forms.jsonl`; what stands there is not done again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))
DATA = ROOT.parent / "shared" / "data" / "regmix"
SURFACES = {
    "law 3 %": ("law", 0.03),
    "interactions 0.6 %": ("interactions", 0.006),
    "interactions 3 %": ("interactions", 0.03),
}
TABLES = "RegMix's tables"
RUNS = (8, 16, 32, 64)
REPEATS = 40


def one_fit(name: str, runs: int, repeat: int) -> dict[str, float]:
    """Regrets of the blend and of every form alone on the same runs, in points."""
    from ideal_proxy.response.model import ResponseModel

    rng = np.random.default_rng([repeat, runs])
    if name == TABLES:
        V, L, T, truth = regmix()
        chosen = np.random.default_rng(repeat).permutation(len(V))[:runs]
        start = time.process_time()
        model = ResponseModel(unit="share").fit(V[chosen], L[chosen])
        seconds = time.process_time() - start
        regrets = {"seconds": seconds}
        for form, one in views(model):  # of each loss by itself: of all together even 16 runs find the best
            chosen = truth[one.predict(T).argmin(axis=0), np.arange(truth.shape[1])]
            regrets[form] = float(100.0 * (chosen / truth.min(axis=0) - 1.0).mean())
        return regrets
    from surfaces import Surface

    from ideal_proxy.optimizer import Objective, optimize

    family, noise = SURFACES[name]
    surface = Surface(family, repeat)
    v, seeds = surface.design(runs)
    start = time.process_time()
    model = ResponseModel(available=100.0 * surface.base, base=surface.base)
    model.fit(v, surface.observe(v, noise, rng), seed_id=seeds)
    seconds = time.process_time() - start
    regrets = {"seconds": seconds, "gain": 100.0 * surface.best.predicted_gain}
    for form, one in views(model):
        found = optimize(one, Objective(), surface.constraints(), random_state=0)
        regrets[form] = surface.regret(found.volumes)
    return regrets


def views(model):
    yield "ours", model
    if getattr(model, "processes_", None):
        from ideal_proxy.response.forms import FORMS

        yield from ((form, model.alone(form)) for form in FORMS)


def regmix() -> tuple[np.ndarray, ...]:
    from published_tables import read

    V, L, T, truth = (read(f"{name}_1m.csv")[0][:, 1:] for name in (
        "train_mixture", "train_pile_loss", "test_mixture", "test_pile_loss"))  # fmt: skip
    return V / V.sum(axis=1, keepdims=True), L, T / T.sum(axis=1, keepdims=True), truth


def main() -> None:
    import jsonl

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--runs", type=int, nargs="+", default=list(RUNS))
    parser.add_argument("--surfaces", nargs="+", default=[*SURFACES, TABLES])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    rows = jsonl.read(given.out)
    done = {(r["surface"], r["runs"], r["repeat"]) for r in rows}
    for repeat in range(given.first, given.first + given.repeats):
        for name in given.surfaces:
            for runs in given.runs:
                if (name, runs, repeat) in done or (name == TABLES and not DATA.is_dir()):
                    continue
                row = {"surface": name, "runs": runs, "repeat": repeat, **one_fit(name, runs, repeat)}
                rows.append(row)
                jsonl.add(given.out, {k: round(x, 5) if isinstance(x, float) else x for k, x in row.items()})
    print(table(rows))


def table(rows: list[dict]) -> str:
    """Mean regrets ± standard error, by surface and runs."""
    forms = [key for key in rows[-1] if key not in {"surface", "runs", "repeat", "seconds", "gain"}]
    lines = ["| surface | runs | n | " + " | ".join(forms) + " | s |", "|---" * (len(forms) + 4) + "|"]
    for name in dict.fromkeys(r["surface"] for r in rows):
        for runs in sorted({r["runs"] for r in rows}):
            here = [r for r in rows if r["surface"] == name and r["runs"] == runs]
            if here:
                cells = [[r[form] for r in here] for form in forms]
                text = [f"{np.mean(c):.2f} ± {np.std(c) / len(c) ** 0.5:.2f}" for c in cells]
                seconds = np.median([r["seconds"] for r in here])
                lines.append(f"| {name} | {runs} | {len(here)} | " + " | ".join(text) + f" | {seconds:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
