"""Searches whose mixtures cannot matter, and searches with a known gain: both on the losses of real proxies.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/verdict/nulls.py --searches 20

First a pool: proxies of 0.1M trained on the null demo (rows of one stream, dealt to five domains at random), 11 draws of
rows for each of 14 seeds, none with a row twice. Then whole searches by the program, rounds and check included, whose
runs are not trained but dealt from the pool: each of a search's seeds is one of the pool's, each run the next of its
draws, in an order drawn for the search. So runs are exchangeable, whatever their mixtures: a null. A positive is the same
with all losses of a run multiplied by a surface of known truth (`benchmarks/surfaces.py`, family `law`), relative to
base. Searches share the pool, so they are not independent. A row a search is appended to `nulls.jsonl`; what stands there
is not done again. Writes `nulls.md`.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
SEEDS, DRAWS = 14, 11  # what a search of three rounds and eight pairs needs
SPREAD = 0.3  # of the pool's mixtures, in logarithms: no domain has a row twice
KINDS = ("null", "positive")
REFERENCES = ("search", "verify")


def config(seed: int = 0) -> Any:
    """The null demo, a little smaller, at one learning rate."""
    from ideal_proxy.data.demo import demo_config

    given = demo_config(0, null=True)
    capabilities = tuple(
        capability.model_copy(update={"path": capability.path.replace("rows=500", "rows=200")})
        for capability in given.capabilities
    )
    proxy = given.proxy.model_copy(update={"learning_rate": 0.006, "fraction": 0.1})
    swarm = given.swarm.model_copy(update={"workers": 1})
    return given.model_copy(update={"proxy": proxy, "swarm": swarm, "capabilities": capabilities, "seed": seed})


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
    """Deals the pool's runs to one search."""

    def __init__(self, pool: Path, rng: np.random.Generator, surface: Any) -> None:
        self.pool, self.surface = pool, surface
        order = json.loads((pool / "pool.json").read_text())
        self.free = [list(rng.permutation(order[s])) for s in rng.permutation(len(order))]
        self.of_seed: dict[int, list[str]] = {}

    def __call__(self, spec: Any) -> Any:
        from dataclasses import replace

        from ideal_proxy.proxy import RowLosses
        from ideal_proxy.swarm import load_result

        if spec.role in {"warm", "zero"}:
            return load_result(self.pool, spec.id)
        if spec.seed not in self.of_seed:
            self.of_seed[spec.seed] = self.free.pop()
        run = load_result(self.pool, str(self.of_seed[spec.seed].pop()))
        losses = {name: run.losses[name] for name in spec.references}
        if self.surface is not None:
            volumes = np.array(spec.volumes) * self.surface.base / self.surface.rows
            factor_J = np.divide(*self.surface.losses(np.stack([volumes, self.surface.base])))
            losses = {
                name: RowLosses(found.loss_sum * factor_J[int(name.rpartition("-")[2])], found.tokens)
                for name, found in losses.items()
            }
        return replace(run, spec=spec, losses=losses)


def search(kind: str, number: int, pool: Path, work: Path) -> dict[str, Any]:
    """One whole search on dealt runs."""
    from surfaces import Surface

    from ideal_proxy.pipeline import outer_loop
    from ideal_proxy.pipeline.laboratory import Laboratory
    from ideal_proxy.terminal import Reporter

    surface = None
    if kind == "positive":
        surface = Surface("law", number)
        surface.rows = np.full(surface.domains, 1200.0)  # base rows of the null demo
    dealer = Dealer(pool, np.random.default_rng([number, KINDS.index(kind)]), surface)

    class Dealt(Laboratory):
        def _run(self, stage: Any, specs: Sequence[Any], *, role: str, **_: Any) -> None:
            self._results |= {spec.id: dealer(spec) for spec in specs if spec.id not in self._results}
            for spec in specs:
                if self._roles.get(spec.id) != "design":
                    self._roles[spec.id] = role

    folder = work / f"{kind}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(pool / "prepared", folder / "prepared")
    real, outer_loop.Laboratory = outer_loop.Laboratory, Dealt  # type: ignore[misc]
    try:
        start = time.process_time()
        result = outer_loop.run_search(config(number), folder, Reporter(quiet=True))
        seconds = time.process_time() - start
    finally:
        outer_loop.Laboratory = real  # type: ignore[misc]
    shutil.rmtree(folder)
    verdict = result["verdict"]
    proposal = np.array([domain["proposal_rows"] for domain in result["domains"]], dtype=float)
    true = 0.0 if surface is None else 1.0 - surface.objective(proposal * surface.base / surface.rows)
    return {
        "kind": kind, "number": number, "answer": verdict["answer"], "true": true,
        "best": 0.0 if surface is None else float(surface.best.predicted_gain),
        **{f"gain_{key}": verdict["gain"][key] for key in ("value", "lower", "upper")},
        **{f"predicted_{key}": result["predicted_gain"][key] for key in ("value", "lower", "upper")},
        "pairs": verdict["pairs"], "rounds": len(result["rounds"]), "runs": result["cost"]["runs"],
        "scatter": float(np.std(verdict["gains_by_seed"], ddof=1)) if verdict["pairs"] > 1 else None,
        "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=20, help="of each kind")
    parser.add_argument("--work", type=Path, default=Path("runs/nulls"))
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    pool, out = given.work / "pool", HERE / "nulls.jsonl"
    if not (pool / "pool.json").exists():
        fill(pool)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(row["kind"], row["number"]) for row in rows}
    for number in range(given.searches):
        for kind in KINDS:
            if (kind, number) not in done:
                rows.append(search(kind, number, pool, given.work))
                with out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    (HERE / "nulls.md").write_text(table(rows))
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Count the answers, with Wilson intervals."""
    lines = [
        "# Real nulls and positives", "", "`python benchmarks/verdict/nulls.py --searches 20`", "",
        *(__doc__ or "").split("\n\n")[2].strip().splitlines(), "",
        "| kind | searches | improves | 95 % interval | no better | not enough | promised − true, points | 90 % interval of "
        "the promise holds the gain seen | scatter of a pair | pairs |",
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
            f"| {kind} | {n} | {count} | {interval.low:.0%} to {interval.high:.0%} | {answers.count('no better than base')} "
            f"| {answers.count('not enough evidence')} | {miss.mean():+.2f} ± {miss.std() / n**0.5:.2f} "
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
