"""Gaussian processes: for what the law does not explain, for interactions of domains, and for the whole response.

Legend: R training runs, N mixtures asked for, D domains, J capabilities, S posterior draws.

A kernel is Matérn 5/2, a product of degree two (every pair of domains has a term of its own) or linear, on the scaled
volumes x, their roots √(x + δ) (Hellinger distances for shares) or logarithms. Kernel, length and noise ratio are
chosen by the marginal likelihood on a grid: with one eigendecomposition a kernel every noise ratio and every
capability is then linear algebra on vectors (Rasmussen & Williams 2006, §5.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ideal_proxy.response.law import DELTA, Array

Shape = Literal["matern", "product", "linear"]
Feature = Literal["x", "root", "log"]
LENGTHS: dict[Shape, tuple[float, ...]] = {
    "matern": (1.0, 2.0, 4.0, 8.0, 16.0), "product": (1.0, 2.0, 4.0, 8.0), "linear": (0.3, 1.0, 3.0),
}  # fmt: skip
"""Length scales tried, in root mean square spreads of one feature (products, linear: of all features together)."""
NOISE_RATIOS = 10.0 ** np.arange(-3.0, 3.01, 0.25)
"""Noise variances tried, relative to the kernel's."""
FLOORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""How far below the least loss the floor of an exponential may lie, in spreads of the loss."""
LOG_SHIFT = 0.05
"""Added to a volume before its logarithm is taken, as a part of the mean volume."""
RANK = 64
"""Directions that posterior draws vary in; the rest of the kernel is below the noise."""


@dataclass(frozen=True, slots=True)
class Family:
    """Kernels that are tried together, on features of x, for a target or the log of what exceeds a floor."""

    shapes: tuple[Shape, ...]
    features: tuple[Feature, ...]
    centred: bool = False
    exponential: bool = False


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel on transformed volumes."""

    shape: Shape  # what it is made of
    feature: Feature  # x as it is, √(x + δ) or log(x + shift)
    length: float  # length scale in feature units
    centre_D: Array  # subtracted from the features
    shift: float = 0.0  # within the logarithm

    def features(self, x_ND: Array) -> Array:
        """Transform scaled volumes."""
        return np.asarray((transform(x_ND, self.feature, self.shift)[0] - self.centre_D) / self.length)

    def __call__(self, a_ND: Array, b_RD: Array) -> Array:
        """Compare mixtures."""
        a, b = self.features(a_ND), self.features(b_RD)
        if self.shape != "matern":
            one = 1.0 + a @ b.T
            return one if self.shape == "linear" else np.asarray(one * one)
        r = np.sqrt(5.0) * _distance(a, b)
        return np.asarray((1.0 + r + r * r / 3.0) * np.exp(-r))

    def diagonal(self, x_ND: Array) -> Array:
        """Compare every mixture with itself."""
        if self.shape == "matern":
            return np.ones(len(x_ND))
        one = 1.0 + (self.features(x_ND) ** 2).sum(axis=1)
        return one if self.shape == "linear" else np.asarray(one * one)

    def sums(self, a_ND: Array, f_RD: Array, beta_R: Array) -> tuple[Array, Array]:
        """Σ_r β_r k(a, b_r) for many mixtures, (N,), from the features of the b_r, and its derivative by a, (N, D)."""
        value, inner = transform(a_ND, self.feature, self.shift)
        f_ND = (value - self.centre_D) / self.length
        if self.shape == "matern":
            r = np.sqrt(5.0) * _distance(f_ND, f_RD)
            fallen = np.exp(-r) * beta_R
            slope = (-5.0 / 3.0) * (1.0 + r) * fallen
            total = ((1.0 + r + r * r / 3.0) * fallen).sum(axis=1)
            return total, (slope.sum(axis=1)[:, None] * f_ND - slope @ f_RD) * (inner / self.length)
        one = 1.0 + f_ND @ f_RD.T
        if self.shape == "linear":
            return one @ beta_R, beta_R @ f_RD * (inner / self.length)
        return one * one @ beta_R, 2.0 * (one * beta_R) @ f_RD * (inner / self.length)


