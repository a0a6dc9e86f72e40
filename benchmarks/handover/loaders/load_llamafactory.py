"""LLaMA-Factory: its own arguments, tokenizer, template and data set, as `llamafactory-cli train` makes them."""

from __future__ import annotations

import datasets
import transformers
import yaml
from common import arguments, count, stand_in, tell

stand_in("torchaudio")  # before what imports it
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer  # noqa: E402
from llamafactory.extras.env import VERSION  # noqa: E402
from llamafactory.hparams import get_train_args  # noqa: E402
from llamafactory.model import load_tokenizer  # noqa: E402

folder, model = arguments()
settings = yaml.safe_load((folder / "sft.yaml").read_text()) | {"use_cpu": True}
models, data, training, finetuning, _ = get_train_args(settings)
module = load_tokenizer(models)
template = get_template_and_fix_tokenizer(module["tokenizer"], data)
rows = get_dataset(template, models, data, training, stage="sft", **module)["train_dataset"]
assert training.num_train_epochs == 1
tell(
    count(((row["input_ids"], row["labels"]) for row in rows), module["tokenizer"]),
    llamafactory=VERSION, transformers=transformers.__version__, datasets=datasets.__version__,
)  # fmt: skip
