"""Which columns of somebody's table are domains and which are metrics: sums tell, then names; the rest is named.

Legend: R runs, C columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ideal_proxy.errors import UserError, some
from ideal_proxy.response import SHARE_TOLERANCE, Array
from ideal_proxy.tables.sheet import Sheet, decimals, plain

TRACKER = frozenset({
    "run", "runid", "index", "id", "name", "group", "seed", "seedid", "fidelity", "step", "steps", "globalstep",
    "date", "datetime", "timestamp", "time", "runtime", "duration", "state", "status", "notes", "tags", "user",
    "sweep", "project", "entity", "created", "updated", "starttime", "endtime", "heartbeat", "host", "hostname",
    "os", "python", "commit", "git", "gitcommit", "job", "jobtype", "jobid", "lr", "learningrate", "weightdecay",
    "decay", "momentum", "warmup", "warmupratio", "warmupsteps", "beta1", "beta2", "epsilon", "dropout", "clip",
    "gradclip", "gradnorm", "epoch", "epochs", "maxsteps", "maxepochs", "tokens", "numtokens", "ntokens",
    "tokensseen", "totaltokens", "trainedtokens", "samples", "numsamples", "examples", "rows", "batch", "batchsize",
    "globalbatchsize", "microbatchsize", "gradientaccumulationsteps", "seqlen", "seqlength", "sequencelength",
    "maxlength", "contextlength", "params", "numparams", "nparams", "parameters", "modelsize", "size", "layers",
    "nlayers", "hidden", "dmodel", "heads", "gpu", "gpus", "ngpus", "numgpus", "gputype", "gpuhours", "gpucount",
    "cpu", "cpus", "cpucount", "cpuhours", "worldsize", "ranks", "node", "nodes", "memory", "peakmemory",
    "maxmemory", "flops", "totalflos", "flos", "mfu", "throughput", "cost", "price", "total", "sum", "iteration",
    "iterations", "iter", "trial", "version", "experimentid", "artifacturi", "lifecyclestage",
})  # fmt: skip
"""Plain names of what trackers and trainers write beside results."""
TRACKER_ENDS = (
    "persecond", "persec", "runtime", "gpuhours", "gradnorm", "globalstep", "learningrate", "timestamp", "walltime",
    "flops", "flos", "utilization", "memoryallocated", "seconds",
)  # fmt: skip
TRACKER_GROUPS = frozenset({
    "sys",
    "system",
    "gpu",
    "cpu",
    "tags",
    "env",
    "metadata",
    "profiling",
    "optimizer",
    "wandb",
})
RESULT_GROUPS = frozenset({"eval", "val", "valid", "validation", "test", "metric", "metrics", "bench", "benchmark"})
RESULT_WORDS = frozenset({
    "loss", "nll", "ppl", "perplexity", "acc", "accuracy", "f1", "em", "bleu", "rouge", "score", "reward", "pass",
    "winrate", "bpb",
})  # fmt: skip
MOST_ODD = 0.2
"""Share of runs whose sum may be wrong while the columns are still known as shares; those runs are named."""
MOST_STEPS = 200_000  # of the search for columns that sum to a constant
SETS = 16


def is_tracker(name: str) -> bool:
    """Whether a column is something that a tracker or a trainer notes, by its name."""
    parts = [part for part in re.split(r"[/.:]", name) if part]
    last = plain(parts[-1]) if parts else ""
    return (
        not last
        or name.startswith(("_", "Unnamed"))
        or parts[-1].startswith("_")
        or any(plain(part) in TRACKER_GROUPS for part in parts[:-1])
        or last in TRACKER
        or last.endswith(TRACKER_ENDS)
        or last.startswith("gpu")
    )


def domain_columns(sheet: Sheet, wanted: Sequence[str], unit: str | None) -> tuple[list[str], float]:
    """Choose a table's domains; with them the sum of a run's shares, 0 where they are volumes."""
    stripped = {without_prefix(c, "train_"): c for c in reversed(sheet.numbers.columns)}
    candidates = sheet.numeric()
    if wanted:
        missing = [d for d in wanted if d not in stripped]
        if missing:
            raise UserError(f"{sheet.path} lacks {some(missing)}: its columns of numbers are {some(candidates)}.")
        columns = [stripped[d] for d in wanted]
        total = float(np.nanmedian(sheet.numbers[columns].sum(axis=1)))
        return columns, _scale(total) if unit != "rows" else 0.0
    prefixed = [c for c in candidates if c.startswith("train_")]
    if unit != "rows":
        for columns in (prefixed, candidates):
            for total in (1.0, 100.0):
                found = constant_sums(sheet, columns, total)
                if len(found) > 1:
                    raise UserError(
                        f"{sheet.path}: the columns {', '.join(found[0])} sum to {total:g} in every run, and so do "
                        f"{', '.join(found[1])}: say which are the domains, with --domain once for each."
                    )
                if found:
                    return found[0], total
    named = [c for c in prefixed if not is_tracker(c.removeprefix("train_")) and not _is_result(c)]
    columns = named if len(named) > 1 else [c for c in candidates if not is_tracker(c) and not _is_result(c)]
    even = _equal_parts(sheet.numbers[[c for c in candidates if not _is_result(c)]])
    return even if len(even) > 1 else columns, 0.0


def metric_columns(sheet: Sheet) -> list[str]:
    """Choose a table's metrics."""
    columns = sheet.numeric()
    for prefix in ("metric/", "metrics."):
        marked = [c for c in columns if c.startswith(prefix)]
        if marked:
            columns = marked
    return [
        c for c in columns
        if not is_tracker(c) and not re.match(r"(params|config|hparams|args|train|training)[/._]", c)
    ]  # fmt: skip


