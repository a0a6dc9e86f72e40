"""Loss and optimiser step of a mixture file in another trainer's own options, and what it cannot say.

The trainers build on transformers' `Trainer`, whose loss is the mean over a step's supervised tokens (since 4.46), but
for open-instruct and Megatron-Bridge. Options read in their sources of 2026.
"""

from __future__ import annotations

from dataclasses import dataclass

from ideal_proxy.mixture import MixtureFile

# Trainers that can count rows alike; the others take the mean over tokens whatever the search did.
BY_ROWS = {
    "open-instruct": "reduce_loss mean over micro-batches of one row",
    "megatron-bridge": "calculate_per_token_loss false over micro-batches of one row",
}
FORMATS = {"jsonl", "parquet", "hf", "streaming", "interleave"}  # rows without a trainer


@dataclass(frozen=True, slots=True)
class StepTerms:
    """One optimiser step as sequences of one device.

    Attributes:
        sequences: of a step, one at a time: rows, or packed sequences.
        packed: tokens of a packed sequence; None where each row is a sequence of its own.
    """

    sequences: int
    packed: int | None = None


def step_terms(mixture: MixtureFile) -> StepTerms | None:
    """Turn what fills a step into sequences; None where the file does not say, or packing has no length."""
    batch = mixture.batch
    if batch is None:
        return None
    if batch.tokens is None:
        return StepTerms(batch.rows or 1)
    context = context_of(mixture)
    return None if context is None else StepTerms(max(1, round(batch.tokens / context)), context)


def counts_rows(mixture: MixtureFile, target: str) -> bool:
    """Whether the target is told to count rows alike: the search did, the target can, and no row shares a sequence."""
    batch = mixture.batch
    return mixture.loss == "row" and target in BY_ROWS and (batch is None or batch.tokens is None)


def context_of(mixture: MixtureFile) -> int | None:
    """Longest row of the search, tokens; None where the file does not say."""
    for part in (mixture.provenance.get("proxy"), mixture.template):
        if isinstance(part, dict) and part.get("context"):
            return int(part["context"])
    return None


def terms_notes(mixture: MixtureFile, target: str) -> tuple[str, ...]:
    """Say what the target does with loss, step and epochs, or what its user has to do about them."""
    notes = []
    if mixture.epochs > 1:
        notes.append(f"the rows hold the base's {mixture.epochs} epochs already: train one epoch")
    row, batch, terms = mixture.loss == "row", mixture.batch, step_terms(mixture)
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
    if batch is not None and terms is None:
        notes.append(f"a step is {batch}, and the file names no context to pack to; set batch and packing yourself")
    elif terms is not None and terms.packed is not None:
        notes.append(
            f"a step of {batch} is {terms.sequences} packed sequences of {terms.packed:,} tokens, about; which rows "
            f"share one is {target}'s choice"
        )
    if terms is not None:
        notes.append("a step is written for one GPU: on G of them divide the accumulated sequences by G")
    return tuple(notes)
