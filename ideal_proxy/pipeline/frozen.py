"""Frozen mixtures: a settled mixture as one domain whose inner shares stay, searched for its total beside new sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ideal_proxy.config import FROZEN, SearchConfig
from ideal_proxy.errors import UserError
from ideal_proxy.mixture import apply_mixture, load_mixture
from ideal_proxy.store import mixture_file


def with_frozen_rows(config: SearchConfig, folder: Path, tell: Callable[[str], None]) -> SearchConfig:
    """Write the rows of every frozen mixture into the run directory, once, and read them from there."""
    # They are drawn as `apply` draws them, repeats too, and every proxy takes them in an order made of hashes: so any
    # total of them has the mixture's own shares, but for the luck of the draw.
    domains = []
    for domain in config.domains:
        if not domain.path.startswith(FROZEN):
            domains.append(domain)
            continue
        place = mixture_file(Path(domain.path.removeprefix(FROZEN)))
        mixture = load_mixture(place)
        if not mixture.total_rows:
            raise UserError(f"freeze {domain.name}: {place} has no rows; give the file of a finished search")
        applied = apply_mixture(mixture, folder / "frozen" / domain.name.replace("/", "-"))
        members = ", ".join(f"{d.name} {d.rows:,}" for d in mixture.domains if d.rows)
        tell(
            f"{domain.name}: {applied.rows:,} rows of {place} as one domain ({members}); its members carry no evidence "
            "of their own"
        )
        domains.append(domain.model_copy(update={"path": str(applied.files[0].resolve()), "format": "auto"}))
    return config.model_copy(update={"domains": tuple(domains)})


def replayed(config: SearchConfig, result: dict[str, Any]) -> Iterator[str]:
    """Say how much of each frozen mixture must be replayed, by a result."""
    for entry in result["domains"]:
        if entry["name"] in config.freeze:
            low, high = entry["moves"]
            rows, available = entry["proposal_rows"], entry["available"]
            yield (
                f"replay {rows:,} of the {available:,} rows of {entry['name']} ({rows / available:.0%}); "
                f"from {low:,.0f} to {high:,.0f} the check could not see a difference"
            )
