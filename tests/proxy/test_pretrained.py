"""Pretrained models: where they come from, what is refused, and that loading is quiet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.proxy.model import build_proxy
from ideal_proxy.proxy.pretrained import Pretrained, load_causal_lm, load_tokenizer, save_model, with_lora


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 0.1M weights with its tokenizer, as somebody would have saved it."""
    place = tmp_path_factory.mktemp("pretrained")
    tokenizer = train_tokenizer((f"the number {n} is {n * n}" for n in range(300)), 300)
    build_proxy("0.1M", len(tokenizer), 64, 3).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def test_loading_and_saving_draw_no_bars(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = Pretrained(name=str(folder))
    model, tokenizer = load_causal_lm(source, context=64), load_tokenizer(source)
    save_model(model, tokenizer, tmp_path)
    assert capfd.readouterr() == ("", "")
    again = load_causal_lm(Pretrained(name=str(tmp_path)), context=64)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert model.config.use_cache is False
    assert len(tokenizer) == model.config.vocab_size


def test_lora_trains_few_weights_from_a_seed_of_its_own(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(5)
    state = torch.get_rng_state()

    def first(seed: int) -> dict[str, torch.Tensor]:
        model = with_lora(load_causal_lm(Pretrained(name=str(folder)), context=64), 4, seed)
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    a, same, other = first(1), first(1), first(2)
    assert all("lora_" in name and 4 in p.shape for name, p in a.items())
    assert all(torch.equal(a[name], same[name]) for name in a)
    assert any(not torch.equal(a[name], other[name]) for name in a)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state is not touched"


def test_a_lora_is_saved_merged_with_its_adapter_beside_it(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    source = Pretrained(name=str(folder))
    plain = load_causal_lm(source, context=64)
    model = with_lora(load_causal_lm(source, context=64), 4, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    save_model(model, load_tokenizer(source), tmp_path)
    merged = load_causal_lm(Pretrained(name=str(tmp_path)), context=64)
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in plain.named_parameters()]
    changed = {n for (n, a), b in zip(merged.named_parameters(), plain.parameters(), strict=True) if not a.equal(b)}
    assert any("q_proj" in name for name in changed)
    assert not any("embed" in name or "norm" in name for name in changed)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_what_cannot_be_loaded_is_said_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no/such: there is no such folder"):
        load_causal_lm(Pretrained(name=str(tmp_path / "no/such")), context=64)
    with pytest.raises(UsageError, match="context of 65 is more than the 64 tokens"):
        load_causal_lm(Pretrained(name=str(folder)), context=65)
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_causal_lm(Pretrained(name=str(folder)), context=64).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="with safetensors weights") as caught:
        load_causal_lm(Pretrained(name=str(tmp_path)), context=64)
    assert "\n" not in str(caught.value)
