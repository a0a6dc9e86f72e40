"""NeMo AutoModel: the recipe's data set, built from its YAML by its own configuration classes."""

from __future__ import annotations

from importlib.metadata import version

import transformers
import yaml
from common import arguments, count, tell
from nemo_automodel.components.datasets.llm.chat_dataset import ChatDatasetConfig
from transformers import AutoTokenizer

folder, model = arguments()
config = yaml.safe_load((folder / "sft.yaml").read_text())
tokenizer = AutoTokenizer.from_pretrained(config["model"]["pretrained_model_name_or_path"])
settings = {key: value for key, value in config["dataset"].items() if key != "_target_"}
rows = ChatDatasetConfig(**settings).build(tokenizer=tokenizer)
assert config["step_scheduler"]["num_epochs"] == 1
parts = ((rows[n]["input_ids"], rows[n]["labels"]) for n in range(len(rows)))
tell(
    count(parts, tokenizer, shifted=True),
    **{"nemo-automodel": version("nemo_automodel")}, transformers=transformers.__version__,
)  # fmt: skip
