"""axolotl: its configuration and its prepared data set, as `axolotl preprocess` makes it."""

from __future__ import annotations

from importlib.metadata import version

import transformers
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from axolotl.loaders import load_tokenizer
from common import arguments, count, tell


def main() -> None:
    """A function of its own: processes that a library spawns import this file too, and must not begin again."""
    folder, _ = arguments()
    cfg = load_cfg(str(folder / "axolotl.yaml"))
    rows = load_datasets(cfg=cfg).train_dataset
    assert cfg.num_epochs == 1
    tell(
        count(((row["input_ids"], row["labels"]) for row in rows), load_tokenizer(cfg)),
        axolotl=version("axolotl"), transformers=transformers.__version__,
    )  # fmt: skip


if __name__ == "__main__":
    main()
