"""verl: its SFT configuration with the script's options, and its multi-turn data set."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from pathlib import Path

import transformers
import verl
from common import arguments, count, tell
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

folder, model = arguments()
words = shlex.split((folder / "sft.sh").read_text().replace("\\\n", " "), comments=True)
words = words[words.index("verl.trainer.sft_trainer") + 1 : -1]
place = Path(verl.__file__).parent / "trainer" / "config"
with initialize_config_dir(str(place), version_base=None):
    config = compose("sft_trainer_engine", overrides=words)
tokenizer = AutoTokenizer.from_pretrained(config.model.path)
rows = MultiTurnSFTDataset(config.data.train_files, tokenizer, config.data)
assert config.trainer.total_epochs == 1


def parts():
    for n in range(len(rows)):
        row = rows[n]
        ids, mask = row["input_ids"].tolist(), row["loss_mask"].tolist()
        yield ids, [i if on else -100 for i, on in zip(ids, mask, strict=True)]


tell(count(parts(), tokenizer), verl=version("verl"), transformers=transformers.__version__)
