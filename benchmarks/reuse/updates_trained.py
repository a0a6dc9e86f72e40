"""Five updates in a row on sft5 by source, every run really trained, by the product as a user calls it.

    OMP_NUM_THREADS=1 python benchmarks/reuse/updates_trained.py --sequences 3

The stages of `updates_sources.py` with the data and settings of `sources.py`. A sequence: a search, five times `search
--reuse` of the one before, and a fresh search of the last stage with 3(n + 1) runs. Then the last proposals of both
arms, and base, are trained anew with the same seeds, by proxies of their own (tokenizer and warm start belong to
neither arm) on reference rows that no search saw. The smallest check (2 pairs) is left out of every count. A call that
was stopped goes on. What came out is written to `updates_trained.json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]
from sources import BASE, JUDGED, KINDS, RATE, SFT5, run_file  # noqa: E402
from updates_sources import updates  # noqa: E402

STAGES = updates.STAGES  # of sources, since `updates_sources` was imported

OUT = Path(__file__).with_suffix(".json")


def stage_file(place: Path, domains: dict[str, str], seed: int, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Give the run file of a stage of the data; a domain of several sources is a file of its own."""
    sources = run_file(place / "data", 0.12)
    entries = []
    for name, atoms in domains.items():
        path = place / "data" / f"{name.replace('/', '-')}_of_{atoms.count(' ') + 1}.jsonl"
        if not path.exists():
            path.write_text("".join((place / "data" / f"{atom}.jsonl").read_text("utf-8") for atom in atoms.split()))
        entries.append({"name": name, "path": str(path), "base": BASE * len(atoms.split())})
    capabilities = [c for c in sources["capabilities"] if c["name"] in kinds]
    return sources | {
        "domains": entries, "capabilities": capabilities, "seed": seed, "verify": {"pairs": 2, "max_pairs": 2},
        "swarm": {"runs": 3 * (len(entries) + 1), "workers": 2},
    }  # fmt: skip


def search(place: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Run or resume a search, and give its proposal and what it trained."""
    import pandas as pd

    from ideal_proxy.config import parse_config
    from ideal_proxy.pipeline.outer_loop import run_search
    from ideal_proxy.terminal import Reporter

    result = run_search(parse_config(values), place, Reporter())
    frame = pd.read_parquet(place / "runs.parquet")
    swarm = frame[frame["role"].isin(["design", "sweep"])]
    proposal = {row["name"]: int(row["proposal_rows"]) for row in result["domains"]}
    return {
        "proposal": proposal, "runs": len(swarm), "tokens": int(swarm["tokens"].sum()),
        "predicted": result["predicted_gain"], "verdict": result["verdict"]["answer"],
    }  # fmt: skip


def sequence(place: Path, seed: int) -> dict[str, Any]:
    """Take one search through the five updates, and search the last stage afresh."""
    arms: dict[str, Any] = {"seed": seed, "stages": []}
    before: list[str] = []
    for number, (name, domains, count) in enumerate(STAGES):
        values = stage_file(place.parent, domains, seed, KINDS[:count])
        if before:
            del values["swarm"]["runs"]
        folder = place / f"{number}"
        arms["stages"].append(search(folder, values | {"reuse": before}) | {"stage": name})
        before = [str(folder)]
    name, domains, count = STAGES[-1]
    arms["fresh"] = search(place / "fresh", stage_file(place.parent, domains, seed + 100, KINDS[:count]))
    return arms


def judge(place: Path, mixtures: list[dict[str, int]], seeds: int) -> tuple[np.ndarray, list[float]]:
    """Train base and mixtures with the same seeds; losses of unseen rows, shape (mixtures + 1, seeds, capabilities)."""
    from ideal_proxy.config import parse_config
    from ideal_proxy.pipeline.context import reference
    from ideal_proxy.pipeline.outer_loop import open_laboratory
    from ideal_proxy.pipeline.stage import Stage
    from ideal_proxy.terminal import Reporter

    values = stage_file(place, STAGES[-1][1], 7, KINDS)
    for capability in values["capabilities"]:
        lines = (SFT5 / capability["name"] / "reference.jsonl").read_text("utf-8").splitlines(keepends=True)
        seen = set(lines[:: len(lines) // JUDGED][:JUDGED])
        path = place / "data" / f"unseen-{capability['name']}.jsonl"
        path.write_text("".join(line for line in lines if line not in seen), encoding="utf-8")
        capability["path"] = str(path)
    with open_laboratory(parse_config(values), place / "judge", Reporter()) as laboratory:
        laboratory.warm_start()
        domains = laboratory.prepared.domains
        volumes = [domains.base, *(np.array([m[name] for name in domains.names], dtype=float) for m in mixtures)]
        specs = [[laboratory._spec(v, 900 + s, "verify", RATE) for s in range(seeds)] for v in volumes]
        laboratory._run(Stage.CHECK, [spec for row in specs for spec in row], role="verify")
        names = [[reference(j, side) for side in ("search", "verify")] for j in range(len(KINDS))]

        def loss(found: Any, sides: list[str]) -> float:
            rows = [found.losses[name] for name in sides]
            return sum(r.loss_sum.sum() for r in rows) / sum(r.tokens.sum() for r in rows)

        table = [[[loss(laboratory._results[s.id], n) for n in names] for s in row] for row in specs]
        return np.array(table), [float(v @ domains.lengths) for v in volumes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/updates_trained"))
    parser.add_argument("--sequences", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5, help="of the last comparison")
    given = parser.parse_args()
    if not SFT5.exists():
        parser.error(f"{SFT5} is missing")
    from ideal_proxy.provenance import provenance
    from ideal_proxy.store import atomic_write_json

    place = given.out.resolve()
    found = [sequence(place / str(k), k) for k in range(given.sequences)]
    both = [m for arms in found for m in (arms["stages"][-1]["proposal"], arms["fresh"]["proposal"])]
    losses, tokens = judge(place, both, given.seeds)
    atomic_write_json(OUT, {
        "sequences": found, "losses": losses.tolist(), "tokens": tokens, "capabilities": list(KINDS),
        "seeds": given.seeds, "provenance": provenance(),
    })  # fmt: skip
    summary(found, losses)


def summary(found: list[dict[str, Any]], losses: np.ndarray) -> None:
    """Print the compute and the difference of the two arms' last proposals."""
    gains = 100 * (1 - (losses[1:] / losses[0]).mean(axis=2))  # (arms of all sequences, seeds)
    print("| sequence | new runs of the five updates | fresh runs | gain reused | gain fresh | fresh − reused |")
    print("|---|---|---:|---:|---:|---|")
    half = student.ppf(0.95, gains.shape[1] - 1) / gains.shape[1] ** 0.5
    for k, arms in enumerate(found):
        a, b = gains[2 * k], gains[2 * k + 1]
        new = [stage["runs"] for stage in arms["stages"][1:]]
        print(
            f"| {k + 1} | {' + '.join(map(str, new))} | {arms['fresh']['runs']} | {a.mean():+.2f} | {b.mean():+.2f} | "
            f"{(b - a).mean():+.2f} ± {half * (b - a).std(ddof=1):.2f} |"
        )
    by_seed = (gains[1::2] - gains[::2]).mean(axis=0)  # sequences share the seeds
    spread = half * by_seed.std(ddof=1)
    print(f"\nfresh less reused, mean of all: {by_seed.mean():+.2f} ± {spread:.2f} points (90 %, {len(by_seed)} seeds)")


if __name__ == "__main__":
    main()
