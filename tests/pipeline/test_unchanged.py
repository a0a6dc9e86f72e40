"""A run goes on with the data that it was begun with, or refuses by name: every kind of source."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from ideal_proxy.config import parse_config
from ideal_proxy.data import demo
from ideal_proxy.data.messages import row_keys, source_fingerprint
from ideal_proxy.data.rows import read_rows
from ideal_proxy.errors import UserError
from ideal_proxy.export.hand_over import export_mixture
from ideal_proxy.mixture.apply import apply_mixture
from ideal_proxy.mixture.file import DomainVolume, MixtureFile
from ideal_proxy.pipeline.outer_loop import warn_of_other_rows
from ideal_proxy.pipeline.prepare import prepare
from ideal_proxy.scaleup.source import read_domains
from ideal_proxy.terminal import Reporter
from tests.builders import write_rows

QUIET = Reporter(quiet=True)


def rows_of(changed: bool = False) -> list[dict[str, str]]:
    return [{"prompt": f"count {n}", "completion": "seven" if changed and n == 7 else str(n)} for n in range(40)]


def a_file(folder: Path, changed: bool) -> str:
    return write_rows(folder / "one.jsonl", rows_of(changed))


def a_glob(folder: Path, changed: bool) -> str:
    rows = rows_of(changed)
    write_rows(folder / "part-1.jsonl", rows[:20])
    write_rows(folder / "part-2.jsonl", rows[20:])
    return str(folder / "part-*.jsonl")


def a_folder(folder: Path, changed: bool) -> str:
    a_glob(folder / "parts", False)
    if changed:  # a part that came
        write_rows(folder / "parts" / "part-3.jsonl", rows_of()[:1])
    return str(folder / "parts")


def saved(folder: Path, changed: bool) -> str:
    place = folder / ("new" if changed else "saved")
    datasets.Dataset.from_list(rows_of(changed)).save_to_disk(str(place))
    if changed:
        for old in (folder / "saved").iterdir():
            old.unlink()
        for file in place.iterdir():
            file.rename(folder / "saved" / file.name)
    return str(folder / "saved")


def hub_folder(folder: Path, changed: bool) -> str:
    write_rows(folder / "repository" / "train.jsonl", rows_of(changed))
    return f"hf:{folder / 'repository'}"


@pytest.mark.parametrize("kind", [a_file, a_glob, a_folder, saved, hub_folder])
def test_a_change_in_any_kind_of_source_is_refused_by_name(tmp_path: Path, kind: Callable[[Path, bool], str]) -> None:
    source = kind(tmp_path, False)
    other = write_rows(tmp_path / "other" / "rows.jsonl", rows_of())
    config = parse_config({
        "name": "change", "domains": [{"name": "a", "path": source}, {"name": "b", "path": other}],
        "capabilities": [{"name": "a", "path": other}],
        "proxy": {"size": "0.1M", "vocabulary": 300, "context": 32},
    })  # fmt: skip
    folder = tmp_path / "run" / "prepared"
    first = prepare(config, folder, QUIET)
    assert prepare(config, folder, QUIET).facts == first.facts
    kind(tmp_path, False)  # written again, the same rows at another time
    os.utime(other, (1, 1))
    assert prepare(config, folder, QUIET).facts == first.facts
    kind(tmp_path, True)
    with pytest.raises(UserError) as refused:
        prepare(config, folder, QUIET)
    assert str(refused.value).startswith(f"{source} changed since {tmp_path / 'run'} was begun")


def test_a_finished_search_says_that_its_result_is_not_of_todays_rows(tmp_path: Path) -> None:
    source, other = a_file(tmp_path, False), write_rows(tmp_path / "other.jsonl", rows_of())
    config = parse_config({
        "name": "done", "domains": [{"name": "a", "path": source}, {"name": "b", "path": other}],
        "capabilities": [{"name": "a", "path": other}],
        "proxy": {"size": "0.1M", "vocabulary": 300, "context": 32},
    })  # fmt: skip
    prepare(config, tmp_path / "run" / "prepared", QUIET)
    said: list[str] = []
    reporter = Reporter(quiet=True)
    reporter.on_note = said.append
    warn_of_other_rows(tmp_path / "run", reporter)
    assert not said
    a_file(tmp_path, True)
    warn_of_other_rows(tmp_path / "run", reporter)
    (line,) = said
    assert line.startswith(f"warning: the result is not of today's rows: {source} changed since")
    assert f"--reuse {tmp_path / 'run'}" in line


def test_a_source_that_is_gone_is_named(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / f"{name}.jsonl", rows_of()) for name in "ab"]
    config = parse_config({
        "name": "gone", "domains": [{"name": n, "path": p} for n, p in zip("ab", paths, strict=True)],
        "capabilities": [{"name": "a", "path": paths[0]}],
        "proxy": {"size": "0.1M", "vocabulary": 300, "context": 32},
    })  # fmt: skip
    prepare(config, tmp_path / "run" / "prepared", QUIET)
    Path(paths[1]).unlink()
    with pytest.raises(UserError, match=r"b\.jsonl is not what .*run was begun with: .* does not exist"):
        prepare(config, tmp_path / "run" / "prepared", QUIET)


def test_rows_that_are_made_by_a_rule_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config({
        "name": "made", "domains": [{"name": n, "path": f"demo:{n}?rows=60"} for n in ("facts", "lists")],
        "capabilities": [{"name": "facts", "path": "demo:facts?rows=20&split=reference"}],
        "proxy": {"size": "0.1M", "vocabulary": 300, "context": 32},
    })  # fmt: skip
    folder = tmp_path / "run" / "prepared"
    prepare(config, folder, QUIET)
    prepare(config, folder, QUIET)
    make = demo.demo_rows

    def other(source: str) -> object:
        return make(source.replace("rows=60", "rows=59") if "lists" in source else source)

    monkeypatch.setattr("ideal_proxy.data.demo.demo_rows", other)
    with pytest.raises(UserError, match=r"demo:lists\?rows=60 changed since"):
        prepare(config, folder, QUIET)


FOLLOW_UP: dict[str, Callable[[MixtureFile, Path], object]] = {
    "apply": lambda mixture, out: apply_mixture(mixture, out, index=out.parent / "index"),
    "export": lambda mixture, out: export_mixture(mixture, "jsonl", out),
    "scale-up": lambda mixture, _: read_domains(mixture),
}


@pytest.mark.parametrize("command", FOLLOW_UP)
@pytest.mark.parametrize("kind", [a_file, a_glob, a_folder, saved, hub_folder, "procedural"])
def test_what_follows_a_search_refuses_changed_data_by_name(
    tmp_path: Path, kind: Callable[[Path, bool], str] | str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(kind, str):
        make, rows = demo.demo_rows, {"now": 40}
        monkeypatch.setattr(
            "ideal_proxy.data.demo.demo_rows", lambda uri: make(uri.replace("rows=40", f"rows={rows['now']}"))
        )
        source = "demo:lists?rows=40"
    else:
        source = kind(tmp_path, False)
    keys = row_keys(read_rows(source))
    domain = DomainVolume(
        name="the domain", source=source, format="auto", fingerprint=source_fingerprint(keys), available=len(keys),
        base_rows=20, rows=20,
    )  # fmt: skip
    mixture = MixtureFile(domains=[domain])
    FOLLOW_UP[command](mixture, tmp_path / "first")
    if isinstance(kind, str):
        rows["now"] = 39
    else:
        kind(tmp_path, True)
    with pytest.raises(UserError) as refused:
        FOLLOW_UP[command](mixture, tmp_path / "second")
    said = str(refused.value)
    assert "the domain" in said
    assert source in said
    assert "search" in said, "what to do"
