"""What `influence` prints: the responses with their errors, and IDEAL's one step, in 80 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ideal_proxy.gradients.records import IDEAL_STEP, RESOLVED
from ideal_proxy.terminal import paragraph, table

LONGEST_NAME = 20


def influence_tables(result: Mapping[str, Any], folder: Path) -> str:
    """Lay out responses and proposal in 80 columns."""
    first_order = result["method"] == "first-order"
    scale = "not in nats: the first-order scale is arbitrary" if first_order else "the scale is not calibrated"
    parts = [
        _matrix_table(result, "M", "se", "unresolved", "mixing response dL/dlog w at fixed steps"),
        paragraph(
            f"± one standard error; ? unresolved, within {RESOLVED:g} of them. Negative: more of the domain (row) "
            f"lowers the capability's loss (column). M is known up to a positive factor a capability ({scale})."
        ),
    ]
    if result["R"] is not None:
        parts += [
            _matrix_table(result, "R", "se_R", "unresolved_R", "response dL/dlog v with rows added"),
            paragraph("R = M + tau q adds tau in nats to an M whose scale is not calibrated; its error is M's alone."),
        ]
    proposal, cost = result["proposal"], result["cost"]
    rows = [
        (
            name,
            f"{base:,}",
            f"{total:+.3g}{'' if resolved else '?'}",
            f"{new / base - 1:+.1%}" if base else "",
            f"{new:,}",
            f"{new / available:.2f}x",
        )
        for name, base, total, resolved, new, available in zip(
            result["domains"], proposal["base_rows"], proposal["A"], proposal["A_resolved"], proposal["rows"],
            proposal["available"], strict=True,
        )
    ]  # fmt: skip
    parts += [
        table("IDEAL's one step (not verified by training)", ("domain", "base", "A", "change", "rows", "repeat"), rows),
        paragraph(
            f"A sums {proposal['from']} over the capabilities; the largest |A| moves {IDEAL_STEP:.0%} even where all "
            f"is noise (? marks A within {RESOLVED:g} summed errors). The rule holds no budget: "
            f"{proposal['base_tokens']:,} tokens become {proposal['tokens']:,}."
        ),
        paragraph(f"Bounds that cut the step: {', '.join(proposal['active']) or 'none'}."),
        paragraph(
            f"Cost: {cost['gradient_tokens']:,} gradient tokens ({cost['base_trainings']:.2g} passes over the base "
            f"mixture), {cost['seconds']:,.0f} s, {cost['peak_memory_bytes'] / 2**30:.2f} GiB at the peak."
        ),
        f"Mixture file: {folder / 'mixture.json'} (beside it responses.npz and influence.json)",
    ]
    return "\n\n".join(parts)


def _matrix_table(result: Mapping[str, Any], key: str, error: str, doubtful: str, what: str) -> str:
    """A matrix with errors, domains down and capabilities across."""
    values = np.array(result[key], dtype=float)
    largest = float(np.abs(values).max())
    power = math.floor(math.log10(largest)) - 1 if largest > 0 else 0
    cells = [
        [
            f"{value / 10**power:.1f}±{'' if spread is None else format(spread / 10**power, '.1f')}"
            f"{'?' if doubt else ' '}"
            for value, spread, doubt in zip(*row, strict=True)
        ]
        for row in zip(result[key], result[error], result[doubtful], strict=True)
    ]
    domains = [_short(name) for name in result["domains"]]
    heads = [_short(name) for name in result["capabilities"]]
    rows = [(domain, *row) for domain, row in zip(domains, cells, strict=True)]
    return table(f"{key} in 1e{power:+d}: {what}", ("domain", *heads), rows)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
