"""Mixtures as whole rows: apportionment, nested deterministic draws, and the order of training.

Everything that looks random here is a hash: of the seed, the domain's name and the row's content. So a draw is the
same on any machine and with any library version, and two mixtures differ only where their volumes differ (common random
numbers, which make differences between proxies signal instead of luck).

Shapes: D domains, N rows of a domain, R rows of a run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ideal_proxy.errors import UserError

if TYPE_CHECKING:
    from ideal_proxy.data import TokenRows

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def apportion(weights: npt.ArrayLike, total: int) -> Ints:
    """Share a total among domains in whole rows by largest remainder, exactly; of equals the first gains."""
    values = [float(weight) for weight in np.asarray(weights, dtype=np.float64).ravel()]
    if total < 0:
        raise UserError(f"the total to share is {total}; it cannot be negative")
    for n, value in enumerate(values):
        if not math.isfinite(value) or value < 0:
            raise UserError(f"weight {n + 1} is {value}; weights must be finite and at least 0")
    if total == 0:
        return np.zeros(len(values), dtype=np.int64)
    exact = [Fraction(value) for value in values]
    whole = sum(exact, Fraction(0))
    if whole == 0:
        raise UserError(f"all weights are 0, so {total} rows cannot be shared; give one domain a weight above 0")
    quotas = [value * int(total) / whole for value in exact]
    rows = [quota.numerator // quota.denominator for quota in quotas]
    left = int(total) - sum(rows)
    by_remainder = sorted(range(len(rows)), key=lambda n: (rows[n] - quotas[n], n))
    for n in by_remainder[:left]:
        rows[n] += 1
    return np.asarray(rows, dtype=np.int64)


def domain_order(seed: int, domain: str, keys: npt.ArrayLike) -> Ints:
    """Return the domain's one permutation (N,) for a seed; without some rows the others keep their order."""
    keys_N = _as_keys(keys)
    occurrence = _occurrence(keys_N)
    hashes = order_hashes(seed, domain, keys_N, occurrence)
    return np.lexsort((occurrence, keys_N, hashes)).astype(np.int64)


def order_hashes(seed: int, domain: str, keys: Keys, occurrence: Keys) -> Keys:
    """Hash rows for a domain's permutation, which is the order of (hash, key, occurrence)."""
    return _mix(keys, occurrence, _start("order", seed, domain))


def draw(order: npt.ArrayLike, rows: int) -> tuple[Ints, Ints]:
    """Take the first rows of a permutation, going round for repeats: row indices and the pass of each, from 0."""
    order_N = np.asarray(order, dtype=np.int64)
    if rows < 0:
        raise UserError(f"{rows} rows are wanted; a volume cannot be negative")
    if rows and not len(order_N):
        raise UserError(f"{rows} rows are wanted of a domain without rows; set its volume to 0 or give it rows")
    place = np.arange(rows, dtype=np.int64)
    size = max(len(order_N), 1)
    return order_N[place % size] if rows else place, place // size


def drawn_tokens(seed: int, domain: str, tokens: TokenRows, rows: int) -> tuple[int, int]:
    """Count the tokens, and those of them that are supervised, of exactly the rows that a volume draws."""
    taken, _ = draw(domain_order(seed, domain, tokens.keys), rows)
    return int(tokens.lengths[taken].sum()), int(tokens.supervised_tokens[taken].sum())


def training_order(
    seed: int,
    names: Sequence[str],
    drawn: Sequence[tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]],
) -> tuple[Ints, Ints]:
    """Order drawn rows by a stable key of (seed, domain, row, pass): domain numbers (R,) and row indices (R,)."""
    # `drawn` holds for every domain its row keys (N,), row indices drawn (n,) and their passes (n,). A smaller
    # mixture's order is a subsequence of a larger one's, and the order of the domains does not matter.
    if len(names) != len(drawn):
        raise UserError(f"{len(names)} domain names but {len(drawn)} draws; give one draw for every domain")
    columns: list[tuple[Keys, Ints, Keys, Keys, Keys, Ints]] = []
    for number, (name, (keys, indices, passes)) in enumerate(zip(names, drawn, strict=True)):
        keys_N = _as_keys(keys)
        index = np.asarray(indices, dtype=np.int64)
        turn = np.asarray(passes, dtype=np.int64).astype(np.uint64)
        key, occurrence = keys_N[index], _occurrence(keys_N)[index]
        hashes = training_hashes(seed, name, key, occurrence, turn)
        columns.append((hashes, np.full(len(index), number, dtype=np.int64), key, turn, occurrence, index))
    if not columns:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    hashes, domain, key, turn, occurrence, index = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.lexsort((occurrence, turn, key, hashes))
    return domain[order], index[order]


