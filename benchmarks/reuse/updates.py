"""Five updates of the data in a row, on surfaces of known truth: earlier runs reused, against a fresh swarm each time.

    OMP_NUM_THREADS=1 nice -n 15 python benchmarks/reuse/updates.py --repeats 10

Nothing is trained: a run draws its rows as a real one does, is moved to the new domains by the product's own code, and
its losses come from a law over atoms of rows that no fit knows of. Six sources; two are added, one is split, one is
filtered to half, one is removed, a capability is added (which stored weights judge, without a run). Runs keep base's
total; the check is left out on both sides. A row a repeat and stage is appended to `updates.jsonl`; what stands there
is not done again.

Legend: A atoms, D domains, J capabilities, R runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
OUT = Path(__file__).with_suffix(".jsonl")
FRACTION = 0.25
RUN_NOISE, SEED_NOISE = 0.012, 0.006  # of log loss; the demo's are about twice that, sft5's about the half
ATOMS = ("s0", "s1", "s2a", "s2b", "s3a", "s3b", "s4", "s5", "s6", "s7")
FIRST = {"s0": "s0", "s1": "s1", "s2": "s2a s2b", "s3": "s3a s3b", "s4": "s4", "s5": "s5"}
ADDED = FIRST | {"s6": "s6", "s7": "s7"}
SPLIT = {**{k: v for k, v in ADDED.items() if k != "s2"}, "s2/a": "s2a", "s2/b": "s2b"}
FILTERED = SPLIT | {"s3": "s3a"}
REMOVED = {k: v for k, v in FILTERED.items() if k != "s4"}
STAGES = (
    ("first", FIRST, 4), ("two added", ADDED, 4), ("one split", SPLIT, 4), ("one halved", FILTERED, 4),
    ("one removed", REMOVED, 4), ("capability added", REMOVED, 5),
)  # fmt: skip


@dataclass(eq=False)
class World:
    """Atoms of rows, and what each is worth to every capability."""

    seed: int
    rows: list = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([17, self.seed])
        A, J = len(ATOMS), 5
        self.rows = [rng.integers(0, 2**63, n).astype(np.uint64) for n in rng.integers(500, 1800, A)]
        self.supply = np.array([len(keys) for keys in self.rows], dtype=float)
        self.worth = np.exp(rng.normal(-1.0, 0.8, (J, A)))
        self.worth[np.arange(A) % J, np.arange(A)] *= np.exp(rng.normal(2.0, 0.5, A))
        self.worth[:, 3] = self.worth[:, 2] * np.exp(rng.normal(0, 0.6, J))  # the halves of a set are akin
        self.worth[:, 5] = self.worth[:, 4] * 0.3  # what is filtered away was poor
        self.gamma, self.alpha = rng.uniform(0.35, 0.6, J), rng.uniform(0.25, 0.45, J)
        self.Z = rng.uniform(2.5, 4.0, J)
        self.E = self.Z * rng.uniform(0.2, 0.4, J)

    def losses(self, atoms_RA: np.ndarray) -> np.ndarray:
        x = (atoms_RA / 1000.0)[:, None, :] + 1e-3
        power = x ** self.gamma[None, :, None] - 1e-3 ** self.gamma[None, :, None]
        s = 1.0 + (power * self.worth).sum(axis=2)
        return self.E + (self.Z - self.E) * s**-self.alpha


class Stage:
    """One state of the data, as a search sees it."""

    def __init__(self, world: World, domains: dict[str, str], capabilities: int) -> None:
        from ideal_proxy.config import parse_config
        from ideal_proxy.pipeline.facts import CapabilityFacts, DomainFacts
        from ideal_proxy.pipeline.prepare import Context, Prepared

        self.world, self.J = world, capabilities
        self.parts = [[ATOMS.index(a) for a in atoms.split()] for atoms in domains.values()]
        self.names = list(domains)
        self.keys = [np.concatenate([world.rows[a] for a in part]) for part in self.parts]
        self.supply = np.array([len(keys) for keys in self.keys], dtype=float)
        names = [f"c{j}" for j in range(capabilities)]
        self.config = parse_config({
            "domains": [{"name": n, "path": "demo:lists"} for n in self.names],
            "capabilities": [{"name": n, "path": "demo:lists"} for n in names],
            "budget": {"rows": "keep"}, "protect": "none",
        })  # fmt: skip
        facts = [
            DomainFacts(
                name=n, source="", format="", fingerprint="", available=int(u), base=int(u / 2), lower=0,
                upper=int(4 * u), tokens_per_row=50.0, supervised_per_row=20.0, reserved=0, truncated=0, dropped=0,
                longest=60,
            )
            for n, u in zip(self.names, self.supply, strict=True)
        ]  # fmt: skip
        told = [
            CapabilityFacts(
                name=n, source="", format="", fingerprint="", rows=400, search_rows=200, verify_rows=200,
                supervised_tokens=9000, truncated=0,
            )
            for n in names
        ]  # fmt: skip
        self.prepared = Prepared(
            folder=Path("none"), facts=tuple(facts), capabilities=tuple(told), health={}, vocabulary=300, template={},
            context=Context(tokens=64),
        )  # fmt: skip
        self.base = self.prepared.domains.base

    def atoms(self, v_ND: np.ndarray) -> np.ndarray:
        """Mixtures of domains as mixtures of atoms, as draws are on average."""
        out = np.zeros((len(v_ND), len(ATOMS)))
        for d, part in enumerate(self.parts):
            share = self.world.supply[part] / self.world.supply[part].sum()
            out[:, part] += v_ND[:, d, None] * share
        return out

    def design(self, count: int, seeds: list[int], random_state: int, replicates: int = 2):
        from ideal_proxy.pipeline.design import make_design

        return make_design(
            self.base, spread=2.0, count=count, lower=np.zeros(len(self.base)), upper=4 * self.supply, seeds=seeds,
            weights=np.ones(len(self.base)), total=float(self.base.sum()), replicates=replicates,
            random_state=random_state,
        )  # fmt: skip

    def run(self, volumes: np.ndarray, seeds: np.ndarray, salt: int):
        """Draw the rows of runs, and give the package that a search would leave."""
        from ideal_proxy.pipeline.earlier_runs import EarlierRun, Package
        from ideal_proxy.pipeline.row_record import RowRecord

        nothing = np.zeros(0, dtype=np.uint64)
        record = RowRecord(
            domains=tuple(self.names), pools=tuple(self.keys), reserved=(nothing,) * len(self.keys),
            available=tuple(int(FRACTION * u) for u in self.supply), fraction=FRACTION, references=(),
            reference_keys=(), reference_groups=(),
        )  # fmt: skip
        rows = np.rint(volumes * FRACTION).astype(int)
        runs = [
            EarlierRun(id=f"{salt}-{r}", rows=tuple(n.tolist()), seed=int(s), weights="", tokens=1, seconds=1.0)
            for r, (n, s) in enumerate(zip(rows, seeds, strict=True))
        ]
        atoms = np.zeros((len(runs), len(ATOMS)))
        for d, part in enumerate(self.parts):
            ends = np.cumsum(self.world.supply[part]).astype(int)
            for r, run in enumerate(runs):
                times = record.times_drawn(run.seed, d, run.rows[d])
                atoms[r, part] += np.diff([0, *np.cumsum(times)[ends - 1]]) / FRACTION
        rng = np.random.default_rng([salt, self.world.seed])
        noise = RUN_NOISE * rng.standard_normal((len(runs), 5))
        for r, run in enumerate(runs):
            noise[r] += SEED_NOISE * np.random.default_rng([run.seed, self.world.seed, 3]).standard_normal(5)
        losses = self.world.losses(atoms) * np.exp(noise)  # weights are kept: every capability can be judged later
        keys = np.arange(1, 6, dtype=np.uint64)
        return Package(
            name=f"stage {salt}",
            record=record,
            runs=tuple(runs),
            keys=keys,
            loss_sum=losses,
            tokens=np.ones(5),
            before=np.full(5, np.nan),
            proxies={},
        )

    def evidence(self, packages, own=None):
        """What the fit sees: earlier packages moved here, and this stage's own runs."""
        from ideal_proxy.pipeline.evidence import Evidence
        from ideal_proxy.pipeline.next_runs import with_reused
        from ideal_proxy.pipeline.reuse import reused_runs

        references = [np.array([j + 1], dtype=np.uint64) for j in range(self.J)]
        count = len(own.runs) if own else 0
        losses = np.column_stack([own.losses(k) for k in references]) if own else np.zeros((0, self.J))
        mine = Evidence(
            ids=tuple(run.id for run in own.runs) if own else (),
            volumes=np.array([np.array(r.rows) / FRACTION for r in own.runs]) if own else np.zeros((0, len(self.base))),
            losses=losses, values=losses, seeds=np.array([r.seed for r in own.runs] if own else [], dtype=np.int64),
            losses_before=self.world.Z[: self.J], values_before=self.world.Z[: self.J], own=(-1,) * self.J,
        )  # fmt: skip
        assert count == len(mine.ids)
        if not packages:
            return mine
        runs, _ = reused_runs(packages, self.names, self.keys, references, Path("none"))
        return with_reused(mine, runs)

    def regret(self, evidence) -> tuple[float, float]:
        """Propose by the product's own fit and optimiser; points of the objective lost to the best, and its gain."""
        from ideal_proxy.optimizer import Objective, optimize
        from ideal_proxy.pipeline.proposal import fit_and_propose

        proposal = fit_and_propose(self.config, self.prepared, evidence, seed=0)
        truth = _Truth(self)
        limits = replace(proposal.constraints, trust_region=2.0)
        best = optimize(truth, Objective(), limits, random_state=0).volumes
        gains = [
            100 * (1 - float(np.mean(truth.at(v) / truth.at(self.base)))) for v in (best, proposal.rows.astype(float))
        ]
        return gains[0] - gains[1], gains[1]


