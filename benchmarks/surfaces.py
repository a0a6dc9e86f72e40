"""Surfaces of known truth: what a search would have found is computed, not believed.

A surface is drawn from a seed: five domains, five capabilities, an uneven base whose total is kept. Volumes move by
e^±1.2 about base. Families: `law` (the response law itself), `interactions` (the law, and domains that help or
hinder one another, in one of three ways that the fit does not know of), `harm` (a share raises a loss), `peak`
(too much of one's own domain hurts again), `flat` (nothing matters), `poisoned` (the law, but the last domain teaches
nothing and the last two capabilities answer to nothing).

Legend: N mixtures, D domains, J capabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ideal_proxy.amounts import Amount
from ideal_proxy.domains import Domains
from ideal_proxy.limits import Limits
from ideal_proxy.optimizer import Constraints, Objective, Optimum, Problem, optimize
from ideal_proxy.pipeline.design import make_design

FAMILIES = ("law", "interactions", "harm", "peak", "flat", "poisoned")
SPREAD = 1.2
GAINS = (0.015, 0.06)  # least and greatest gain that can be reached on a surface that is kept
RELATIVE_STEP = 1e-5


@dataclass(eq=False)
class Surface:
    """The true losses, with what the optimiser asks of a fitted response."""

    family: str
    seed: int
    domains: int = 5
    capabilities: int = 5
    base: np.ndarray = field(init=False)
    best: Optimum = field(init=False)

    def __post_init__(self) -> None:
        for attempt in range(100):
            self._draw(np.random.default_rng([self.seed, attempt, FAMILIES.index(self.family)]))
            self.best = optimize(self, Objective(), self.constraints(), random_state=0)
            if self.family == "flat" or GAINS[0] <= self.best.predicted_gain <= GAINS[1]:
                return
        raise RuntimeError("no surface of this family has a gain within the range")

    def _draw(self, rng: np.random.Generator) -> None:
        D, J = self.domains, self.capabilities
        self.base = 1000.0 * np.exp(rng.normal(0.0, 0.7, D))
        own = np.zeros((J, D))
        own[np.arange(J), np.arange(J) % D] = 1.0
        self.a = np.exp(rng.normal(-1.0, 1.0, (J, D)) + 2.2 * own)
        self.gamma, self.alpha = rng.uniform(0.3, 0.7, J), rng.uniform(0.2, 0.5, J)
        self.Z = rng.uniform(2.0, 4.0, J)
        self.E = self.Z * rng.uniform(0.2, 0.5, J)
        self.kind = int(rng.integers(3))
        upper = np.triu(np.ones((D, D)), 1)
        self.pair = rng.normal(0.0, (0.02, 0.5, 1.0)[self.kind], (J, D, D)) * upper
        if self.kind == 2:  # two domains of each capability stand in for one another
            self.pair = upper * (rng.random((J, D, D)) < 2.0 / upper.sum())
        if self.family == "poisoned":
            self.a[:, -1] = 0.0
        self.b = 0.6 * rng.random((J, D)) * (rng.random((J, D)) < 0.3) * (1.0 - own)
        self.top = rng.uniform(0.6, 1.6, J)  # of base's share of one's own domain
        self.bend = rng.uniform(0.02, 0.06, J)

    @property
    def is_convex_(self) -> np.ndarray:
        return np.zeros(self.capabilities, dtype=bool)

    @property
    def residual_scale_(self) -> np.ndarray:
        return np.ones(self.capabilities)

    def losses(self, v_ND: np.ndarray) -> np.ndarray:
        """The true losses (N, J)."""
        if self.family == "flat":
            return np.tile(self.Z, (len(v_ND), 1))
        x = np.maximum(v_ND, 0.0)[:, None, :] / self.base.mean() + 1e-3
        power = self.a * (x ** self.gamma[:, None])
        s = 1.0 + power.sum(axis=2)
        if self.family == "interactions" and self.kind:
            both = np.sqrt(power[:, :, :, None] * power[:, :, None, :])
            # helping and hindering inside s; or, of two that overlap, the smaller hardly counts
            change = 0.5 * both if self.kind == 1 else -1.6 * both**2 / (power[..., :, None] + power[..., None, :])
            s = np.maximum(s + (change * self.pair).sum(axis=(2, 3)), 0.5)
        loss = self.E + (self.Z - self.E) * s**-self.alpha
        if self.family == "interactions" and not self.kind:
            h = np.tanh(np.log(np.maximum(v_ND, 1e-9) / self.base))
            loss = loss * np.exp(np.einsum("nd,jde,ne->nj", h, self.pair, h))
        share = v_ND / v_ND.sum(axis=1, keepdims=True)
        if self.family == "harm":
            loss = loss + share @ self.b.T
        if self.family == "peak":
            j = np.arange(self.capabilities)
            wanted = self.top * (self.base / self.base.sum())[j % self.domains]
            loss = loss * (1.0 + self.bend * (np.log((share[:, j % self.domains] + 0.01) / (wanted + 0.01))) ** 2)
        if self.family == "poisoned":
            loss[:, -2:] = self.Z[-2:]
        return loss

    def value_and_gradient(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        step = RELATIVE_STEP * self.base.mean()
        values = self.losses(np.concatenate([v[None], v + step * np.eye(len(v)), v - step * np.eye(len(v))]))
        D = len(v)
        return values[0], ((values[1 : D + 1] - values[D + 1 :]) / (2 * step)).T

    def draws_value_and_gradient(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, gradient = self.value_and_gradient(v)
        return value[None], gradient[None]

    def problem(self) -> Problem:
        names = tuple(f"d{i}" for i in range(self.domains))
        domains = Domains(
            names=names, base=self.base, available=100.0 * self.base, tokens_per_row=np.ones(self.domains)
        )
        return Problem(domains=domains, capabilities=tuple(f"c{j}" for j in range(self.capabilities)))

    def constraints(self) -> Constraints:
        """Base's total, every volume within e^±1.2 of base."""
        problem = self.problem()
        lower, upper = (
            {d: Amount(float(v), "rows") for d, v in zip(problem.domains.names, self.base * np.exp(side), strict=True)}
            for side in (-SPREAD, SPREAD)
        )
        return Constraints(problem=problem, limits=Limits(lower=lower, upper=upper))

    def design(self, runs: int, replicates: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Mixtures (N, D) and seeds (N,), as a search lays them out; it runs four points with both seeds."""
        return make_design(
            self.base, spread=SPREAD, lower=np.zeros(self.domains), upper=100.0 * self.base, seeds=[0, 1], count=runs,
            total=float(self.base.sum()), random_state=self.seed, replicates=replicates,
        )  # fmt: skip

    def observe(self, v_ND: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
        """What runs measure: the truth times log-normal noise of this standard deviation."""
        truth = self.losses(v_ND)
        return truth * np.exp(noise * rng.standard_normal(truth.shape))

    def objective(self, v: np.ndarray) -> float:
        """The mean of the true losses relative to base, 1 at base."""
        here, there = self.losses(np.stack([v, self.base]))
        return float((here / there).mean())

    def regret(self, v: np.ndarray) -> float:
        """How far a mixture's true objective lies above the best, in points (per cent of base)."""
        return 100.0 * (self.objective(v) - self.best.objective)
