"""How what a larger model shows differs from what proxies promised: factors by capability, and beliefs that hold them.

    python benchmarks/proof/step_in_size.py

Reads what `real.py` recorded. An observed log change of a capability is (b + u + v) times the promised one, u of all
capabilities of a suite and v of this one, both normal about nought, plus an error of a share of the mixture's mean
change; beside it stands the fit's own error. Set by likelihood, on some suites, and held against the others.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import optimize

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT, ROOT / "benchmarks", ROOT / "benchmarks" / "proof"):
    sys.path.insert(0, str(place))
HERE = Path(__file__)
SUITES = ("skills", "skills_clean", "sft5", "sft5_all", "traces", "demo")  # those known when the belief was set
LATER = "unseen"
Z = 1.645


@dataclass(frozen=True, slots=True)
class Belief:
    """Factor, its spread for all capabilities, that of one alone, share of the mean change."""

    factor: float
    common: float
    own: float
    error: float

    def __str__(self) -> str:
        return f"{self.factor:.2f} ± {self.common:.2f}, ± {self.own:.2f}, {self.error:.2f}"


@dataclass(frozen=True, slots=True)
class Changes:
    """Log changes by mixture and capability (M, J): promised, observed; the fit's error; names."""

    promised: np.ndarray
    observed: np.ndarray
    fit: np.ndarray
    capabilities: list[str]

    @property
    def mean(self) -> np.ndarray:
        return np.sqrt(np.mean(self.promised**2, axis=1, keepdims=True))


def changes(suite: str) -> Changes:
    """What was promised of a suite's mixtures, each once and without base, and what came."""
    import real

    told = json.loads((HERE.parent / "predictions" / f"{suite}.json").read_text())
    names, step = list(next(iter(told["mixtures"].values()))["ratios"]), told.get("step", real.FIRST_STEP)
    rows = []
    for _, _, bounds, mean in real.held(told, real.outcomes(suite)):
        change, error = real.before_the_step(bounds, step)
        rows.append((change, np.log(mean), error))
    return Changes(*(np.array(part) for part in zip(*rows, strict=True)), names)


def likely(suites: list[Changes]) -> Belief:
    """The belief under which what came is likeliest; a common spread above 0.5 is held back."""

    def cost(at: np.ndarray) -> float:
        factor, (common, own, error), total = at[0], np.exp(at[1:]), 0.0
        for of in suites:
            x, miss = of.promised.T.ravel(), (of.observed - factor * of.promised).T.ravel()
            alone = np.repeat(np.arange(len(of.capabilities)), len(of.promised))
            noise = ((factor * of.fit) ** 2 + (error * of.mean) ** 2).T.ravel()
            covariance = np.outer(x, x) * (common**2 + own**2 * (alone[:, None] == alone)) + np.diag(noise + 1e-8)
            root = np.linalg.cholesky(covariance)
            total += np.sum(np.linalg.solve(root, miss) ** 2) / 2 + np.log(np.diag(root)).sum()
        return float(total + (common / 0.5) ** 2 / 2)

    starts = ([1.0, np.log(common), np.log(0.5), np.log(0.15)] for common in (0.1, 0.3))
    options = {"maxiter": 2000}
    best = min((optimize.minimize(cost, s, method="Nelder-Mead", options=options) for s in starts), key=lambda r: r.fun)
    return Belief(float(best.x[0]), *map(float, np.exp(best.x[1:])))


def inside(of: Changes, belief: Belief) -> np.ndarray:
    """Which observed changes lie in the intervals of 90 %, (M, J)."""
    wide = (belief.factor * of.fit) ** 2 + (belief.common**2 + belief.own**2) * of.promised**2
    wide = np.sqrt(wide + (belief.error * of.mean) ** 2)
    return np.abs(of.observed - belief.factor * of.promised) <= Z * wide


def main() -> None:
    from ideal_proxy.response import LARGER_SIZE

    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = {suite: changes(suite) for suite in (*SUITES, LATER)}
    today = Belief(LARGER_SIZE.factor, LARGER_SIZE.spread, LARGER_SIZE.own, LARGER_SIZE.error)
    beliefs = {
        "of before (decision 101)": Belief(0.9, 0.35, 0.0, 0.35),
        "likeliest on both forms of skills": likely([found["skills"], found["skills_clean"]]),
        "likeliest on all but unseen": likely([found[suite] for suite in SUITES]),
        "today's": today,
    }
    told = (
        "Share of observed changes inside intervals of 90 %, by belief: factor ± of all, ± of one alone, share of the "
    )
    told += f"mean\nchange. {LATER} was drawn and trained after today's was set; all others were known then."
    lines = [
        "# A step in size, capability by capability",
        "",
        "`python benchmarks/proof/step_in_size.py`",
        "",
        told,
        "",
    ]
    lines += ["| belief | | " + " | ".join(found) + " |", "|---" * (len(found) + 2) + "|"]
    for name, belief in beliefs.items():
        shares = (f"{inside(of, belief).mean():.0%}" for of in found.values())
        lines.append(f"| {name} | {belief} | " + " | ".join(shares) + " |")
    left, kinds = [], {suite: suite.split("_")[0] for suite in SUITES}
    for suite in SUITES:
        others = [found[other] for other in SUITES if kinds[other] != kinds[suite]]
        left.append(inside(found[suite], likely(others)))
    cells = " | ".join(f"{part.mean():.0%}" for part in left)
    together = np.concatenate([part.ravel() for part in left])
    told = f"Left out like that, {together.mean():.0%} of {together.size} lie inside: what few suites say is not wide "
    told += "enough for the next. Today's\nis wider than the likeliest, in what all share."
    lines += [f"| likeliest on the suites of other rows | | {cells} | |", "", told, ""]
    now = found[LATER]
    wide = (today.factor * now.fit) ** 2 + (today.common**2 + today.own**2) * now.promised**2
    half = Z * np.sqrt(wide + (today.error * now.mean) ** 2)
    miss = now.observed - today.factor * now.promised
    low, high = (int((side * miss > half).sum()) for side in (-1, 1))
    size, missed = (np.sqrt(np.mean(part**2)) for part in (now.observed, miss))
    told = f"{LATER}: changes of {size:.2f} (root mean square, log), missed by {missed:.2f}; half of an interval is "
    told += f"{np.median(half):.2f} in the\nmedian; {low} lie below, {high} above."
    lines += [told, "", "| capability | suite | factor | correlation |", "|---|---|---:|---:|"]
    for suite, of in found.items():
        for j, name in enumerate(of.capabilities):
            x, y = of.promised[:, j], of.observed[:, j]
            factor, alike = (x @ y) / (x @ x), (x @ y) / np.sqrt((x @ x) * (y @ y))
            lines.append(f"| {name} | {suite} | {factor:.2f} | {alike:.2f} |")
    lines += ["", "Correlation through nought: 1 where a capability shows one multiple of every promised change.", ""]
    HERE.with_suffix(".md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
