"""`scale-up --refine N`: IDEAL's own iteration on the full-size model, with an optimiser for its max-norm rule.

Each iteration asks the model that was trained on the best mixture so far for its implicit responses (Ming et al., ICLR
2026, arXiv 2505.12762), combines them with the law and with every full-size run (`full_surface`), lets the optimiser
take a step inside a trust region and the run file's constraints, writes a new mixture file with its history, and
trains on it. A step that did not gain on the search rows is taken back and the region halved. Gains are told on the
verify rows, which neither gradients nor steps ever see.

Legend: D domains, J capabilities, S seeds, N_j reference rows.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ideal_proxy.amounts import Amount
from ideal_proxy.data import ChatTemplate, TokenRows
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.gradients import InfluenceSettings, ResponseMatrix, mean_over_seeds, one_step, processes, responses
from ideal_proxy.limits import Budget
from ideal_proxy.mixture import MixtureFile, load_mixture, save_mixture
from ideal_proxy.optimizer import Problem, optimize, round_volumes
from ideal_proxy.response import Combination, Prediction, combine, compare
from ideal_proxy.scaleup.full_surface import FullSizeSurface, Observed, fit_surface
from ideal_proxy.scaleup.limits import compared_unit, file_constraints, file_limits, file_objective, tokens_per_row
from ideal_proxy.scaleup.model import ModelSpec, load_model, with_adapter
from ideal_proxy.scaleup.result import gain_over, judged_rows
from ideal_proxy.scaleup.run import RunLosses, RunSettings
from ideal_proxy.scaleup.source import Drawn, ScaleData
from ideal_proxy.scaleup.transfer import usable_law, with_volumes
from ideal_proxy.store import atomic_write_json, is_complete, mark_complete, read_json
from ideal_proxy.terminal import Reporter, interval_text

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
HALVED = 0.5  # the trust region after a step that did not gain


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineSettings:
    """How the iteration goes."""

    iterations: int  # most steps
    step: float  # largest |log change| of a volume in one of them
    rows: int  # most rows of each source whose gradients are taken


@dataclass(frozen=True, slots=True)
class Arm:
    """One mixture that was trained at full size."""

    volumes: Ints  # (D,) full-size rows
    runs: tuple[RunLosses, ...]  # one a seed
    folders: tuple[Path, ...]  # of the runs; a model lies there where it was kept
    drawn: tuple[Drawn, ...]  # rows of each run


@dataclass(frozen=True, slots=True)
class Step:
    """Where an iteration starts."""

    number: int  # of the iteration, from 1
    parent: int  # number of the mixture it starts from; 0 is the first one
    radius: float  # largest |log change| of a volume
    history: tuple[dict[str, Any], ...]  # entries of the iterations before


@dataclass(frozen=True, slots=True, kw_only=True)
class Refiner:
    """Goes on from a mixture that was trained at full size."""

    mixture: MixtureFile
    data: ScaleData
    spec: ModelSpec
    template: ChatTemplate
    run: RunSettings
    settings: RefineSettings
    train: Callable[[str, Sequence[int]], Arm]  # trains one mixture with every seed
    folder: Path
    reporter: Reporter
    judged: dict[str, Any]  # as `result.compare` takes it
    first: Callable[[], contextlib.AbstractContextManager[None]]  # lets one process do what all need
    main: bool = True

    @property
    def base(self) -> Ints:
        """Rows of the base mixture (D,)."""
        return np.array([d.base_rows for d in self.mixture.domains], dtype=np.int64)

    def refine(self, start: Arm, base: Arm | None) -> dict[str, Any]:
        """Iterate."""
        self._freeze()
        arms, radius, best = [start], self.settings.step, 0
        entries: list[dict[str, Any]] = []  # kept and rejected steps: the history of every file
        for number in range(1, self.settings.iterations + 1):
            place = self.folder / str(number)
            told = self._step(Step(number, best, radius, tuple(entries)), arms, base, place)
            if told is None:
                break
            proposed = load_mixture(place / "mixture.json")
            rows = [d.rows for d in proposed.domains]
            parent = arms[told["parent"]["iteration"]]  # of the step as it was taken; more seeds may judge it otherwise
            arm = self.train(f"refined-{number}", rows)
            arms.append(arm)
            entry = told | {"observed": self._observed(arm, parent, base)}
            accepted = self._search_gain(arm, arms[best]) > 0
            entry["accepted"] = accepted
            if self.main:
                history = {**proposed.provenance, "refine": [*entries, entry]}
                save_mixture(place / "mixture.json", proposed.model_copy(update={"provenance": history}))
            entries.append(entry)
            best, radius = (len(arms) - 1, radius) if accepted else (best, radius * HALVED)
        result: dict[str, Any] = {"step": self.settings.step, "iterations": entries, "best": best}
        if best:
            result["gain_over_first"] = self._gain(arms[best], start)
        result["sentence"] = _sentence(result)
        if self.main:
            chosen = self.mixture if not best else load_mixture(self.folder / str(best) / "mixture.json")
            save_mixture(self.folder / "mixture.json", chosen)
        return result

    def _freeze(self) -> None:
        """Write how the iteration began; whoever goes on with it takes the same step and rows."""
        path = self.folder / "options.json"
        asked = {"refine_step": self.settings.step, "refine_rows": self.settings.rows}
        with self.first():
            if not path.exists():
                atomic_write_json(path, asked)
        for key, value in read_json(path).items():
            if asked.get(key) != value:
                raise UsageError(
                    f"{self.folder} was begun with another --{key.replace('_', '-')} ({value}, now {asked.get(key)}); "
                    "resume with the same, or choose another --out"
                )

    # ---------------------------------------------------------------- a step

    def _step(self, step: Step, arms: Sequence[Arm], base: Arm | None, place: Path) -> dict[str, Any] | None:
        """Propose the next mixture and write its file; None where no step is predicted to gain."""
        # Several processes take the responses together, so they must not look at a marker that one may just be writing.
        if processes()[1] > 1 or not is_complete(place):
            matrix = self._responses(arms[step.parent], self.folder / f"responses-{step.parent}.npz")
            with self.first():
                if not is_complete(place):
                    self._propose(step, arms, base, matrix, place)
        told: dict[str, Any] = load_mixture(place / "mixture.json").provenance["refine"][step.number - 1]
        if told["rows"] == told["parent"]["rows"]:
            self.reporter.note(f"refine {step.number}: {told['optimum']}; no step is taken, and the iteration ends")
            return None
        return told

    def _responses(self, parent: Arm, path: Path) -> ResponseMatrix:
        """Take the implicit responses of the parent's models at its volumes, mean over seeds; once."""
        if path.exists():
            return ResponseMatrix.load(path)
        kept = [n for n, folder in enumerate(parent.folders) if (folder / "model").is_dir()]
        references = dict(zip(self.data.capabilities, self.data.references, strict=True))
        search = {
            name: rows.select(np.flatnonzero(_searched(verify)))
            for (name, rows), verify in zip(references.items(), self.data.verify, strict=True)
        }
        domains = dict(zip(self.data.names, self.data.domains, strict=True))
        parts = []
        with self.reporter.work("responses of the full-size model", float(len(kept))) as update:
            for done, n in enumerate(kept):
                parts.append(self._of_model(parent.folders[n] / "model", parent.drawn[n], domains, search))
                update(done + 1.0)
        matrix = mean_over_seeds(parts)
        if self.main:
            path.parent.mkdir(parents=True, exist_ok=True)
            matrix.save(path)
        return matrix

    def _of_model(
        self, folder: Path, drawn: Drawn, domains: dict[str, TokenRows], search: dict[str, TokenRows]
    ) -> ResponseMatrix:
        """Ask one trained model; with LoRA its adapter, for that is what training moved."""
        adapter = folder / "adapter"
        if self.spec.lora is not None and adapter.is_dir():
            plain = replace(self.spec, lora=None, gradient_checkpointing=False)
            model = with_adapter(
                load_model(plain, self.template, context=self.run.context, seed=0, packed=self.run.packed), adapter
            )
        else:
            trained = ModelSpec(name=str(folder))
            model = load_model(trained, self.template, context=self.run.context, seed=0, packed=self.run.packed)
        model = model.to(self.run.device)
        supervised = [
            int(rows.supervised_tokens[drawn.row[drawn.domain == d]].sum()) for d, rows in enumerate(domains.values())
        ]
        with self._room(model, len(domains) + len(search)) as scratch:
            settings = InfluenceSettings(
                gradient_rows=self.settings.rows,
                factor_rows=min(InfluenceSettings().factor_rows, self.settings.rows * len(domains)),
                seed=self.mixture.seed,
                folder=scratch,
                autocast=torch.bfloat16 if self.run.train.dtype == "bfloat16" else None,
                loss=self.run.train.loss,
            )
            return responses(model, domains, search, drawn.volumes, settings=settings, supervised_tokens=supervised)

    @contextlib.contextmanager
    def _room(self, model: Any, gradients: int) -> Iterator[Path | None]:
        """Keep the gradients on disk where they would not fit in memory."""
        size = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
        if gradients * size <= InfluenceSettings().memory_bytes:
            yield None
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".gradients-", dir=self.folder) as scratch:
            yield Path(scratch)

    def _propose(self, step: Step, arms: Sequence[Arm], base: Arm | None, matrix: ResponseMatrix, place: Path) -> None:
        """Optimise around the parent, and write the new mixture file with what is predicted of it."""
        parent = arms[step.parent]
        surface = self._surface(parent, [a for a in (base, *arms) if a is not None and a is not parent], matrix)
        self.reporter.note(f"refine {step.number}: {surface.why}")
        start = parent.volumes.astype(float)
        origin = self.base.astype(float) if self.base.sum() else start
        domains = replace(self.mixture.over, base=origin, tokens_per_row=self._tokens())
        problem = Problem(domains=domains, capabilities=self.data.capabilities)
        constraints = file_constraints(
            self.mixture, problem, self._budget(problem, start), self._unit(problem),
            trust_region=step.radius, trust_centre=start,
        )  # fmt: skip
        objective, seed, rows = file_objective(self.mixture), self.mixture.seed, parent.volumes
        active: tuple[str, ...] = ()
        try:
            found = optimize(surface, objective, constraints, random_state=seed, starts=[start])
            how = found.settled
            rows = round_volumes(found.volumes, constraints)
            active = found.active
        except UserError as error:  # the limits cannot be met this close to the parent: it stands
            how = f"the limits cannot be met inside the trust region ({error})"
        over_parent = self._promise(surface, rows.astype(float), start, len(parent.runs))
        if over_parent.gain.value <= 0:
            rows, how = parent.volumes, f"no allowed mixture is predicted to gain ({how})"
        over_base = self._promise(surface, rows.astype(float), origin, len(parent.runs))
        entry = {
            "iteration": step.number,
            "parent": {
                "iteration": step.parent,
                "rows": dict(zip(self.data.names, parent.volumes.tolist(), strict=True)),
            },
            "rows": dict(zip(self.data.names, rows.tolist(), strict=True)),
            "trust_region": step.radius,
            "gradients": {
                "used": surface.scale is not None,
                "why": surface.why,
                "scale": None if surface.scale is None else surface.scale.tolist(),
                "seeds": sum((folder / "model").is_dir() for folder in parent.folders),
                "seconds": matrix.cost.seconds,
                "max_norm_rule": np.rint(one_step(matrix.M, start, min(step.radius, 0.99))).astype(int).tolist(),
            },
            "law_factor": None if surface.law is None else surface.mean[:, 0].tolist(),
            "predicted": {
                "gain_over_parent": asdict(over_parent.gain),
                "gain_over_base": asdict(over_base.gain),
                "ratios_to_parent": dict(zip(self.data.capabilities, map(asdict, over_parent.ratios), strict=True)),
            },
            "active": list(active),
            "optimum": how,
        }
        proposed = with_volumes(
            self.mixture, rows, self.base, over_base, active=active,
            provenance={"refine": [*step.history, entry]},
        )  # fmt: skip
        place.mkdir(parents=True, exist_ok=True)
        save_mixture(place / "mixture.json", proposed)
        mark_complete(place)

    def _surface(self, parent: Arm, others: Sequence[Arm], matrix: ResponseMatrix) -> FullSizeSurface:
        """Fit the full-size response around the parent from everything that was run."""
        law = usable_law(self.mixture)
        here_SJ = self._search_losses(parent)
        relative = _spread([np.log(self._search_losses(other) / here_SJ) for other in others])
        if law is not None:
            expected = law.value_and_gradient(parent.volumes.astype(float))[0]
            relative = np.maximum(relative, np.asarray(law.residual_scale_) / expected * np.sqrt(2))
        observed = [
            Observed(
                other.volumes.astype(float),
                np.log(self._search_losses(other) / here_SJ).mean(axis=0),
                relative / np.sqrt(len(here_SJ)),
            )
            for other in others
        ]
        level = here_SJ.mean(axis=0)
        return fit_surface(
            law, centre=parent.volumes.astype(float), level=level, base=self.base.astype(float),
            noise=relative / np.sqrt(2) * level, observed=observed, responses=matrix,
            random_state=self.mixture.seed,
        )  # fmt: skip

    def _search_losses(self, arm: Arm) -> Array:
        """Losses on the search rows, (S, J)."""
        return self._losses(arm, _searched)

    def _losses(self, arm: Arm, chosen: Callable[[Bools], Bools]) -> Array:
        """Losses on the rows that are chosen given which are the verdict's, (S, J)."""
        sets = list(zip(self.data.capabilities, self.data.verify, strict=True))
        return np.array([[run.after[name].select(chosen(verify)).mean for name, verify in sets] for run in arm.runs])

    def _promise(self, surface: FullSizeSurface, rows: Array, against: Array, seeds: int) -> Prediction:
        """Predict against another mixture, with intervals for the seeds at hand."""
        kind, weights = self._kind()
        return compare(surface, rows, against, pairs=seeds, kind=kind, weights=weights)

    def _kind(self) -> tuple[Combination, Sequence[float] | None]:
        return self.judged.get("kind", "mean"), self.judged.get("weights")

    def _tokens(self) -> Array | None:
        lengths = [float(rows.lengths.mean()) if len(rows) else 1.0 for rows in self.data.domains]
        return tokens_per_row(self.mixture, np.array(lengths))

    def _unit(self, problem: Problem) -> Literal["rows", "tokens"]:
        return compared_unit(file_limits(self.mixture), problem.domains)

    def _budget(self, problem: Problem, start: Array) -> Budget:
        """Keep the parent's total, so that iterations are compared at one budget, unless the search's was open."""
        budget = file_limits(self.mixture).budget
        if budget.kind == "free" or (budget.kind == "at most" and "transfer" not in self.mixture.provenance):
            return budget
        unit = self._unit(problem)
        weights = problem.domains.tokens_per_row if unit == "tokens" else np.ones(len(start))
        assert weights is not None
        return Budget("exactly", Amount(float(weights @ start), unit))

    # -------------------------------------------------------------- observed

    def _observed(self, arm: Arm, parent: Arm, base: Arm | None) -> dict[str, Any]:
        """Judge an iteration on the verify rows; the search rows decide whether its step is kept."""
        names = self.data.capabilities
        after, before = (self._losses(each, judged_rows) for each in (arm, parent))
        return {
            "search_gain_over_parent": self._search_gain(arm, parent),
            "gain_over_parent": self._gain(arm, parent),
            "gain_over_base": None if base is None else self._gain(arm, base),
            "ratios_to_parent": dict(zip(names, (after / before).mean(axis=0).tolist(), strict=True)),
            "losses": dict(zip(names, after.mean(axis=0).tolist(), strict=True)),
        }

    def _search_gain(self, arm: Arm, other: Arm) -> float:
        kind, weights = self._kind()
        ratios = self._search_losses(arm) / self._search_losses(other)
        return 1 - float(combine(ratios, kind, weights).mean())

    def _gain(self, arm: Arm, other: Arm) -> dict[str, Any]:
        return gain_over(self.data.capabilities, arm.runs, other.runs, self.data.verify, **self.judged)


