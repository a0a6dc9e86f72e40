"""The response law: the loss of every capability as a function of the volumes, with exact derivatives.

Legend: R runs or mixtures, D domains, J capabilities (or any stack of fitted problems), P parameters.

The law of one capability (`docs/how-it-works.md`, section 4), with x = u(v)/c and δ = 1e-3::

    L(v) = E + (Z − E) · s^(−α) + Σ_i b_i · u_i / (κ + Σ_k u_k)      s = 1 + Σ_i a_i [(x_i + δ)^γ − δ^γ]

E is the loss that no volume gets below, Z the loss with no row at all, a what a domain is worth, α how fast the
loss falls, γ how soon one more row of a domain stops counting, b the harm a domain's share does.  The fit works in
one unconstrained vector per capability, θ = [η_E, log(Z − E), log α, logit γ, log a_1.., b_1..], with
E = low + (high − low) · sigmoid(η_E) and b ≥ 0 kept by the solver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

DELTA = 1e-3
FLOOR, SPAN, ALPHA, GAMMA, FIRST_A = 0, 1, 2, 3, 4
"""Places of η_E, log(Z − E), log α, logit γ and the first log a in θ."""


@dataclass(frozen=True, slots=True)
class Volumes:
    """What turns volumes into the law's inputs: the scale, the rows there are, how repeats count."""

    scale: float  # c, the volume (rows, or 1 for shares) that x counts as one
    kappa: float  # κ of the harm term in the unit of the volumes
    available: Array | None  # (D,) rows each domain has, or None where nothing is repeated
    rho: Array  # (D,) how many further passes over a domain are worth having (Muennighoff et al. 2023, R*)

    def effective(self, volumes_RD: Array) -> tuple[Array, Array, Array]:
        """Count repeated rows less and less."""
        if self.available is None:
            return volumes_RD, np.ones_like(volumes_RD), np.zeros_like(volumes_RD)
        beyond = np.maximum(volumes_RD / self.available - 1.0, 0.0)
        decay = np.exp(-beyond / self.rho)
        repeated = beyond > 0
        u = np.where(repeated, self.available * (1.0 + self.rho * (1.0 - decay)), volumes_RD)
        du_dv = np.where(repeated, decay, 1.0)
        du_dlog_rho = self.available * self.rho * np.where(repeated, 1.0 - decay - decay * beyond / self.rho, 0.0)
        return u, du_dv, du_dlog_rho

    def harm_features(self, u_RD: Array) -> Array:
        """Give the shares that the harm term is linear in."""
        total = self.kappa + u_RD.sum(axis=1, keepdims=True)
        return np.asarray(np.divide(u_RD, total, out=np.zeros_like(u_RD), where=total > 0))


def sigmoid(t: Array) -> Array:
    """Squash to (0, 1) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * t))


def unpack(theta_JP: Array, bounds_J2: Array, domains: int) -> dict[str, Array]:
    """Name the parameters in their natural form."""
    low, high = bounds_J2[:, 0], bounds_J2[:, 1]
    floor = low + (high - low) * sigmoid(theta_JP[:, FLOOR])
    harm = theta_JP[:, FIRST_A + domains :]
    return {
        "E": floor,
        "Z": floor + np.exp(theta_JP[:, SPAN]),
        "alpha": np.exp(theta_JP[:, ALPHA]),
        "gamma": sigmoid(theta_JP[:, GAMMA]),
        "a": np.exp(theta_JP[:, FIRST_A : FIRST_A + domains]),
        "b": harm if harm.shape[1] else np.zeros((len(theta_JP), domains)),
    }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The law at some mixtures: its values, and its derivatives where they are asked for."""

    theta_JP: Array
    bounds_J2: Array
    volumes: Volumes
    u_RD: Array
    natural: dict[str, Array]  # the parameters by name
    log_x_RD: Array
    power_JRD: Array
    s_JR: Array
    loss_JR: Array  # (J, R) values

    def by_theta(self, which: NDArray[np.intp] | slice = slice(None), factor_JR: Array | float = 1.0) -> Array:
        """Differentiate by θ, (J, R, P), for some of the capabilities, each run times a factor."""
        theta, power_JRD, (R, D) = self.theta_JP[which], self.power_JRD[which], self.u_RD.shape
        slope, fallen, log_s = self._slope(which)
        slope, fallen = slope * factor_JR, fallen * factor_JR
        alpha, gamma, a = (self.natural[name][which][:, None] for name in ("alpha", "gamma", "a"))
        delta_power = np.exp(gamma * np.log(DELTA))
        out = np.empty((len(theta), R, theta.shape[1]))
        f = sigmoid(theta[:, FLOOR])
        span = self.bounds_J2[which, 1] - self.bounds_J2[which, 0]
        out[:, :, FLOOR] = (span * f * (1.0 - f))[:, None] * factor_JR
        out[:, :, SPAN] = fallen
        out[:, :, ALPHA] = -fallen * alpha * log_s
        part = out[:, :, FIRST_A : FIRST_A + D]
        np.subtract(power_JRD, delta_power[:, :, None], out=part)
        part *= a
        s_by_gamma = np.einsum("jrd,rd->jr", part, self.log_x_RD)  # a times x^γ log x − δ^γ log δ, summed
        s_by_gamma += delta_power * (a[:, 0] @ (self.log_x_RD - np.log(DELTA)).T)
        out[:, :, GAMMA] = slope * s_by_gamma * gamma * (1.0 - gamma)
        part *= slope[:, :, None]
        if theta.shape[1] > FIRST_A + D:
            out[:, :, FIRST_A + D :] = self.volumes.harm_features(self.u_RD) * np.asarray(factor_JR)[..., None]
        return out

    def by_u(self) -> Array:
        """Differentiate by the effective volumes, (J, R, D)."""
        slope = self._slope(slice(None))[0]
        gamma, a, b = (self.natural[name] for name in ("gamma", "a", "b"))
        x = self.u_RD / self.volumes.scale + DELTA
        out = slope[:, :, None] * a[:, None] * gamma[:, None, None] * self.power_JRD / (x * self.volumes.scale)
        if self.theta_JP.shape[1] > FIRST_A + self.u_RD.shape[1]:
            total = self.volumes.kappa + self.u_RD.sum(axis=1)
            inverse = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
            weighted_JR = b @ self.volumes.harm_features(self.u_RD).T
            out = out + (b[:, None, :] - weighted_JR[:, :, None]) * inverse[None, :, None]
        return np.asarray(out)

    def _slope(self, which: NDArray[np.intp] | slice) -> tuple[Array, Array, Array]:
        """Give ∂L/∂s, what is left of Z − E, and log s, each (J, R)."""
        s, alpha = self.s_JR[which], self.natural["alpha"][which][:, None]
        log_s = np.log(np.maximum(s, 1e-300))
        span = np.exp(self.theta_JP[which, SPAN])[:, None]
        fallen = np.exp(-alpha * log_s)
        return -alpha * span * fallen / s, span * fallen, log_s


