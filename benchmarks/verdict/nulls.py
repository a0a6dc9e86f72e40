"""Searches whose mixtures cannot matter, and searches with a known gain: both on the losses of real proxies.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/verdict/nulls.py --searches 20

First a pool: proxies of 0.1M trained on the null demo (rows of one stream, dealt to five domains at random), 11 draws
of rows for each of 14 seeds, none with a row twice. Then searches of up to three rounds (`campaign.py`; protection is
off) with a check of 3, 5 or 8 pairs by `judge`, whose runs are dealt from the pool: each of a search's seeds is one of
the pool's, each run the next of its draws, in an order drawn for the search. So runs are exchangeable, whatever their
mixtures: a null. A positive is the same with the losses of a run multiplied by a surface of known truth
(`benchmarks/surfaces.py`, family `law`) relative to base. Searches share the pool, so they are not independent. A row a
search is appended to `nulls.jsonl`; what stands there is not done again. Writes `nulls.md`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
SEEDS, DRAWS = 14, 11  # what a search of three rounds and eight pairs needs
SPREAD = 0.3  # of the pool's mixtures, in logarithms: no domain has a row twice
KINDS = ("null", "positive")
LOOKS = (3, 5, 8)


def config() -> Any:
    """The null demo, a little smaller, at one learning rate."""
    from ideal_proxy.data.demo import demo_config

    given = demo_config(0, null=True)
    capabilities = tuple(
        capability.model_copy(update={"path": capability.path.replace("rows=500", "rows=200")})
        for capability in given.capabilities
    )
    proxy = given.proxy.model_copy(update={"learning_rate": 0.006, "fraction": 0.1})
    swarm = given.swarm.model_copy(update={"workers": 1})
    return given.model_copy(update={"proxy": proxy, "swarm": swarm, "capabilities": capabilities})


def fill(folder: Path) -> None:
    """Train the pool; finished runs are kept."""
    from ideal_proxy.pipeline.outer_loop import open_laboratory
    from ideal_proxy.pipeline.stage import Stage
    from ideal_proxy.terminal import Reporter

    with open_laboratory(config(), folder, Reporter()) as laboratory:
        laboratory.warm_start()
        base, rng = laboratory.prepared.domains.base, np.random.default_rng(0)
        specs = []
        for seed in range(SEEDS):
            for _ in range(DRAWS):
                volumes = base * np.exp(rng.uniform(-SPREAD, SPREAD, len(base)))
                specs.append(laboratory._spec(volumes * base.sum() / volumes.sum(), seed, "verify", 0.006))
        laboratory._run(Stage.SWARM, specs, role="verify")
        order = [[spec.id for spec in specs if spec.seed == seed] for seed in range(SEEDS)]
        (folder / "pool.json").write_text(json.dumps(order))


class Dealer:
    """Deals the pool's runs to one search: each of its seeds is one of the pool's."""

    def __init__(self, pool: Path, rng: np.random.Generator, surface: Any, real: bool) -> None:
        self.pool, self.surface, self.real = pool, surface, real
        order = json.loads((pool / "pool.json").read_text())
        self.free = [list(rng.permutation(order[s])) for s in rng.permutation(len(order))]
        self.of_seed: dict[int, list[str]] = {}

    def run(self, volumes: np.ndarray, seed: int, half: str) -> list[Any]:
        """Give the row losses of every capability's search or verify rows."""
        from ideal_proxy.proxy import RowLosses
        from ideal_proxy.swarm import load_result

        if seed not in self.of_seed:
            self.of_seed[seed] = self.free.pop()
        losses = load_result(self.pool, str(self.of_seed[seed].pop())).losses
        factor_J = np.divide(*self.surface.losses(np.stack([volumes, self.surface.base]))) if self.real else np.ones(5)
        dealt = [losses[f"{half}-{j}"] for j in range(len(factor_J))]
        return [RowLosses(f * rows.loss_sum, rows.tokens) for f, rows in zip(factor_J, dealt, strict=True)]

    def observe(self, v_ND: np.ndarray, seeds_N: np.ndarray) -> np.ndarray:
        """Give the losses (N, J) that a swarm's runs have on search rows."""
        runs = [self.run(v, int(seed), "search") for v, seed in zip(v_ND, seeds_N, strict=True)]
        return np.array([[rows.mean for rows in run] for run in runs])


