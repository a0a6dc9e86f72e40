"""`apply`: the exact rows, byte for byte, in training order, in bounded memory, of unchanged data only."""

from __future__ import annotations

import dataclasses
import errno
import functools
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from builders import ROOT, environment, read_back
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ideal_proxy.data.rows import read_rows, row_keys, scan
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture import apply as materialise
from ideal_proxy.mixture import draws as mixture_module
from ideal_proxy.mixture import order, row_table
from ideal_proxy.mixture.apply import MANIFEST, mixture_identity
from ideal_proxy.mixture.draws import domain_order, draw, training_order
from ideal_proxy.mixture.file import DomainVolume, MixtureFile, save_mixture
from ideal_proxy.mixture.reading import read_domain

apply_mixture = functools.partial(materialise.apply_mixture, row_format="as-is")


def volume(name: str, source, rows: int, format: str = "auto") -> DomainVolume:
    info = scan(source, format=format)
    return DomainVolume(
        name=name, source=str(source), format=format, fingerprint=info.fingerprint, available=info.rows, rows=rows,
        repeat=rows / info.rows,
    )  # fmt: skip


@pytest.fixture
def sources(tmp_path):
    """Three domains whose lines no JSON writer would write just so; one row twice, one without an answer."""
    a = [f'{{"instruction":"a{n}" ,  "output": "\\u00e9{n}", "id": {n}.50}}\n'.encode() for n in range(7)]
    a[5] = a[4]
    a.insert(2, b'{"instruction": "none", "output": ""}\n')
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"".join(a).replace(b"a3", "ä3".encode()) + b"\n")
    b = [
        f'{{"messages": [{{"role":"user","content":"b{n}"}},{{"role":"assistant","content":"{n}"}}]}}' for n in range(5)
    ]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.jsonl").write_text("\r\n".join(b[:2]))  # no line end at the end
    (tmp_path / "b" / "2.jsonl").write_text("\n".join(b[2:]) + "\n")
    c = "".join(json.dumps({"prompt": f"c{n}", "completion": "é"}, ensure_ascii=False) + "\n" for n in range(3))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(c.encode()))
    return tmp_path


@pytest.fixture
def mixture(sources):
    domains = [
        volume("a", sources / "a.jsonl", 18), volume("b", sources / "b", 3),
        volume("c", sources / "c.jsonl.gz", 4), volume("unused", sources / "c.jsonl.gz", 0),
    ]  # fmt: skip
    return MixtureFile(name="test", seed=9, domains=domains, verdict="improves")


def expected_lines(mixture: MixtureFile) -> list[bytes]:
    """The same rows by way of memory: all lines of every source, drawn and ordered by the tested functions."""
    lines, drawn, names = [], [], []
    for domain in mixture.domains:
        rows = list(read_rows(domain.source, format=domain.format))
        found = []
        for row in rows:
            file, _, number = row.where.rpartition(":")
            if file and number.isdigit() and not file.endswith(".gz"):
                line = Path(file).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")[int(number) - 1]
            else:
                line = json.dumps(row.raw, ensure_ascii=False).encode()
            found.append(line + b"\n")
        keys = row_keys(rows)
        lines.append(found)
        names.append(domain.name)
        drawn.append((keys, *draw(domain_order(mixture.seed, domain.name, keys), domain.rows)))
    domain_R, row_R = training_order(mixture.seed, names, drawn)
    return [lines[d][r] for d, r in zip(domain_R, row_R, strict=True)]


def test_rows_are_exact_and_in_training_order_byte_for_byte(mixture, tmp_path):
    done = apply_mixture(mixture, tmp_path / "out")
    content = (tmp_path / "out" / "train.jsonl").read_bytes()
    assert content == b"".join(expected_lines(mixture))
    rows = list(read_back(done))
    assert len(rows) == done.rows == 25
    assert done.domain_rows == {"a": 18, "b": 3, "c": 4, "unused": 0}
    first = Counter(row["instruction"] for row in rows if "instruction" in row)
    assert sum(first.values()) == 18
    assert first["a4"] in range(4, 7)  # stands twice among 7 rows, drawn 2 or 3 times each
    assert "none" not in first
    assert {n for k, n in first.items() if k != "a4"} <= {2, 3}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [MANIFEST, "train.jsonl"]


