"""Models to scale up to: a folder, a hub id, a GGUF file, or a scratch size from the proxies' dial."""

from __future__ import annotations

import contextlib
import filecmp
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ideal_proxy.data import ChatTemplate, Row, TokenRows, domain_tokenizer, make_template
from ideal_proxy.errors import UsageError
from ideal_proxy.mixture import reserve_mask
from ideal_proxy.proxy import (
    RATES,
    SIZES,
    Pretrained,
    TrainSettings,
    build_proxy,
    load_causal_lm,
    load_tokenizer,
    load_weights,
    quiet_libraries,
    save_weights,
    warm_start,
    with_lora,
)
from ideal_proxy.scaleup.source import ProxySetting
from ideal_proxy.store import is_whole, mark_complete, save_pretrained

SCRATCH = "scratch:"
WEIGHTS = (".safetensors", ".bin", ".gguf")
# Peak rates of full fine-tuning and of LoRA where the user gives none: the middle of what SFT recipes use.
PRETRAINED_RATE, LORA_RATE = 2e-5, 2e-4
# Peak rates of scratch models: the middle of the proxies' sweep at that size.
SCRATCH_RATES = {size: rates[len(rates) // 2] for size, rates in RATES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Which model, and how it is trained."""

    name: str  # folder, hub id, or `scratch:SIZE`
    # file name inside the folder or hub repository, of quantised weights that are read as float32
    gguf: str | None = None
    lora: int | None = None  # rank of the low-rank updates; None trains every weight
    gradient_checkpointing: bool = False  # recompute activations in the backward pass

    @property
    def scratch(self) -> str | None:
        """The size on the dial, None for a pretrained model."""
        return self.name.removeprefix(SCRATCH) if self.name.startswith(SCRATCH) else None

    @property
    def pretrained(self) -> Pretrained:
        """Where the weights come from, of a model that is not scratch."""
        return Pretrained(name=self.name, gguf=self.gguf)

    def check(self) -> None:
        """Refuse what cannot be, before any work."""
        if self.scratch is not None:
            if self.scratch not in SIZES:
                raise UsageError(f"--model {self.name}: no such size; choose scratch: and one of {', '.join(SIZES)}")
            if self.gguf:
                raise UsageError("--gguf names a file of a pretrained model; leave it out with a scratch model")
        elif self.name.startswith(("/", ".", "~")) and not Path(self.name).expanduser().is_dir():
            raise UsageError(f"--model {self.name}: there is no such folder; give a folder, a hub id, or scratch:SIZE")
        if self.lora is not None and self.lora < 1:
            raise UsageError(f"--lora is {self.lora}; the rank must be at least 1")

    def learning_rate(self, proxies: ProxySetting) -> float:
        """Choose the peak rate where the user gives none."""
        alike = (proxies.gguf, proxies.lora_rank) == (self.gguf, self.lora)
        if proxies.learning_rate and alike and proxies.model and same_model(proxies.model, self.name):
            return proxies.learning_rate
        if self.lora is not None:
            return LORA_RATE
        if self.scratch is None:
            return PRETRAINED_RATE
        rate = SCRATCH_RATES[self.scratch]
        if proxies.learning_rate is None or proxies.model is not None or proxies.size not in SCRATCH_RATES:
            return rate
        return proxies.learning_rate * rate / SCRATCH_RATES[proxies.size]


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one model: a hub id and its folder share the last part, two folders what is in them."""
    with contextlib.suppress(OSError, ValueError):  # a name too long for a path, or with a null byte
        if Path(one).is_dir() and Path(other).is_dir():
            held = [{path.name for path in Path(place).iterdir()} for place in (one, other)]
            told = [name for name in held[0] & held[1] if name == "config.json" or name.endswith(WEIGHTS)]
            if Path(one).samefile(other):  # weights of many gigabytes need not be read
                return bool(told)
            return bool(told) and filecmp.cmpfiles(one, other, told, shallow=False)[0] == told
    return Path(one).name == Path(other).name


def load_template(
    spec: ModelSpec, proxies: ProxySetting, domains: Sequence[Sequence[Row]], folder: Path
) -> ChatTemplate:
    """Return the model's own template; a scratch model's tokenizer is trained on the domains, as the proxies' was."""
    if spec.scratch is None:
        tokenizer = load_tokenizer(spec.pretrained)
    else:
        from transformers import AutoTokenizer

        place = folder / "tokenizer"
        if not is_whole(place):
            save_pretrained(domain_tokenizer(domains, proxies.vocabulary), place)
            mark_complete(place)
        tokenizer = AutoTokenizer.from_pretrained(str(place))
    return make_template(tokenizer)


def load_model(
    spec: ModelSpec,
    template: ChatTemplate,
    *,
    context: int,
    seed: int,
    packed: bool = True,
    start: Path | None = None,
) -> Any:
    """Load the model in float32 on the CPU, ready to train."""
    model: Any
    if spec.scratch is not None:
        model = build_proxy(spec.scratch, len(template.tokenizer), context, 0)
        if start is not None:
            load_weights(model, start)
        model.config.eos_token_id = template.tokenizer.eos_token_id
        model.config.pad_token_id = template.tokenizer.pad_token_id
        if not packed:
            model.set_attn_implementation("sdpa")
    else:
        model = load_causal_lm(spec.pretrained, context=context, packed=packed)
    model.config.use_cache = False
    if spec.lora is not None:
        model = with_lora(model, spec.lora, seed)
    if spec.gradient_checkpointing:
        base = model.get_base_model() if spec.lora is not None else model
        with quiet_libraries():  # the new name of this method is younger than the oldest transformers we take
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def with_adapter(model: Any, folder: Path) -> Any:
    """Put a trained LoRA on its model again, so that its updates, and nothing else, can be trained."""
    from peft import PeftModel

    with quiet_libraries():
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True)


def make_start(
    spec: ModelSpec,
    template: ChatTemplate,
    proxies: ProxySetting,
    names: Sequence[str],
    domains: Sequence[TokenRows],
    folder: Path,
    *,
    context: int,
    device: str,
    dtype: str,
    on_step: Callable[[int, int, Any], None] | None = None,
) -> Path | None:
    """Warm-start a scratch model once, as the proxies were; base and mixture of every seed start from it."""
    if spec.scratch is None:
        return None
    place = folder / "start"
    weights = place / "weights.safetensors"
    if not is_whole(place):
        place.mkdir(parents=True, exist_ok=True)
        model = build_proxy(spec.scratch, len(template.tokenizer), context, proxies.seed).to(device)
        reserved = [
            rows.select(np.flatnonzero(reserve_mask(rows.split_keys, proxies.warm_fraction))) for rows in domains
        ]
        settings = TrainSettings(
            learning_rate=SCRATCH_RATES[spec.scratch], batch_rows=proxies.batch_rows, batch_tokens=proxies.batch_tokens,
            dtype=dtype,
        )  # fmt: skip
        warm_start(model, names, reserved, settings, seed=proxies.seed, checkpoint_dir=place, on_step=on_step)
        save_weights(model, weights)
        mark_complete(place)
    return weights
