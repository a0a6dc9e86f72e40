"""TRL: `trl sft` up to the batches of its trainer's loader."""

from __future__ import annotations

from itertools import pairwise

import transformers
import trl as package
from common import arguments, count, tell
from trl import SFTTrainer, get_dataset
from trl.scripts.sft import make_parser

folder, model = arguments()
command = ["--config", str(folder / "sft.yaml"), "--use_cpu", "true", "--bf16", "false"]
if "MODEL" in (folder / "sft.yaml").read_text():
    command += ["--model_name_or_path", model]
script, training, models, data = make_parser().parse_args_and_config(command)
trainer = SFTTrainer(model=models.model_name_or_path, args=training, train_dataset=get_dataset(data)["train"])
assert training.num_train_epochs == 1


def rows():
    for batch in trainer.get_train_dataloader():
        if "attention_mask" in batch:
            for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
                keep = mask.bool()
                yield ids[keep], labels[keep]
        else:  # padding-free: rows end to end, their positions begin at 0 again
            ids, labels, places = (batch[key][0] for key in ("input_ids", "labels", "position_ids"))
            starts = [n for n, place in enumerate(places.tolist()) if place == 0] + [len(ids)]
            for a, b in pairwise(starts):
                yield ids[a:b], labels[a:b]


tell(count(rows(), trainer.processing_class), trl=package.__version__, transformers=transformers.__version__)