def test_half_a_character_beside_the_rows_is_written_as_it_is(tmp_path):
    rows = [{"prompt": f"q{n}", "completion": "é", "note": "\ud800"} for n in range(6)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    done = apply_mixture(MixtureFile(name="m", seed=1, domains=[volume("a", tmp_path / "a.json", 6)]), tmp_path / "out")
    assert sorted(read_back(done), key=lambda row: row["prompt"]) == rows


def test_rows_are_written_in_jupyter_without_ipywidgets(mixture, tmp_path):
    """There DuckDB refuses even to be told that no progress bar is wanted."""
    (tmp_path / "IPython.py").write_text(
        "class Shell:\n    config = {'IPKernelApp': {}}\n\n\ndef get_ipython():\n    return Shell()\n"
    )
    save_mixture(tmp_path / "mixture.json", mixture)
    code = (
        "import sys, IPython; sys.modules['ipywidgets'] = None; from ideal_proxy import apply_mixture, load_mixture; "
        "print(apply_mixture(load_mixture('mixture.json'), 'out').rows)"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(PYTHONPATH=path), cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout == "25\n", done.stderr


def test_the_manifest_counts_what_is_there(mixture, tmp_path):
    done = apply_mixture(mixture, tmp_path / "out", shards=3)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert [f["rows"] for f in manifest["files"]] == [8, 8, 9]
    for entry, path in zip(manifest["files"], done.files, strict=True):
        content = path.read_bytes()
        assert entry["name"] == path.name
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert content.count(b"\n") == entry["rows"]
    passes = {d["name"]: (d["rows"], d["whole_passes"], d["rows_of_the_last_pass"]) for d in manifest["domains"]}
    assert passes == {"a": (18, 2, 4), "b": (3, 0, 3), "c": (4, 1, 1), "unused": (0, 0, 0)}
    assert (manifest["seed"], manifest["rows"], manifest["identity"]) == (9, 25, mixture_identity(mixture))


def test_shards_follow_each_other_and_seeds_change_the_order_only_within_the_same_counts(mixture, tmp_path):
    whole = apply_mixture(mixture, tmp_path / "one").files[0].read_bytes()
    parts = apply_mixture(mixture, tmp_path / "many", shards=4).files
    assert [p.name for p in parts] == [f"train-{n:05d}-of-00004.jsonl" for n in range(4)]
    assert b"".join(p.read_bytes() for p in parts) == whole
    other = apply_mixture(mixture.model_copy(update={"seed": 10}), tmp_path / "other").files[0].read_bytes()
    assert other != whole
    assert len(other.splitlines()) == len(whole.splitlines())


def test_a_smaller_mixture_is_a_subsequence(mixture, tmp_path):
    large = apply_mixture(mixture, tmp_path / "large").files[0].read_bytes().splitlines()
    fewer = [d.model_copy(update={"rows": d.rows // 2}) for d in mixture.domains]
    small = apply_mixture(mixture.model_copy(update={"domains": fewer}), tmp_path / "small").files[0]
    rest = iter(large)
    assert all(line in rest for line in small.read_bytes().splitlines())


def test_chat_form_gives_every_row_one_shape_that_reads_back_the_same(mixture, tmp_path):
    plain = apply_mixture(mixture, tmp_path / "plain")
    chat = apply_mixture(mixture, tmp_path / "chat", row_format="chat")
    messages = [row.messages for row in read_rows(chat.files[0])]
    assert {tuple(row) for row in read_back(chat)} == {("messages",)}
    kinds = {"instruction": "alpaca", "messages": "chat", "prompt": "prompt"}
    from ideal_proxy.data.rows import to_messages

    expected = [to_messages(row, kinds[next(iter(row))], "") for row in read_back(plain)]
    assert messages == expected


def test_data_that_changed_is_refused_and_nothing_is_written(mixture, sources, tmp_path):
    path = sources / "b" / "2.jsonl"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"b3", b"B3"))
    with pytest.raises(UserError, match=r"domain 'b' changed .*content or order") as caught:
        apply_mixture(mixture, tmp_path / "out")
    assert "search again" in str(caught.value)
    path.write_bytes(before + before.splitlines()[0] + b"\n")
    with pytest.raises(UserError, match="it had 5 rows, now 6"):
        apply_mixture(mixture, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    path.write_bytes(before)
    assert apply_mixture(mixture, tmp_path / "out").rows == 25


def test_data_that_moved_is_found_where_the_user_says(mixture, sources, tmp_path):
    expected = b"".join(expected_lines(mixture))
    (sources / "a.jsonl").rename(sources / "moved.jsonl")
    with pytest.raises(UserError, match="does not exist"):
        apply_mixture(mixture, tmp_path / "out")
    done = apply_mixture(mixture, tmp_path / "out", sources={"a": str(sources / "moved.jsonl")})
    assert done.files[0].read_bytes() == expected
    with pytest.raises(UsageError, match="'z' is no domain"):
        apply_mixture(mixture, tmp_path / "out", sources={"z": "x"})


def test_a_finished_folder_is_left_and_another_is_refused(mixture, tmp_path):
    first = apply_mixture(mixture, tmp_path / "out", shards=2)
    times = [p.stat().st_mtime_ns for p in first.files]
    again = apply_mixture(mixture, tmp_path / "out", shards=2)
    assert again.already_there
    assert dataclasses.replace(again, already_there=False) == first
    assert [p.stat().st_mtime_ns for p in again.files] == times
    for changed in ({"shards": 1}, {"row_format": "chat", "shards": 2}):
        with pytest.raises(UserError, match="is not empty"):
            apply_mixture(mixture, tmp_path / "out", **changed)
    with pytest.raises(UserError, match="is not empty"):
        apply_mixture(mixture.model_copy(update={"seed": 1}), tmp_path / "out", shards=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        apply_mixture(mixture, tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        apply_mixture(mixture, tmp_path / "file")


def test_a_full_disk_and_a_stop_leave_a_folder_that_the_same_command_finishes(mixture, tmp_path, monkeypatch):
    real = os.replace

    def full(source, target):
        if str(target).endswith("00001-of-00002.jsonl"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    expected = b"".join(expected_lines(mixture))
    monkeypatch.setattr(materialise.os, "replace", full)
    with pytest.raises(UserError, match="No space left on device; make room"):
        apply_mixture(mixture, tmp_path / "out", shards=2)
    monkeypatch.undo()
    done = apply_mixture(mixture, tmp_path / "out", shards=2)
    assert b"".join(p.read_bytes() for p in done.files) == expected
    spool = tmp_path / "killed" / materialise.SPOOL
    spool.mkdir(parents=True)
    (spool / "train.jsonl").write_text("half")
    (tmp_path / "killed" / "train.jsonl").write_text("from before the manifest")
    done = apply_mixture(mixture, tmp_path / "killed")
    assert done.files[0].read_bytes() == expected
    assert not spool.exists()


@pytest.mark.parametrize("shards", [0, 26])
def test_shards_outside_what_there_is_are_refused(mixture, tmp_path, shards):
    with pytest.raises(UsageError, match="must lie in 1 to 25"):
        apply_mixture(mixture, tmp_path / "out", shards=shards)


def test_rows_that_the_disk_has_no_room_for_are_refused_before_they_are_written(mixture, tmp_path):
    """A mixture file of ten lines can ask for any number of rows."""
    many = [domain.model_copy(update={"rows": 10**13}) for domain in mixture.domains]
    with pytest.raises(UserError, match=r"0,000,000,000,000 rows need about .* GB .* GB free; make room"):
        apply_mixture(mixture.model_copy(update={"domains": many}), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_mixture_that_leaves_out_every_row_is_one_sentence(sources, tmp_path):
    """Two equal rows, one of them named: an edited file, for a template refuses both or none."""
    (tmp_path / "twice.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 2)
    domain = volume("twice", tmp_path / "twice.jsonl", 3)
    (key, _) = row_keys(list(read_rows(tmp_path / "twice.jsonl"))).tolist()
    edited = domain.model_copy(update={"available": 1, "left_out": [f"{key:016x}"]})
    with pytest.raises(UserError, match=r"domain twice: the mixture file leaves out every row of .*twice.jsonl"):
        apply_mixture(MixtureFile(domains=[edited]), tmp_path / "out")
    with pytest.raises(UserError, match="leaves out every row"):
        read_domain(edited, edited.source)
    invented = volume("a", sources / "a.jsonl", 5).model_copy(
        update={"available": 4, "left_out": ["0" * 15 + n for n in "123"]}
    )
    for read in (
        lambda: apply_mixture(MixtureFile(domains=[invented]), tmp_path / "out"),
        lambda: read_domain(invented, invented.source),
    ):
        with pytest.raises(UserError, match=r"domain a: 7 rows of .*a.jsonl are left .* it counts 4 available"):
            read()
    for wrong in ("zz", "1" * 17, ""):
        with pytest.raises(ValueError, match="left_out"):
            DomainVolume(**domain.model_dump() | {"left_out": [wrong]})


def test_an_empty_mixture_is_refused(mixture, tmp_path):
    none = [d.model_copy(update={"rows": 0}) for d in mixture.domains]
    with pytest.raises(UsageError, match="no rows"):
        apply_mixture(mixture.model_copy(update={"domains": none}), tmp_path / "out")


STREAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from ideal_proxy.mixture import order, row_table
from ideal_proxy.mixture.apply import apply_mixture
from ideal_proxy.mixture import DomainVolume, MixtureFile
from ideal_proxy.provenance import provenance

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

order.MEMORY, row_table.READ_BYTES = "200MB", 1 << 20
provenance()
domain, seen = DomainVolume(**json.loads(sys.argv[2])), []
before = peak()
apply_mixture(MixtureFile(domains=[domain]), sys.argv[3], shards=2, progress=lambda *what: seen.append(what))
print(json.dumps([peak() - before, seen[0], seen[-1]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """400,000 more rows, 240 MB when drawn, may take 60 MB more where DuckDB may hold 200 MB."""
    body, peaks, root = "x" * 350, {}, str(Path(__file__).resolve().parents[2])
    for rows in (200_000, 600_000):
        path = tmp_path / f"{rows}.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f'{{"prompt": "{n}", "completion": "{body}"}}\n' for n in range(rows))
        fingerprint = row_table.open_table(str(path), "auto", keep=None, scratch=tmp_path / f"i{rows}").fingerprint
        domain = DomainVolume(name="big", source=str(path), fingerprint=fingerprint, available=rows, rows=rows * 3 // 2)
        done = subprocess.run(
            [sys.executable, "-c", STREAM, root, domain.model_dump_json(), str(tmp_path / f"out{rows}")],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        peaks[rows], first, last = json.loads(done.stdout)
        assert first[0] == "reading big"
        assert last == ["writing", rows * 3 // 2, rows * 3 // 2]
    assert peaks[600_000] < peaks[200_000] + 60_000
    lines = [
        line for path in sorted((tmp_path / "out200000").glob("train-*")) for line in path.read_bytes().splitlines()
    ]
    prompts = [int(line.split(b'"')[3]) for line in lines]
    assert len(prompts) == 300_000
    assert set(Counter(prompts).values()) == {1, 2}
    assert abs(np.corrcoef(prompts, np.arange(300_000))[0, 1]) < 0.02


def in_small_pieces(monkeypatch) -> None:
    """Have a few rows make many blocks and batches."""
    monkeypatch.setattr(row_table, "READ_BYTES", 200)
    monkeypatch.setattr(order, "BATCH_ROWS", 5)
    monkeypatch.setattr(materialise, "WRITTEN_AT_ONCE", 3)


def weak(hashes):
    """Hashes of 4 values only, so that nearly all are equal."""
    return lambda *given: hashes(*given) & np.uint64(3 << 62)


@pytest.mark.parametrize("ties", [False, True])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mixture_in_any_pieces_equals_the_order_in_memory(tmp_path_factory, monkeypatch, ties, data):
    """The stream against the reference in memory: rows that repeat, passes, empty lines, blocks, buckets and shards."""
    place = tmp_path_factory.mktemp("any")
    with monkeypatch.context() as patch:
        in_small_pieces(patch)
        if ties:
            for module in (mixture_module, order):
                for name in ("order_hashes", "training_hashes"):
                    patch.setattr(module, name, weak(getattr(mixture_module, name)))
        domains = []
        for name in ("a", "b", "c")[: data.draw(st.integers(1, 3))]:
            numbers = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=30))
            lines = [
                f'{{"prompt": "{n}", "completion": "{"é" * (n % 4)}{n}", "at": {at}}}\n' for at, n in enumerate(numbers)
            ]
            lines.insert(
                data.draw(st.integers(0, len(lines))),
                data.draw(st.sampled_from(["", "\n", '{"prompt": "", "completion": ""}\n'])),
            )
            (place / f"{name}.jsonl").write_text("".join(lines))
            domains.append(volume(name, place / f"{name}.jsonl", data.draw(st.integers(0, 70))))
        mixture = MixtureFile(seed=data.draw(st.integers(0, 3)), domains=domains)
        assume(mixture.total_rows)
        expected = expected_lines(mixture)
        shards = data.draw(st.integers(1, min(5, mixture.total_rows)))
        index = place / "index" if data.draw(st.booleans()) else None
        done = apply_mixture(mixture, place / "all", shards=shards, index=index)
        assert b"".join(path.read_bytes() for path in done.files) == b"".join(expected)
        numbers = data.draw(st.permutations(range(shards)))
        parts = {n: apply_mixture(mixture, place / "each", shards=shards, shard=n, index=index) for n in numbers}
        for n, path in enumerate(done.files):
            assert parts[n].files[0].read_bytes() == path.read_bytes()
            assert parts[n].sha256 == done.sha256[n : n + 1]


def test_a_broken_line_is_told_and_left_out(mixture, sources, tmp_path, caplog):
    whole = apply_mixture(mixture, tmp_path / "whole").files[0].read_bytes()
    with open(sources / "a.jsonl", "ab") as file:
        file.write(b'{"instruction": "a"\n')
    for name in ("other", "again"):  # the second one reads the index that the first one kept
        caplog.clear()
        assert apply_mixture(mixture, tmp_path / name, index=tmp_path / "index").files[0].read_bytes() == whole
        said = re.compile(r"a\.jsonl: 1 row cannot be read: not valid JSON \(first: .*a\.jsonl:10 is not valid")
        assert said.search(caplog.text), name


@pytest.mark.parametrize("forged", ["lines", "garbage", "pages", "checksums", "turn_keys"])
def test_a_kept_index_that_somebody_changed_is_made_anew(mixture, tmp_path, forged):
    """With the checksums of what it says now: a stranger's run directory can hold any."""
    index = tmp_path / "index"
    expected = b"".join(expected_lines(mixture))
    apply_mixture(mixture, tmp_path / "1", index=index)
    for folder in index.iterdir():
        table, rows = json.loads((folder / "table.json").read_text()), parquet.read_table(folder / "rows.parquet")
        if forged == "lines":
            far = rows.set_column(2, "line", arrow.array([10**9] * len(rows)))
            parquet.write_table(far, folder / "rows.parquet")
        elif forged == "garbage":
            (folder / "rows.parquet").write_bytes(b"x" * 80)
        elif forged == "pages":
            content = (folder / "rows.parquet").read_bytes()
            (folder / "rows.parquet").write_bytes(content[:4] + b"x" * 60 + content[64:])
        elif forged == "checksums":
            table["checksums"] = []
        else:
            table["shape"]["turn_keys"] = [1, "a"]
        table["keys"] = row_table._checksum(folder / "rows.parquet")
        (folder / "table.json").write_text(json.dumps(table))
    assert materialise.apply_mixture(mixture, tmp_path / "2", index=index, row_format="chat").rows == 25
    assert apply_mixture(mixture, tmp_path / "3", index=index).files[0].read_bytes() == expected


def test_a_place_of_indexes_that_is_a_link_is_not_used(tmp_path):
    (tmp_path / "prepared").mkdir()
    assert materialise.index_folder(tmp_path) == tmp_path / "prepared" / "rows"
    (tmp_path / "prepared" / "rows").symlink_to(tmp_path / "elsewhere")
    assert materialise.index_folder(tmp_path) is None


def test_a_disk_that_is_full_at_the_manifest_leaves_nothing_and_says_so(mixture, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            materialise.json, "dumps", lambda *a, real=json.dumps, **o: full() if "indent" in o else real(*a, **o)
        )
        with pytest.raises(UserError, match=r"cannot write to .*out: No space left on device; make room") as caught:
            apply_mixture(mixture, tmp_path / "out")
    assert "is kept" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def kept(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*.json"))}


def test_an_index_is_kept_used_again_and_made_anew_when_it_is_broken(mixture, tmp_path, monkeypatch):
    expected = b"".join(expected_lines(mixture))
    index = tmp_path / "index"
    assert apply_mixture(mixture, tmp_path / "1", index=index).files[0].read_bytes() == expected
    before = kept(index)
    assert len(before) == 2  # of the two plain sources; .gz has no lines to copy
    with monkeypatch.context() as patch:
        made = row_table._build
        patch.setattr(
            row_table,
            "_build",
            lambda r, d, f, plain, s: made(r, d, f, pytest.fail("parsed again") if plain else plain, s),
        )
        assert apply_mixture(mixture, tmp_path / "2", index=index).files[0].read_bytes() == expected
        chat = apply_mixture(mixture, tmp_path / "3", index=index, row_format="chat")
    assert chat.sha256 == apply_mixture(mixture, tmp_path / "4", row_format="chat").sha256
    assert kept(index) == before
    for name, content in (
        ("rows.parquet", b"x" * 80),
        ("rows.parquet", b""),
        ("table.json", b"{"),
        ("table.json", b"[1]"),
    ):
        for folder in index.iterdir():
            (folder / name).write_bytes(content)
        assert apply_mixture(mixture, tmp_path / f"{name}{len(content)}", index=index).files[0].read_bytes() == expected
    assert sorted(kept(index)) == sorted(before)
    assert {p.name for p in index.iterdir()} == {Path(p).parent.name for p in before}


@pytest.mark.parametrize(
    ("shard", "shards", "numbers"), [(None, 3, (None, 3)), ("0/4", 1, (0, 4)), ("3/4", 4, (3, 4)), ("0/1", 1, (0, 1))]
)
def test_shard_options(shard, shards, numbers):
    assert materialise.shard_numbers(shard, shards) == numbers


@pytest.mark.parametrize(
    ("shard", "shards", "words"),
    [
        ("4/4", 1, "I/N with I from 0"),
        ("1", 1, "I/N"),
        ("-1/4", 1, "I/N"),
        ("a/b", 1, "I/N"),
        ("0/4", 2, "leave --shards out"),
    ],
)
def test_wrong_shard_options(shard, shards, words):
    with pytest.raises(UsageError, match=words):
        materialise.shard_numbers(shard, shards)


def test_an_index_never_hides_that_data_changed(mixture, sources, tmp_path):
    index, path = tmp_path / "index", sources / "b" / "2.jsonl"
    apply_mixture(mixture, tmp_path / "1", index=index)
    before, state = path.read_bytes(), path.stat()
    path.write_bytes(before.replace(b"b3", b"B3"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a copy that keeps times would leave it
    with pytest.raises(UserError, match=r"domain 'b' changed .*content or order"):
        apply_mixture(mixture, tmp_path / "2", index=index)
    assert not list((tmp_path / "2").iterdir())
    path.write_bytes(before + before.splitlines()[0] + b"\n")
    with pytest.raises(UserError, match="it had 5 rows, now 6"):
        apply_mixture(mixture, tmp_path / "2", index=index)
    path.write_bytes(before)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert apply_mixture(mixture, tmp_path / "2", index=index).files[0].read_bytes() == b"".join(
        expected_lines(mixture)
    )


def test_where_an_index_cannot_be_kept_it_is_done_without(mixture, tmp_path):
    (tmp_path / "index").write_text("a file")
    done = apply_mixture(mixture, tmp_path / "out", index=tmp_path / "index")
    assert done.files[0].read_bytes() == b"".join(expected_lines(mixture))
    assert (tmp_path / "index").read_text() == "a file"


def test_readers_write_their_shards_into_one_folder(mixture, tmp_path):
    whole = apply_mixture(mixture, tmp_path / "all", shards=4)
    out = tmp_path / "each"
    for n in (2, 0, 3):
        apply_mixture(mixture, out, shards=4, shard=n)
    (out / f"{materialise.SPOOL}-00001-of-00004").mkdir()  # a reader that was killed: half a file, and no manifest
    (out / f"{materialise.SPOOL}-00001-of-00004" / "train-00001-of-00004.jsonl").write_text("half")
    (out / "train-00001-of-00004.jsonl").write_text("from before its manifest")
    again = apply_mixture(mixture, out, shards=4, shard=2)
    assert again.already_there
    last = apply_mixture(mixture, out, shards=4, shard=1)
    assert (last.rows, last.already_there, last.manifest) == (6, False, "manifest-00001-of-00004.json")
    names = [f"{kind}-0000{n}-of-00004.json" for kind in ("manifest", "train") for n in range(4)]
    assert sorted(p.name for p in out.iterdir()) == [name + "l" * name.startswith("train") for name in names]
    assert b"".join(p.read_bytes() for p in sorted(out.glob("train*"))) == b"".join(p.read_bytes() for p in whole.files)
    entries = [json.loads((out / names[n]).read_text()) for n in range(4)]
    assert [(e["shard"], e["shards"], e["first_row"], e["rows"]) for e in entries] == [
        (0, 4, 0, 6), (1, 4, 6, 6), (2, 4, 12, 6), (3, 4, 18, 7),
    ]  # fmt: skip
    assert [e["files"][0]["sha256"] for e in entries] == list(whole.sha256)
    for changed in ({"shards": 5}, {"shards": 4, "row_format": "chat"}):
        with pytest.raises(UserError, match="is not empty"):
            apply_mixture(mixture, out, shard=0, **changed)
    with pytest.raises(UserError, match="is not empty"):
        apply_mixture(mixture.model_copy(update={"seed": 1}), out, shards=4, shard=0)
    with pytest.raises(UsageError, match="counted from 0 to 3"):
        apply_mixture(mixture, out, shards=4, shard=4)


def test_procedural_sources_are_made_again(tmp_path):
    demo = pytest.importorskip("ideal_proxy.data.demo", reason="the embedded default is another module")
    source = "demo:arithmetic?seed=1&rows=40"
    domain = volume("sums", source, 100)
    done = apply_mixture(MixtureFile(domains=[domain]), tmp_path / "out")
    made = Counter(json.dumps(row, sort_keys=True) for row in demo.demo_rows(source))
    drawn = Counter(json.dumps(row, sort_keys=True) for row in read_back(done))
    assert drawn.total() == 100
    assert set(drawn) == set(made)
    assert all(2 * made[row] <= drawn[row] <= 3 * made[row] for row in made)