def transform(x: Array, feature: Feature, shift: float) -> tuple[Array, Array]:
    """A feature of scaled volumes, with its derivative."""
    if feature == "x":
        return x, np.ones_like(x)
    if feature == "root":
        root = np.sqrt(x + DELTA)
        return root, 0.5 / root
    return np.log(x + shift), 1.0 / (x + shift)


def _distance(a: Array, b: Array) -> Array:
    squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2.0 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squared, 0.0)))


def kernels_for(x_RD: Array, family: Family) -> list[Kernel]:
    """List the kernels tried, scaled to the spread of the runs."""
    kernels = []
    shift = LOG_SHIFT * float(x_RD.mean())
    for feature in family.features:
        features = transform(x_RD, feature, shift)[0]
        variance = features.var(axis=0)
        centre = features.mean(axis=0)
        for shape in family.shapes:
            spread = float(np.sqrt(variance.mean() if shape == "matern" else variance.sum())) or 1.0
            kernels += [Kernel(shape, feature, spread * length, centre, shift) for length in LENGTHS[shape]]
    return kernels


@dataclass(frozen=True, slots=True)
class Process:
    """One fitted Gaussian process, of one capability."""

    kernel: Kernel  # the kernel of highest marginal likelihood
    noise_ratio: float  # noise variance over kernel variance
    variance: float  # kernel variance, in squared units of the target
    x_RD: Array  # (R, D) scaled volumes of the runs it saw
    weight_R: Array  # (R,) positive weights
    target_R: Array  # (R,) what was fitted
    beta_R: Array  # (R,) the mean is k(·, x) β
    half_RM: Array  # (R, M) root of K⁻¹ in the variance, k half halfᵀ k
    centre: float = 0.0  # added to k(·, x) β
    floor: float | None = None  # the prediction is floor + exp(centre + k(·, x) β); None: without an exponential
    features_RD: Array = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "features_RD", self.kernel.features(self.x_RD))

    def mean(self, x_ND: Array, beta: Array | None = None) -> Array:
        """Predict, or evaluate one draw."""
        inside = self.centre + self.kernel(x_ND, self.x_RD) @ (self.beta_R if beta is None else beta)
        return inside if self.floor is None else np.asarray(self.floor + np.exp(inside))

    def many(self, x_ND: Array) -> tuple[Array, Array]:
        """Evaluate the mean at many mixtures, (N,), with its derivatives by x, (N, D)."""
        inside, by = self.kernel.sums(x_ND, self.features_RD, self.beta_R)
        if self.floor is None:
            return self.centre + inside, by
        grown = np.exp(self.centre + inside)
        return self.floor + grown, grown[:, None] * by

    def spread(self, x_ND: Array) -> Array:
        """Give the posterior variance of the mean."""
        k = self.kernel(x_ND, self.x_RD)
        known = k @ self.half_RM
        inside = self.variance * np.maximum(self.kernel.diagonal(x_ND) - (known * known).sum(axis=1), 0.0)
        return inside if self.floor is None else np.asarray(inside * (self.mean(x_ND) - self.floor) ** 2)

    @property
    def noise(self) -> float:
        """Standard deviation of one run about the mean."""
        inside = float(np.sqrt(self.variance * self.noise_ratio))
        return inside if self.floor is None else inside * float(np.exp(self.centre))

    def draws(self, count: int, rng: np.random.Generator) -> Array:
        """Draw weight vectors β from the posterior, in its leading directions."""
        root = np.sqrt(self.weight_R)
        e, vectors = np.linalg.eigh(self.kernel(self.x_RD, self.x_RD) * root[:, None] * root[None])
        keep = np.argsort(e)[::-1][:RANK]
        keep = keep[e[keep] > 1e-4 * e[keep[0]]]
        scale = np.sqrt(self.variance * self.noise_ratio / (e[keep] * (e[keep] + self.noise_ratio)))
        noise = rng.standard_normal((count, len(keep))) * scale
        return np.asarray(self.beta_R + (noise @ vectors[:, keep].T) * root)


Spectra = dict[tuple[bytes, Shape, Feature, float], tuple[Array, Array]]
"""Eigenvalues and vectors of kernel matrices over the same runs, by weights and kernel: families share kernels."""


