"""Marks by a span's first and last character equal the marks by all positions."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ideal_proxy.data.template import _between, _supervised

TEXTS = [
    "The answer is 42 .",
    "Größe: 日本語 text — naïve",
    "  two  spaces\n\nand lines\t",
    "def f(x):\n    return x",
] * 5


def byte_level() -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(TEXTS, trainer)
    return made


def by_pieces() -> Any:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<|end|>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


TOKENIZERS = {"byte level": byte_level(), "pieces": by_pieces()}
LETTERS = st.text(alphabet=st.sampled_from("abz 0.\n\t<|end>éß日🙂—"), max_size=30)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(parts=st.lists(st.tuples(LETTERS, st.booleans()), max_size=5))
def test_marks_are_the_same_either_way(name: str, parts: list[tuple[str, bool]]) -> None:
    text, spans = "", []
    for part, marked in parts:
        end = len(text) + len(part) + len("<|end|>")
        if marked:
            spans.append((len(text), end))
        text += part + "<|end|>"
    encoding = TOKENIZERS[name].encode(text, add_special_tokens=False)
    quick = _between(encoding, text, spans)
    assert quick is None or quick == _supervised(encoding.offsets, spans)
    if text.isascii() and name == "byte level" and not any(text[start].isspace() for start, _ in spans):
        assert quick is not None, "the usual case takes the short way"
