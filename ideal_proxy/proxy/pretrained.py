"""Pretrained causal language models, for proxies and full-size runs: a folder, a hub id or a GGUF file; LoRA.

Weights come from safetensors or GGUF, never from pickles, and a model's own code runs only where it is asked for.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ideal_proxy.errors import UsageError, UserError, shortened
from ideal_proxy.proxy.cost import Products
from ideal_proxy.proxy.model import use_packed_attention
from ideal_proxy.store import save_pretrained

log = logging.getLogger(__name__)

UNTRAINABLE = ("bitsandbytes", "gptq", "awq")  # methods whose weights transformers keeps packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """Where a pretrained model comes from."""

    name: str  # folder or hub id
    # file name inside the folder or hub repository, of quantised weights that are read as float32
    gguf: str | None = None
    revision: str | None = None  # branch, tag or commit of a hub id
    trust_remote_code: bool = False  # run code that comes with the model

    def options(self) -> dict[str, Any]:
        """Return what `from_pretrained` is told besides the name."""
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if self.gguf:
            options["gguf_file"] = self.gguf
        if self.revision:
            options["revision"] = self.revision
        return options


def load_tokenizer(source: Pretrained) -> Any:
    """Load the model's own tokenizer."""
    from transformers import AutoTokenizer

    refuse_unfit(source)
    tokenizer = _had(lambda: AutoTokenizer.from_pretrained(source.name, **source.options()), source, "tokenizer")
    refuse_unfit(source, tokenizer)
    return tokenizer


def refuse_unfit(source: Pretrained, tokenizer: Any = None) -> None:
    """Refuse, before any weight is read, what cannot be trained: an adapter, quantised weights, too many tokens."""
    from transformers import AutoConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    if source.gguf:
        return  # its configuration is made from the weights
    adapter = config = None
    with contextlib.suppress(Exception), quiet_libraries():  # what cannot be had is told by the loader
        adapter = find_adapter_config_file(source.name, revision=source.revision)
    with contextlib.suppress(Exception), quiet_libraries():
        config = AutoConfig.from_pretrained(source.name, **source.options())
    if adapter:
        if config is None:
            raise UserError(
                f"{source.name} is an adapter (adapter_config.json), not a model; merge it into its base "
                "(peft: merge_and_unload, then save_pretrained of model and tokenizer) and give that folder"
            )
        raise UserError(
            f"{source.name} holds a model and an adapter_config.json, by which the adapter would be applied again; "
            "if it is merged, move adapter_config.json and adapter_model.* out of it, else merge it first"
        )
    if config is None:
        return
    method = _quantised_by(config)
    if method in UNTRAINABLE:
        raise UserError(
            f"the weights of {source.name} are quantised by {method} and cannot be trained as they are; "
            "give the model that they were made from, or dequantise and save it"
        )
    if tokenizer is None:
        return
    rows = getattr(config.get_text_config(), "vocab_size", None)
    tokens = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if rows is not None and tokens > rows:
        raise UserError(
            f"the tokenizer of {source.name} has {tokens:,} tokens and its model embeddings for {rows:,}; call "
            "model.resize_token_embeddings(len(tokenizer)) and save both, or use the tokenizer that the model came with"
        )
    if not tokenizer.chat_template:
        log.warning(
            "%s has no chat template: its rows are written in the plain one (<|user|>, <|assistant|>); for another "
            "set tokenizer.chat_template and save the tokenizer, or give the instruct version of the model",
            source.name,
        )


def _quantised_by(config: Any) -> str | None:
    """Name the method that a configuration says its weights are quantised by."""
    told = getattr(config, "quantization_config", None)
    told = told if isinstance(told, dict) or told is None else told.to_dict()
    if not told:
        return None
    bits = told.get("load_in_4bit") or told.get("load_in_8bit")
    method = getattr(told.get("quant_method"), "value", told.get("quant_method"))
    return "bitsandbytes" if bits or method in {"bitsandbytes_4bit", "bitsandbytes_8bit"} else method


def load_causal_lm(source: Pretrained, *, context: int, packed: bool = True) -> Any:
    """Load a model in float32 on the CPU."""
    from transformers import AutoModelForCausalLM

    refuse_unfit(source)
    options = source.options() | ({} if source.gguf else {"use_safetensors": True})
    model = _had(
        lambda: AutoModelForCausalLM.from_pretrained(source.name, dtype=torch.float32, **options), source, "model"
    )
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and context > longest:
        raise UsageError(
            f"the context of {context} is more than the {longest} tokens that {source.name} reads; lower it"
        )
    if source.gguf:
        model = _plain(model)
    model.config.use_cache = False
    return use_packed_attention(model) if packed else model