class _Truth:
    """The true losses, as the optimiser takes a response."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.residual_scale_ = np.full(stage.J, 1e-3)
        self.is_convex_ = np.ones(stage.J, dtype=bool)

    def at(self, v):
        return self.stage.world.losses(self.stage.atoms(np.asarray(v, dtype=float)[None]))[0, : self.stage.J]

    def value_and_gradient(self, v):
        v = np.asarray(v, dtype=float)
        steps = np.maximum(1e-4 * v, 1e-3)
        by = np.array([(self.at(v + h * e) - self.at(v)) / h for h, e in zip(steps, np.eye(len(v)), strict=True)]).T
        return self.at(v), by

    def draws_value_and_gradient(self, v):
        value, by = self.value_and_gradient(v)
        return value[None], by[None]


def repeat(seed: int) -> list[dict]:
    from ideal_proxy.pipeline.changes import compare_domains
    from ideal_proxy.pipeline.next_runs import fit_known, least_known
    from ideal_proxy.pipeline.reuse import runs_needed

    world, packages, lines = World(seed), [], []
    for number, (name, domains, capabilities) in enumerate(STAGES):
        stage = Stage(world, domains, capabilities)
        started = time.process_time()
        count = 3 * (len(stage.names) + 1)
        volumes, seeds = stage.design(count, [0, 1], 1000 * seed + number)
        fresh = stage.run(volumes, seeds, 100 + number)
        line = {"seed": seed, "stage": name, "domains": len(stage.names), "fresh_runs": count}
        line["fresh_regret"], line["fresh_gain"] = stage.regret(stage.evidence([], fresh))
        if not packages:
            packages.append(fresh)
            lines.append(
                line | {"new_runs": count, "reuse_regret": line["fresh_regret"], "reuse_gain": line["fresh_gain"]}
            )
            continue
        changes = compare_domains(packages[-1].record, stage.names, stage.keys)
        new = runs_needed(changes, len(stage.names), unknown=False)
        own = None
        if new:
            candidates, _ = stage.design(128, [0], 5000 + seed, replicates=1)
            model = fit_known(stage.evidence(packages), stage.prepared, 0)
            chosen = least_known(model, candidates, new)
            own = stage.run(candidates[chosen], np.arange(new) % 2, 200 + number)
        line["new_runs"] = new
        line["reuse_regret"], line["reuse_gain"] = stage.regret(stage.evidence(packages, own))
        packages += [own] if own else []
        lines.append(line | {"seconds": round(time.process_time() - started, 1)})
    return lines


def summary(lines: list[dict]) -> None:
    print("| stage | new runs | fresh runs | best gain | regret reused | regret fresh | difference ± 95 % |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for name in dict.fromkeys(line["stage"] for line in lines):
        of = [line for line in lines if line["stage"] == name]
        a, b = (np.array([line[f"{arm}_regret"] for line in of]) for arm in ("reuse", "fresh"))
        half = 1.96 * (a - b).std(ddof=1) / np.sqrt(len(a)) if len(a) > 1 else np.nan
        print(
            f"| {name} | {of[0]['new_runs']} | {of[0]['fresh_runs']} | "
            f"{np.mean([line['fresh_gain'] for line in of]) + b.mean():.2f} | {a.mean():.2f} | {b.mean():.2f} | "
            f"{(a - b).mean():+.2f} ± {half:.2f} (n {len(a)}) |"
        )
    later = [line for line in lines if line["stage"] != "first"]
    share = sum(line["new_runs"] for line in later) / sum(line["fresh_runs"] for line in later)
    print(f"\ncompute of the five updates: {share:.1%} of fresh swarms'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--show", action="store_true", help="only print what was recorded")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    lines = [json.loads(line) for line in OUT.read_text().splitlines()] if OUT.exists() else []
    done = {line["seed"] for line in lines}
    for seed in range(0 if options.show else options.repeats):
        if seed not in done:
            found = repeat(seed)
            told = [{k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()} for line in found]
            with open(OUT, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in told)
            lines += found
    summary(lines)


if __name__ == "__main__":
    main()
