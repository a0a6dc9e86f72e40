"""Which rows a run trained on is known from the record alone, without token arrays."""

from __future__ import annotations

import numpy as np
import pytest
from builders import make_context, make_rows, spec

from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.row_record import load_record, record_of, save_record
from ideal_proxy.swarm.context import draw_run


def record_from(context):
    sets = [context.reference_rows(name) for name in context.references]
    return record_of(
        context.domains,
        context.domain_rows(),
        context.reserved_rows(),
        context.available,
        0.5,
        context.references,
        sets,
    )


def test_a_run_is_known_row_by_row(tmp_path):
    context = make_context(tmp_path / "swarm")
    save_record(tmp_path / "rows.npz", record_from(context))
    record = load_record(tmp_path / "rows.npz")
    run = spec("repeats", (455, 37), seed=5)
    rows = context.domain_rows()
    domain, row = draw_run(context, rows, run)
    for i, count in enumerate(run.rows):
        trained = np.bincount(row[domain == i], minlength=len(rows[i]))
        np.testing.assert_array_equal(record.times_drawn(5, i, count), trained)
        assert record.times_drawn(5, i, count).sum() == count
        assert (record.times_drawn(6, i, count) != trained).any()
    assert set(record.whole(0)) == set(rows[0].keys) | set(context.reserved_rows()[0].keys)
    # keys, not tokens: 8 bytes a row
    assert (tmp_path / "rows.npz").stat().st_size < 8 * (220 + 240 + 120 + 2 * 60) + 6000


def test_a_damaged_record_is_told(tmp_path):
    (tmp_path / "rows.npz").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(UserError, match=r"rows\.npz cannot be read"):
        load_record(tmp_path / "rows.npz")


def test_split_groups_are_kept_by_half():
    sets = [make_rows(10, 2, s) for s in range(4)]
    record = record_of((), [], [], (), 0.5, ("search-0", "search-1", "verify-0", "verify-1"), sets)
    expected = np.unique(np.concatenate([sets[2].keys, sets[3].keys]))
    np.testing.assert_array_equal(record.half("verify"), expected)
