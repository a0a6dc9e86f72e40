"""Fixtures that several rooms share. What they build stands in `builders.py` and `finished_run.py`."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def run():
    """A finished search read again: `finished_run.py` made it from a known law, without training."""
    import finished_run

    from ideal_proxy.pipeline.finished import load_run

    return load_run(finished_run.folder())
