"""The search's laboratory: which mixtures it tries in each stage, and what their runs say to the fit and to the check.

Legend: R runs, D domains, J capabilities, S pairs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.errors import UserError
from ideal_proxy.gradients import ResponseMatrix, mean_over_seeds
from ideal_proxy.pipeline.anchors import Anchors, disagreeing, make_anchors, told_imitations
from ideal_proxy.pipeline.bench import Bench
from ideal_proxy.pipeline.context import reference
from ideal_proxy.pipeline.design import make_design, make_later_design, spread_mixtures
from ideal_proxy.pipeline.evidence import Evidence, refuse_poor_metrics, told_kinds, with_imitated
from ideal_proxy.pipeline.next_runs import fit_known, least_known, with_reused
from ideal_proxy.pipeline.plan_cost import SWEEP_MIXTURES
from ideal_proxy.pipeline.reuse import ReusedRuns
from ideal_proxy.pipeline.sequential import MOST_DEGREES
from ideal_proxy.pipeline.stage import Stage
from ideal_proxy.pipeline.verdict import PairedLosses, PairedScores, Scored
from ideal_proxy.response import ResponseModel, Responses
from ideal_proxy.store import atomic_write_bytes, atomic_write_json, is_json, read_json
from ideal_proxy.swarm import IMITATED, JUDGED, MODEL, RESPONSES, WARM_RUN, ZERO_RUN, RunSpec, warm_spec, zero_spec

Array = NDArray[np.float64]

CHECKED_PAIRS = "imitated.json"  # in the run directory: pairs of anchors whose mean mixture is trained too, and seeds
CANDIDATES = 128  # mixtures that the new runs of a search with reuse are chosen from


class Laboratory(Bench):
    """Lays out the runs of every stage of one search, and hands on what they measured."""

    def __init__(self, *settings: Any, **options: Any) -> None:
        super().__init__(*settings, **options)
        self.paired_losses: list[PairedLosses] = []  # of the check, by capability; () before it
        self.paired_scores: dict[int, PairedScores] = {}
        self.anchors: Anchors | None = None  # of the first round of mode: target
        self.imitated: tuple[str, ...] = ()  # runs that stand for mixtures, trained by none
        self.disagree: tuple[str, ...] = ()  # pairs of anchors that do not merge
        self.responses: list[tuple[Array, ResponseMatrix]] = []

    def warm_start(self) -> None:
        """Train the warm start that every scratch proxy begins from, or judge the pretrained one as it is; once."""
        stage, role, start = (Stage.WARM_START, "warm", warm_spec(self.context, self._seed(0)))
        if not self.context.warm:
            stage, role, start = (Stage.ZERO_ROWS, "zero", zero_spec(self.context))
        self._run(stage, [replace(start, metrics=self._metrics("search"))], role=role)

    def judge_reused(self) -> None:
        """Judge earlier runs on rows that they were not judged on, by their stored weights."""
        if self.reused is None:
            return
        references = [reference(j, "search") for j in range(len(self.prepared.capabilities))]
        specs = self.reused.judged_specs(references)
        for r, spec in specs.items():
            folder = self.folder / "runs" / spec.id
            if not (folder / MODEL).exists():
                atomic_write_bytes(folder / MODEL, Path(self.reused.weights[r]).read_bytes())
        self._run(Stage.JUDGING, list(specs.values()), role=JUDGED, needed=False)
        done = {r: self._search_losses(self._results[s.id]) for r, s in specs.items() if s.id in self._results}
        self.reused = self.reused.with_losses(done).told()

    def learn_from(self, lower: ReusedRuns, cost: dict[str, Any]) -> None:
        """Take proxies of a ladder's lower sizes as evidence."""
        self.reused = lower.beside(self.reused)
        self.lower_cost = {key: value + self.lower_cost.get(key, 0) for key, value in cost.items()}

    def first_volumes(self) -> Array:
        """Return the mixtures of the first round, full-size rows, shape (R, D); nothing is trained for it."""
        if self.reused is not None:
            return np.concatenate([self.reused.volumes, self._candidates()])
        return self._first_design()[0]

    def _candidates(self) -> Array:
        """Lay out mixtures that the few new runs of a search with reuse are chosen from, base first."""
        return self._design(self.prepared.domains.base, self.config.swarm.spread, CANDIDATES, 0, alone=True)[0]

    def _first_design(self) -> tuple[Array, NDArray[np.int64]]:
        if self.config.proxy.mode == "target" and self.reused is None:
            self.anchors = make_anchors(self.config, self.prepared, self.plan.runs, self._seeds(0))
            return self.anchors.volumes, self.anchors.seeds
        return self._design(self.prepared.domains.base, self.config.swarm.spread, self.plan.runs, 0)

    def sweep(self, rates: Sequence[float]) -> dict[float, float]:
        """Train base and two spread mixtures at every rate."""
        mixtures, seeds = self._first_design()
        chosen = [0, *spread_mixtures(mixtures, SWEEP_MIXTURES - 1)]
        specs = {
            rate: [self._spec(mixtures[k], seeds[k], "sweep", rate, keep=k == 0, anchor=True) for k in chosen]
            for rate in rates
        }
        distinct = {spec.id: spec for group in specs.values() for spec in group}  # some may be equal
        self._run(Stage.LEARNING_RATE, list(distinct.values()), role="sweep")
        losses = {
            rate: np.array([self._search_losses(self._results[s.id]) for s in group if s.id in self._results])
            for rate, group in specs.items()
        }
        whole = {rate: value for rate, value in losses.items() if len(value) == len(chosen)}
        if not whole:
            raise UserError(f"no learning rate of {', '.join(f'{r:g}' for r in rates)} trained; set a smaller one")
        first = whole[min(whole)]
        return {rate: float((value / first).mean()) for rate, value in whole.items()}

    def explore(
        self, centre: Array, spread: float, count: int, rate: float, number: int, wanted: Array | None = None
    ) -> None:
        """Run the swarm of one round; half of a later one's points about the centre are mixtures that are wanted."""
        if number == 0 and self.reused is not None:
            volumes, seeds = self._where_uncertain(count)
        elif number == 0:
            volumes, seeds = self._first_design()
        else:
            volumes, seeds = self._design(centre, spread, count, number, wanted)
        points = zip(volumes, seeds, strict=True)
        at_centre = self.config.swarm.seeds  # the first runs: their weights are what gradients start from
        specs = [
            self._spec(v, seed, "design", rate, keep=k < at_centre, anchor=number == 0)
            for k, (v, seed) in enumerate(points)
        ]
        distinct: dict[str, RunSpec] = {}
        for spec in specs:
            distinct.setdefault(spec.id, spec)
        if len(distinct) < len(specs):
            self.reporter.note(f"{len(specs) - len(distinct)} runs left out: in a proxy's rows they equal another run")
        self._run(Stage.SWARM, list(distinct.values()), role="design", number=number)

    def imitate(self, rate: float) -> None:
        """Judge mixtures halfway between two anchors by the mean of the anchors' weights, and train some of them."""
        if self.anchors is None:
            return
        anchors, seed = self.anchors, self._seeds(0)[0]
        ends = [self._spec(mixture, seed, "design", rate).id for mixture in anchors.mixtures]
        specs: dict[int, RunSpec] = {}
        for p, pair in enumerate(anchors.pairs[: anchors.imitations]):
            spec = self._spec(anchors.halfway[p], seed, IMITATED, rate, ends=[ends[a] for a in pair])
            known = any(spec.id == other.id for other in specs.values())  # ends may be equal in a proxy's rows
            if not known and all(ends[a] in self._results for a in pair):
                specs[p] = spec
        self._run(Stage.IMITATION, list(specs.values()), role=IMITATED, needed=False, number=0)
        done = [p for p, spec in specs.items() if spec.id in self._results]
        middle = np.array([self._search_losses(self._results[specs[p].id]) for p in done])
        at_ends = np.array([[self._search_losses(self._results[ends[a]]) for a in anchors.pairs[p]] for p in done])
        apart = disagreeing(at_ends, middle) if done else np.zeros(0, dtype=bool)
        self.imitated = tuple(specs[p].id for p, bad in zip(done, apart, strict=True) if not bad)
        self.disagree = tuple(anchors.pair_name(p) for p, bad in zip(done, apart, strict=True) if bad)
        self._train_imitated([p for p, bad in zip(done, apart, strict=True) if not bad], anchors, rate)

    def _train_imitated(self, merged: Sequence[int], anchors: Anchors, rate: float) -> None:
        """Train some mixtures that are imitated; which ones is written down."""
        # A run that failed may succeed in a resumed search, and then other pairs would merge.
        path, chosen = self.folder / CHECKED_PAIRS, list[list[int]]()
        if is_json(path):
            chosen = read_json(path)["pairs"]
        else:
            known = {run for run in self._results if self._roles[run] == "design"}
            for p, seed in anchors.to_check(merged, self._seeds(0)):
                run = self._spec(anchors.halfway[p], seed, "design", rate).id
                if run not in known and len(chosen) < anchors.checked:  # two may be equal in a proxy's rows
                    known.add(run)
                    chosen.append([p, seed])
            atomic_write_json(path, {"pairs": chosen}, seal=True)
        specs = [self._spec(anchors.halfway[p], seed, "design", rate) for p, seed in chosen]
        self._run(Stage.SWARM, specs, role="design", needed=False, number=0)

    def told_imitations(self, model: ResponseModel) -> str:
        """Say what was imitated and what that was worth in a fit; "" where nothing was."""
        if self.anchors is None or not self.anchors.imitations:
            return ""
        worth = told_kinds(model, self.prepared.capability_names, imitations=True)
        return told_imitations(self.anchors, len(self.imitated), self.disagree, worth)

    def try_out(self, mixtures: Array, rate: float) -> None:
        """Run mixtures, with the seeds in turn, as evidence."""
        seeds = self._seeds(0)
        specs = [self._spec(v, seeds[k % len(seeds)], "design", rate) for k, v in enumerate(mixtures)]
        self._run(Stage.SWARM, list({spec.id: spec for spec in specs}.values()), role="design", number=0)

    def _where_uncertain(self, count: int) -> tuple[Array, NDArray[np.int64]]:
        """Place new runs where earlier ones leave the response least known: base, then one after another."""
        candidates, seeds = self._candidates(), self._seeds(0)
        turns = np.array([seeds[k % len(seeds)] for k in range(count)], dtype=np.int64)
        if count <= 1:
            return candidates[:count], turns
        model = fit_known(self.evidence(), self.prepared, self.config.seed)
        if model is None:
            return self._design(self.prepared.domains.base, self.config.swarm.spread, count, 0)
        return candidates[least_known(model, candidates, count)], turns

    def respond(self, centre: Array, rate: float, number: int) -> None:
        """Estimate the responses of the proxies trained at a round's centre, and average them over the seeds."""
        if not self.gradients:
            return
        specs = []
        for seed in self._seeds(number):
            trained = self._spec(centre, seed, "design", rate)
            if trained.id in self._results:
                name = hashlib.sha256(f"{self.gradients} of {trained.id}".encode()).hexdigest()[:16]
                specs.append(replace(trained, id=name, role="gradients", responses=self.gradients, trained=trained.id))
        self._run(Stage.GRADIENTS, specs, role="gradients", needed=False, number=number)
        done = [self._results[spec.id] for spec in specs if spec.id in self._results]
        if done:
            parts = [ResponseMatrix.load(result.folder / RESPONSES) for result in done]
            mean = mean_over_seeds(parts, self.prepared.capability_names)
            mean = replace(mean, domains=tuple(self.prepared.domains.names))
            mean.save(self.folder / (RESPONSES if number == 0 else f"responses-{number + 1}.npz"))
            self.responses.append((np.array(done[0].spec.volumes, dtype=float), mean))

    def recall_check(self, rows: NDArray[np.int64], seeds: Sequence[int], rate: float) -> None:
        """Take the runs of an earlier check, which are done, as evidence by what they lost on search rows."""
        mixtures = (self.prepared.domains.base, rows)
        specs = [self._spec(v, self._seed(seed), "verify", rate) for seed in seeds for v in mixtures]
        self._run(Stage.SWARM, specs, role="design", needed=False)

    def evidence(self) -> Evidence:
        """Collect the runs that the fit may use: the swarm's, not the check's."""
        kept = [run for run in self._results if self._roles[run] == "design"]
        results = [self._results[run] for run in kept]
        values = np.array([self._values(result) for result in results]).reshape(
            len(results), len(self.prepared.capabilities)
        )
        before = self._results[WARM_RUN if self.context.warm else ZERO_RUN]
        refuse_poor_metrics(self.config.capabilities, kept, [run.spec.rows for run in results], values)
        # A trainer that judges by itself may count loss in another way than the start was judged in here.
        theirs = any(result.metrics.get("judged_by") == "command" for result in results)
        anchor = np.full(values.shape[1], np.nan) if theirs else self._search_losses(before)
        volumes = np.array([r.spec.volumes for r in results], dtype=float).reshape(-1, len(self.prepared.facts))
        # Proxies draw whole rows; the fit is to know runs of base by their volumes.
        volumes[[self.is_base(v) for v in volumes]] = self.prepared.domains.base
        own = Evidence(
            ids=tuple(kept),
            volumes=volumes,
            losses=np.array([self._search_losses(r) for r in results]).reshape(values.shape),
            values=values,
            seeds=np.array([result.spec.seed for result in results], dtype=np.int64),
            losses_before=anchor,
            values_before=np.where(np.isnan(anchor) & self._by_loss, np.nan, self._values(before)),
            gradients=tuple(Responses(at, found.M, found.se, found.q) for at, found in self.responses),
            own=self.config.own,
        )
        if self.anchors is not None:
            runs = [self._results[run] for run in self.imitated]
            losses, values = (np.array([read(r) for r in runs]) for read in (self._search_losses, self._values))
            return with_imitated(own, [run.spec for run in runs], losses, values, len(self.anchors.names))
        return own if self.reused is None else with_reused(own, self.reused)

    def pairs(self, rows: NDArray[np.int64], seeds: Sequence[int], rate: float) -> list[PairedLosses | PairedScores]:
        """Train base and proposal on fresh seeds, and read the verify rows and what the metrics gave."""
        base = self.prepared.domains.base
        specs = [
            (self._spec(base, self._seed(s), "verify", rate), self._spec(rows, self._seed(s), "verify", rate))
            for s in seeds
        ]
        self._run(Stage.CHECK, [spec for pair in specs for spec in pair], role="verify")
        done = [pair for pair in specs if all(spec.id in self._results for spec in pair)]
        if len(done) < 2:
            raise UserError(f"{Stage.CHECK}: only {len(done)} pairs of runs succeeded; see the warnings above")
        both = [[self._results[pair[side].id].losses for pair in done] for side in (0, 1)]
        names = [reference(j, "verify") for j in range(len(self.prepared.capabilities))]
        entries = [PairedLosses.of(*([losses[name] for losses in side] for side in both)) for name in names]
        scores: dict[int, PairedScores] = {}
        for j, capability in enumerate(self.config.capabilities):
            if capability.metric is not None:
                key = reference(j, "verify")
                sides = ([self._results[pair[side].id] for pair in done] for side in (0, 1))
                scores[j] = PairedScores.of(
                    *([Scored(run.scores[key], run.items(key)) for run in side] for side in sides)
                )
        self.paired_losses, self.paired_scores = entries, scores
        return [scores.get(j, entry) for j, entry in enumerate(entries)]

    def _design(
        self, centre: Array, spread: float, count: int, number: int, wanted: Array | None = None, *, alone: bool = False
    ) -> tuple[Array, NDArray[np.int64]]:
        """Lay out a round's mixtures: the centre with every seed, then points that fill the region."""
        weights, limits = self.prepared.domains.lengths, self.config.limits
        if limits.budget_unit == "rows":
            weights = np.ones_like(weights)
        seeds = self._seeds(number)[: 1 if alone else None]
        options: dict[str, Any] = {
            "spread": spread, "count": count, "weights": weights, "random_state": self.config.seed + 1000 * number,
            "lower": self.prepared.column("lower"), "upper": self.prepared.column("upper"),
            # Where the answer must have one total, runs with others would tell of mixtures that cannot be chosen.
            "total": float(weights @ centre) if limits.budget.kind in {"keep", "exactly"} else None,
        }  # fmt: skip
        if number:
            points = np.zeros((0, len(centre))) if wanted is None else wanted
            known = self.evidence().volumes
            return make_later_design(centre, self.prepared.domains.base, points, seeds=seeds, existing=known, **options)
        # Too few runs to tell a direction from another: none of them is spent on a second seed.
        first = seeds[:1] if count <= len(weights) + 1 and not self.gradients else seeds
        replicates = 0 if alone else max(1, min(math.ceil(MOST_DEGREES / (len(seeds) - 1)), count // 4))
        return make_design(centre, seeds=first, replicates=replicates, **options)
