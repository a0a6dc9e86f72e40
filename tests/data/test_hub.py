"""Data sets by hub id and from folders that the datasets library wrote; nothing here asks the network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from builders import write_rows

from ideal_proxy.config import load_config
from ideal_proxy.data.hub import HubSource, parse_hub
from ideal_proxy.data.rows import read_rows, scan
from ideal_proxy.errors import UserError

datasets = pytest.importorskip("datasets", reason="hub sources need datasets")

ALPACA = [{"instruction": f"add {n}", "input": "", "output": f"sum {n}"} for n in range(6)]
CHAT = [
    {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]} for n in range(4)
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as `save_to_disk` writes them, and one laid out like a repository, with two configurations."""
    folder = tmp_path_factory.mktemp("hub")
    table, chat = datasets.Dataset.from_list(ALPACA), datasets.Dataset.from_list(CHAT)
    datasets.utils.disable_progress_bars()
    table.save_to_disk(folder / "saved")
    datasets.DatasetDict({"train": chat, "test": chat.select(range(2))}).save_to_disk(folder / "splits")
    for name, part, split in (("sums", table, "train"), ("talk", chat, "train"), ("talk", chat.select([3]), "test")):
        (folder / "repository" / name).mkdir(parents=True, exist_ok=True)
        part.to_parquet(folder / "repository" / name / f"{split}-00000-of-00001.parquet")
    (folder / "repository" / "README.md").write_text(
        "---\nconfigs:\n- config_name: sums\n  data_files: sums/train-*.parquet\n- config_name: talk\n  data_files:\n"
        "  - split: train\n    path: talk/train-*.parquet\n  - split: test\n    path: talk/test-*.parquet\n---\n"
    )
    (folder / "plain").mkdir()
    chat.to_parquet(folder / "plain" / "train.parquet")
    datasets.utils.enable_progress_bars()
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hf:org/name", HubSource(name="org/name")),
        ("hf:org/name:main", HubSource(name="org/name", config="main")),
        ("hf:org/name:en-v1?split=test", HubSource(name="org/name", config="en-v1", split="test")),
        ("hf:squad?split=train[:100]", HubSource(name="squad", split="train[:100]")),
        ("hf:squad?split=train%2Btest", HubSource(name="squad", split="train+test")),
        ("hf:squad?split=train+test", HubSource(name="squad", split="train+test")),
        ("hf:/a/b?revision=v2&split=x", HubSource(name="/a/b", split="x", revision="v2")),
    ],
)
def test_how_a_source_is_written(text: str, found: HubSource) -> None:
    assert parse_hub(text) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hf:", "names no data set"),
        ("hf:a/b?", "nothing stands after the question mark"),
        ("hf:a/b?splt=test", "unknown key 'splt'; did you mean 'split'"),
        ("hf:a/b?split=", "split must stand once and have a value"),
        ("hf:a/b?split=x&split=y", "split must stand once"),
    ],
)
def test_what_is_written_wrongly_gets_one_sentence(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        list(read_rows(text))
    assert "\n" not in str(caught.value)


def test_rows_come_in_order_and_without_bars(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outputs = [f"sum {n}" for n in range(6)]
    assert [row.answer for row in read_rows(f"hf:{here}/saved")] == outputs
    assert [row.answer for row in read_rows(f"hf:{here}/repository:sums")] == outputs
    assert [row.answer for row in read_rows(f"hf:{here}/repository:sums?split=train[2:4]")] == outputs[2:4]
    talk = [row.pairs for row in read_rows(f"hf:{here}/repository:talk")]
    assert talk == [(("user", f"q{n}"), ("assistant", f"a{n}")) for n in range(4)]
    assert talk == [row.pairs for row in read_rows(f"hf:{here}/splits")]
    assert talk == [row.pairs for row in read_rows(f"hf:{here}/plain")]
    assert talk == [row.pairs for row in read_rows(here / "splits")]  # without the library
    assert [row.answer for row in read_rows(here / "saved")] == outputs
    assert [row.answer for row in read_rows(f"hf:{here}/repository:talk?split=test")] == ["a3"]
    assert [row.answer for row in read_rows(f"hf:{here}/splits?split=test")] == ["a0", "a1"]
    assert next(iter(read_rows(f"hf:{here}/saved"))).where == f"hf:{here}/saved row 1"
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_is_that_of_the_same_rows_in_a_file(here: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", CHAT)
    from_file, from_hub = scan(tmp_path / "rows.jsonl"), scan(f"hf:{here}/splits")
    assert from_hub.fingerprint == from_file.fingerprint != scan(f"hf:{here}/saved").fingerprint
    assert (from_hub.format, from_hub.rows, from_hub.files) == ("chat", 4, ())


def test_messages_kept_as_columns_are_read_too(tmp_path: Path) -> None:
    columns = [{"messages": {"role": ["user", "assistant"], "content": [f"q{n}", f"a{n}"]}} for n in range(3)]
    datasets.Dataset.from_list(columns).save_to_disk(tmp_path / "old")
    assert [row.pairs for row in read_rows(f"hf:{tmp_path}/old")] == [
        (("user", f"q{n}"), ("assistant", f"a{n}")) for n in range(3)
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hf:{}/none", "the folder .*none does not exist"),
        ("hf:~nosuchuser/x", "the folder ~nosuchuser/x does not exist"),
        ("hf:/" + "a" * 5000, "^.{0,500} does not exist"),
        ("hf:{}/repository", "Config name is missing.*'sums', 'talk'.*name a configuration"),
        ("hf:{}/repository:tlk", "'tlk' not found.*choose another configuration .a split is written .*split=tlk"),
        ("hf:{}/repository:talk?split=dev", "Unknown split .dev.*choose another split"),
        ("hf:{}/splits?split=dev", "has no split 'dev'; it has train, test"),
        ("hf:{}/saved?split=dev", "holds one table without splits"),
        ("hf:{}/saved:main", "neither a configuration nor a revision"),
    ],
)
def test_what_cannot_be_had_gets_one_sentence(here: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        list(read_rows(text.format(here)))
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_and_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*name, **options):
        asked.append((name, options))
        raise ConnectionError("Couldn't reach 'org/name' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"Couldn't reach .*the hub cannot be reached: check the network, or give a"):
        list(read_rows("hf:org/name:en?split=test&revision=v2"))
    assert asked == [(("org/name", "en"), {"split": "test", "revision": "v2"})]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the datasets library; run `pip install ideal-proxy\[hub\]`"):
        list(read_rows("hf:org/name"))


def test_a_run_file_finds_folders_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text(
        "domains:\n  - {name: a, path: 'hf:./data/a?split=train'}\n  - {name: b, path: hf:org/name}\n"
        "capabilities: [{name: a, path: 'hf:/data/a?split=test'}]\n"
    )
    config = load_config(tmp_path / "mix.yaml")
    paths = [entry.path for entry in (*config.domains, *config.capabilities)]
    assert paths == [f"hf:{tmp_path}/data/a?split=train", "hf:org/name", "hf:/data/a?split=test"]
