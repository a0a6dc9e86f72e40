"""Whatever stands in a file of somebody else's: read, or one sentence. FUZZ_EXAMPLES=N tries more than in CI."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, fed, mutated, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "30"))
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
LIKE_YAML = r"([\w ]{0,4}[:\-?&*!|>{\[\]},\n ]{1,3}){1,12}"


@pytest.mark.parametrize("name", TARGETS)
def test_a_bent_file_is_read_or_one_sentence(name: str) -> None:
    assert all(fed(name, content, FOLDER) for content in seeds(name))

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        content = mutated(name, random.Random(seed))
        began = time.process_time()
        fed(name, content, FOLDER)
        assert time.process_time() - began < 60

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_one_sentence(name: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=99) | st.text(max_size=99).map(str.encode) | st.from_regex(LIKE_YAML).map(str.encode))
    def check(content: bytes) -> None:
        fed(name, content, FOLDER)

    check()
