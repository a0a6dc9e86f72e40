"""Domains are told apart by their rows: what was added, removed, renamed, grown, filtered, split or merged."""

from __future__ import annotations

import numpy as np
import pytest

from ideal_proxy.pipeline.changes import compare_domains, data_changed, move_runs
from ideal_proxy.pipeline.earlier_runs import EarlierRun, Package
from ideal_proxy.pipeline.row_record import RowRecord

RNG = np.random.default_rng(7)
A, B, C, NEW = (RNG.integers(0, 2**63, count).astype(np.uint64) for count in (400, 300, 200, 250))


def record(**domains):
    pools = tuple(keys[keys % np.uint64(7) != 0] for keys in domains.values())
    reserved = tuple(keys[keys % np.uint64(7) == 0] for keys in domains.values())
    return RowRecord(
        domains=tuple(domains), pools=pools, reserved=reserved, available=tuple(len(p) - 5 for p in pools),
        fraction=0.5, references=(), reference_keys=(), reference_groups=(),
    )  # fmt: skip


def package(rows, seeds, **domains):
    runs = tuple(
        EarlierRun(id=f"r{n}", rows=r, seed=s, weights="", tokens=1, seconds=1.0)
        for n, (r, s) in enumerate(zip(rows, seeds, strict=True))
    )
    nothing = np.zeros((len(runs), 0))
    return Package(
        name="old", record=record(**domains), runs=runs, keys=np.zeros(0, np.uint64), loss_sum=nothing,
        tokens=np.zeros(0), before=np.zeros(0), proxies={},
    )  # fmt: skip


OLD = {"a": A, "b": B, "c": C}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"a": A, "b": B, "c": C}, {"a": "same", "b": "same", "c": "same"}),
        ({"z": A[::-1], "b": B, "c": C}, {"z": "renamed", "b": "same", "c": "same"}),
        ({"a": np.concatenate([A, NEW]), "b": B[:150], "n": NEW}, {"a": "grown", "b": "filtered"}),
        ({"a/1": A[:150], "a/2": A[150:], "n": NEW, "b": B, "c": C}, {"a/1+a/2": "split", "n": "added"}),
        ({"ab": np.concatenate([A, B]), "c": np.concatenate([C[:100], NEW])}, {"ab": "merged", "c": "refilled"}),
        ({"a": A, "b": B}, {"a": "same", "b": "same", "-c": "removed"}),
        # names lie: b holds the rows of a
        ({"b": A, "a": B, "c": C}, {"b": "renamed", "a": "renamed", "c": "same"}),
    ],
)
def test_changes_are_told_by_content(now, said):
    found = compare_domains(record(**OLD), list(now), list(now.values()))
    named = {"+".join(c.new) or f"-{c.old[0]}": c.kind for c in found}
    assert said.items() <= named.items()
    assert data_changed(found) == (not set(named.values()) <= {"same", "renamed"})


def test_a_stray_row_relates_nothing():
    found = compare_domains(record(**OLD), ["a", "n"], [np.concatenate([A, B[:2]]), np.concatenate([NEW, C[:2]])])
    assert {str(c) for c in found} == {
        "a: the same rows", "n: added, 252 rows", "b: removed, 300 rows", "c: removed, 200 rows",
    }  # fmt: skip


def test_a_split_counts_the_rows_really_drawn():
    rows, seeds = [(200, 10, 50), (900, 300, 0), (0, 20, 300)], [0, 1, 0]
    earlier = package(rows, seeds, **OLD)
    kept = A[:150]
    moved = move_runs(earlier, [kept, B, A[150:]])
    assert moved.retired == ("c",)
    np.testing.assert_allclose(moved.retired_volumes[:, 0], np.array(rows)[:, 2] / 0.5)
    np.testing.assert_allclose(moved.volumes[:, 1], np.array(rows)[:, 1] / 0.5)
    np.testing.assert_allclose(moved.volumes[:, 0] + moved.volumes[:, 2], np.array(rows)[:, 0] / 0.5)
    times = earlier.record.times_drawn(1, 0, 900)
    assert moved.volumes[1, 0] == times[np.isin(earlier.record.pools[0], kept)].sum() / 0.5
    assert moved.retired_available.tolist() == [200]
    assert 0 < moved.kept < 1


def test_half_a_domain_filtered_away_is_retired_and_nothing_is_lost():
    earlier = package([(200, 100, 60)], [3], **OLD)
    moved = move_runs(earlier, [A[:200], B, C[:198]])  # two of c's rows are too few to matter
    assert moved.retired == ("a",)
    assert moved.volumes.sum() + moved.retired_volumes.sum() == pytest.approx(360 / 0.5)
    assert moved.volumes[0, 2] == 60 / 0.5
    assert moved.retired_available.tolist() == [200]
