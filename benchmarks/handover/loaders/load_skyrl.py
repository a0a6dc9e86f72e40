"""SkyRL: its SFT configuration with the script's options, and what its trainer loads."""

from __future__ import annotations

import shlex
from importlib.metadata import version

import transformers
from common import arguments, count, stand_in, tell
from transformers import AutoTokenizer

gym = "skyrl_gym.envs"  # environments of reinforcement learning
stand_in("skyrl_gym", gym, f"{gym}.search", f"{gym}.search.env", f"{gym}.sql", f"{gym}.sql.env")
from skyrl.train.config.sft_config import SFTConfig  # noqa: E402
from skyrl.train.dataset.pretokenized import load_from_pretokenized  # noqa: E402

folder, model = arguments()
words = shlex.split((folder / "sft.sh").read_text().replace("\\\n", " "), comments=True)
config = SFTConfig.from_cli_overrides(words[words.index("skyrl.train.main_sft") + 1 : -1])
tokenizer = AutoTokenizer.from_pretrained(config.model.path)
assert config.num_epochs == 1
rows = [load_from_pretokenized(path, max_length=config.max_length) for path in config.pretokenized_dataset_paths]


def parts():
    for source in rows:
        for n in range(len(source)):
            row = source[n]
            ids = [int(i) for i in row["input_ids"]]
            mask = [0] * (len(ids) - len(row["loss_mask"])) + [int(m) for m in row["loss_mask"]]
            yield ids, [i if on else -100 for i, on in zip(ids, mask, strict=True)]


tell(count(parts(), tokenizer), skyrl=version("skyrl"), transformers=transformers.__version__)
