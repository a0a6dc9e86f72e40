"""Ours, by the product's own design, fit, optimiser and rounds: one swarm, or a swarm and up to two rounds.

Of a budget of R runs over D domains at most two rounds of max(D + 1, R / 5) runs are kept back, as long as 2(D + 1)
stay for the first swarm. Rounds are not cut short here: every contender spends its budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from peers.task import Array, Runs, Task, Train, trained

from ideal_proxy.amounts import Amount
from ideal_proxy.domains import Domains
from ideal_proxy.limits import Limits
from ideal_proxy.optimizer import Constraints, Objective, Problem, explored_region, nearest_base, optimize
from ideal_proxy.pipeline.design import make_design, make_later_design
from ideal_proxy.pipeline.rounds import look_ahead
from ideal_proxy.response import Yardstick
from ideal_proxy.response.model import ResponseModel

SPREAD = 2.0  # of the first swarm, in log volume


def design(task: Task, count: int, seed: int, replicates: int = 1) -> tuple[Array, Array]:
    return make_design(
        task.base, spread=SPREAD, lower=task.lower, upper=task.upper, seeds=[0, 1], count=count, total=task.total,
        random_state=seed, replicates=replicates,
    )  # fmt: skip


def constraints(task: Task, capabilities: int, protect: float | None) -> Constraints:
    names = tuple(f"d{i}" for i in range(len(task.base)))
    told = tuple(f"c{j}" for j in range(capabilities))
    domains = Domains(names=names, base=task.base, available=task.available, tokens_per_row=np.ones(len(names)))
    lower, upper = (
        {d: Amount(float(v), "rows") for d, v in zip(names, side, strict=True)} for side in (task.lower, task.upper)
    )
    free = {} if protect is None else dict.fromkeys(told, protect)
    limits = Limits(lower=lower, upper=upper, protect=free, repeat_cap=None)
    return Constraints(problem=Problem(domains=domains, capabilities=told), limits=limits)


def fit(task: Task, runs: Runs, seed: int, **options: Any) -> ResponseModel:
    model = ResponseModel(available=task.available, base=task.base, random_state=seed)
    return model.fit(runs.volumes, runs.losses, seed_id=runs.seeds, **options)


@dataclass(frozen=True, slots=True)
class Ours:
    name: str = "ours"
    rounds: int = 2
    protect: float | None = None  # the default of a search is 0.02; the others have no such limit
    region: float = 1.0  # times the log range that the runs explored, the product has 1
    fitting: Any = None  # further options of the fit: own, responses, baseline_loss

    def plan(self, domains: int, runs: int) -> tuple[int, int, int]:
        """First runs, rounds, runs of a round."""
        later = max(domains + 1, runs // 5)
        rounds = max(0, min(self.rounds, (runs - 2 * (domains + 1)) // later))
        return runs - rounds * later, rounds, later

    def search(self, task: Task, train: Train, runs: int, seed: int) -> Array:
        first, rounds, later = self.plan(len(task.base), runs)
        table = trained(*design(task, first, seed, replicates=4 if rounds else 1), train)
        model, best = self.propose(task, table, seed)
        limits = constraints(task, table.losses.shape[1], self.protect)
        for number in range(1, rounds + 1):
            inside = replace(limits, trust_region=self.explored(table, limits))
            stick = Yardstick.of_losses(table.losses.shape[1])
            points = look_ahead(model, Objective(), inside, stick, best).points
            volumes, seeds = make_later_design(
                best, task.base, points, seeds=[2 * number, 2 * number + 1], count=later,
                spread=2.0 * 0.5**number, lower=task.lower, upper=task.upper, existing=table.volumes,
                total=task.total, random_state=seed + 1000 * number,
            )  # fmt: skip
            table += trained(volumes, seeds, train)
            model, best = self.propose(task, table, seed)
        return best

    def explored(self, runs: Runs, limits: Constraints) -> dict[str, tuple[float, float]]:
        region = explored_region(runs.volumes, limits.domains)
        return {name: (self.region * down, self.region * up) for name, (down, up) in region.items()}

    def propose(self, task: Task, runs: Runs, seed: int) -> tuple[ResponseModel, Array]:
        model = fit(task, runs, seed, **(self.fitting or {}))
        return model, self.best(model, task, runs)

    def best(self, model: ResponseModel, task: Task, runs: Runs, objective: Objective | None = None) -> Array:
        """The best mixture of a fit, no farther than these runs went."""
        objective = objective or Objective()
        limits = constraints(task, runs.losses.shape[1], self.protect)
        limits = replace(limits, trust_region=self.explored(runs, limits))
        found = optimize(model, objective, limits, random_state=0)
        return task.within(nearest_base(model, objective, limits, found).volumes)


CONTENDERS = (
    Ours(), Ours("ours, one round", rounds=0), Ours("ours, protected", protect=0.02),
    Ours("ours, region 1.5 times as wide", region=1.5),
)  # fmt: skip
