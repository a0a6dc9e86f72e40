"""datasets: `interleave_datasets` as the script that was written calls it."""

from __future__ import annotations

import sys
from importlib.metadata import version

from common import arguments, count_turns, tell

folder, model = arguments()
sys.path.insert(0, str(folder))
from mixture_interleave import dataset  # noqa: E402

tell(count_turns(dataset()["messages"]), datasets=version("datasets"))
