"""The tokenizer of scratch proxies: byte-level BPE, trained on the domains."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ideal_proxy.data.plain import END, PAD, PLAIN_JINJA, PLAIN_SPECIALS
from ideal_proxy.errors import UserError

LONGEST_WORD = 512  # letters; training takes more than linear time in a word's length


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a byte-level BPE tokenizer with the plain template; equal texts give an equal one."""
    least = 256 + len(PLAIN_SPECIALS)
    if vocab_size < least:
        raise UserError(f"the vocabulary is {vocab_size}; it must be at least {least} (256 bytes and special tokens)")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, show_progress=False, special_tokens=list(PLAIN_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator(map(_in_words, texts), trainer)
    made: Any = PreTrainedTokenizerFast
    tokenizer = made(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False,
        additional_special_tokens=[t for t in PLAIN_SPECIALS if t not in (PAD, END)],
    )  # fmt: skip
    tokenizer.chat_template = PLAIN_JINJA
    return tokenizer


def _in_words(text: str) -> str:
    """Break words without end, such as a genome, for the training of a tokenizer."""
    return re.sub(rf"\S{{{LONGEST_WORD}}}(?=\S)", r"\g<0>\n", text) if len(text) > LONGEST_WORD else text