def training_hashes(seed: int, domain: str, keys: Keys, occurrence: Keys, passes: Keys) -> Keys:
    """Hash drawn rows for the order of training, which is the order of (hash, key, pass, occurrence, domain number)."""
    start = _start("train", seed, domain)
    return _mix(keys, _mix(occurrence, passes, start), start)


def reserve_mask(keys: npt.ArrayLike, fraction: float, salt: str | int = "warm") -> Bools:
    """Mark the rows (N,) of the hash-reserved slice; equal rows are in or out together; larger slices hold smaller."""
    # A domain of few rows whose slice would be empty gives its first row by hash, where there is another one beside it.
    if not 0 <= fraction <= 1:
        raise UserError(f"the reserved fraction is {fraction}; it must lie in 0 to 1")
    keys_N = _as_keys(keys)
    hashes = _mix(keys_N, np.zeros_like(keys_N), _start("reserve", 0, str(salt)))
    threshold = int(Fraction(float(fraction)) * 2**64)
    reserved = hashes < np.uint64(threshold) if threshold < 2**64 else np.ones(len(keys_N), dtype=np.bool_)
    if threshold and not reserved.any() and len(np.unique(hashes)) > 1:
        reserved = hashes == hashes.min()
    return reserved


def search_verify_split(keys: npt.ArrayLike) -> Bools:
    """Split reference rows by hash: True for the half that the search sees, False for the verdict's."""
    # Equal keys fall on one side; of the distinct ones half are on each (one more in verify where they are odd).
    distinct, inverse = np.unique(_as_keys(keys), return_inverse=True)
    order = np.lexsort((distinct, _mix(distinct, np.zeros_like(distinct), _start("split", 0, "reference"))))
    search = np.zeros(len(distinct), dtype=np.bool_)
    search[order[: len(distinct) // 2]] = True
    return search[inverse.reshape(-1)]


def keep_some(keys: npt.ArrayLike, among: Bools, most: int) -> Bools:
    """Keep so many at most of the rows among, chosen by hash: the same ones whatever their order in the file."""
    found = _as_keys(keys)
    order = np.lexsort((found, _mix(found, np.zeros_like(found), _start("judge", 0, "reference"))))
    kept = np.zeros(len(found), dtype=np.bool_)
    kept[order[among[order]][:most]] = True
    return kept


def _as_keys(keys: npt.ArrayLike) -> Keys:
    return np.asarray(keys, dtype=np.uint64).reshape(-1)


def _start(purpose: str, seed: int, name: str) -> np.uint64:
    """Turn the purpose, seed and name into the hash's 64-bit starting point."""
    text = f"ideal-proxy/1\0{purpose}\0{int(seed)}\0{name}".encode()
    return np.uint64(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big"))


def _splitmix(values: Keys) -> Keys:
    """Apply the splitmix64 finaliser (Steele, Lea and Flood 2014) to every element; arithmetic is modulo 2**64."""
    z = values + GOLDEN_GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _mix(first: Keys, second: Keys, start: np.uint64) -> Keys:
    """Hash pairs of 64-bit numbers from a starting point."""
    return _splitmix(_splitmix(first ^ start) ^ _splitmix(second + start))


def _occurrence(keys: Keys) -> Keys:
    """Number equal keys 0, 1, 2, … in source order."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    place = np.arange(len(keys), dtype=np.int64)
    fresh = np.ones(len(keys), dtype=np.bool_)
    fresh[1:] = ordered[1:] != ordered[:-1]
    first = np.maximum.accumulate(np.where(fresh, place, 0))
    occurrence = np.empty(len(keys), dtype=np.uint64)
    occurrence[order] = (place - first).astype(np.uint64)
    return occurrence