def _searched(verify: Bools) -> Bools:
    """Rows that steps are chosen on: those that are not for the verdict; all where there is one row."""
    return ~verify if not verify.all() else verify


def _spread(log_ratios: Sequence[Array]) -> Array:
    """Standard deviation over seeds of a pair's log ratio (J,), pooled over mixtures; 0 for one seed."""
    if not log_ratios:
        return np.zeros(())
    if len(log_ratios[0]) < 2:
        return np.zeros(log_ratios[0].shape[1])
    return np.asarray(np.sqrt(np.mean([r.var(axis=0, ddof=1) for r in log_ratios], axis=0)))


def _sentence(result: dict[str, Any]) -> str:
    tried = len(result["iterations"])
    if not tried:
        return "refine: no step was predicted to gain, so none was trained"
    if not result["best"]:
        return f"refine: none of {tried} iteration(s) gained on the search rows; the first mixture stands"
    gain = result["gain_over_first"]
    bounded = gain["lower"] is not None
    return (
        f"refine: iteration {result['best']} is the best of {tried} by the search rows; on verify rows it gains "
        f"{gain['value']:+.2%}{f' {interval_text(gain)}' if bounded else ''} over the first mixture"
        f"{'' if bounded and gain['lower'] > 0 else ', which is no proof of a gain'}"
    )
