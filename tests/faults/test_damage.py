"""Files torn, flipped, emptied or swapped: every command says which, and what can be made anew is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import make_context, run, small_search, write_rows, write_small_search
from finished_run import folder as finished_folder

from ideal_proxy.config import load_config
from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture.apply import apply_mixture
from ideal_proxy.mixture.file import CapabilityResult, DomainVolume, MixtureFile, save_mixture
from ideal_proxy.pipeline.outer_loop import _damaged
from ideal_proxy.pipeline.plan import read_plan
from ideal_proxy.pipeline.result_file import load_result
from ideal_proxy.pipeline.row_record import RowRecord, load_record, save_record
from ideal_proxy.scaleup.run import _last_checkpoint
from ideal_proxy.store import (
    HOLDER,
    MARKER,
    atomic_write_json,
    copy_checked,
    damaged_file,
    is_complete,
    is_whole,
    lock,
    lock_holder,
    mark_complete,
    read_json,
)
from ideal_proxy.swarm.context import MODEL
from ideal_proxy.swarm.scheduler import Swarm, warm_spec

FILES = ("config.yaml", "fit.json", "mixture.json", "plan.json", "prepared/facts.json", "provenance.json", "rate.json",
         "result.json", "runs.parquet")  # fmt: skip
READ_BY = {"fit.json": [["optimize", "--out", "m.json"]], "result.json": [["show"], ["status"]]}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "torn": lambda content: content[: len(content) // 2],
    "zeros": lambda content: b"\0" * len(content),
    "flipped": lambda content: bytes(
        c ^ 0x15 if n % max(1, len(content) // 7) == 0 else c for n, c in enumerate(content)
    ),
    "deep": lambda _: b"[" * 200_000,
    "long number": lambda _: b'{"a": ' + b"9" * 5_000 + b"}",
    "list": lambda _: b"[]",
    "object": lambda _: b"{}",
    "null": lambda _: b"null",
    "text": lambda _: b'"x"',
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_run_is_one_sentence(name: str, tmp_path: Path) -> None:
    for number, (kind, damage) in enumerate(DAMAGE.items()):
        place = tmp_path / str(number)
        shutil.copytree(finished_folder(), place)
        (place / name).write_bytes(damage((place / name).read_bytes()))
        for command in READ_BY.get(name, [["what-if", "--set", "coding=2100"]]):
            done = run(command[0], str(place), *command[1:], cwd=tmp_path)  # a traceback would come through
            assert done.returncode in {0, 1, 2}, (kind, command)
            if done.returncode:
                assert done.stderr.startswith("error: "), (kind, command)
                assert len(done.stderr) < 500 + len(str(place)), (kind, command)
            still_right = name == "config.yaml" and kind in {
                "torn",
                "flipped",
            }  # the user's own text, without a checksum
            if not still_right and (kind not in {"object", "list", "flipped"} or name in {"config.yaml", *READ_BY}):
                assert done.returncode, (kind, command)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.unlink(),
    ],
    ids=["flipped", "torn", "missing"],
)
def test_a_folder_whose_file_changed_loses_its_marker(change: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "weights").write_bytes(bytes(range(200)))
    (tmp_path / "later").write_text("x")
    mark_complete(tmp_path, ("in/weights",))
    assert is_whole(tmp_path)
    (tmp_path / "later").write_text("may change: it was not named")
    assert damaged_file(tmp_path) is None
    change(tmp_path / "in" / "weights")
    said: list[str] = []
    assert damaged_file(tmp_path) == tmp_path / "in" / "weights"
    assert not is_whole(tmp_path, said.append)
    assert "in/weights is damaged" in said[0]
    assert not is_complete(tmp_path)


def test_a_marker_of_an_earlier_version_and_a_torn_one(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("w")
    (tmp_path / MARKER).write_text("")  # they were empty
    assert is_whole(tmp_path)
    (tmp_path / MARKER).write_text('{"weights": ')
    assert not is_whole(tmp_path)


def test_flipped_weights_of_the_warm_start_are_made_anew(tmp_path: Path) -> None:
    context = make_context(tmp_path / "context")
    weights = tmp_path / "runs" / "warm" / MODEL
    with Swarm(context, tmp_path, workers=1) as swarm:
        swarm.run([warm_spec(context, 0)])
        sound = weights.read_bytes()
        content = bytearray(sound)
        content[len(content) // 2] ^= 0x40
        weights.write_bytes(content)
        swarm.run([warm_spec(context, 0)])
        assert weights.read_bytes() == sound


def test_killed_between_the_first_two_files_of_a_run(tmp_path: Path) -> None:
    """Whatever of provenance, configuration and half-written files stands, the same command goes on."""
    mix = write_small_search(tmp_path)
    out = tmp_path / "out"
    assert run("search", str(mix), "--dry-run", "--out", str(out)).returncode == 0
    (out / "dry-run").unlink()
    for lost in ("provenance.json", "config.yaml"):
        content = (out / lost).read_bytes()
        (out / lost).unlink()
        half = out / f".{lost}.1.part"
        half.write_bytes(content[:9])
        if lost == "config.yaml":
            for entry in ("prepared", "plan.json", "provenance.json"):
                shutil.rmtree(out / entry) if (out / entry).is_dir() else (out / entry).unlink()
        assert run("search", str(mix), "--dry-run", "--out", str(out)).returncode == 0, lost
        assert (out / lost).exists()
        half.unlink()


def mixture_of_nine_rows(folder: Path) -> MixtureFile:
    rows = write_rows(folder / "a.jsonl", ({"instruction": f"i {n}", "output": f"o {n}"} for n in range(9)))
    marks = source_fingerprint(row_keys(list(read_rows(rows))))
    domain = DomainVolume(
        name="a", source=rows, fingerprint=marks, available=9, rows=14, base_rows=9, tokens=140, repeat=14 / 9
    )
    return MixtureFile(domains=[domain])


def test_apply_killed_while_it_wrote_the_manifest(tmp_path: Path) -> None:
    mixture, out = mixture_of_nine_rows(tmp_path), tmp_path / "out"
    sound = apply_mixture(mixture, out).sha256
    content = (out / "manifest.json").read_bytes()
    (out / "manifest.json").unlink()
    (out / ".manifest.json.1.part").write_bytes(content[:20])
    (out / ".ideal-proxy-spool").mkdir()
    again = apply_mixture(mixture, out)
    assert (again.sha256, again.already_there) == (sound, False)
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "train.jsonl"]


def test_rows_that_were_written_are_read_again_before_they_are_taken_as_there(tmp_path: Path) -> None:
    mixture, out = mixture_of_nine_rows(tmp_path), tmp_path / "out"
    apply_mixture(mixture, out)
    assert apply_mixture(mixture, out).already_there
    content = bytearray((out / "train.jsonl").read_bytes())
    content[30] ^= 1
    (out / "train.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.jsonl is not what was written"):
        apply_mixture(mixture, out)
    (out / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"train\.jsonl is not what was written"):
        apply_mixture(mixture, out)


def test_a_run_file_of_aliases_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{'abcdefghij'[n]}: &{'abcdefghij'[n]} [{', '.join(['*' + 'abcdefghij'[n - 1]] * 9)}]" for n in range(1, 10)
    ]
    path = tmp_path / "mix.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match="aliases") as caught:
        load_config(path)
    assert len(str(caught.value)) < 300
    for text in ("a: &a [*a]", "{a: " * 20_000, "a: 2026-99-99", "a: " + "9" * 5_000, "a: {b: 9999999999999999}"):
        path.write_text(text)
        with pytest.raises(UsageError) as caught:
            load_config(path)
        assert len(str(caught.value)) < 400
    path.write_text(json.dumps(small_search()))
    assert load_config(path).name == "small"


def test_no_permission_and_names_too_long_are_sentences(tmp_path: Path) -> None:
    for command in (
        ["show", "x" * 300], ["status", "x" * 300], ["check", "x" * 300], ["apply", "x" * 300, "--out", "y"],
        ["init", "x" * 300], ["search", "--out", "x" * 300, "--dry-run"], ["report", "x" * 300],
    ):  # fmt: skip
        done = run(*command, cwd=tmp_path)
        assert done.returncode in {1, 2}, command
        assert done.stderr.splitlines()[-1].startswith("error: "), command


def test_seeds_of_the_damage_reach_every_byte_of_small_files(tmp_path: Path) -> None:
    """One bit anywhere is seen, whatever the file."""
    rng = np.random.default_rng(0)
    for size in (1, 7, 4_096):
        (tmp_path / "f").write_bytes(sound := rng.bytes(size))
        mark_complete(tmp_path)
        for at in rng.integers(0, size, 20):
            content = bytearray(sound)
            content[at] ^= 1 << int(rng.integers(8))
            (tmp_path / "f").write_bytes(content)
            assert damaged_file(tmp_path) == tmp_path / "f"


@pytest.mark.parametrize("lost", ["optimizer.pt", "model.safetensors", MARKER])
def test_a_full_size_run_goes_on_from_the_newest_checkpoint_that_is_whole(lost: str, tmp_path: Path) -> None:
    for step in (2, 10, 9):
        place = tmp_path / f"checkpoint-{step}"
        place.mkdir()
        for name in ("optimizer.pt", "model.safetensors"):
            (place / name).write_bytes(f"{name} {step}".encode())
        mark_complete(place)
    assert _last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / lost).unlink()
    (tmp_path / "checkpoint-9" / "model.safetensors").write_bytes(b"model.safetensors 8")
    assert _last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_damaged_file_of_a_finished_search_or_of_its_runs_is_noticed(tmp_path: Path) -> None:
    for name, place in (("result.json", tmp_path), ("metrics.json", tmp_path / "runs" / "a")):
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("{}")
        mark_complete(place, (name,))
    (tmp_path / "runs" / "half").mkdir()
    assert _damaged(tmp_path) is None
    (tmp_path / "runs" / "a" / "metrics.json").write_bytes(b"")
    assert _damaged(tmp_path) == tmp_path / "runs" / "a" / "metrics.json"
    (tmp_path / "runs" / "a" / "metrics.json").write_text("{}")
    lower = tmp_path / "lower" / "1M" / "runs" / "b"
    lower.mkdir(parents=True)
    mark_complete(lower)
    assert _damaged(tmp_path) is None
    (lower / MARKER).write_text('{"gone": "0:0"}')
    assert _damaged(tmp_path) == lower / "gone"
    (tmp_path / "result.json").write_text("[]")
    assert _damaged(tmp_path) == tmp_path / "result.json"
    with pytest.raises(UserError, match="is damaged or was edited"):
        load_result(tmp_path)


def test_a_sealed_file_and_a_plan_with_its_copy(tmp_path: Path) -> None:
    atomic_write_json(tmp_path / "rate.json", {"learning_rate": 0.006}, seal=True)
    assert read_json(tmp_path / "rate.json") == {"learning_rate": 0.006}
    text = (tmp_path / "rate.json").read_text()
    (tmp_path / "rate.json").write_text(text.replace("0.006", "0.002"))
    with pytest.raises(UserError, match="is damaged"):
        read_json(tmp_path / "rate.json")
    plan = read_json(finished_folder() / "plan.json")
    (tmp_path / "plan.json").write_bytes(b"\0" * 99)
    with pytest.raises(UserError, match="not valid JSON"):
        read_plan(tmp_path / "plan.json")
    atomic_write_json(tmp_path / "prepared" / "plan.json", plan, seal=True)
    with pytest.raises(UserError, match="another version"):  # the folder made without training has no whole plan
        read_plan(tmp_path / "plan.json")
    assert read_json(tmp_path / "plan.json") == plan


def test_a_scale_up_killed_at_its_first_file_goes_on_and_its_options_have_a_copy(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", ({"instruction": f"i {n}", "output": f"o {n}"} for n in range(40)))
    marks = source_fingerprint(row_keys(list(read_rows(rows))))
    domain = DomainVolume(
        name="a", source=rows, fingerprint=marks, available=40, rows=40, base_rows=40, tokens=400, repeat=1.0
    )
    capability = CapabilityResult(name="a", source=rows)
    save_mixture(tmp_path / "m.json", MixtureFile(domains=[domain], capabilities=[capability]))
    command = ("scale-up", str(tmp_path / "m.json"), "--model", "scratch:0.1M", "--evaluations", "0")
    out = tmp_path / "out"
    out.mkdir()
    (out / ".options.json.1.part").write_text('{"mixture"')
    assert run(*command, "--out", str(out)).returncode == 0
    sound = (out / "options.json").read_bytes()
    for damage in (b"", sound.replace(b'"fraction": 1.0', b'"fraction": 0.5')):
        assert damage != sound
        (out / "options.json").write_bytes(damage)
        assert run(*command, "--resume", "--out", str(out)).returncode == 0
        assert (out / "options.json").read_bytes() == sound


def test_a_damaged_name_of_who_holds_a_folder_is_nobody(tmp_path: Path) -> None:
    with lock(tmp_path):
        sound = (tmp_path / HOLDER).read_bytes()
    for at in range(len(sound)):
        (tmp_path / HOLDER).write_bytes(sound[:at] + bytes([sound[at] ^ (1 << at % 8)]) + sound[at + 1 :])
        assert lock_holder(tmp_path) is None
    with lock(tmp_path):
        assert lock_holder(tmp_path) == sound.decode().partition("\n")[0]


def test_no_flipped_bit_of_arrays_is_a_traceback(tmp_path: Path) -> None:
    """Checksums of zip notice what is changed in the arrays, not what is changed in its own tables."""
    keys = [np.arange(n, dtype=np.uint64) * 7 for n in (3, 2)]
    record = RowRecord(
        domains=("a",), pools=(keys[0],), reserved=(keys[1],), available=(3,), fraction=0.5, references=("search-0",),
        reference_keys=(keys[1],), reference_groups=(keys[1],),
    )  # fmt: skip
    path = tmp_path / "rows.npz"
    save_record(path, record)
    sound, refused = path.read_bytes(), 0
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ (1 << at % 8)]) + sound[at + 1 :])
        try:
            found = load_record(path)
        except UserError:
            refused += 1
        else:
            assert (found.domains, found.available, found.fraction) == (record.domains, record.available, 0.5), at
            assert np.array_equal(found.pools[0], keys[0]), at
    assert refused > len(sound) / 2
    save_record(path, record)
    assert path.read_bytes() == sound


def test_a_copy_that_is_no_longer_its_source_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("abc")
    for source, target, at in ((tmp_path / "in", tmp_path / "out", "a"), (tmp_path / "in" / "a", tmp_path / "b", "")):
        for damage in (None, b"ab", b"abd"):
            if damage is not None:
                (target / at).write_bytes(damage)
            copy_checked(source, target)
            assert (target / at).read_text() == "abc"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "in", "out"]
