"""One learning rate for a whole search, by a short sweep."""

from __future__ import annotations

from pathlib import Path

from ideal_proxy.pipeline.laboratory import Laboratory
from ideal_proxy.pipeline.plan_cost import MOST_EXTENSIONS
from ideal_proxy.store import atomic_write_json, is_json, read_json

RATE_TOLERANCE = 0.002  # a smaller rate within so much of the best is preferred


def choose_rate(laboratory: Laboratory, path: Path) -> float:
    """Choose one learning rate for the whole search by a short sweep; the smaller one where they are level."""
    if path.exists() and not is_json(path):
        laboratory.reporter.note(f"{path} is damaged; the rate is chosen again from the finished runs")
        path.unlink()
    if path.exists():
        chosen = read_json(path)
        if scores := chosen.get("scores"):  # the sweep's runs belong to the fit and the cost, in the same order
            laboratory.sweep([float(rate) for rate in scores])
        return float(chosen["learning_rate"])
    rates = laboratory.plan.rates
    if len(rates) == 1:
        atomic_write_json(path, {"learning_rate": rates[0], "chosen": "given"}, seal=True)
        return rates[0]
    scores = laboratory.sweep(rates)
    for _ in range(MOST_EXTENSIONS):  # a best rate on the edge means that the sweep has not seen the best
        best = min(scores, key=scores.__getitem__)
        if best == max(scores):
            rates = (*rates, 2 * best)
        elif best == min(scores):
            rates = (best / 2, *rates)
        else:
            break
        scores = laboratory.sweep(rates)
    rate = min(r for r, score in scores.items() if score <= min(scores.values()) * (1 + RATE_TOLERANCE))
    why = f"smallest rate within {RATE_TOLERANCE:.1%} of the best mean relative reference loss"
    told = {"learning_rate": rate, "chosen": why, "scores": {f"{r:g}": score for r, score in scores.items()}}
    atomic_write_json(path, told, seal=True)
    edge = " (the edge of the sweep; give proxy.learning_rate to look further)" if rate == max(rates) else ""
    whose = f"{laboratory.lower} proxies" if laboratory.lower else "the whole search"
    laboratory.reporter.note(f"learning rate {rate:g} for {whose}{edge}")
    return rate
