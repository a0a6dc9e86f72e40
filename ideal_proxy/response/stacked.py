"""Many Gaussian processes evaluated at one mixture together: what the optimiser asks for at every step.

Legend: Q processes, R runs (of the process that has most), D domains, S posterior draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ideal_proxy.response.law import DELTA, Array
from ideal_proxy.response.process import Process


@dataclass(frozen=True, slots=True)
class Stack:
    """Processes whose kernels are all Matérn, or all polynomials; runs that one of them lacks weigh nothing in it."""

    matern: bool
    root_Q1: Array  # bool: features are √(x + δ)
    log_Q1: Array  # bool: features are log(x + shift)
    shift_Q1: Array  # 1 where there is no logarithm
    centre_QD: Array
    length_Q1: Array
    features_QRD: Array
    squared_Q1: Array  # bool: the square of a linear kernel
    inner_Q1: Array  # added to k(·, x) β
    exponential_Q1: Array  # bool
    floor_Q1: Array  # added to the exponential, else 0

    @classmethod
    def of(cls, processes: Sequence[Process]) -> Stack:
        """Put the numbers of processes into arrays."""
        kernels = [process.kernel for process in processes]
        most = max(len(process.x_RD) for process in processes)

        def column(values: Sequence[object]) -> Array:
            return np.array(values)[:, None]

        return cls(
            matern=kernels[0].shape == "matern",
            root_Q1=column([kernel.feature == "root" for kernel in kernels]),
            log_Q1=column([kernel.feature == "log" for kernel in kernels]),
            shift_Q1=column([kernel.shift if kernel.feature == "log" else 1.0 for kernel in kernels]),
            centre_QD=np.array([kernel.centre_D for kernel in kernels]),
            length_Q1=column([kernel.length for kernel in kernels]),
            features_QRD=np.array([_padded(process.features_RD, most) for process in processes]),
            squared_Q1=column([kernel.shape == "product" for kernel in kernels]),
            inner_Q1=column([process.centre for process in processes]),
            exponential_Q1=column([process.floor is not None for process in processes]),
            floor_Q1=column([process.floor or 0.0 for process in processes]),
        )

    def weights(self, beta_Q: Sequence[Array]) -> Array:
        """Put weight vectors (S, R) of each process, which need not have seen all runs, into one array (Q, S, R)."""
        most = self.features_QRD.shape[1]
        return np.array([_padded(beta_SR.T, most).T for beta_SR in beta_Q])

    def at(self, x_D: Array, beta_QSR: Array) -> tuple[Array, Array]:
        """Evaluate draws of every process at one mixture, (Q, S), with their derivatives by x, (Q, S, D)."""
        root_D, shifted_QD = np.sqrt(x_D + DELTA), x_D + self.shift_Q1
        value = np.where(self.log_Q1, np.log(shifted_QD), np.where(self.root_Q1, root_D, x_D))
        inner = np.where(self.log_Q1, 1.0 / shifted_QD, np.where(self.root_Q1, 0.5 / root_D, 1.0))
        f_QD, slope_QD = (value - self.centre_QD) / self.length_Q1, inner / self.length_Q1
        if self.matern:
            apart = f_QD[:, None] - self.features_QRD
            r = np.sqrt(5.0 * (apart * apart).sum(axis=2))
            fallen = np.exp(-r)
            k_QR, towards_QR = (1.0 + r + r * r / 3.0) * fallen, (-5.0 / 3.0) * (1.0 + r) * fallen
            by_QRD = towards_QR[:, :, None] * apart
        else:
            one = 1.0 + (self.features_QRD @ f_QD[:, :, None])[:, :, 0]
            k_QR = np.where(self.squared_Q1, one * one, one)
            by_QRD = np.where(self.squared_Q1, 2.0 * one, 1.0)[:, :, None] * self.features_QRD
        inside = self.inner_Q1 + (beta_QSR @ k_QR[:, :, None])[:, :, 0]
        by = beta_QSR @ (by_QRD * slope_QD[:, None])
        if not self.exponential_Q1.any():
            return inside, by
        grown = np.exp(np.where(self.exponential_Q1, inside, 0.0))
        return np.where(self.exponential_Q1, self.floor_Q1 + grown, inside), grown[:, :, None] * by


def _padded(values_RX: Array, count: int) -> Array:
    return np.pad(values_RX, ((0, count - len(values_RX)), (0, 0)))