def without_prefix(name: str, prefix: str) -> str:
    """A column's own name, without RegMix's prefix (`train_`, `metric/`) or mlflow's (`params.`, `metrics.`)."""
    for start in (prefix, "params.", "metrics."):
        if name.startswith(start):
            return name.removeprefix(start)
    return name


def constant_sums(sheet: Sheet, columns: Sequence[str], total: float) -> list[list[str]]:
    """The set of columns that sums to a constant in every run; several where the table does not tell which is meant."""
    # columns that never change are tried last; of two columns with the same numbers the first counts
    columns = [c for c in columns if not (sheet.numbers[c].max() < 1e-3 * total)]
    x_RC = sheet.numbers[columns].fillna(0.0).to_numpy(dtype=float) / total
    limits = np.array([0.5 * 10.0 ** -decimals(sheet.cells[c]) / total for c in columns])
    fits = ((x_RC > -1e-9) & (x_RC < 1 + SHARE_TOLERANCE)).mean(axis=0) if len(x_RC) else np.zeros(len(columns))
    usable = [k for k in range(len(columns)) if fits[k] >= 1 - MOST_ODD]
    moving = [k for k in usable if np.ptp(x_RC[:, k]) > 0]
    for tries, odd in (((moving, usable), 0.0), ((moving, usable), MOST_ODD)):
        for chosen in tries:
            unlike = _unlike(chosen, x_RC)
            slack = SHARE_TOLERANCE if odd else min(SHARE_TOLERANCE, 1e-6 + float(limits[unlike].sum()))
            sets = _sums(x_RC[:, unlike], np.ones(len(x_RC)), slack, odd)
            exact = [tuple(unlike[k] for k in found) for found in sets if len(found) > 1]
            if exact:
                return [[columns[k] for k in sorted(found)] for found in _meant(exact, columns, x_RC, slack, odd)]
    return []


