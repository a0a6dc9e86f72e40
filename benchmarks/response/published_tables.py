"""Our response model beside LightGBM, exp-linear laws, ridge and Gaussian processes, on RegMix's public tables.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/response/published_tables.py

Every method sees the same 20 random subsets of the 512 runs of 1M-parameter models (one at 512: all of them) and is
judged on the 256 test mixtures of 1M and of 60M models.  Nothing is chosen on the test tables: each method's choices
are made inside its subset.  Legend: R runs, D domains, J capabilities.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import spearmanr, ttest_rel

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
DATA = ROOT.parent / "shared" / "data" / "regmix"
RESULTS = Path(__file__).parent
SIZES = (32, 64, 128, 256, 512)
SUBSETS = 20
Z90 = 1.6448536


def ours(V, L, T):
    from ideal_proxy.response.model import ResponseModel

    return ResponseModel(unit="share").fit(V, L).predict(T, return_interval=0.9)


def law_alone(V, L, T):
    from ideal_proxy.response.model import ResponseModel

    return ResponseModel(unit="share", process="never", harm="never").fit(V, L).predict(T, return_interval=0.9)


def lightgbm(V, L, T):
    """RegMix's notebook, without early stopping on test data; leaves shrink with R, else 32 rows cannot be split."""
    import lightgbm as lgb

    settings = {
        "n_estimators": 1000,
        "learning_rate": 1e-2,
        "random_state": 42,
        "verbosity": -1,
        "n_jobs": 1,
        "min_child_samples": min(20, max(2, len(V) // 12)),
    }
    return np.column_stack([lgb.LGBMRegressor(**settings).fit(V, y).predict(T) for y in L.T]), None, None


def exp_linear(V, L, T):
    """Data Mixing Laws and Olmix: c + exp(k + t·w), Huber loss, three starts, best training loss."""
    out = []
    for y in L.T:
        ones = np.column_stack([np.ones(len(V)), V])
        best = None
        for share in (0.2, 0.5, 0.9):
            c = y.min() * share
            start = np.concatenate([[c], np.linalg.lstsq(ones, np.log(y - c), rcond=1e-3)[0]])

            def residual(p, y=y, ones=ones):
                return p[0] + np.exp(np.clip(ones @ p[1:], -50, 50)) - y

            def jacobian(p, y=y, ones=ones):
                return np.column_stack([np.ones(len(y)), np.exp(np.clip(ones @ p[1:], -50, 50))[:, None] * ones])

            fit = least_squares(residual, start, jacobian, loss="huber", f_scale=0.02, max_nfev=200, x_scale="jac")
            best = fit if best is None or fit.cost < best.cost else best
        p = best.x
        out.append(p[0] + np.exp(np.clip(p[1] + T @ p[2:], -50, 50)))
    return np.column_stack(out), None, None


def ridge(V, L, T):
    from sklearn.linear_model import RidgeCV

    fit = RidgeCV(alphas=np.logspace(-6, 2, 25), alpha_per_target=True).fit(V, L)
    return fit.predict(T), None, None


def _process(V, L, T):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    mean, sd = np.empty((len(T), L.shape[1])), np.empty((len(T), L.shape[1]))
    for j, y in enumerate(L.T):
        kernel = ConstantKernel(1.0, (1e-3, 1e5)) * Matern(1.0, (1e-2, 1e3), nu=2.5) + WhiteKernel(0.1, (1e-6, 1e1))
        fit = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0).fit(V, y)
        mean[:, j], sd[:, j] = fit.predict(T, return_std=True)
    return mean, mean - Z90 * sd, mean + Z90 * sd


def gp(V, L, T):
    return _process(V, L, T)


def gp_log(V, L, T):
    """The same on log(share + 0.001), the best of the transforms tried on training runs."""
    return _process(np.log(V + 1e-3), L, np.log(T + 1e-3))


METHODS: dict[str, Callable] = {
    "ours": ours,
    "law alone": law_alone,
    "LightGBM": lightgbm,
    "exp-linear": exp_linear,
    "ridge": ridge,
    "GP": gp,
    "GP of log shares": gp_log,
}


def read(name: str) -> tuple[np.ndarray, list[str]]:
    """Read one RegMix table, sorted by its run id."""
    with (DATA / name).open() as handle:
        rows = list(csv.reader(handle))
    body = np.array(rows[1:], dtype=float)
    return body[body[:, 0].argsort()], rows[0]


def judge(predicted: tuple, truth: np.ndarray, targets: list[str]) -> dict[str, float]:
    mean, low, high = predicted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant prediction has no rank correlation: it counts as zero
        rank = np.nan_to_num([spearmanr(mean[:, j], truth[:, j]).statistic for j in range(truth.shape[1])])
    scores = {
        "spearman": float(rank.mean()),
        "worst": float(rank.min()),
        "pile_cc": float(rank[next(j for j, t in enumerate(targets) if "pile_cc" in t)]),
        "nrmse": float((np.sqrt(((mean - truth) ** 2).mean(axis=0)) / truth.std(axis=0)).mean()),
    }
    if low is not None:
        missed = np.maximum(low - truth, 0.0) + np.maximum(truth - high, 0.0)
        spread = truth.std(axis=0)
        scores["coverage"] = float((missed == 0).mean())
        scores["width"] = float(((high - low) / spread).mean())
        scores["interval_score"] = float((((high - low) + 20.0 * missed) / spread).mean())
    return scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--subsets", type=int, default=SUBSETS)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    logging.disable(logging.WARNING)
    if not DATA.is_dir():
        sys.exit(f"{DATA} is missing: RegMix's tables are needed.")
    V, _ = read("train_mixture_1m.csv")
    L, header = read("train_pile_loss_1m.csv")
    T, _ = read("test_mixture_1m.csv")
    assert (V[:, 0] == L[:, 0]).all()
    V, L, T = V[:, 1:], L[:, 1:], T[:, 1:]
    V, T = V / V.sum(axis=1, keepdims=True), T / T.sum(axis=1, keepdims=True)
    truth = {"1M": read("test_pile_loss_1m.csv")[0][:, 1:], "60M": read("test_pile_loss_60m.csv")[0][:, 1:]}
    rows = []
    for size in arguments.sizes:
        for subset in range(1 if size == len(V) else arguments.subsets):
            chosen = np.random.default_rng(subset).permutation(len(V))[:size]
            for name, method in METHODS.items():
                start = time.process_time()  # CPU seconds: the machine may be shared
                predicted = method(V[chosen], L[chosen], T)
                row = {"method": name, "runs": size, "subset": subset, "seconds": time.process_time() - start}
                for model, losses in truth.items():
                    row |= {f"{key}_{model}": value for key, value in judge(predicted, losses, header[1:]).items()}
                rows.append(row)
        print(f"fitted {size} runs", file=sys.stderr, flush=True)
        write(rows, arguments.out)  # a killed run keeps the sizes it finished


def write(rows: list[dict], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (out / "published_tables.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        writer.writerows([{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows])
    sizes = sorted({row["runs"] for row in rows})

    def values(method: str, size: int, key: str) -> np.ndarray:
        return np.array([r.get(key, np.nan) for r in rows if r["method"] == method and r["runs"] == size], dtype=float)

    lines = [
        "# Published tables: RegMix, 13 validation losses, 256 test mixtures",
        "",
        f"`{' '.join(['python', *sys.argv])}` on {platform.processor() or platform.machine()}, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}, Python {platform.python_version()}, "
        + ", ".join(f"{p} {version(p)}" for p in ("numpy", "scipy", "scikit-learn", "lightgbm"))
        + ".",
        "",
        "Mean ± standard deviation over the subsets (20 a size; at 512 there is one, all runs). LightGBM: RegMix's",
        "settings, 1000 rounds, no early stopping, at least min(20, runs / 12) rows a leaf (with RegMix's 20, 32 rows",
        "could not be split). Both Gaussian processes: scikit-learn, isotropic Matérn 5/2, noise. Interval score and",
        "width are in standard deviations of the test loss (90 % intervals; lower is better).",
    ]
    for title, key, factor in (
        ("Mean Spearman, 1M test mixtures (×100)", "spearman_1M", 100),
        ("Mean Spearman, 60M test mixtures (×100)", "spearman_60M", 100),
        ("Worst target's Spearman, 1M (×100)", "worst_1M", 100),
        ("Worst target's Spearman, 60M (×100)", "worst_60M", 100),
        ("Pile-CC's Spearman, 1M (×100)", "pile_cc_1M", 100),
        ("Pile-CC's Spearman, 60M (×100)", "pile_cc_60M", 100),
        ("Normalised root mean square error, 1M", "nrmse_1M", 1),
        ("Coverage of 90 % intervals, 1M (%)", "coverage_1M", 100),
        ("Width of 90 % intervals, 1M", "width_1M", 1),
        ("Interval score, 1M", "interval_score_1M", 1),
        ("CPU seconds, one core, fit and predict 13 capabilities", "seconds", 1),
    ):
        lines += [
            "",
            f"## {title}",
            "",
            "| method | " + " | ".join(map(str, sizes)) + " |",
            "|---" * (len(sizes) + 1) + "|",
        ]
        for method in METHODS:
            cells = [values(method, size, key) for size in sizes]
            if np.isnan(np.concatenate(cells)).all():
                continue
            text = [
                f"{factor * c.mean():.2f}" + (f" ± {factor * c.std(ddof=1):.2f}" if len(c) > 1 else "") for c in cells
            ]
            lines.append(f"| {method} | " + " | ".join(text) + " |")
    lines += ["", "## Ours against the best other method, paired over subsets (mean Spearman ×100)", ""]
    lines += ["| test | runs | best other | difference ± sd | n | paired t, p |", "|---|---|---|---|---|---|"]
    paired = []
    for model in ("1M", "60M"):
        for size in sizes:
            others = {m: values(m, size, f"spearman_{model}").mean() for m in METHODS if m not in {"ours", "law alone"}}
            best = max(others, key=others.__getitem__)
            gap = 100 * (values("ours", size, f"spearman_{model}") - values(best, size, f"spearman_{model}"))
            p = float(ttest_rel(gap, np.zeros_like(gap)).pvalue) if len(gap) > 1 else float("nan")
            spread = f" ± {gap.std(ddof=1):.2f}" if len(gap) > 1 else ""
            lines.append(f"| {model} | {size} | {best} | {gap.mean():+.2f}{spread} | {len(gap)} | {p:.1e} |")
            paired.append({
                "test": model,
                "runs": size,
                "best_other": best,
                "difference": gap.mean(),
                "p": p,
                "n": len(gap),
            })
    (out / "published_tables.md").write_text("\n".join(lines) + "\n")
    summary = {
        "command": ["python", *sys.argv],
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "versions": {p: version(p) for p in ("numpy", "scipy", "scikit-learn", "lightgbm")}
        | {"python": platform.python_version()},
        "paired": paired,
        "summary": [
            {"method": m, "runs": s}
            | {
                key: {
                    "mean": values(m, s, key).mean(),
                    "sd": values(m, s, key).std(ddof=1) if len(values(m, s, key)) > 1 else None,
                }
                for key in columns[3:]
                if not np.isnan(values(m, s, key)).all()
            }
            for m in METHODS
            for s in sizes
        ],
    }
    (out / "published_tables.json").write_text(
        json.dumps(summary, indent=1, default=float).replace("NaN", "null") + "\n"
    )
    plot(values, sizes, out)


def plot(values: Callable, sizes: list[int], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (
        ("spearman_1M", "Mean Spearman, 1M"),
        ("spearman_60M", "Mean Spearman, 60M"),
        ("coverage_1M", "Coverage of 90 % intervals, 1M"),
        ("seconds", "CPU seconds on one core"),
    )
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.2), constrained_layout=True)
    for axis, (key, title) in zip(axes, panels, strict=True):
        for k, method in enumerate(METHODS):
            mean = np.array([values(method, s, key).mean() for s in sizes])
            if np.isnan(mean).all():
                continue
            sd = np.array([values(method, s, key).std() for s in sizes])
            style = {"color": f"C{k}", "lw": 2.4 if method == "ours" else 1.3, "marker": "o", "ms": 4}
            axis.errorbar(sizes, mean, yerr=None if key == "seconds" else sd, label=method, capsize=2, **style)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(s) for s in sizes])
        axis.set_xlabel("runs fitted")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0.8, 1.0)
    axes[1].set_ylim(0.8, 1.0)
    axes[2].axhspan(0.85, 0.95, color="0.9", zorder=0)
    axes[3].set_yscale("log")
    axes[0].legend(fontsize=8, loc="lower right")
    figure.savefig(out / "published_tables.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
