"""Workers map the tokenised data: a machine holds it once, and a worker's own memory does not grow with it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from builders import TESTS, make_rows, spec

from ideal_proxy.data.tokens import TokenRows
from ideal_proxy.swarm.context import SwarmContext, prepare_context
from ideal_proxy.swarm.scheduler import Swarm, SwarmEvent, warm_spec

MEGABYTE = 1 << 20


def large(tokens: int) -> TokenRows:
    rng = np.random.default_rng(0)
    offsets = np.arange(0, tokens + 1, 2000, dtype=np.int64)
    return TokenRows(
        ids=rng.integers(0, 48, tokens).astype(np.int32), supervised=rng.random(tokens) < 0.5, offsets=offsets,
        keys=rng.integers(0, 2**63, len(offsets) - 1).astype(np.uint64), source_index=np.arange(len(offsets) - 1),
    )  # fmt: skip


def test_counting_supervised_tokens_in_blocks(monkeypatch):
    monkeypatch.setattr("ideal_proxy.data.tokens.COUNTED_ROWS", 7)
    for count in (1, 6, 7, 8, 50):
        rows = make_rows(count, 2, count)
        ends = zip(rows.offsets[:-1], rows.offsets[1:], strict=True)
        assert rows.supervised_tokens.tolist() == [int(rows.supervised[a:b].sum()) for a, b in ends]


@pytest.mark.usefixtures("real_workers")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc for what a process maps")
def test_two_workers_hold_the_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    own: dict[int, dict[int, float]] = {}
    for tokens in (2_000, 20_000_000):  # the larger one is 100 MB on disk
        context = prepare_context(
            SwarmContext(
                folder=tmp_path / f"context-{tokens}", domains=("a", "b"), references=("a",), available=(1, 1),
                size="0.1M", vocab_size=48, context=32, warm=True,
            ),
            domains=[large(tokens), make_rows(10, 5, 1)], references=[make_rows(5, 2, 2)],
            reserved=[make_rows(60, 2, 4), make_rows(60, 5, 5)],
        )  # fmt: skip
        data = (context.folder / "domains" / "0000" / "ids.npy").resolve()
        mapped: dict[int, float] = {}
        seen = own[tokens] = {}

        def look(event: SwarmEvent, data: Path = data, mapped: dict[int, float] = mapped, seen=seen) -> None:
            if event.kind == "step":
                maps = psutil.Process(event.pid).memory_maps()
                mapped |= {event.pid: sum(m.rss for m in maps if m.path == str(data))}
                assert not sum(m.anonymous for m in maps if m.path == str(data))  # no page was copied
                seen[event.pid] = sum(m.anonymous for m in maps) / MEGABYTE

        runs = [spec(f"run{n}", (5, 5), seed=n, learning_rate=0.2) for n in range(2)]
        with Swarm(context, tmp_path / f"run-{tokens}", workers=2, worker="counting_worker") as swarm:
            swarm.run([warm_spec(context, 0)])
            swarm.run(runs, on_event=look)
        assert len(seen) == 2
        assert min(mapped.values()) >= 4 * tokens * 0.9  # all of it was read, to be checked
    growth = np.mean(list(own[20_000_000].values())) - np.mean(list(own[2_000].values()))
    assert growth < 12  # MB, of 100 MB of data: keys and orders of rows, no token
