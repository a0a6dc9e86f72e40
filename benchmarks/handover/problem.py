"""Tagged rows of every awkward shape, a tiny model with a chat template, and a mixture of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from ideal_proxy.batching import Batch
from ideal_proxy.data import read_rows, row_keys, source_fingerprint
from ideal_proxy.mixture import DomainVolume, MixtureFile, save_mixture

CONTEXT = 96
# Rows that each domain has and that the mixture draws: 2.5 passes, 1.75 passes, a share, one pass and a bit.
VOLUMES = {"short": (80, 200), "talk": (60, 105), "odd": (50, 31), "long": (40, 55)}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
WORDS = ("river", "stone", "lamp", "seven", "quiet", "green", "count", "cloud", "paper", "north", "salt", "wheel")


def rows_of(domain: str, count: int) -> list[dict[str, Any]]:
    """Make a domain's rows; every turn begins and ends with the row's tag, such as `[short-7]`."""
    rng = random.Random(domain)

    def turn(role: str, tag: str, words: int) -> dict[str, str]:
        return {"role": role, "content": f"{tag} {' '.join(rng.choices(WORDS, k=words))} {tag}"}

    rows = []
    for n in range(count):
        tag = f"[{domain}-{n}]"
        few = rng.randint(3, 12)
        if domain == "talk":
            turns = [turn("system", tag, 3)] if n % 3 else []
            for _ in range(rng.randint(1, 3)):
                turns += [turn("user", tag, few // 2 + 1), turn("assistant", tag, few // 2 + 1)]
        elif domain == "odd":
            turns = [turn("user", tag, few), turn("assistant", tag, few)]
            turns = [
                [*turns, turn("user", tag, few)],  # ends with the user
                [turn("assistant", tag, few), *turns],  # opens with the assistant
                [turn("user", tag, few), *turns],  # two turns of the user in a row
                [*turns, turn("user", tag, few), turn("assistant", tag, few), turn("user", tag, 2)],
                turns,
            ][n % 5]
        elif domain == "long":  # too long by its question, by its answer, or by neither
            asked, said = [(120, few), (few, 140), (few, few), (60, 60)][n % 4]
            turns = [turn("user", tag, asked), turn("assistant", tag, said)]
        else:
            turns = [turn("user", tag, few), turn("assistant", tag, rng.randint(1, 12))]
        rows.append({"messages": turns})
    return rows


def make(folder: Path, *, batch: Batch | None = None) -> tuple[Path, Path]:
    """Write rows, model and mixture file; return the paths of model and mixture file."""
    folder.mkdir(parents=True, exist_ok=True)
    domains, texts = [], []
    for name, (available, wanted) in VOLUMES.items():
        path = folder / f"{name}.jsonl"
        rows = rows_of(name, available)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        texts += [turn["content"] for row in rows for turn in row["messages"]]
        fingerprint = source_fingerprint(row_keys(list(read_rows(path))))
        domains.append(
            DomainVolume(name=name, source=str(path), fingerprint=fingerprint, available=available, rows=wanted)
        )
    mixture = MixtureFile(
        name="handover", seed=5, domains=domains, batch=batch or Batch(rows=8),
        provenance={"proxy": {"context": CONTEXT}},
    )  # fmt: skip
    save_mixture(folder / "mixture.json", mixture)
    return make_model(folder / "model", texts), folder / "mixture.json"


def make_model(folder: Path, texts: list[str]) -> Path:
    """Write a Qwen2 of two small layers with a byte-level tokenizer and ChatML's template, without generation marks."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    # Qwen2's own, which newer transformers puts in the place of any other beside a Qwen2 model.
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML,
        additional_special_tokens=["<|im_start|>"], model_max_length=4096,
    )  # fmt: skip
    fast.save_pretrained(str(folder))
    config = Qwen2Config(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(str(folder))
    return folder
