"""The response law with known parameters, written out by hand: the model that optimiser tests and benchmarks use.

Legend: R mixtures, D domains, J capabilities, S draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
DELTA = 1e-3


@dataclass
class ExplicitLaw:
    """L_j = E + (Z − E)(1 + Σ a [(u/c + δ)^γ − δ^γ])^−α + Σ b u/(κ + Σ u), with draws that vary the parameters."""

    floor_J: FloatArray
    start_J: FloatArray
    a_JD: FloatArray
    alpha_J: FloatArray
    gamma_J: FloatArray
    unit: float
    available_D: FloatArray | None = None
    rho: float = 5.0
    harm_JD: FloatArray | None = None
    kappa: float = 0.0
    draws: list[ExplicitLaw] = field(default_factory=list)

    @property
    def is_convex_(self) -> NDArray[np.bool_]:
        return np.full(len(self.floor_J), self.harm_JD is None)

    @property
    def residual_scale_(self) -> FloatArray:
        return np.full(len(self.floor_J), 0.01)

    def effective(self, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        if self.available_D is None:
            return v, np.ones_like(v)
        beyond = np.maximum(v / self.available_D - 1, 0)
        decay = np.exp(-beyond / self.rho)
        u = np.minimum(v, self.available_D) + self.available_D * self.rho * (1 - decay)
        return u, decay

    def losses(self, v_RD: FloatArray) -> FloatArray:
        """Losses (R, J) of many mixtures."""
        u, _ = self.effective(v_RD)
        result = []
        for j in range(len(self.floor_J)):
            g = self.gamma_J[j]
            total = 1 + ((u / self.unit + DELTA) ** g - DELTA**g) @ self.a_JD[j]
            loss = self.floor_J[j] + (self.start_J[j] - self.floor_J[j]) * total ** -self.alpha_J[j]
            if self.harm_JD is not None:
                loss = loss + u @ self.harm_JD[j] / (self.kappa + u.sum(axis=1))
            result.append(loss)
        return np.stack(result, axis=1)

    def value_and_gradient(self, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        value, gradient = _evaluate([self], v)
        return value[0], gradient[0]

    def draws_value_and_gradient(self, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        return _evaluate(self.draws or [self], v)


def _evaluate(laws: list[ExplicitLaw], v: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Losses (S, J) and ∂L/∂v (S, J, D) of laws that share the effective volumes."""
    first = laws[0]
    u, du = first.effective(v)
    floor, start, alpha, gamma = (
        np.stack([getattr(x, name) for x in laws]) for name in ("floor_J", "start_J", "alpha_J", "gamma_J")
    )
    a_SJD = np.stack([x.a_JD for x in laws])
    x = u / first.unit + DELTA
    power = np.exp(gamma[..., None] * np.log(x))
    total = 1 + (a_SJD * (power - DELTA ** gamma[..., None])).sum(axis=-1)
    value = floor + (start - floor) * total**-alpha
    outer = -(start - floor) * alpha * total ** (-alpha - 1) * gamma
    gradient = outer[..., None] * a_SJD * power * (du / x / first.unit)
    if first.harm_JD is not None:
        harm_SJD = np.stack([law.harm_JD for law in laws])
        size = first.kappa + u.sum()
        harm = harm_SJD @ u / size
        value = value + harm
        gradient = gradient + (harm_SJD - harm[..., None]) / size * du
    return value, gradient


def random_law(
    rng: np.random.Generator,
    base_D: FloatArray,
    capabilities: int,
    *,
    available_D: FloatArray | None = None,
    harm: bool = False,
    draws: int = 0,
) -> ExplicitLaw:
    """Draw a law: each capability has one domain that matters most; draws differ by some 10 % in every parameter."""
    domains = len(base_D)
    a = np.exp(rng.normal(-3.0, 0.7, (capabilities, domains)))
    a[np.arange(capabilities), np.arange(capabilities) % domains] += np.exp(rng.normal(0.0, 0.5, capabilities))
    floor, alpha = rng.uniform(0.5, 1.0, capabilities), rng.uniform(0.2, 0.8, capabilities)
    span, gamma = rng.uniform(0.5, 2.0, capabilities), rng.uniform(0.4, 1.0, capabilities)
    b = rng.uniform(0, 0.6, (capabilities, domains)) if harm else None
    if b is not None:
        b[np.arange(capabilities), np.arange(capabilities) % domains] = 0.0
    unit, kappa = float(base_D[base_D > 0].mean()), 0.1 * float(base_D.sum())

    def make(noise: float) -> ExplicitLaw:
        def vary(x: FloatArray) -> FloatArray:
            return x * np.exp(noise * rng.normal(size=x.shape))

        low = vary(floor)
        return ExplicitLaw(
            floor_J=low,
            start_J=low + vary(span),
            a_JD=vary(a),
            alpha_J=vary(alpha),
            gamma_J=np.minimum(vary(gamma), 1.0),
            unit=unit,
            available_D=available_D,
            harm_JD=None if b is None else vary(b),
            kappa=kappa,
        )

    law = make(0.0)
    law.draws = [make(0.1) for _ in range(draws)]
    return law
