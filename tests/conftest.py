"""Fixtures that several rooms share. What they build stands in `builders.py` and `finished_run.py`."""

from __future__ import annotations

import os
import subprocess
from unittest import mock

import pytest

# Files of whole searches begin, so that no test process waits for another's last file; by measured CPU seconds.
LONGEST = (
    "test_docs", "test_search", "test_reuse", "test_ladder", "test_rounds", "test_target", "test_notebooks",
    "test_pretrained_search", "test_swarm", "test_search_gradients", "test_damage", "test_own_trainer",
    "test_metric_search", "test_scaleup", "test_cli", "test_hostile", "test_api", "test_sharded", "test_swarm_slurm",
    "test_bombs", "test_full_size_evidence", "test_left_out", "test_explorer", "test_export_property",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a real search, run once for all tests and test processes (`builders.whole_search`)."""
    import builders

    place = tmp_path_factory.getbasetemp()
    return builders.whole_search(place.parent if "PYTEST_XDIST_WORKER" in os.environ else place)


@pytest.fixture(scope="module")
def run():
    """A finished search read again: `finished_run.py` made it from a known law, without training."""
    import finished_run

    from ideal_proxy.pipeline.finished import load_run

    return load_run(finished_run.folder())


@pytest.fixture(scope="module", autouse=True)
def quick_workers():
    """Fork the workers of a search from a process that has their libraries; `real_workers` starts them as a user's."""
    import forked

    with forked.forked_workers():
        yield


@pytest.fixture
def real_workers():
    """Start the workers of a test as a user's start."""
    with mock.patch("ideal_proxy.swarm.local.subprocess", subprocess):
        yield
