"""Draws and orders: exact, nested, the same on any machine; and the mixture file."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ideal_proxy.data.messages import KEY_VERSION
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture.apply import apply_mixture
from ideal_proxy.mixture.draws import apportion, domain_order, draw, reserve_mask, search_verify_split, training_order
from ideal_proxy.mixture.file import CapabilityResult, DomainVolume, MixtureFile, load_mixture, save_mixture
from ideal_proxy.mixture.row_table import open_table
from tests.builders import write_rows

GOLDEN = Path(__file__).parent / "golden" / "draws.json"
MASK = 2**64 - 1


def golden_keys(name: str, rows: int) -> np.ndarray:
    """Row keys with some equal ones, from SHA-256 alone."""
    digests = [hashlib.sha256(f"{name} {n - n % 7 if n % 5 == 0 else n}".encode()).digest() for n in range(rows)]
    return np.array([int.from_bytes(d[:8], "big") for d in digests], dtype=np.uint64)


def golden_case() -> dict:
    names, sizes, volumes = ["coding", "mathematics", "trüst"], [11, 6, 9], [8, 15, 0]
    keys = [golden_keys(name, size) for name, size in zip(names, sizes, strict=True)]
    orders = [domain_order(17, name, k) for name, k in zip(names, keys, strict=True)]
    draws = [draw(order, rows) for order, rows in zip(orders, volumes, strict=True)]
    domain, row = training_order(17, names, [(k, *d) for k, d in zip(keys, draws, strict=True)])
    return {
        "orders": [order.tolist() for order in orders],
        "indices": [d[0].tolist() for d in draws],
        "passes": [d[1].tolist() for d in draws],
        "training": [domain.tolist(), row.tolist()],
        "reserved": reserve_mask(keys[0], 0.4, "warm").tolist(),
        "search": search_verify_split(keys[0]).tolist(),
        "apportioned": apportion([0.1, 0.2, 0.3, 0.4], 1001).tolist(),
    }


def test_draws_and_order_are_those_of_the_golden_file():
    """If this fails, results of earlier searches can no longer be repeated: change the file's format, not this test."""
    assert golden_case() == json.loads(GOLDEN.read_text())


def test_draws_do_not_depend_on_the_process():
    script = (
        "import sys, json; sys.path[:0] = [sys.argv[1] + part for part in ('', '/tests', '/tests/mixture')]\n"
        "from test_mixture import golden_case; print(json.dumps(golden_case()))"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, root], check=True, capture_output=True, text=True,
        env={"PYTHONHASHSEED": "3", "PATH": "", "LC_ALL": "C"},
    )  # fmt: skip
    assert json.loads(done.stdout) == golden_case()


