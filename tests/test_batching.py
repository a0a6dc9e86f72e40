"""Loss, step, epochs and budget of a run file: what they mean, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ideal_proxy.batching import Batch
from ideal_proxy.config import dump_config, load_config, parse_config, range_of
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.report.steps import shares_table, steps_text


def read(**more: Any) -> Any:
    names = ("a", "b", "c")
    raw = {"domains": [{"name": n, "path": n} for n in names], "capabilities": [{"name": "a", "path": "x"}]}
    return parse_config(raw | more)


def test_defaults_are_todays() -> None:
    config = read()
    assert (config.loss, config.batch.rows, config.batch.tokens, config.base.epochs) == ("token", 32, None, 1)
    assert (config.limits.budget.kind, config.limits.budget_unit, config.kept_beside) == ("keep", "tokens", None)
    assert read(proxy={"batch_rows": 8}).batch == Batch(rows=8), "the older way to write it"
    assert read(proxy={"batch_rows": 8}) == read(batch={"rows": 8})


@pytest.mark.parametrize(
    ("budget", "batch", "kind", "unit", "beside"),
    [
        ({"steps": "keep"}, {"rows": 32}, "keep", "rows", None),
        ({"steps": "keep"}, {"tokens": 900}, "keep", "tokens", None),
        ({"tokens": "keep", "steps": "keep"}, {"rows": 32}, "keep", "tokens", "rows"),
        ({"tokens": "keep", "steps": "keep"}, {"tokens": 900}, "keep", "tokens", None),
        ({"rows": "at_most", "steps": "keep"}, {"tokens": 900}, "at most", "rows", "tokens"),
        ({"rows": "at_most", "steps": "keep"}, {"rows": 32}, "keep", "rows", None),
        ({"unit": "rows", "mode": "free"}, {"rows": 32}, "free", "rows", None),
    ],
)
def test_steps_kept_are_a_total_kept(budget: dict, batch: dict, kind: str, unit: str, beside: str | None) -> None:
    config = read(budget=budget, batch=batch)
    assert (config.limits.budget.kind, config.limits.budget_unit, config.kept_beside) == (kind, unit, beside)


def test_a_run_file_survives_the_disk(tmp_path: Any) -> None:
    config = read(budget={"steps": "keep"}, batch={"tokens": 900}, loss="row", base={"epochs": 3})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    again = load_config(tmp_path / "config.yaml")
    assert (again.budget, again.batch, again.loss, again.base) == (
        config.budget,
        config.batch,
        config.loss,
        config.base,
    )
    assert yaml.safe_load(dump_config(again)) == yaml.safe_load(dump_config(again))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"batch": {"rows": 3, "tokens": 4}}, "either rows or tokens"),
        ({"batch": {"rows": 3}, "proxy": {"batch_rows": 4}}, "differ"),
        ({"loss": "word"}, "'token' or 'row'"),
        ({"budget": {"tokens": "keep", "unit": "rows"}}, "either tokens, or unit and mode"),
        ({"budget": {"steps": "keep", "total": 100}}, "leave total out"),
        ({"base": {"epochs": 0}}, "base.epochs"),
    ],
)
def test_what_contradicts_itself_is_refused(more: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read(**more)


def test_the_repeat_cap_counts_the_base_epochs() -> None:
    domain = read().domains[0]
    assert range_of(domain, 100, 4.0, 3) == (300, 0, 400)
    with pytest.raises(UserError, match=r"needs 500 rows of 100.*max_repeat 4.*or its epochs"):
        range_of(domain, 100, 4.0, 5)


def test_steps_are_said_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"batch": "32 rows", "loss": "token", "base": 100, "may_differ": True}
    assert "the proposal's may differ" in steps_text(steps)
    assert "may differ" not in steps_text(steps | {"may_differ": False})
    near = steps_text(steps | {"proposal": 101, "change": 0.01, "tokens_change": 0.0})
    assert near.endswith("base 100, proposal 101.")
    more = steps_text(steps | {"proposal": 127, "change": 0.27, "tokens_change": -0.001})
    assert "the proposal takes 27% more steps at the same number of tokens; budget: {steps: keep}" in more
    fewer = steps_text(steps | {"proposal": 90, "change": -0.1, "tokens_change": 0.12})
    assert "10% fewer steps at 12% more tokens" in fewer
    monkeypatch.setenv("COLUMNS", "60")
    shares = dict.fromkeys(("rows", "tokens", "supervised_tokens", "loss_weight"), 0.123)
    shown = shares_table("What each domain is of it", [{"name": "a-long-domain-name", "shares": shares}])
    assert max(map(len, shown.splitlines())) <= 60
    assert shown.count("12.3%") == 4
