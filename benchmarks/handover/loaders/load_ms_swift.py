"""ms-swift: `swift sft` up to its encoded data set; template and model type are named, as the model is no known one."""

from __future__ import annotations

import os
import shlex

import swift
import transformers
from common import arguments, count, tell
from swift.pipelines.train.sft import SwiftSft

folder, model = arguments()
words = shlex.split((folder / "sft.sh").read_text().replace("\\\n", " "), comments=True)
words = words[words.index("sft") + 1 : -1]
os.chdir(folder)
extra = ["--model_type", "qwen2", "--template", "chatml", "--use_hf", "true", "--torch_dtype", "float32"]
pipeline = SwiftSft([*words, *extra])
train, _ = pipeline._prepare_dataset()
rows = (train[n] for n in range(len(train)))
tell(
    count(((row["input_ids"], row["labels"]) for row in rows), pipeline.tokenizer),
    **{"ms-swift": swift.__version__}, transformers=transformers.__version__,
)  # fmt: skip