def shape_of(source: Pretrained, *, lora: bool) -> tuple[int | None, int, Products]:
    """Read from a model's configuration the tokens that it reads, and about its parameters and products."""
    from transformers import AutoConfig

    config = _had(lambda: AutoConfig.from_pretrained(source.name, **source.options()), source, "configuration")
    text = config.get_text_config()
    width, layers = text.hidden_size, text.num_hidden_layers
    heads = getattr(text, "num_attention_heads", None) or 1  # models without attention have none
    inner = getattr(text, "intermediate_size", None) or 4 * width
    weights, head = layers * (4 * width**2 + 3 * width * inner), text.vocab_size * width
    products = Products(
        trained=0 if lora else weights, frozen=weights if lora else 0, head=head, head_trained=not lora,
        attention=layers * heads * (getattr(text, "head_dim", None) or width // heads),
    )  # fmt: skip
    return getattr(text, "max_position_embeddings", None), weights + head, products


def empty_model(source: Any, *, trust_remote_code: bool = False) -> Any:
    """Build a model without weights: parameters have shapes only, buffers that are computed are there."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet_libraries():
        config = source
        if isinstance(source, str | Path):
            config = AutoConfig.from_pretrained(str(source), trust_remote_code=trust_remote_code, local_files_only=True)
        with init_empty_weights(include_buffers=False):
            auto: Any = AutoModelForCausalLM
            return auto.from_config(config, trust_remote_code=trust_remote_code)


def _plain(model: Any) -> Any:
    """Give a model read from GGUF, whose weights are float32 now, a configuration without quantisation."""
    config = type(model.config).from_dict({
        key: value for key, value in model.config.to_dict().items() if key != "quantization_config"
    })  # fmt: skip
    plain = empty_model(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain.eval()


def with_lora(model: Any, rank: int, seed: int) -> Any:
    """Freeze a model and give every linear layer but the head low-rank updates."""
    try:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise UserError("LoRA needs the peft package; run `pip install ideal-proxy[pretrained]`") from error
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        try:
            wrapped = get_peft_model(model, config)
        except ValueError as error:  # such as a layer that its model reads past
            raise UserError(
                f"LoRA does not fit a {type(model).__name__} ({shortened(str(error), 160)}); train every weight, "
                "without lora_rank, or give another model"
            ) from error
        torch.manual_seed(seed)
        for module in wrapped.modules():  # again, now that they are float32: the first draw took the base's precision
            if isinstance(module, LoraLayer):
                layer: Any = module
                layer.reset_lora_parameters("default", True)
        return wrapped


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model as safetensors that `from_pretrained` loads; a LoRA merged, its adapter beside it."""
    with quiet_libraries():
        if hasattr(model, "merge_and_unload"):
            save_pretrained(model, folder / "adapter")
            model = model.float().merge_and_unload()  # a base kept in bfloat16 would round the updates away
        save_pretrained(model, folder)
    save_pretrained(tokenizer, folder)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' loading bars and notices about each other's future from the user."""
    # Ours are the only bars: transformers draws its own whether or not anybody asked for quiet or sits at a terminal.
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", module=r"peft\.")  # what it puts right by itself
            yield
    finally:
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _refuse_missing(source: Pretrained) -> None:
    """Refuse a folder that is not there or holds no model, before the hub is asked for something of that name."""
    place = Path(source.name).expanduser()
    if not place.is_dir():
        # A hub id is NAME or OWNER/NAME.
        if (
            source.name.startswith(("/", ".", "~"))
            or len(place.parts) > 2
            or (place.parent != Path() and place.parent.is_dir())
        ):
            raise UsageError(f"the model {source.name}: there is no such folder; give a folder or a hub id")
    elif source.gguf is None and not any((place / f).exists() for f in ("config.json", "tokenizer_config.json")):
        raise UsageError(
            f"the folder {source.name} holds no model (no config.json); give one that save_pretrained or hf download "
            "wrote, or a hub id"
        )


def _had(load: Callable[[], Any], source: Pretrained, what: str) -> Any:
    """Call a loader of transformers; whatever it raises means that the model was not had."""
    _refuse_missing(source)
    try:
        # nothing turns off the bar of transformers' GGUF reader
        hidden = contextlib.redirect_stderr(io.StringIO()) if source.gguf else contextlib.nullcontext()
        with quiet_libraries(), hidden:
            return load()
    except ImportError as error:
        raise UserError(
            f"the {what} of {source.name} needs another package ({error}); install ideal-proxy[pretrained]"
        ) from error
    except Exception as error:  # transformers and the hub raise a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if any(
            text in str(error) for text in ("couldn't connect", "Cannot reach", "offline mode", "LocalEntryNotFound")
        ):
            raise UserError(
                f"{source.name} is no folder here, and the Hugging Face hub cannot be reached to look for it there; "
                "check the path, or fetch the model where there is a network (hf download) and give its folder"
            ) from error
        if "is not a valid model identifier" in str(error):
            raise UserError(
                f"{source.name} is neither a folder here nor a model on the Hugging Face hub; check the name (a "
                "private model needs hf auth login)"
            ) from error
        cure = "give a folder or a hub id with safetensors weights (for a GGUF file its folder, and the file)"
        if "trust_remote_code" in str(error):
            cure = "read that code, and set trust_remote_code if you trust it"
        raise UserError(f"cannot load the {what} of {source.name} ({reason}); {cure}") from error