def _meant(
    sets: list[tuple[int, ...]], columns: Sequence[str], x_RC: Array, slack: float, odd: float
) -> list[tuple[int, ...]]:
    """Of several sets with the same sums, those that may be meant: of a set and its sums the finer one, say."""
    least = min(sum(is_tracker(columns[k]) for k in found) for found in sets)
    sets = [found for found in sets if sum(is_tracker(columns[k]) for k in found) == least]
    wrong = [int((np.abs(x_RC[:, found].sum(axis=1) - 1.0) > slack).sum()) for found in sets]
    sets = [found for found, misses in zip(sets, wrong, strict=True) if misses == min(wrong)]
    finer = []
    for found in sets:
        parts = [set(other) - set(found) for other in sets]
        coarse = [set(found) - set(other) for other in sets]
        if not any(
            len(fine) > len(sums) >= 1
            and all(_sums(x_RC[:, sorted(fine)], x_RC[:, k], slack, odd, most=1) for k in sums)
            for fine, sums in zip(parts, coarse, strict=True)
        ):
            finer.append(found)
    noise = [float(np.std(x_RC[:, found].sum(axis=1))) for found in finer]
    close = [found for found, s in zip(finer, noise, strict=True) if s <= 3 * min(noise) + 1e-9]
    return sorted(close, key=lambda found: (-len(found), found))


def _unlike(chosen: Sequence[int], x_RC: Array) -> list[int]:
    """The columns of which no earlier one holds the same numbers, the largest first."""
    kept: list[int] = []
    for k in chosen:
        if not any(np.array_equal(x_RC[:, k], x_RC[:, other]) for other in kept):
            kept.append(k)
    return sorted(kept, key=lambda k: -float(x_RC[:, k].mean()))


def _sums(x_RC: Array, goal_R: Array, slack: float, odd: float, *, most: int = SETS) -> list[tuple[int, ...]]:
    """Sets of columns that sum to a goal in all runs but a share of `odd`."""
    R, C = x_RC.shape
    allowed = int(odd * R)
    rest_CR = np.vstack([np.clip(x_RC, 0, None).T[::-1].cumsum(axis=0)[::-1], np.zeros((1, R))])
    found: list[tuple[int, ...]] = []
    stack: list[tuple[int, tuple[int, ...], Array]] = [(0, (), np.zeros(R))]
    for _ in range(MOST_STEPS):
        if not stack or len(found) == most:
            return found
        k, chosen, sum_R = stack.pop()
        if (sum_R > goal_R + slack).sum() > allowed or (sum_R + rest_CR[k] < goal_R - slack).sum() > allowed:
            continue
        if k == C:
            found.append(chosen)
            continue
        stack += [(k + 1, chosen, sum_R), (k + 1, (*chosen, k), sum_R + x_RC[:, k])]
    return found


def _equal_parts(values: pd.DataFrame) -> list[str]:
    """Columns of volumes that sum to one total in every run: they weigh the same in what best explains a constant."""
    x = values.loc[:, values.max() > values.min()].dropna()
    if len(x) <= x.shape[1] or x.shape[1] < 2 or not ((x.to_numpy() >= 0) & (x.to_numpy() < 1e100)).all():
        return []
    scale = x.max().to_numpy(dtype=float)
    weights = np.linalg.lstsq(x.to_numpy(dtype=float) / scale, np.ones(len(x)), rcond=None)[0] / scale
    middle = float(np.median(weights[weights * scale > 1e-3])) if (weights * scale > 1e-3).any() else 0.0
    columns = [c for c, w in zip(x.columns, weights, strict=True) if middle and abs(w / middle - 1) < 1e-3]
    total = x[columns].sum(axis=1)
    return columns if len(columns) > 1 and float(np.ptp(total)) < 1e-6 * float(total.max()) else []


def _scale(total: float) -> float:
    """1 or 100 where shares sum to it, else 0."""
    return next((t for t in (1.0, 100.0) if abs(total / t - 1) < SHARE_TOLERANCE), 0.0)


def _is_result(name: str) -> bool:
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    return bool(words) and (words[0] in RESULT_GROUPS or words[-1] in RESULT_WORDS)
