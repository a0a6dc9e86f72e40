"""datasets: the folder that was written, as `load_dataset` reads it."""

from __future__ import annotations

from importlib.metadata import version

from common import arguments, count, tell
from datasets import load_dataset
from transformers import AutoTokenizer

folder, model = arguments()
rows = load_dataset(str(folder), split="train")
parts = ((row["input_ids"], row["labels"]) for row in rows)
tell(count(parts, AutoTokenizer.from_pretrained(model)), datasets=version("datasets"))
