"""A trainer of somebody's own, for the tests: it reads rows as they are handed out and reports by a law of its own."""

from __future__ import annotations

import collections
import json
import math
import os
import sys
import time
from pathlib import Path

NAMES = ("strings", "formats", "facts")


def main(run: Path, how: str) -> None:
    wanted = json.loads((run / "run.json").read_text())
    with open(Path(wanted["data"]) / "train.jsonl") as lines:
        rows = [json.loads(line) for line in lines]
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)
    assert sum(wanted["rows"].values()) == len(rows)
    if how == "slow":
        (run.parent / "child.pid").write_text(str(os.getpid()))
        time.sleep(60)
    if how == "fails":
        sys.exit("no such flag: --bf17")
    if how == "nothing":
        return
    losses: dict[str, dict] = collections.defaultdict(dict)
    scores: dict[str, dict] = collections.defaultdict(dict)
    for split, places in wanted["references"].items():
        for name, place in places.items():
            count = len(Path(place).read_bytes().splitlines())
            own, rest = wanted["rows"].get(name, 0), sum(wanted["rows"].values())
            noise = 0.002 * math.sin(1000 * wanted["seed"] + 7 * own)
            mean = 1.0 + 2.0 / (1 + own / 40) ** 0.5 + 0.3 * (1 - own / max(rest, 1)) + noise
            losses[split][name] = mean
            scores[split][name] = -mean
            if how == "rows":
                losses[split][name] = {"loss_sum": [10 * mean + n for n in range(count)], "tokens": [10] * count}
            if how == "few":
                losses[split][name] = {"loss_sum": [1.0]}
    (run / "results.json").write_text(json.dumps({"losses": losses, "scores": scores}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
