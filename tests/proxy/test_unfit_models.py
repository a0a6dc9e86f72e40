"""Models that cannot be trained are refused in one sentence with the cure, before any weight or row is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from ideal_proxy.cli.app import app
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.errors import UserError
from ideal_proxy.proxy.model import build_proxy
from ideal_proxy.proxy.pretrained import Pretrained, load_causal_lm, load_tokenizer, quiet_libraries, with_lora


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    tokenizer = train_tokenizer((f"the number {n} is {n * n}" for n in range(300)), 300)
    build_proxy("0.1M", len(tokenizer), 64, 3).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def larger(folder: Path) -> str:
    tokenizer = load_tokenizer(Pretrained(name=str(folder)))
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)
    return r"has (\d+) tokens and its model embeddings for \d+; call model\.resize_token_embeddings\(len\(tokenizer\)\)"


def adapter(folder: Path) -> str:
    pytest.importorskip("peft")
    model = with_lora(load_causal_lm(Pretrained(name=str(folder)), context=64), 2, 0)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with quiet_libraries():
        model.save_pretrained(folder)
    (folder / "config.json").unlink()
    return "is an adapter .*, not a model; merge it into its base"


def merged(folder: Path) -> str:
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(folder), "peft_type": "LORA"})
    )
    return "would be applied again; if it is merged, move adapter_config.json and adapter_model.* out of it"


def quantised(folder: Path) -> str:
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    return "are quantised by bitsandbytes and cannot be trained as they are; give the model that they were made from"


def commands(folder: Path) -> list[list[str]]:
    """Write what search, check and influence need; the rows are broken: nobody is to read them."""
    lines = ""
    for name in ("a", "b"):
        (folder.parent / f"{name}.jsonl").write_text('{"instruction": "1 + 1", "output": "2"}\n' * 3)
        lines += f"  - {{name: {name}, path: {name}.jsonl}}\n"
    mix = folder.parent / "mix.yaml"
    mix.write_text(f"domains:\n{lines}capabilities:\n{lines}proxy: {{model: {folder}, context: 32}}\n")
    out = ["--out", str(folder.parent / "out")]
    return [
        ["search", str(mix), *out], ["check", str(mix)], ["preview", str(mix)],
        ["influence", "--config", str(mix), "--model", str(folder), *out],
    ]  # fmt: skip


@pytest.mark.parametrize("spoil", [larger, adapter, merged, quantised])
def test_every_command_refuses_it(spoil, folder: Path) -> None:
    sentence = spoil(folder)
    for command in commands(folder):
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, UserError), (command, result.output)
        assert re.search(sentence, str(result.exception)), command
        assert str(folder) in str(result.exception)
        assert not list((folder.parent / "out").rglob("*.safetensors"))


@pytest.mark.parametrize("spoil", [adapter, merged, quantised])
def test_the_weights_are_never_read(spoil, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = spoil(folder)
    monkeypatch.setattr("transformers.AutoModelForCausalLM", SimpleNamespace())
    with pytest.raises(UserError, match=sentence):
        load_causal_lm(Pretrained(name=str(folder)), context=32)


def test_a_base_without_a_chat_template_is_told_and_goes_on(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Pretrained(name=str(folder))
    load_tokenizer(source)
    assert not caplog.text
    for file in folder.glob("chat_template.*"):
        file.unlink()
    load_tokenizer(source)
    assert f"{folder} has no chat template: its rows are written in the plain one" in caplog.text
    assert "set tokenizer.chat_template" in caplog.text
