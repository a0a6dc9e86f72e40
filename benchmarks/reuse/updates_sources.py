"""Five updates in a row on sft5 by source: surfaces fitted to real proxies stand for the truth.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/reuse/updates_sources.py --repeats 10

As `updates.py`, but the atoms are the 18 sources of sft5, and a repeat's truth is the response fitted to a resample of
the runs that `sources.py` trained (runs drawn again with replacement, each source's own two left in), a run's noise
what that fit leaves. `mbpp` and `creak` are added, the three sets of GPTeacher are split in two, of two sets of common
sense one stays, `bbq` is removed, the capability `trust` is added. A row a repeat and stage is appended to
`updates_sources.jsonl`; what stands there is not done again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]
import updates  # noqa: E402
from sources import OUT as POOL  # noqa: E402

FOUND = json.loads(POOL.read_text())
ATOMS = tuple(FOUND["domains"])
ALONE = [name for name in ATOMS if not name.startswith("gpteacher") and name not in ("strategyqa", "sensemaking")]
LATER, GONE = ("mbpp", "creak"), "bbq"
ADDED = {name: name for name in ALONE} | {
    "gpteacher": "gpteacher-code gpteacher-roleplay gpteacher-tool", "commonsense": "strategyqa sensemaking",
}  # fmt: skip
FIRST = {name: atoms for name, atoms in ADDED.items() if name not in LATER}
SPLIT = {name: atoms for name, atoms in ADDED.items() if name != "gpteacher"} | {
    "gpteacher/code": "gpteacher-code", "gpteacher/talk": "gpteacher-roleplay gpteacher-tool",
}  # fmt: skip
FILTERED = SPLIT | {"commonsense": "strategyqa"}
REMOVED = {name: atoms for name, atoms in FILTERED.items() if name != GONE}


class RealWorld(updates.World):
    """The response of real proxies, fitted to a resample of their runs."""

    def __post_init__(self) -> None:
        from ideal_proxy.response import ResponseModel

        rng = np.random.default_rng([23, self.seed])
        self.supply = np.array(FOUND["available"])
        self.rows = [rng.integers(0, 2**63, int(n)).astype(np.uint64) for n in self.supply]
        volumes, losses = np.array(FOUND["volumes"]), np.array(FOUND["losses"])
        lacks = np.flatnonzero((volumes == 0).any(axis=1))
        pool = np.setdiff1d(np.arange(len(volumes)), lacks)
        kept = np.concatenate([lacks, np.unique(rng.choice(pool, len(pool)))])
        self.model = ResponseModel(
            available=self.supply,
            base=np.array(FOUND["base"]),
            harm="never",
            process="never",
            n_draws=2,
            random_state=0,
        )
        V, L = (
            pd.DataFrame(values[kept], columns=names)
            for values, names in ((volumes, list(ATOMS)), (losses, FOUND["capabilities"]))
        )
        self.model.fit(V, L, seed_id=np.array(FOUND["seeds"])[kept], baseline_loss=FOUND["before"], own=[-1] * 5)
        self.Z = np.array(FOUND["before"])
        updates.RUN_NOISE = self.model.residual_scale_ / losses.mean(axis=0)
        updates.SEED_NOISE = self.model.seed_scale_ / losses.mean(axis=0)

    def losses(self, atoms_RA: np.ndarray) -> np.ndarray:
        """Mean losses of mixtures of sources, rows."""
        return self.model.values_and_gradients(np.asarray(atoms_RA, dtype=float))[0]


updates.World, updates.ATOMS, updates.OUT = RealWorld, ATOMS, Path(__file__).with_suffix(".jsonl")
updates.STAGES = (
    ("first", FIRST, 4), ("two added", ADDED, 4), ("one split", SPLIT, 4), ("one halved", FILTERED, 4),
    ("one removed", REMOVED, 4), ("capability added", REMOVED, 5),
)  # fmt: skip


if __name__ == "__main__":
    updates.main()
