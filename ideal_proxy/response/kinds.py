"""What is believed of a kind of evidence before its runs are seen: other data, other sizes, imitations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ideal_proxy.sections import SIZES


@dataclass(frozen=True, slots=True)
class EvidenceKind:
    """What is believed of a kind before runs are seen."""

    factor: float  # s
    spread: float  # of s
    same_level: bool  # whether its losses are the target's own, not only their changes
    most: float = 0.0  # what all its runs together count at most, in runs of the target
    error: float = 0.0  # which share of the changes that it shows are its own alone
    own: float = 0.0  # spread of a single capability's s about the common one

    @property
    def of_one(self) -> float:
        """Spread of what a single capability shows of its change."""
        return float(np.hypot(self.spread, self.own))

    def __str__(self) -> str:
        """Say what is expected of s."""
        return f"{self.factor:g} ± {self.spread:g}"


CHANGED_DATA = EvidenceKind(1.0, 0.1, same_level=True)


# What proxies predicted came out 0.7 to 1.45 as large in steps up (`benchmarks/proof/proof.md`). Capabilities differ
# more: of 18 tasks, 0.1M to 1M, some showed 0.2 of their change and some 2.7, each alike over all mixtures. Of RegMix's
# 13 losses at 1M and 60M, 256 mixtures each, s is 0.70 to 1.37, the median 0.87 (`benchmarks/target/ladder.md`).
SMALLER_SIZE = EvidenceKind(1.2, 0.4, same_level=False, error=0.25)
LARGER_SIZE = EvidenceKind(1.0, 0.3, same_level=False, error=0.3, own=0.55)


# What a pretrained model shows of what proxies from scratch promise: it knows already what they learn. A mixture
# that they took for 9 % better in the mean made SmolLM2-135M 5 % worse; over 18 capabilities s was 0.2, and each missed
# by about the mean change (`benchmarks/proof/real_smollm2.md`). For predictions alone: as evidence s may not be near 0.
PRETRAINED = EvidenceKind(0.5, 0.5, same_level=False, error=1.0)


# Where nothing says which of the two is the larger one: another rank of LoRA, another share of the rows.
OTHER_SIZE = EvidenceKind(1.0, 0.35, same_level=False, error=0.25)
SAME_FRACTION = 1e-3  # relative: shares of the rows so near are one


def between_sizes(runs: str, target: str) -> EvidenceKind:
    """Describe runs of one size on the dial beside a target of another."""
    return SMALLER_SIZE if SIZES.index(runs) < SIZES.index(target) else LARGER_SIZE


def imitated(anchors: int) -> EvidenceKind:
    """Describe mixtures imitated by interpolation: they share their anchors' noise, so they count as those at most."""
    return EvidenceKind(1.0, 0.1, same_level=False, most=float(anchors))
