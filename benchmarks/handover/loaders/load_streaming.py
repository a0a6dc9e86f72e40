"""MosaicML Streaming: its own data set and loader, by the script that was written."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

from common import arguments, count_turns, stand_in, tell
from torch.utils.data import DataLoader

stand_in("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
folder, model = arguments()
sys.path.insert(0, str(folder))
from mixture_streams import dataset  # noqa: E402

rows = DataLoader(dataset(batch_size=1), batch_size=1)
tell(count_turns(json.loads(sample["messages"][0]) for sample in rows), streaming=version("mosaicml-streaming"))
