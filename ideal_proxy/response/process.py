"""A Gaussian process for what the law does not explain, or for the whole response where the law does not help.

Legend: R training runs, N mixtures asked for, D domains, J capabilities, S posterior draws.

The kernel is Matérn 5/2 on √(x + δ) (distances in it are Hellinger distances for shares) or on x itself.  Kernel,
length, and noise ratio are chosen by the marginal likelihood on a grid: with one eigendecomposition a kernel every
noise ratio and every capability is then linear algebra on vectors (Rasmussen & Williams 2006, §5.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ideal_proxy.response.law import DELTA, Array

LENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Length scales tried, in root mean square spreads of one feature."""
NOISE_RATIOS = 10.0 ** np.arange(-3.0, 3.01, 0.25)
"""Noise variances tried, relative to the kernel's."""
RANK = 64
"""Directions that posterior draws vary in; the rest of the kernel is below the noise."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One Matérn 5/2 kernel on transformed volumes.

    Attributes:
        root: whether the features are √(x + δ) rather than x.
        length: length scale in feature units.
    """

    root: bool
    length: float

    def features(self, x_ND: Array) -> Array:
        """Transform scaled volumes."""
        return np.asarray((np.sqrt(x_ND + DELTA) if self.root else x_ND) / self.length)

    def __call__(self, a_ND: Array, b_RD: Array) -> Array:
        """Compare mixtures."""
        r = np.sqrt(5.0) * _distance(self.features(a_ND), self.features(b_RD))
        return np.asarray((1.0 + r + r * r / 3.0) * np.exp(-r))

    def by_x(self, a_D: Array, b_RD: Array) -> Array:
        """Differentiate k(a, b) by a."""
        f_a, f_b = self.features(a_D[None])[0], self.features(b_RD)
        r = np.sqrt(5.0) * _distance(f_a[None], f_b)[0]
        by_feature = -(5.0 / 3.0) * ((1.0 + r) * np.exp(-r))[:, None] * (f_a - f_b)
        inner = 0.5 / np.sqrt(a_D + DELTA) if self.root else np.ones_like(a_D)
        return np.asarray(by_feature * inner / self.length)


def _distance(a: Array, b: Array) -> Array:
    squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2.0 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squared, 0.0)))


def kernels_for(x_RD: Array, *, raw: bool) -> list[Kernel]:
    """List the kernels tried, scaled to the spread of the runs."""
    kernels = []
    for root in (True, False) if raw else (True,):
        features = np.sqrt(x_RD + DELTA) if root else x_RD
        spread = float(np.sqrt(features.var(axis=0).mean())) or 1.0
        kernels += [Kernel(root, spread * length) for length in LENGTHS]
    return kernels


@dataclass(frozen=True, slots=True)
class Process:
    """One fitted Gaussian process, of one capability.

    Attributes:
        kernel: the kernel of highest marginal likelihood.
        noise_ratio: noise variance over kernel variance.
        variance: kernel variance, in squared units of the target.
        x_RD: (R, D) scaled volumes of the runs it saw.
        weight_R: (R,) positive weights.
        target_R: (R,) what was fitted.
        beta_R: (R,) the mean is k(·, x) β.
        half_RM: (R, M) root of K⁻¹ in the variance, k half halfᵀ k.
    """

    kernel: Kernel
    noise_ratio: float
    variance: float
    x_RD: Array
    weight_R: Array
    target_R: Array
    beta_R: Array
    half_RM: Array

    def mean(self, x_ND: Array) -> Array:
        """Predict."""
        return self.kernel(x_ND, self.x_RD) @ self.beta_R

    def spread(self, x_ND: Array) -> Array:
        """Give the posterior variance of the mean."""
        known = self.kernel(x_ND, self.x_RD) @ self.half_RM
        return np.asarray(self.variance * np.maximum(1.0 - (known * known).sum(axis=1), 0.0))

    def draws(self, count: int, rng: np.random.Generator) -> Array:
        """Draw weight vectors β from the posterior, in its leading directions."""
        root = np.sqrt(self.weight_R)
        e, vectors = np.linalg.eigh(self.kernel(self.x_RD, self.x_RD) * root[:, None] * root[None])
        keep = np.argsort(e)[::-1][:RANK]
        keep = keep[e[keep] > 1e-4 * e[keep[0]]]
        scale = np.sqrt(self.variance * self.noise_ratio / (e[keep] * (e[keep] + self.noise_ratio)))
        noise = rng.standard_normal((count, len(keep))) * scale
        return np.asarray(self.beta_R + (noise @ vectors[:, keep].T) * root)


def fit_processes(x_RD: Array, target_JR: Array, weight_JR: Array, *, raw: bool) -> list[Process]:
    """Fit one process a capability, kernel and noise by marginal likelihood."""
    processes: list[Process | None] = [None] * len(target_JR)
    patterns: dict[bytes, list[int]] = {}
    for j, weight in enumerate(weight_JR):
        patterns.setdefault(weight.tobytes(), []).append(j)
    for members in patterns.values():
        seen = weight_JR[members[0]] > 0
        weight, x = weight_JR[members[0]][seen], x_RD[seen]
        root = np.sqrt(weight)
        y_RK = (target_JR[members][:, seen] * root).T
        best = np.full(len(members), -np.inf)
        for kernel in kernels_for(x, raw=raw):
            e, vectors = np.linalg.eigh(kernel(x, x) * root[:, None] * root[None])
            e = np.maximum(e, 0.0)
            z_RK = vectors.T @ y_RK
            diagonal_GR = e[None] + NOISE_RATIOS[:, None]
            variance_GK = np.maximum((1.0 / diagonal_GR) @ (z_RK * z_RK) / len(x), 1e-300)
            likelihood_GK = -0.5 * (len(x) * np.log(variance_GK) + np.log(diagonal_GR).sum(axis=1)[:, None])
            choice = likelihood_GK.argmax(axis=0)
            for k, j in enumerate(members):
                g = choice[k]
                if likelihood_GK[g, k] <= best[k]:
                    continue
                best[k] = likelihood_GK[g, k]
                half = (vectors * root[:, None]) / np.sqrt(diagonal_GR[g])
                beta = (vectors * root[:, None]) @ (z_RK[:, k] / diagonal_GR[g])
                processes[j] = Process(
                    kernel, float(NOISE_RATIOS[g]), float(variance_GK[g, k]), x, weight, target_JR[j][seen], beta, half
                )
    return [p for p in processes if p is not None]


def restore(
    kernel: Kernel, noise_ratio: float, variance: float, x_RD: Array, weight_R: Array, target_R: Array
) -> Process:
    """Build a process again from what a file keeps."""
    root = np.sqrt(weight_R)
    e, vectors = np.linalg.eigh(kernel(x_RD, x_RD) * root[:, None] * root[None])
    diagonal = np.maximum(e, 0.0) + noise_ratio
    scaled = vectors * root[:, None]
    beta = scaled @ ((vectors.T @ (target_R * root)) / diagonal)
    return Process(kernel, noise_ratio, variance, x_RD, weight_R, target_R, beta, scaled / np.sqrt(diagonal))
