"""A finished run directory from a known law, made without training: what `report` and `what-if` read."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ideal_proxy.config import dump_config, parse_config
from ideal_proxy.mixture.file import CapabilityResult, DomainVolume, MixtureFile, save_mixture
from ideal_proxy.response.model import ResponseModel

DOMAINS = ["coding", '<b>"trust" & $x_1$', "_facts"]
CAPABILITIES = ["coding", "<script>alert(1)"]
AVAILABLE = np.array([2000.0, 1000.0, 3000.0])
BASE = np.array([2000.0, 1000.0, 300.0])
PROPOSAL = np.array([2600.0, 900.0, 600.0])
TOKENS = np.array([20.0, 30.0, 10.0])
NOISE = 0.01
CONFIG: dict[str, Any] = {
    "name": "nasty <run> & co",
    "domains": [{"name": name, "path": f"/data/{n}.jsonl"} for n, name in enumerate(DOMAINS)],
    "capabilities": [{"name": name, "path": f"/data/r{n}.jsonl"} for n, name in enumerate(CAPABILITIES)],
    "budget": {"mode": "free"},
}


def true_losses(volumes: np.ndarray) -> np.ndarray:
    """Losses without noise: the first capability likes `coding`, the second the two others; (R, J)."""
    x = np.sqrt(np.atleast_2d(volumes) / 1000.0)
    weight = np.array([[2.0, 0.1, 0.0], [0.0, 0.8, 1.6]])
    return 0.5 + 2.5 / (1 + x @ weight.T)


@functools.cache
def folder(runs: int = 14, fitted: int | None = None) -> Path:
    """Write the run directory once a session, of so many runs beside base; the law may be fitted to the first alone."""
    path = Path(tempfile.mkdtemp(prefix="finished-run-"))
    rng = np.random.default_rng(0)
    design = np.vstack([BASE, BASE, BASE * np.exp(rng.uniform(-1.2, 1.2, (runs, len(BASE))))])
    seeds = np.arange(len(design)) % 2
    names = {"rows": DOMAINS, "loss": CAPABILITIES}
    losses = true_losses(design) + NOISE * rng.standard_normal((len(design), len(CAPABILITIES)))
    model = ResponseModel(available=AVAILABLE, base=BASE, process="never", harm="never", n_starts=1, n_draws=32)
    told = (pd.DataFrame(v, columns=names[n]).head(fitted) for v, n in ((design, "rows"), (losses, "loss")))
    model.fit(*told, seed_id=seeds[:fitted])
    check = np.vstack([np.stack([BASE, PROPOSAL])] * 3)
    checked = true_losses(check) + NOISE * rng.standard_normal((6, len(CAPABILITIES)))
    table = pd.concat(
        [
            _table("warm", np.zeros((1, len(BASE))), np.full((1, len(CAPABILITIES)), 3.0), [0], ids="w"),
            _table("design", design, losses, seeds, ids="d"),
            _table("verify", check, checked, [10_000, 10_000, 10_001, 10_001, 10_002, 10_002], ids="v"),
        ],
        ignore_index=True,
    )
    table.to_parquet(path / "runs.parquet", index=False)
    (path / "config.yaml").write_text(dump_config(parse_config(CONFIG)), encoding="utf-8")
    _write(path / "fit.json", model.to_json())
    _write(path / "plan.json", {"workers": 2, "dtype": "float32", "device": "cpu", "fraction": 0.25})
    _write(path / "rate.json", {"learning_rate": 0.006, "chosen": "given"})
    made = {"time": "2026-01-01T00:00:00Z", "command": "ideal-proxy search <x> --dry-run", "git": None}
    _write(path / "provenance.json", made | {"versions": {"python": "3.11"}, "machine": {"cores": 2}})
    _write(path / "prepared" / "facts.json", _facts())
    _write(path / "result.json", result())
    save_mixture(path / "mixture.json", MixtureFile(
        name="nasty", created="2026-01-01T00:00:00Z",
        capabilities=[CapabilityResult(name=n, base_loss=2.0) for n in CAPABILITIES],
        domains=[DomainVolume(name=n, source="x", fingerprint="0" * 64, available=int(a), rows=int(r))
                 for n, a, r in zip(DOMAINS, AVAILABLE, PROPOSAL, strict=True)],
    ))  # fmt: skip
    return path


def result(**changes: Any) -> dict[str, Any]:
    """Give the content of result.json, with changes."""
    here, there = true_losses(PROPOSAL)[0], true_losses(BASE)[0]
    ratio = here / there
    gain = float(1 - ratio.mean())
    around = {"value": gain, "lower": gain - 0.021, "upper": gain + 0.021}
    share, base_share = PROPOSAL * TOKENS, BASE * TOKENS
    shares = {"rows": 0.3, "tokens": 0.3, "supervised_tokens": 0.3, "loss_weight": 0.3}
    return {
        "name": CONFIG["name"],
        "steps": {"batch": "32 rows", "loss": "token", "base": 20, "proposal": 20, "change": 0.0, "may_differ": True},
        "check": {"opening": 0, "seeds_of": 0, "looks": [3], "rounds": 1, "max_pairs": 3, "max_hours": None},
        "verdict": {
            "answer": "improves", "sentence": f"improves: the objective gains {gain:+.2%} over 3 pairs", "gain": around,
            "gains_by_seed": [gain - 0.01, gain, gain + 0.01], "pairs": 3, "pairs_needed": None, "row_noise": 0.003,
            "level": 0.9875,
        },
        "predicted_gain": {"value": gain + 0.01, "lower": gain - 0.02, "upper": gain + 0.04},
        "free": {
            "rows": {name: int(2 * x) for name, x in zip(DOMAINS, PROPOSAL, strict=True)},
            "predicted_gain": {"value": 0.077, "lower": 0.01, "upper": 0.1},
            "capabilities": {name: _bound(0.9 + 0.3 * j, 0.02) for j, name in enumerate(CAPABILITIES)},
        },
        "domains": [
            {
                "name": name, "available": int(AVAILABLE[i]), "base_rows": int(BASE[i]),
                "proposal_rows": int(PROPOSAL[i]), "change": float(PROPOSAL[i] / BASE[i] - 1), "tokens": int(share[i]),
                "base_tokens": int(base_share[i]),
                "share": float(share[i] / share.sum()), "base_share": float(base_share[i] / base_share.sum()),
                "repeat": float(PROPOSAL[i] / AVAILABLE[i]), "moves": [float(0.8 * PROPOSAL[i]), 1.3 * PROPOSAL[i]],
                "base_shares": shares, "shares": shares,
            }
            for i, name in enumerate(DOMAINS)
        ],
        "capabilities": [
            {
                "name": name, "base_loss": float(there[j]), "proposal_loss": float(here[j]),
                "predicted": _bound(ratio[j], 0.03), "verified": _bound(ratio[j] + 0.004, 0.02),
                "change": "surely better" if j else "open", "protection": "not proven", "tolerance": 0.02,
            }
            for j, name in enumerate(CAPABILITIES)
        ],
        "leeway": {"slack": 0.004, "open": [], "unsettled": []},
        "noise": {"run": 0.01, "seed": 0.002},
        "optimum": {"scope": "global optimum", "active": ["repeat cap: <coding>"]},
        "warnings": ["coding <i>and</i> more"],
        "rounds": [
            {"round": 1, "predicted_gain": around, "rows": [int(x) for x in PROPOSAL]},
        ],
        "proxy": {"parameters": 121_152, "fraction": 0.25, "size": "0.1M"},
        "cost": {"runs": 23, "tokens": 23_000, "seconds": 230.0, "rounds": 1},
    } | changes  # fmt: skip


def _bound(value: float, half: float) -> dict[str, float]:
    return {"value": float(value), "lower": float(value - half), "upper": float(value + half)}


def _facts() -> dict[str, Any]:
    domains = [
        {
            "name": name, "source": f"/data/{i}.jsonl", "format": "auto", "fingerprint": f"{i}" * 64,
            "available": int(AVAILABLE[i]), "base": int(BASE[i]), "lower": 0, "upper": int(4 * AVAILABLE[i]),
            "tokens_per_row": float(TOKENS[i]), "supervised_per_row": 5.5, "reserved": 300, "truncated": 7 * (i == 1),
            "dropped": 0, "longest": 40,
        }
        for i, name in enumerate(DOMAINS)
    ]  # fmt: skip
    capabilities = [
        {"name": name, "source": f"/data/r{j}.jsonl", "format": "auto", "fingerprint": f"{j + 5}" * 64, "rows": 400,
         "search_rows": 201, "verify_rows": 199, "supervised_tokens": 2000, "truncated": 0}
        for j, name in enumerate(CAPABILITIES)
    ]  # fmt: skip
    health = {"duplicates": ["coding and _facts share 12 equal rows"], "leaks": [], "few": [], "stamps": {},
              "left_out": ["domain coding: 2 rows cannot be read: not valid JSON (first: c.jsonl:4)"]}  # fmt: skip
    return {
        "domains": domains, "capabilities": capabilities, "health": health, "vocabulary": 320, "template": {},
        "context": {"tokens": 512, "reason": "by the run file"}, "base_model": {},
    }  # fmt: skip


def _table(role: str, volumes: np.ndarray, losses: np.ndarray, seeds: Any, *, ids: str) -> pd.DataFrame:
    names = [f"{ids}{k}" for k in range(len(volumes))]
    return pd.DataFrame(
        {"run": names, "role": role, "seed": seeds, "learning_rate": 0.006}
        | {f"rows/{name}": volumes[:, i] for i, name in enumerate(DOMAINS)}
        | {f"search_loss/{name}": losses[:, j] for j, name in enumerate(CAPABILITIES)}
        | {"rows": 100, "tokens": 1000, "supervised_tokens": 400, "steps": 10, "flops": 3e8, "seconds": 10.0}
    )


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