def splitmix(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_orders_equal_a_plain_python_hash():
    """The vectorised hash against integers of any size."""
    assert splitmix(0) == 0xE220A8397B1DCDAF  # published first output of SplitMix64 from seed 0
    keys = golden_keys("x", 40)
    text = b"ideal-proxy/1\0order\x005\0name"
    start = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    seen: dict[int, int] = {}
    ranked = []
    for n, key in enumerate(map(int, keys)):
        occurrence = seen[key] = seen.get(key, -1) + 1
        ranked.append((splitmix(splitmix(key ^ start) ^ splitmix((occurrence + start) & MASK)), n))
    assert domain_order(5, "name", keys).tolist() == [n for _, n in sorted(ranked)]


weights = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(weights, st.integers(0, 10**12))
def test_apportionment_is_exact(values, total):
    assume(total == 0 or sum(map(Fraction, values)) > 0)
    rows = apportion(values, total)
    assert rows.sum() == total
    assert rows.dtype == np.int64
    whole = sum(map(Fraction, values))
    if total:
        quotas = [Fraction(v) * total / whole for v in values]
        assert all(abs(int(r) - q) < 1 for r, q in zip(rows, quotas, strict=True))
        given_up = [q - int(r) for r, q in zip(rows, quotas, strict=True)]  # no one is owed more than another was given
        assert max(given_up) - min(given_up) <= 1


def test_apportionment_breaks_ties_by_place_and_serves_the_largest_remainder():
    assert apportion([1, 1, 1], 10).tolist() == [4, 3, 3]
    assert apportion([1, 1, 1], 11).tolist() == [4, 4, 3]
    assert apportion([5, 3, 1], 7).tolist() == [4, 2, 1]  # quotas 3.89, 2.33, 0.78
    assert apportion([0, 2, 0], 3).tolist() == [0, 3, 0]
    big = 2**53 + 1  # beyond what a double can count
    assert apportion([1, 1], big).tolist() == [2**52 + 1, 2**52]


@pytest.mark.parametrize(
    ("values", "total", "words"),
    [([0, 0], 5, "all weights are 0"), ([1, -1], 5, "weight 2"), ([float("nan")], 5, "finite"), ([1], -1, "negative")],
)
def test_apportionment_refuses(values, total, words):
    with pytest.raises(UserError, match=words):
        apportion(values, total)


keys_lists = st.lists(st.integers(0, 12), min_size=1, max_size=30)


@settings(max_examples=150, deadline=None)
@given(keys_lists, st.integers(0, 5), st.data())
def test_permutation_is_one_and_survives_removal_and_reordering(values, seed, data):
    keys = np.array([splitmix(v) for v in values], dtype=np.uint64)
    order = domain_order(seed, "d", keys)
    assert sorted(order) == list(range(len(keys)))
    kept = data.draw(st.lists(st.sampled_from(sorted(set(values))), unique=True))
    mask = np.isin(values, kept)
    assert keys[mask][domain_order(seed, "d", keys[mask])].tolist() == [
        k for k, v in zip(keys[order], np.array(values)[order], strict=True) if v in kept
    ]
    shuffled = np.array(data.draw(st.permutations(list(range(len(keys))))))
    assert keys[shuffled][domain_order(seed, "d", keys[shuffled])].tolist() == keys[order].tolist()


def test_seeds_and_domains_permute_differently_and_evenly():
    keys = golden_keys("even", 400)
    orders = [domain_order(seed, name, keys) for seed in range(20) for name in ("a", "b")]
    places = np.array([np.argsort(order) for order in orders])  # runs × rows
    assert len({tuple(order) for order in orders}) == 40
    assert np.abs(np.corrcoef(places)[np.triu_indices(40, 1)]).max() < 0.25  # 5 sigma of 1/sqrt(400)
    mean = places.mean(axis=0)  # a row's mean place: uniform has sd 115.5/sqrt(40) = 18.3
    assert abs(mean.mean() - 199.5) < 1e-9
    assert 14 < mean.std() < 23


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), st.integers(0, 60), st.integers(0, 60))
def test_draws_are_nested_and_count_passes(available, small, large):
    small, large = sorted((small, large))
    order = domain_order(1, "d", golden_keys("d", available))
    (few, few_passes), (many, many_passes) = draw(order, small), draw(order, large)
    assert few.tolist() == many[:small].tolist()
    assert few_passes.tolist() == many_passes[:small].tolist()
    counts = np.bincount(many, minlength=available)
    assert counts.sum() == large
    assert counts.max() - counts.min() <= 1
    assert counts[order].tolist() == sorted(counts, reverse=True)
    assert many_passes.tolist() == [n // available for n in range(large)]


def test_draw_refuses_rows_of_an_empty_domain():
    assert [len(part) for part in draw([], 0)] == [0, 0]
    with pytest.raises(UserError, match="without rows"):
        draw([], 1)
    with pytest.raises(UserError, match="negative"):
        draw([0], -1)


volumes = st.lists(st.integers(0, 14), min_size=3, max_size=3)


def order_of(names: list[str], rows: list[int], seed: int = 3) -> list[tuple[str, int, int]]:
    """Return the training order as (domain, row, how often it came before), to compare mixtures by."""
    keys = [golden_keys(name, 6) for name in names]
    drawn = [(k, *draw(domain_order(seed, n, k), r)) for n, k, r in zip(names, keys, rows, strict=True)]
    domain, row = training_order(seed, names, drawn)
    return [(names[d], int(r)) for d, r in zip(domain, row, strict=True)]


@settings(max_examples=100, deadline=None)
@given(volumes, volumes)
def test_two_mixtures_differ_only_where_their_volumes_differ(first, second):
    names = ["a", "b", "c"]
    low, high = np.minimum(first, second).tolist(), np.maximum(first, second).tolist()
    small, large = order_of(names, low), order_of(names, high)
    assert len(large) == sum(high)
    rest = iter(large)
    assert all(item in rest for item in small)  # a subsequence
    for n, name in enumerate(names):
        if low[n] == high[n]:
            assert [r for r in small if r[0] == name] == [r for r in large if r[0] == name]
    back = order_of(names[::-1], high[::-1])
    assert back == large  # the order of the domains in the file does not matter


def test_equal_rows_keep_apart_and_every_drawn_row_is_trained_on_once_a_pass():
    keys = np.array([5, 5, 5, 9], dtype=np.uint64)
    indices, passes = draw(domain_order(0, "d", keys), 10)
    _, row = training_order(0, ["d"], [(keys, indices, passes)])
    assert sorted(row) == sorted(indices)
    assert np.bincount(row).tolist() in (
        [3, 3, 2, 2],
        [3, 2, 3, 2],
        [2, 3, 3, 2],
        [2, 2, 3, 3],
        [2, 3, 2, 3],
        [3, 2, 2, 3],
    )


def test_domains_and_passes_are_mixed_through_the_whole_run():
    """Neither blocks of one domain nor whole passes one after another."""
    names = ["a", "b"]
    keys = [golden_keys(name, 500) for name in names]
    drawn = [(k, *draw(domain_order(0, n, k), 1000)) for n, k in zip(names, keys, strict=True)]
    domain, _ = training_order(0, names, drawn)
    halves = [domain[:1000].mean(), domain[1000:].mean()]
    assert max(abs(h - 0.5) for h in halves) < 0.08  # 5 sigma of sqrt(.25/1000)
    other, _ = training_order(1, names, drawn)
    assert (domain != other).mean() > 0.4


def keys_of(start: int, count: int) -> np.ndarray:
    """Distinct keys that look like hashes."""
    return np.random.default_rng(start).integers(0, 2**63, count).astype(np.uint64)


def test_a_domain_of_few_rows_still_reserves_one_and_never_all():
    for start in range(40):
        keys = keys_of(start, 4)
        mask = reserve_mask(keys, 0.01)
        assert mask.sum() == 1
        assert reserve_mask(keys[::-1], 0.01).tolist() == mask[::-1].tolist(), "by content, not by place"
        assert (reserve_mask(keys, 0.3) >= mask).all(), "nested"
        assert reserve_mask(np.repeat(keys, 2), 0.01).sum() == 2, "equal rows go together"
    assert not reserve_mask(np.full(5, keys[0]), 0.01).any(), "nothing would be left"


def test_reserved_slice_is_by_content_nested_and_of_the_size_asked():
    keys = golden_keys("r", 4000)
    small, large = reserve_mask(keys, 0.15, "warm"), reserve_mask(keys, 0.5, "warm")
    assert abs(small.mean() - 0.15) < 0.03
    assert not (small & ~large).any()
    assert not reserve_mask(keys, 0.0, "warm").any()
    assert reserve_mask(keys, 1.0, "warm").all()
    assert reserve_mask(keys[::-1], 0.15, "warm").tolist() == small[::-1].tolist()
    other = reserve_mask(keys, 0.5, "other")
    assert abs((large == other).mean() - 0.5) < 0.05
    first = domain_order(0, "r", keys)[:2000]  # the slice has nothing to do with the permutation
    assert abs(small[first].mean() - 0.15) < 0.04
    with pytest.raises(UserError, match="0 to 1"):
        reserve_mask(keys, 1.5, "warm")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=2, max_size=60))