def evaluate(theta_JP: Array, bounds_J2: Array, volumes: Volumes, u_RD: Array) -> Evaluation:
    """Evaluate the law of every capability at every mixture."""
    D = u_RD.shape[1]
    p = unpack(theta_JP, bounds_J2, D)
    log_x = np.log(u_RD / volumes.scale + DELTA)
    power_JRD = p["gamma"][:, None, None] * log_x
    np.exp(power_JRD, out=power_JRD)
    delta_power = np.exp(p["gamma"][:, None] * np.log(DELTA))
    s = 1.0 + np.matmul(power_JRD, p["a"][:, :, None])[:, :, 0] - (p["a"].sum(axis=1, keepdims=True) * delta_power)
    fallen = np.exp(-p["alpha"][:, None] * np.log(np.maximum(s, 1e-300)))
    loss = p["E"][:, None] + np.exp(theta_JP[:, SPAN])[:, None] * fallen
    if theta_JP.shape[1] > FIRST_A + D:
        loss = loss + p["b"] @ volumes.harm_features(u_RD).T
    return Evaluation(theta_JP, bounds_J2, volumes, u_RD, p, log_x, power_JRD, s, loss)


def slopes(theta_JP: Array, bounds_J2: Array, volumes: Volumes, u_D: Array) -> tuple[Array, Array]:
    """Evaluate ∂L/∂u at one mixture, and its derivative by θ: what a gradient row is compared with."""
    J, D = len(theta_JP), len(u_D)
    p = unpack(theta_JP, bounds_J2, D)
    a, alpha, gamma = p["a"], p["alpha"][:, None], p["gamma"][:, None]
    x = u_D / volumes.scale + DELTA
    power = np.exp(gamma * np.log(x))
    delta_power = np.exp(gamma * np.log(DELTA))
    s = 1.0 + (a * (power - delta_power)).sum(axis=1, keepdims=True)
    s_by_gamma = (a * (power * np.log(x) - delta_power * np.log(DELTA))).sum(axis=1, keepdims=True)
    span = np.exp(theta_JP[:, SPAN])[:, None]
    h = -alpha * span * s ** (-alpha - 1.0) * a * gamma * power / (x * volumes.scale)
    by_theta = np.zeros((J, D, theta_JP.shape[1]))
    by_theta[:, :, SPAN] = h
    by_theta[:, :, ALPHA] = h * (1.0 - alpha * np.log(s))
    by_theta[:, :, GAMMA] = h * (1.0 / gamma + np.log(x) - (alpha + 1.0) * s_by_gamma / s) * gamma * (1.0 - gamma)
    by_theta[:, :, FIRST_A : FIRST_A + D] = -h[:, :, None] * ((alpha + 1.0) * a * (power - delta_power) / s)[:, None]
    index = np.arange(D)
    by_theta[:, index, FIRST_A + index] += h
    if theta_JP.shape[1] > FIRST_A + D:
        shares = volumes.harm_features(u_D[None])[0]
        total = volumes.kappa + float(u_D.sum())
        by_b = (np.eye(D) - shares[None, :]) / total if total > 0 else np.zeros((D, D))
        by_theta[:, :, FIRST_A + D :] = by_b
        h = h + p["b"] @ by_b.T
    return h, by_theta
