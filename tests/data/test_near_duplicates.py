import random
import sys

import numpy as np
import pytest

from ideal_proxy.data.duplicates import DuplicateFinder
from ideal_proxy.data.messages import Message, Row

pytest.importorskip("rensa", reason="near-duplicates need the library rensa")
from ideal_proxy.data.near_duplicates import SIMILAR, NearDuplicateFinder, windows

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(count)]


def shared(a: str, b: str) -> float:
    """Jaccard of the windows, by Python's sets."""
    sets = [{text.encode()[n : n + 8] for n in range(len(text.encode()) - 7)} for text in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def chat(question: str, answer: str, where: str, system: str = "") -> Row:
    turns = [Message("system", system)] if system else []
    return Row((*turns, Message("user", question), Message("assistant", answer)), {}, where)


def test_windows_are_those_of_each_text_alone() -> None:
    texts = [b"abcdefghij", b"short", "zwölf Boxkämpfer".encode(), b"12345678"]
    found, offsets = windows(texts)
    for n, text in enumerate(texts):
        whole = text.ljust(8)
        wanted = {whole[k : k + 8] for k in range(len(whole) - 7)}
        assert {window.tobytes() for window in found[offsets[n] : offsets[n + 1]]} == wanted


@pytest.mark.parametrize("seed", range(3))
def test_pairs_over_the_threshold_are_found_and_no_others(seed: int) -> None:
    rng = random.Random(seed)
    references = [" ".join(words(rng, 48)) for _ in range(400)]
    finder = NearDuplicateFinder({"r": references})
    wanted = {}
    for n, text in enumerate(references[:300]):
        said = text.split()
        for at in rng.sample(range(len(said)), rng.randint(0, 7)):
            said[at] = words(rng, 1)[0]
        finder.add("d", f"d:{n}", " ".join(said))
        wanted[n] = shared(text, " ".join(said))
    for n in range(300):
        finder.add("e", f"e:{n}", " ".join(words(rng, 48)))
    finder.finish()
    assert {domain for _, _, domain in finder.found} == {"d"}, "rows that are like nothing are like nothing"
    for (_, n, _), near in finder.found.items():
        assert near.where == f"d:{n}"
        assert near.similarity == pytest.approx(wanted[n])
        assert near.similarity >= SIMILAR
    alike = [n for n, similarity in wanted.items() if similarity >= SIMILAR]
    missed = [n for n in alike if ("r", n, "d") not in finder.found]
    assert len(alike) > 80
    assert len(missed) <= 3, "MinHash finds at least 95 % of them at 0.8, and nearly all above"


def test_one_instruction_of_all_reference_rows_makes_no_pair() -> None:
    rng = random.Random(5)
    instruction = " ".join(words(rng, 120))
    system = " ".join(words(rng, 200))
    references = [
        chat(f"{instruction} {' '.join(words(rng, 12))}", words(rng, 1)[0], f"r:{n}", system) for n in range(60)
    ]
    domain = [chat(f"{instruction} {' '.join(words(rng, 12))}", words(rng, 1)[0], f"d:{n}", system) for n in range(60)]
    domain.append(chat(references[7].messages[1].content + " Please", references[7].answer, "d:60", system))
    finder = DuplicateFinder(["d"], {"r": references}, near=True)
    for row in domain:
        finder.add("d", row)
    report = finder.report()
    assert not report.leaks
    assert report.near["r", "d"].rows == 1
    assert report.near["r", "d"].example == ("r:7", "d:60")
    assert report.leaked == {"r": {7}}


def test_equal_rows_are_leaks_and_no_near_duplicates() -> None:
    rng = random.Random(6)
    rows = [chat(" ".join(words(rng, 30)), " ".join(words(rng, 20)), f"r:{n}") for n in range(8)]
    finder = DuplicateFinder(["d", "e"], {"r": rows}, near=True)
    finder.add("d", chat(rows[2].messages[0].content.upper(), rows[2].answer, "d:1"))
    finder.add("d", chat(rows[3].messages[0].content + ", again", rows[3].answer, "d:2"))
    finder.add("e", chat(rows[4].messages[0].content, "another answer", "e:1"))
    report = finder.report()
    assert report.leaks == {("r", "d"): 1}
    assert {pair: near.rows for pair, near in report.near.items()} == {("r", "d"): 1}
    assert report.leaked == {"r": {2, 3}}
    assert report.references == {"r": 8}


def test_many_rows_of_any_length_take_little_memory() -> None:
    import tracemalloc

    rng = random.Random(7)
    finder = NearDuplicateFinder({"r": [" ".join(words(rng, 40)) for _ in range(20)]})
    text = " ".join(words(rng, 50))
    tracemalloc.start()
    for n in range(20_000):
        finder.add("d", "d", f"{text}{n}")
    finder.add("d", "d", "x" * 3_000_000)
    finder.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80_000_000, "20,000 rows in batches of a megabyte"
    assert not finder.found


def test_digests_do_not_depend_on_the_batch() -> None:
    rng = random.Random(8)
    texts = [" ".join(words(rng, 20)).encode() for _ in range(5)]
    whole = windows(texts)
    for n, text in enumerate(texts):
        assert np.array_equal(np.unique(whole[0][whole[1][n] : whole[1][n + 1]]), np.unique(windows([text])[0]))


def test_without_the_library_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from ideal_proxy.data import near_duplicates

    monkeypatch.setitem(sys.modules, "rensa", None)
    monkeypatch.setattr(near_duplicates.importlib.util, "find_spec", lambda name: None)
    assert not near_duplicates.can_look()
    assert not DuplicateFinder(["d"], {"r": [chat("q", "a", "r:1")]}).report().any
