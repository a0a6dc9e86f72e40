"""How the search trained, in other trainers' options: loss, optimiser step, context and schedule, and what is not said.

The trainers build on transformers' `Trainer`, whose loss is the mean over a step's supervised tokens (since 4.46), but
for open-instruct and Megatron-Bridge. Options read in their sources of 2026.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ideal_proxy.batching import BATCH_ROWS
from ideal_proxy.errors import UsageError, shortened
from ideal_proxy.mixture import MixtureFile

# The proxies' schedule and optimiser, which `proxy.TrainSettings` holds as defaults.
WARMUP, WEIGHT_DECAY, BETA1, BETA2, GRAD_CLIP = 0.05, 0.01, 0.9, 0.98, 1.0
MODEL = "MODEL"  # stands where the user names the model
MOST_CONTEXT, MOST_STEP, MOST_RATE = 10**9, 10**6, 1e3  # what a file may ask of a trainer
USUAL_RATE = 2e-5  # of a full fine-tuning, where nothing says another

# Trainers that can count rows alike; the others take the mean over tokens whatever the search did.
BY_ROWS = {
    "open-instruct": "reduce_loss mean over micro-batches of one row",
    "megatron-bridge": "calculate_per_token_loss false over micro-batches of one row",
}
FORMATS = {"jsonl", "parquet", "hf", "streaming", "interleave"}  # rows without a trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How the target is to train; one device."""

    context: int | None  # most tokens of a row; None where nothing says it
    sequences: int | None  # of a step, one at a time: rows, or packed sequences
    rows: int  # of a step, about, for trainers that count only those
    packed: bool  # rows are packed to sequences of so many tokens as the context
    learning_rate: float  # peak rate
    tuned: bool  # the rate is the search's or the user's, and not merely the usual one
    seed: int  # of the mixture
    model: str | None = None  # folder or hub id; None where it is not known


def terms_of(
    mixture: MixtureFile, model: str | None = None, context: int | None = None, learning_rate: float | None = None
) -> Terms:
    """Read from a mixture file how its target is to train; what the user says comes first."""
    proxy = mixture.provenance.get("proxy")
    proxy = proxy if isinstance(proxy, dict) else {}
    longest = context_of(mixture) if context is None else _whole("context", context, MOST_CONTEXT)
    batch = mixture.batch
    sequences = None
    if batch is not None and batch.tokens is None:
        sequences = batch.rows or 1
    elif batch is not None and longest is not None:
        sequences = max(1, round((batch.tokens or 1) / longest))
    tokens = sum(domain.tokens for domain in mixture.domains) or mixture.total_rows * (longest or 1)
    rows = BATCH_ROWS if batch is None else round(batch.mean_rows(tokens / max(1, mixture.total_rows)))
    for name, value in (("rows or sequences of a step", sequences or 1), ("rows of a step", rows)):
        _whole(name, value, MOST_STEP)
    rate = learning_rate
    if rate is None and model is not None and proxy.get("model") == model and not proxy.get("lora_rank"):
        rate = proxy.get("learning_rate") or None
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= MOST_RATE):
        raise UsageError(
            f"learning_rate is {shortened(repr(rate))}; it must be a number above 0, {MOST_RATE:g} at most"
        )
    return Terms(
        context=longest,
        sequences=sequences,
        rows=rows,
        packed=sequences is not None and batch is not None and batch.rows is None,
        learning_rate=rate or USUAL_RATE,
        tuned=rate is not None,
        seed=mixture.seed,
        model=model,
    )


def _whole(name: str, value: Any, most: int) -> int:
    """Refuse a setting that no trainer takes."""
    if type(value) is not int or not 1 <= value <= most:
        raise UsageError(f"{name} is {shortened(repr(value))}; it must be a whole number of 1 to {most:,}: set it anew")
    return value


def counts_rows(mixture: MixtureFile, target: str) -> bool:
    """Whether the target is told to count rows alike: the search did, the target can, and no row shares a sequence."""
    batch = mixture.batch
    return mixture.loss == "row" and target in BY_ROWS and (batch is None or batch.tokens is None)


def context_of(mixture: MixtureFile) -> int | None:
    """Longest row of the search, tokens; None where the file does not say."""
    for part in (mixture.provenance.get("proxy"), mixture.template):
        if isinstance(part, dict) and part.get("context"):
            return _whole("the mixture file's context", part["context"], MOST_CONTEXT)
    return None


def terms_notes(mixture: MixtureFile, terms: Terms, target: str) -> tuple[str, ...]:
    """Say what the target does with loss, step and epochs, or what its user has to do about them."""
    notes = []
    if mixture.epochs > 1:
        notes.append(f"the rows hold the base's {mixture.epochs} epochs already: train one epoch")
    row, batch = mixture.loss == "row", mixture.batch
    if target in FORMATS:
        if batch is not None and (row or mixture.epochs > 1 or batch.tokens is not None):
            kind = "each row's mean" if row else "all supervised tokens"
            notes.append(f"the search took the loss over {kind} of a step of {batch}; set the same in your trainer")
        return tuple(notes)
    by_rows = counts_rows(mixture, target)
    if by_rows:
        notes.append(f"each row counts alike: {BY_ROWS[target]}")
    elif row:
        why = "packed rows" if target in BY_ROWS else f"{target} has no option for it"
        notes.append(f"the search counted each row alike, and here each supervised token counts alike ({why})")
    if target == "open-instruct" and batch is not None and not by_rows:
        notes.append("reduce_loss sum is not divided by the tokens of a step: leave clip_grad_norm off, or scale it")
    if terms.context is None:
        notes.append("the file names no context: the trainer's own default cuts or drops rows; add --context")
    elif terms.model is None and terms.context == context_of(mixture):
        notes.append(
            f"{terms.context:,} tokens of context are the search's, by its proxies' tokenizer: set yours (--context), "
            "or --model MODEL counts with the target's"
        )
    if batch is not None and terms.sequences is None:
        notes.append(f"a step is {batch}, and the file names no context to pack to; set batch and packing yourself")
    elif terms.packed:
        notes.append(
            f"a step of {batch} is {terms.sequences} packed sequences of {terms.context:,} tokens, about; which rows "
            f"share one is {target}'s choice"
        )
    if terms.sequences is not None:
        notes.append("a step is written for one GPU: on G of them divide the accumulated sequences by G")
    if not terms.tuned:
        notes.append(f"learning_rate {terms.learning_rate:g} is the usual one, not tuned: set yours (--learning-rate)")
    return tuple(notes)