def fit_processes(
    x_RD: Array, target_JR: Array, weight_JR: Array, family: Family, known: Spectra | None = None
) -> list[Process]:
    """Fit one process a capability, kernel and noise by marginal likelihood."""
    known = {} if known is None else known
    processes: list[Process | None] = [None] * len(target_JR)
    patterns: dict[bytes, list[int]] = {}
    for j, weight in enumerate(weight_JR):
        patterns.setdefault(weight.tobytes(), []).append(j)
    for members in patterns.values():
        seen = weight_JR[members[0]] > 0
        weight, x = weight_JR[members[0]][seen], x_RD[seen]
        for j, process in zip(members, _fit_group(x, target_JR[members][:, seen], weight, family, known), strict=True):
            processes[j] = process
    return [p for p in processes if p is not None]


def _fit_group(x_RD: Array, target_KR: Array, weight_R: Array, family: Family, known: Spectra) -> list[Process]:
    """Fit capabilities that were seen in the same runs."""
    root = np.sqrt(weight_R)
    kernels = kernels_for(x_RD, family)
    spectra = []
    runs = weight_R.tobytes() + x_RD[:, :1].tobytes()
    for kernel in kernels:
        key = runs, kernel.shape, kernel.feature, kernel.length
        if key not in known:
            known[key] = np.linalg.eigh(kernel(x_RD, x_RD) * root[:, None] * root[None])
        spectra.append(known[key])
    best: list[tuple[float, Process | None]] = [(-np.inf, None)] * len(target_KR)
    for target, floor_K, bonus_K in _transformed(target_KR, family):
        centre_K = (target @ weight_R) / weight_R.sum() if family.centred else np.zeros(len(target))
        y_RK = ((target - centre_K[:, None]) * root).T
        for kernel, (e, vectors) in zip(kernels, spectra, strict=True):
            z_RK = vectors.T @ y_RK
            diagonal_GR = np.maximum(e, 0.0)[None] + NOISE_RATIOS[:, None]
            variance_GK = np.maximum((1.0 / diagonal_GR) @ (z_RK * z_RK) / len(x_RD), 1e-300)
            likelihood_GK = -0.5 * (len(x_RD) * np.log(variance_GK) + np.log(diagonal_GR).sum(axis=1)[:, None])
            for k, g in enumerate(likelihood_GK.argmax(axis=0)):
                likelihood = likelihood_GK[g, k] + bonus_K[k]
                if likelihood <= best[k][0]:
                    continue
                half = (vectors * root[:, None]) / np.sqrt(diagonal_GR[g])
                beta = (vectors * root[:, None]) @ (z_RK[:, k] / diagonal_GR[g])
                best[k] = likelihood, Process(
                    kernel, float(NOISE_RATIOS[g]), float(variance_GK[g, k]), x_RD, weight_R, target_KR[k], beta, half,
                    float(centre_K[k]), None if floor_K is None else float(floor_K[k]),
                )  # fmt: skip
    return [process for _, process in best if process is not None]


def _transformed(target_KR: Array, family: Family) -> Sequence[tuple[Array, Array | None, Array]]:
    """The target in each way it may be fitted, its floors, and what the change of variables adds to the likelihood."""
    if not family.exponential:
        return [(target_KR, None, np.zeros(len(target_KR)))]
    low, spread = target_KR.min(axis=1), np.maximum(target_KR.std(axis=1), 1e-9)
    ways = []
    for depth in FLOORS:
        floor = low - depth * spread
        inside = np.log(target_KR - floor[:, None])
        ways.append((inside, floor, -inside.sum(axis=1)))
    return ways


def restore(
    kernel: Kernel, noise_ratio: float, variance: float, x_RD: Array, weight_R: Array, target_R: Array,
    centre: float = 0.0, floor: float | None = None,
) -> Process:  # fmt: skip
    """Build a process again from what a file keeps."""
    root = np.sqrt(weight_R)
    e, vectors = np.linalg.eigh(kernel(x_RD, x_RD) * root[:, None] * root[None])
    diagonal = np.maximum(e, 0.0) + noise_ratio
    scaled = vectors * root[:, None]
    inside = (target_R if floor is None else np.log(target_R - floor)) - centre
    beta = scaled @ ((vectors.T @ (inside * root)) / diagonal)
    return Process(
        kernel, noise_ratio, variance, x_RD, weight_R, target_R, beta, scaled / np.sqrt(diagonal), centre, floor
    )
