"""Of a large search the page shows a part: which domains, capabilities and runs, and the sentence that says so."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ideal_proxy.pipeline import SearchRun
from ideal_proxy.report.curves import Array

LARGE = 1_000
"""A search of more domains times capabilities is large."""
DOMAINS, CAPABILITIES = 25, 12
"""So many of them figures and tables of responses show then."""
PANELS = 100  # response curves on the page; the others are in figures/
MARKS = 12_000  # so many marks in all panels keep the page well under 2 MB
PANEL_MARKS = 60  # what a panel weighs besides its runs
LEAST_MARKS = 100  # runs that a panel shows in any case
LARGE_MARKS = 100  # runs that a panel shows then
HELD_OUT = 1_000
"""So many losses of runs left out are shown then."""


@dataclass(frozen=True, slots=True)
class Few:
    """What is shown, in the order of the search."""

    domains: list[int]
    capabilities: list[int]
    panels: int  # response curves a capability
    marks: int  # runs a curve
    large: bool
    text: str  # says what is left out; empty where nothing is

    def names(self, run: SearchRun) -> tuple[list[str], list[str]]:
        """Name the domains and the capabilities."""
        return [run.domains[i] for i in self.domains], [run.capabilities[j] for j in self.capabilities]

    def held_out(self, run: SearchRun) -> pd.DataFrame:
        """Compare runs that the fit did not see with its predictions; of a large search some of them, spread evenly."""
        table = run.held_out()
        if not self.large:
            return table
        table = table[table["capability"].isin(self.names(run)[1])]
        return table.iloc[evenly(len(table), HELD_OUT)]

    def of(self, run: SearchRun) -> SearchRun:
        """Narrow what charts of domains and capabilities read of a search."""
        result = run.result
        return replace(
            run,
            result=result | {
                "domains": [result["domains"][i] for i in self.domains],
                "capabilities": [result["capabilities"][j] for j in self.capabilities],
            },
        )  # fmt: skip


def few(run: SearchRun) -> Few:
    """Choose what the page shows: all, or of a large search what changes most."""
    D, J, runs = len(run.domains), len(run.capabilities), len(run.at_size())
    large = D * J > LARGE
    domains, capabilities = list(range(D)), list(range(J))
    if large:
        moved = np.abs(run.proposal - run.base) * run.prepared.domains.lengths
        changed = np.array([abs(entry["verified"]["value"] - 1.0) for entry in run.result["capabilities"]])
        domains, capabilities = _most(moved, DOMAINS), _most(changed, CAPABILITIES)
    shown = len(capabilities)
    panels = min(PANELS, MARKS // (PANEL_MARKS + runs))
    panels = 1 if large else D if panels >= D * shown else max(1, panels // shown)
    marks = min(runs, LARGE_MARKS if large else max(MARKS // (panels * shown) - PANEL_MARKS, LEAST_MARKS))
    said = []
    if large:
        said.append(
            f"figures and tables of responses show the {len(domains)} of {D} domains whose tokens change most and the "
            f"{shown} of {J} capabilities that change most, curves are drawn and kept in report.json for the domain "
            "that each of these answers to most, the front of trade-offs is left out, and of predictions of runs left "
            f"out at most {HELD_OUT:,} are kept"
        )
    if marks < runs:
        said.append(f"each curve shows {marks:,} of {runs:,} runs")
    return Few(domains, capabilities, panels, marks, large, "; ".join(said))


def evenly(count: int, most: int) -> np.ndarray:
    """Choose at most so many places, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)) if count else np.arange(0)


def _most(size: Array, count: int) -> list[int]:
    """Give the places of the largest, in order."""
    return sorted(np.argsort(-size, kind="stable")[:count].tolist())
