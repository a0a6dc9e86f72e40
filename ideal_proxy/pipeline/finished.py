"""A finished search as one object: its files, its runs as a table, its fitted model.

Legend: R runs, D domains, J capabilities.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ideal_proxy.config import SearchConfig, load_config
from ideal_proxy.errors import UserError
from ideal_proxy.mixture import IMPROVES, MixtureFile, load_mixture
from ideal_proxy.pipeline.earlier_runs import REUSED
from ideal_proxy.pipeline.evidence import IMITATIONS
from ideal_proxy.pipeline.prepare import Prepared, load_prepared
from ideal_proxy.pipeline.result_file import load_result
from ideal_proxy.response import ResponseModel, Yardstick
from ideal_proxy.store import read_json, run_folder

if TYPE_CHECKING:
    from ideal_proxy.terminal import Reporter

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class SearchRun:
    """Everything that a finished search left in its run directory.

    Attributes:
        folder: the run directory.
        config: the resolved run file.
        prepared: the problem in numbers.
        result: the content of `result.json`.
        mixture: the mixture file.
        model: the fitted response, losses of the search rows (or scores of the metrics) against full-size rows.
        runs: one row a run: role, seed, volumes, losses, cost.
        plan: the sizes chosen at the start.
        rate: the learning rate, and how it was chosen.
        provenance: versions, machine, command.
    """

    folder: Path
    config: SearchConfig
    prepared: Prepared
    result: dict[str, Any]
    mixture: MixtureFile
    model: ResponseModel
    runs: pd.DataFrame
    plan: dict[str, Any]
    rate: dict[str, Any]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        """Say in one line where the search lies and what it found."""
        gain = self.result["verdict"]["gain"]
        return (
            f"SearchRun({str(self.folder)!r}: {self.result['verdict']['answer']}, gain {gain['value']:+.2%} "
            f"[{gain['lower']:+.2%}, {gain['upper']:+.2%}], {len(self.domains)} domains, "
            f"{len(self.capabilities)} capabilities, {len(self.runs)} runs)"
        )

    @property
    def domains(self) -> list[str]:
        """D names."""
        return list(self.prepared.domains.names)

    @property
    def capabilities(self) -> list[str]:
        """J names."""
        return self.prepared.capability_names

    @property
    def base(self) -> Array:
        """Rows of the base mixture, shape (D,)."""
        return self.prepared.domains.base

    @property
    def proposal(self) -> Array:
        """Rows of the proposed mixture, adopted or not, shape (D,)."""
        return np.array([entry["proposal_rows"] for entry in self.result["domains"]], dtype=float)

    @property
    def adopted(self) -> bool:
        """Whether the mixture file holds the proposal, not the base."""
        return bool(self.result["verdict"]["answer"] == IMPROVES)

    def volumes(self, runs: pd.DataFrame | None = None) -> Array:
        """Give the volumes of runs.

        Args:
            runs: rows of `runs`; default those that the model was fitted to.

        Returns:
            array: full-size rows, shape (R, D).
        """
        chosen = self.fitted() if runs is None else runs
        return chosen[[f"rows/{name}" for name in self.domains]].to_numpy(dtype=float)

    @property
    def yardstick(self) -> Yardstick:
        """What scores are measured in; of losses alone where no metric judges."""
        found = [entry.get("metric") for entry in self.result["capabilities"]]
        return Yardstick(self.config.kinds, np.array([np.nan if m is None else m["scale"] for m in found]))

    def values(self, runs: pd.DataFrame | None = None, half: str = "search") -> Array:
        """Give what judges the runs: the scores of capabilities that have a metric, the losses of the others.

        Args:
            runs: rows of `runs`; default those that the model was fitted to.
            half: `search`, or `verify` (only the check's runs have it; they have no scores of the search).

        Returns:
            array: in each capability's own unit, shape (R, J).
        """
        chosen = self.fitted() if runs is None else runs
        columns = [
            f"{half}_{'loss' if kind == 'loss' else 'score'}/{name}"
            for name, kind in zip(self.capabilities, self.config.kinds, strict=True)
        ]
        return chosen.reindex(columns=columns).to_numpy(dtype=float)

    def losses(self, runs: pd.DataFrame | None = None, half: str = "search") -> Array:
        """Give the reference losses of runs.

        Args:
            runs: rows of `runs`; default those that the model was fitted to.
            half: `search` rows, or `verify` rows (only the check's runs have them).

        Returns:
            array: nats per supervised token, shape (R, J).
        """
        chosen = self.fitted() if runs is None else runs
        return chosen[[f"{half}_loss/{name}" for name in self.capabilities]].to_numpy(dtype=float)

    def fitted(self) -> pd.DataFrame:
        """Give the runs that the model was fitted to, in the fit's order; what was imitated comes after them."""
        trust = self.model.fidelity_.get(IMITATIONS, {})
        imitated = int(trust["runs"]) if trust.get("weight") else 0
        return self._design().iloc[: self.model.held_out_.shape[1] - imitated]

    def at_size(self) -> pd.DataFrame:
        """Give the runs that the model was fitted to and whose losses have its level: not those of other sizes."""
        fitted = self.fitted()
        sizes = [name for name, kind in self.model.fidelity_.items() if not kind.get("same_level", True)]
        return _without(fitted, sizes)

    def _design(self) -> pd.DataFrame:
        """Give the swarm's runs, and before them earlier searches' that have weight in the fit."""
        design = self.runs[self.runs["role"].isin([REUSED, "design"])]
        unused = [name for name, trust in self.model.fidelity_.items() if trust.get("weight") == 0]
        return _without(design, unused)

    def held_out(self) -> pd.DataFrame:
        """Compare observed losses with predictions by fits that did not see the run.

        Returns:
            DataFrame: columns run, kind (`left out` of the fit in turn, `later` swarm or `fresh` seeds of the check),
            capability, observed, predicted, base (the prediction at base), all in nats per supervised token, or in the
            metric's unit; unit (what a difference is divided by to be relative: the base, of scores their scale). The
            check judges scores on items of its own, so that only its losses are here.
        """
        model, fitted = self.model, self.fitted()
        left_out = (model.sign_[:, None] * (model.location_[:, None] + model.scale_[:, None] * model.held_out_)).T[
            : len(fitted)
        ]
        design = self._design()
        later, fresh = design.iloc[len(fitted) :], self.runs[self.runs["role"] == "verify"]
        own = fitted["run"].isin(self.at_size()["run"]).to_numpy()
        parts = [(fitted[own], "left out", left_out[own])]
        parts += [(part, kind, self._predict(part)) for part, kind in ((later, "later"), (fresh, "fresh")) if len(part)]
        base = model.value_and_gradient(self.base)[0]
        unit = self.yardstick.divisor(base)
        tables = [
            pd.DataFrame({
                "run": part["run"].to_numpy(), "kind": kind, "capability": name, "observed": values[:, j],
                "predicted": predicted[:, j], "base": base[j], "unit": unit[j],
            })
            for part, kind, predicted in parts
            for values in (self.values(part),)
            for j, name in enumerate(self.capabilities)
        ]  # fmt: skip
        return pd.concat(tables, ignore_index=True).dropna()

    def _predict(self, runs: pd.DataFrame) -> Array:
        volumes = pd.DataFrame(self.volumes(runs), columns=self.domains)
        return np.asarray(self.model.predict(volumes), dtype=float).reshape(len(runs), -1)


def load_run(folder: str | Path) -> SearchRun:
    """Open the run directory of a finished search.

    Args:
        folder: the run directory, or the `mixture.json` in it.

    Returns:
        SearchRun: its content.

    Raises:
        UserError: it is no run directory, the search is not finished, or a file of it is damaged.
    """
    folder = run_folder(folder)
    result = load_result(folder)
    try:
        run = SearchRun(
            folder=folder,
            config=load_config(folder / "config.yaml"),
            prepared=load_prepared(folder / "prepared"),
            result=result,
            mixture=load_mixture(folder / "mixture.json"),
            model=ResponseModel.from_json(read_json(folder / "fit.json")),
            runs=_runs(folder / "runs.parquet"),
            plan=read_json(folder / "plan.json"),
            rate=read_json(folder / "rate.json"),
            provenance=read_json(folder / "provenance.json"),
        )
        int(run.plan["workers"]), float(run.rate["learning_rate"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} was written by another version of ideal-proxy (it lacks {error}); run the search again with "
            "another --out, or use the version that its provenance.json names"
        ) from error
    except (ValueError, OverflowError, IndexError) as error:  # numbers and lists of another kind or length
        raise UserError(
            f"a file of {folder} is damaged ({str(error)[:120]}); restore it, or run the same search again"
        ) from error
    return run


def search(
    config: str | Path | dict[str, Any] | SearchConfig | None = None,
    out: str | Path | None = None,
    *,
    reporter: Reporter | None = None,
    on_event: Callable[[dict[str, Any]], object] | None = None,
    **overrides: Any,
) -> SearchRun:
    """Run a search, or go on with one that was interrupted, and open its result.

    Args:
        config: a run file, its content, or None for the embedded demo.
        out: the run directory; default runs/NAME.
        reporter: for progress; default a quiet one.
        on_event: called with a dict as the search goes on, see `ideal_proxy.hooks`; what it raises is survived.
        **overrides: `rounds`, `runs`, `max_hours`, `seed`, `workers`, `gradients`, `price`, `max_cost`, `sizes`,
            as on the command line.

    Returns:
        SearchRun: the finished search.
    """
    from ideal_proxy.config import parse_config
    from ideal_proxy.data import demo_config
    from ideal_proxy.pipeline.outer_loop import run_search
    from ideal_proxy.pipeline.overrides import override
    from ideal_proxy.terminal import Reporter as Speaker

    if config is None:
        settings = demo_config(overrides.get("seed") or 0)
    elif isinstance(config, dict):
        settings = parse_config(json.loads(json.dumps(config, default=str)), folder=Path.cwd())
    else:
        settings = config if isinstance(config, SearchConfig) else load_config(config)
    settings = override(settings, **overrides)
    folder = Path(out) if out is not None else Path("runs") / settings.name
    run_search(settings, folder, reporter or Speaker(quiet=True), on_event)
    return load_run(folder)


def _runs(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or run the search again") from error


def _without(runs: pd.DataFrame, origins: list[str]) -> pd.DataFrame:
    """Leave out runs of other sizes or earlier searches; a table without any such run has no column of origins."""
    return runs[~runs["from"].isin(origins)] if "from" in runs else runs
