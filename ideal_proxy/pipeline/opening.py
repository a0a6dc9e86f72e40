"""The verify rows opened: fresh seeds for every opening, and the verdict over its pairs."""

from __future__ import annotations

from collections.abc import Sequence

from ideal_proxy.config import SearchConfig
from ideal_proxy.pipeline.plan_cost import Plan
from ideal_proxy.pipeline.sequential import LEVEL
from ideal_proxy.pipeline.verdict import Known, PairedLosses, PairedScores, Verdict, judge
from ideal_proxy.response import Yardstick

VERIFY_SEED = 10_000  # fresh seeds start here; the swarm's are below
OPENING_SHARE = 0.5  # of the level: each further opening of the verify rows has half of the one before


def verify_seeds(opening: int, pairs: int) -> list[int]:
    """Number the fresh seeds of a check's pairs."""
    return [VERIFY_SEED + 100 * opening + k for k in range(pairs)]


def judge_pairs(
    config: SearchConfig,
    plan: Plan,
    pairs: Sequence[PairedLosses | PairedScores],
    yardstick: Yardstick,
    known: Known,
    opening: int = 0,
) -> Verdict:
    """Apply the run file's objective and tolerances to paired runs."""
    return judge(
        pairs,
        yardstick=yardstick,
        kind=config.objective.kind,
        weights=[capability.weight for capability in config.capabilities],
        tolerances=[config.limits.protect.get(name) for name in config.capability_names],
        must_not_drop=[capability.must_not_drop for capability in config.capabilities],
        min_gain=config.objective.min_gain,
        looks=plan.looks,
        known=known,
        level=1 - (1 - LEVEL) * OPENING_SHARE**opening,
    )