def search(kind: str, number: int, pool: Path) -> dict[str, Any]:
    """One search of up to three rounds and its check, on dealt runs."""
    from campaign import look_for
    from surfaces import Surface

    from ideal_proxy.pipeline.evidence import Evidence
    from ideal_proxy.pipeline.verdict import PairedLosses, judge
    from ideal_proxy.response import Yardstick, compare

    surface = Surface("law", number)
    dealer = Dealer(pool, np.random.default_rng([number, KINDS.index(kind)]), surface, kind == "positive")
    model, mixture, v, seeds, losses, rounds = look_for(surface, dealer.observe, number, 3)
    at_base, stick = model.value_and_gradient(surface.base)[0], Yardstick.of_losses(5)
    evidence = Evidence(
        ids=tuple(map(str, range(len(v)))), volumes=v, losses=losses, values=losses, seeds=seeds,
        losses_before=at_base, values_before=at_base,
    )  # fmt: skip
    known = evidence.scatter(stick, at_base, "mean", None)
    promised = compare(model, mixture, surface.base, pairs=LOOKS[0], chosen=True).gain
    runs: list[tuple[list[Any], list[Any]]] = []
    for look in LOOKS:
        while len(runs) < look:
            fresh = 100 + len(runs)
            runs.append((dealer.run(surface.base, fresh, "verify"), dealer.run(mixture, fresh, "verify")))
        pairs = [PairedLosses.of([r[0][j] for r in runs], [r[1][j] for r in runs]) for j in range(5)]
        verdict = judge(pairs, looks=LOOKS, known=known)
        if not verdict.go_on:
            break
    true = 1.0 - surface.objective(mixture) if kind == "positive" else 0.0
    return {
        "kind": kind, "number": number, "answer": str(verdict.answer), "true": true,
        "best": float(surface.best.predicted_gain) if kind == "positive" else 0.0,
        **{f"gain_{key}": getattr(verdict.gain, key) for key in ("value", "lower", "upper")},
        **{f"predicted_{key}": getattr(promised, key) for key in ("value", "lower", "upper")},
        "pairs": verdict.pairs, "rounds": rounds, "runs": len(v) + 2 * verdict.pairs,
        "scatter": float(np.std(verdict.gains_by_seed, ddof=1)),
    }  # fmt: skip


def main() -> None:
    import jsonl

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=20, help="of each kind")
    parser.add_argument("--work", type=Path, default=Path("runs/nulls"))
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    pool, out = given.work / "pool", HERE / "nulls.jsonl"
    if not (pool / "pool.json").exists():
        fill(pool)
    rows = jsonl.read(out)
    done = {(row["kind"], row["number"]) for row in rows}
    for number in range(given.searches):
        for kind in KINDS:
            if (kind, number) not in done:
                rows.append(search(kind, number, pool))
                jsonl.add(out, rows[-1])
    (HERE / "nulls.md").write_text(table(rows))
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Count the answers, with Wilson intervals."""
    lines = [
        "# Real nulls and positives", "", "`python benchmarks/verdict/nulls.py --searches 20`", "",
        *(__doc__ or "").split("\n\n")[2].strip().splitlines(), "",
        "| kind | searches | improves | 95 % interval | no better | not enough | promised − true, points "
        "| 90 % interval of the promise holds the gain seen | scatter of a pair | pairs |",
        "|---|---:|---:|---|---:|---:|---|---|---:|---:|",
    ]  # fmt: skip
    for kind in KINDS:
        here = [row for row in rows if row["kind"] == kind]
        if not here:
            continue
        answers = [row["answer"] for row in here]
        count, n = answers.count("improves"), len(here)
        interval = binomtest(count, n).proportion_ci(method="wilson")
        miss = 100 * np.array([row["predicted_value"] - row["true"] for row in here])
        checked = [row for row in here if row["pairs"]]
        holds = sum(row["predicted_lower"] <= row["gain_value"] <= row["predicted_upper"] for row in checked)
        scatter = np.median([row["scatter"] for row in checked])
        lines.append(
            f"| {kind} | {n} | {count} | {interval.low:.0%} to {interval.high:.0%} "
            f"| {answers.count('no better than base')} | {answers.count('not enough evidence')} "
            f"| {miss.mean():+.2f} ± {miss.std() / n**0.5:.2f} "
            f"| {holds} of {len(checked)} | {100 * scatter:.1f} % | {np.mean([row['pairs'] for row in here]):.1f} |"
        )
    lines += [
        "", "| kind | search | answer | true gain, % | gain seen, % | promised, % | pairs | rounds | runs |",
        "|---|---:|---|---:|---|---|---:|---:|---:|",
    ]  # fmt: skip
    for row in rows:
        seen, said = (
            f"{100 * row[f'{key}_value']:+.2f} [{100 * row[f'{key}_lower']:+.2f}, {100 * row[f'{key}_upper']:+.2f}]"
            for key in ("gain", "predicted")
        )
        lines.append(
            f"| {row['kind']} | {row['number']} | {row['answer']} | {100 * row['true']:+.2f} | {seen} | {said} "
            f"| {row['pairs']} | {row['rounds']} | {row['runs']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