def test_search_and_verify_rows_are_halves_and_equal_rows_stay_together(values):
    keys = np.array([splitmix(v) for v in values], dtype=np.uint64)
    search = search_verify_split(keys)
    sides: dict[int, set[bool]] = {}
    for value, side in zip(values, search, strict=True):
        sides.setdefault(value, set()).add(bool(side))
    assert all(len(side) == 1 for side in sides.values())
    assert sum(side == {True} for side in sides.values()) == len(sides) // 2


def mixture(**changes) -> MixtureFile:
    domain = DomainVolume(
        name="coding", source="demo:strings?seed=1", fingerprint="a" * 64, available=10, rows=25, tokens=99,
        supervised_tokens=40, share=1.0, repeat=2.5, base_rows=10, change=1.5,
    )  # fmt: skip
    content = {
        "name": "mix", "seed": 4, "domains": [domain], "capabilities": [CapabilityResult(name="coding", base_loss=2.0)],
        "verdict": "improves", "gain": 0.02, "law": {"alpha": [0.5]}, "proxy_fraction": 0.25,
    }  # fmt: skip
    return MixtureFile(**(content | changes))


def test_mixture_file_comes_back_as_it_was_written(tmp_path):
    made = mixture()
    save_mixture(tmp_path / "m" / "mixture.json", made)
    assert load_mixture(tmp_path / "m" / "mixture.json") == made
    assert json.loads((tmp_path / "m" / "mixture.json").read_text())["format"] == "ideal-proxy/mixture/1"
    assert made.total_rows == 25


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: m.update(sead=3), "unknown key 'sead'; did you mean 'seed'"),
        (lambda m: m["domains"][0].update(avaliable=3), r"unknown key 'domains.0.avaliable'; did you mean 'available'"),
        (lambda m: m["domains"][0].update(rows=-1), "'domains.0.rows'.*greater than or equal to 0, got -1"),
        (lambda m: m["domains"][0].update(rows=10**16), "'domains.0.rows'.*less than or equal to 1000000000000000"),
        (lambda m: m["domains"][0].update(tokens=10**300), "'domains.0.tokens'.*less than or equal to"),
        (lambda m: m.update(seed=10**30), "'seed'.*less than or equal to 2147483647"),
        (lambda m: m["domains"][0].update(left_out=["zz"]), "'domains.0.left_out.0'"),
        (lambda m: m["domains"][0].update(available=0), "wants 25 rows but has none"),
        (lambda m: m["domains"][0].pop("fingerprint"), "'domains.0.fingerprint' is missing"),
        (lambda m: m["domains"].append(m["domains"][0]), "'coding' stands twice"),
        *(
            (lambda m, value=value: m.update(key_version=value), "key_version is .*, it must be a whole number")
            for value in (99.0, "99", True)
        ),
        (lambda m: m["domains"][0].update(rows=True), "'domains.0.rows'.*must be a number, not true or false"),
        (lambda m: m.update(seed=True), "'seed'.*must be a number, not true or false"),
        (lambda m: m.update(gain=True), "'gain'.*must be a number, not true or false"),
        (lambda m: m.update(batch={"tokens": True}), "'batch.tokens'.*must be a number, not true or false"),
        (lambda m: m.update(key_version=99), "newer ideal-proxy: its row keys are of version 99"),
        (lambda m: m.update(format="ideal-proxy/mixture/9"), "must be 'ideal-proxy/mixture/1'"),
        (lambda m: m.update(domains=[]), "'domains'"),
        *(
            (lambda m, text=text: m["domains"][0].update(format=text), "'domains.0.format' .*that cannot be read")
            for text in (
                "columns:[]",
                'columns:"x"',
                'columns:{"prompt":',
                'columns:{"prompt": "a", "completion": 5}',
                "auto chat_template_kwargs:[1]",
                "auto chat_template_kwargs:" + "[" * 9_999,
            )
        ),
    ],
)
def test_a_wrong_mixture_file_gets_one_sentence(tmp_path, edit, words):
    value = mixture().model_dump()
    edit(value)
    path = tmp_path / "mixture.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UsageError, match=words) as caught:
        load_mixture(path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_an_older_mixture_file_says_so_where_its_rows_have_other_keys(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "a"}]} for n in range(9)
    ]
    source = write_rows(tmp_path / "maths.jsonl", rows)
    table = open_table(source, "auto", keep=None, scratch=tmp_path / "scratch")
    volume = DomainVolume(name="maths", source=source, fingerprint=table.fingerprint, available=9, rows=4)
    path = tmp_path / "mixture.json"
    save_mixture(path, MixtureFile(domains=[volume]))
    value = json.loads(path.read_text())
    assert value.pop("key_version") == KEY_VERSION
    path.write_text(json.dumps(value))
    old = load_mixture(path)
    assert old.key_version == 1
    apply_mixture(old, tmp_path / "out")  # rows of roles and texts alone have kept their keys
    rows[0]["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    write_rows(tmp_path / "maths.jsonl", rows)
    with pytest.raises(UserError, match="its row keys are of version 1, today's of"):
        apply_mixture(old, tmp_path / "again")


def test_a_missing_or_broken_mixture_file(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_mixture(tmp_path / "no.json")
    (tmp_path / "half.json").write_text('{"format": "ideal-')
    with pytest.raises(UsageError, match="not valid JSON"):
        load_mixture(tmp_path / "half.json")


def test_numbers_that_are_none_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"mixture.law.a.1 is not a finite number"):
        save_mixture(tmp_path / "m.json", mixture(law={"a": [1.0, float("nan")]}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("once", "twice"), [('"seed":', '"seed": 9, "seed":'), ('"domains":', '"domains": [], "domains":')]
)
def test_a_key_that_stands_twice_is_refused(tmp_path, once, twice):
    save_mixture(tmp_path / "m.json", mixture())
    path = tmp_path / "m.json"
    path.write_text(path.read_text().replace(once, twice, 1))
    with pytest.raises(UsageError, match=f"the key '{once[1:-2]}' stands twice"):
        load_mixture(path)


def test_a_pipe_is_no_mixture_file(tmp_path):
    os.mkfifo(tmp_path / "mixture.json")
    with pytest.raises(UsageError, match="a pipe or a device"):
        load_mixture(tmp_path / "mixture.json")


def test_repeats_are_worked_out_and_not_taken_from_the_file(tmp_path):
    for told in ({}, {"repeat": 9.0}):
        value = mixture().model_dump()
        value["domains"][0].pop("repeat")
        value["domains"][0] |= told
        (tmp_path / "m.json").write_text(json.dumps(value))
        domain = load_mixture(tmp_path / "m.json").domains[0]
        assert domain.repeat == domain.rows / domain.available > 0
