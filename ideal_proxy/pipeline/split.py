"""`init --split-by`: domains out of one, by a column's values, by the quantiles of a number, or by what rows are about.

Parts are named after their domain (`maths/high`) and written as files, so that every later command reads them as it
reads any other domain. The same rows give the same parts.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ideal_proxy.data import Found, Row, SourceInfo, SourceReader, scan
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.store import atomic_write_rows

MOST_PARTS = 24
FEWEST_ROWS = 20
"""Of a part; the rows of smaller ones go to `other`."""
THIRDS = {2: ("low", "high"), 3: ("low", "middle", "high")}
MOST_FITTED = 20_000  # rows that clusters are found in; the others join the nearest
DIMENSIONS = 64
USAGE = "write a column's name, quantile:COLUMN:3, cluster:8 or cluster:8:MODEL_PATH"


@dataclass(frozen=True, slots=True)
class SplitBy:
    """How domains are split."""

    kind: str  # column, quantile or cluster
    column: str = ""  # the column; empty for clusters
    parts: int = 0  # how many; 0 for as many as the column has values
    model: str = ""  # a sentence-transformers model for clusters; empty for TF-IDF


def read_split_by(text: str) -> SplitBy:
    """Read the option `--split-by`."""
    kind, _, rest = text.partition(":")
    if kind not in {"quantile", "cluster"}:
        return SplitBy("column", text)
    column, count = rest.rpartition(":")[::2] if kind == "quantile" else ("", rest)
    model = ""
    if kind == "cluster":
        count, _, model = rest.partition(":")
    if not count.isdigit() or not 2 <= int(count) <= MOST_PARTS or (kind == "quantile" and not column):
        raise UsageError(f"--split-by {text!r}: {USAGE}, with 2 to {MOST_PARTS} parts")
    return SplitBy(kind, column, int(count), model)


def split_domains(
    domains: Sequence[Found], by: SplitBy, folder: Path, read: dict[Path, SourceInfo]
) -> tuple[list[Found], list[str]]:
    """Split every domain that can be, write the parts, and say what was done; `read` learns of the new files."""
    found: list[Found] = []
    notes: list[str] = []
    for domain in domains:
        form = read[domain.train].format
        rows = [row for _, row in SourceReader(domain.train, format=form, max_bad=-1, quiet=True)]
        named = parts_of(rows, by)
        counts = Counter(named)
        if len(counts) < 2:
            why = f"no two parts of {FEWEST_ROWS} rows by {by.column}" if by.column else "too few rows"
            notes.append(f"  {domain.name} stays one domain: {why}")
            found.append(domain)
            continue
        if len(counts) > MOST_PARTS:
            raise UsageError(
                f"{by.column} of {domain.name} has {len(counts)} values of {FEWEST_ROWS} rows or more, allowed are "
                f"{MOST_PARTS}; for a number write quantile:{by.column}:3, else cluster:8"
            )
        for part in sorted(counts):
            place = folder / domain.name / f"{part}.jsonl"
            atomic_write_rows(place, [row.raw for row, name in zip(rows, named, strict=True) if name == part])
            read[place] = scan(place, format=form)
            found.append(Found(f"{domain.name}/{part}", place, None))
    if all(domain in domains for domain in found):
        columns = sorted({key for domain in domains for key in _first(domain, read).raw})
        raise UsageError(
            f"no domain can be split by {by.column or 'clusters'}; the columns are {', '.join(map(str, columns))}"
        )
    return found, notes


def parts_of(rows: Sequence[Row], by: SplitBy) -> list[str]:
    """Name the part of every row."""
    if by.kind == "cluster":
        return _by_cluster(rows, by)
    values = [row.raw.get(by.column) for row in rows]
    named = _by_quantile(values, by) if by.kind == "quantile" else [_label(value) for value in values]
    if len(set(named)) < 2:
        return named
    counts = Counter(named)
    small = {name for name, count in counts.items() if count < FEWEST_ROWS}
    return ["other" if name in small else name for name in named]


def _by_quantile(values: Sequence[object], by: SplitBy) -> list[str]:
    """Cut a number's range into parts of about equal numbers of rows; equal numbers stand in one part."""
    numbers = np.array([_number(value) for value in values])
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return ["none"] * len(values)
    edges = np.quantile(known, np.arange(1, by.parts) / by.parts)
    names = THIRDS.get(by.parts, tuple(f"q{k + 1:0{len(str(by.parts))}d}" for k in range(by.parts)))
    place = np.searchsorted(edges, numbers, side="left")
    return [names[k] if np.isfinite(x) else "none" for k, x in zip(place, numbers, strict=True)]


def _number(value: object) -> float:
    try:
        return float(value) if not isinstance(value, bool) else np.nan  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")


def _by_cluster(rows: Sequence[Row], by: SplitBy) -> list[str]:
    """Group rows by their prompts, named by size and by the word that tells a group from the others best."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
    from sklearn.preprocessing import normalize

    if len(rows) < by.parts * FEWEST_ROWS:
        return ["all"] * len(rows)
    texts = [row.prompt or row.answer for row in rows]
    fitted = np.sort(np.random.default_rng(0).permutation(len(rows))[:MOST_FITTED])
    words = TfidfVectorizer(max_features=50_000, sublinear_tf=True, token_pattern=r"(?u)\b[^\W\d_]\w+\b|\S")
    words.fit([texts[k] for k in fitted])
    counts = words.transform(texts)
    if by.model:
        points = _embed(texts, by.model)
    else:
        svd = TruncatedSVD(min(DIMENSIONS, max(2, counts.shape[1] - 1)), random_state=0).fit(counts[fitted])
        points = normalize(svd.transform(counts))
    label_N = KMeans(by.parts, n_init=4, random_state=0).fit(points[fitted]).predict(points)
    order = sorted(set(label_N.tolist()), key=lambda k: (-int((label_N == k).sum()), k))
    vocabulary = words.get_feature_names_out()
    tells = np.array([re.fullmatch(r"[^\W\d_]{3,20}", w) is not None for w in vocabulary])
    tells &= ~np.isin(vocabulary, list(ENGLISH_STOP_WORDS))
    everywhere = np.asarray(counts.mean(axis=0)).ravel()
    names = {}
    for place, k in enumerate(order, 1):
        above = np.asarray(counts[label_N == k].mean(axis=0)).ravel() - everywhere
        names[k] = f"{place}-{vocabulary[int(np.where(tells, above, -1.0).argmax())]}"
    return [names[k] for k in label_N.tolist()]


def _embed(texts: Sequence[str], model: str) -> np.ndarray:
    if importlib.util.find_spec("sentence_transformers") is None:
        raise UserError("cluster:K:MODEL needs sentence-transformers; install it, or write cluster:K for TF-IDF")
    from sentence_transformers import SentenceTransformer

    return np.asarray(SentenceTransformer(model).encode(list(texts), normalize_embeddings=True))


def _label(value: object) -> str:
    """A value as the name of a part: no slash, no sign that a path or a limit would read as its own."""
    if value is None or value == "" or (isinstance(value, float) and np.isnan(value)):
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return re.sub(r"[^\w.-]+", "_", text.strip()).strip("_.")[:40] or "none"


def _first(domain: Found, read: dict[Path, SourceInfo]) -> Row:
    _, row = next(iter(SourceReader(domain.train, format=read[domain.train].format, max_bad=-1, quiet=True)))
    return row
