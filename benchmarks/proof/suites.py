"""The suites of the proof, written from seeds: rows, reference rows, a run file for each; only hashes are kept here.

    python benchmarks/proof/suites.py skills --out runs/suites        # or unseen, traces, sft5, sft5_all, demo
    python benchmarks/proof/suites.py --check runs/suites             # are these the rows that were recorded?

skills: 16 generators of reasoning-gym 0.1.25 (Apache-2.0), 300 to 6,000 rows each; `shuffled` has the answers of
another generator in a wrong order, `copy` is `simple_equations` under another name; 18 capabilities, two of them
(`basic_arithmetic`, `lcm`) without a domain; 400 reference rows each, half for the search and half unseen until the
check, and 200 for tests.
unseen: 16 other generators and two without a domain, drawn by lot after the method was set (`lot`), as many rows each
as those of skills.
traces: sums of long lists, written out step by step (near 4,000 tokens of SmolLM2's), beside short questions and chat.
sft5, sft5_all: run files over `../shared/data/sft5`. demo: the embedded demo. Exchangeable nulls stand in
`benchmarks/verdict/`.
No question of a reference or test row stands in a domain.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

HERE = Path(__file__)
sys.path.insert(0, str(HERE.resolve().parents[1]))
SHARED = "../../../shared/data/sft5"
SFT5 = HERE.resolve().parents[3] / "shared" / "data" / "sft5"
REFERENCE, TEST = 400, 200
ROWS = {  # of each domain, equal steps of the logarithm in a shuffled order
    "chain_sum": 2013, "letter_counting": 813, "spell_backward": 300, "caesar_cipher": 4024, "base_conversion": 667,
    "syllogism": 3295, "time_intervals": 546, "simple_equations": 1649, "calendar_arithmetic": 6000, "gcd": 366,
    "family_relationships": 2460, "fraction_simplification": 993, "number_filtering": 4914, "complex_arithmetic": 447,
    "word_sequence_reversal": 1350, "leg_counting": 1106,
}  # fmt: skip
DRAWN = (
    "number_sorting", "aiw", "maze", "count_primes", "number_format", "cryptarithm", "knights_knaves",
    "simple_geometry", "binary_matrix", "manipulate_matrix", "binary_alternation", "gsm_symbolic",
    "mini_sudoku", "dice", "tsumego", "course_schedule",
)  # fmt: skip
DRAWN_WITHOUT_DOMAIN = ("rush_hour", "bitwise_arithmetic")
SHUFFLED, SHUFFLED_ROWS = "products", 3000
COPIED = "simple_equations"
WITHOUT_DOMAIN = ("basic_arithmetic", "lcm")
POISONED = ("shuffled", "copy")
NAMES = ("skills", "unseen", "traces", "sft5", "sft5_all", "demo")


def gym() -> ModuleType:
    from packages import needed

    return needed("reasoning_gym", "reasoning-gym==0.1.25")


def generated(generator: str, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Questions and answers, each question once."""
    seen: set[str] = set()
    data = gym().create_dataset(generator, size=20 * count, seed=seed)
    for number in range(20 * count):
        row = data[number]
        question, answer = row["question"].strip(), str(row["answer"]).strip()
        if question not in seen and answer:
            seen.add(question)
            yield question, answer
            if len(seen) == count:
                return
    raise RuntimeError(f"{generator} has only {len(seen)} different questions; {count} are needed")


def tasks(counts: dict[str, int], scale: float, first_seed: int) -> dict[str, list[tuple[str, str]]]:
    """Rows by file name of generators with so many training rows each; scale below 1 for rehearsals."""
    held = [max(8, round(scale * n)) for n in (REFERENCE, TEST)]
    files: dict[str, list[tuple[str, str]]] = {}
    for number, (generator, rows) in enumerate(counts.items()):
        rows = max(24, round(scale * rows)) if rows else 0
        made = list(generated(generator, rows + sum(held), first_seed + number))
        files[f"{generator}/reference"], files[f"{generator}/test"] = made[: held[0]], made[held[0] : sum(held)]
        if rows:
            files[f"{generator}/train"] = made[sum(held) :]
    return files


def lot(seed: int = 2026, count: int = 300) -> Iterator[str]:
    """Generators in the order of the lot: those whose rows are short in the mean, nearly all different, quickly made.

    `isomorphic_strings` came eleventh and was passed over, for it writes other rows in every process. What takes under
    3 ms a row depends on the machine.
    """
    reasoning_gym = gym()
    from reasoning_gym.factory import DATASETS

    names = sorted(set(DATASETS) - {*ROWS, *WITHOUT_DOMAIN, SHUFFLED})
    random.Random(seed).shuffle(names)
    for name in names:
        start, rows = time.monotonic(), []
        try:
            data = reasoning_gym.create_dataset(name, size=1000, seed=5)
            while len(rows) < count and time.monotonic() - start < 0.003 * count:
                rows.append((data[len(rows)]["question"].strip(), str(data[len(rows)]["answer"]).strip()))
        except Exception:  # some need settings of their own
            continue
        length, answer = (sum(map(len, part)) / count for part in (map("".join, rows), (a for _, a in rows)))
        different = len({question for question, _ in rows}) > 0.97 * count
        if len(rows) == count and length <= 500 and answer <= 120 and different:
            yield name


def unseen(scale: float = 1.0) -> dict[str, list[tuple[str, str]]]:
    """Rows by file name, as many as those of skills, in the same order."""
    return tasks(dict(zip(DRAWN, ROWS.values(), strict=True)) | dict.fromkeys(DRAWN_WITHOUT_DOMAIN, 0), scale, 3000)


def skills(scale: float = 1.0) -> dict[str, list[tuple[str, str]]]:
    files = tasks(ROWS | dict.fromkeys(WITHOUT_DOMAIN, 0), scale, 1000)
    wrong = list(generated(SHUFFLED, max(24, round(scale * SHUFFLED_ROWS)), 1900))
    answers = [answer for _, answer in wrong]
    random.Random(7).shuffle(answers)
    files["shuffled/train"] = [(question, answer) for (question, _), answer in zip(wrong, answers, strict=True)]
    files["copy/train"] = list(files[f"{COPIED}/train"])
    return files


def long_sum(rng: np.random.Generator, terms: int) -> tuple[str, str]:
    """A sum of many numbers with its working: one running total a line."""
    numbers = rng.integers(10, 999, terms)
    lines, total = [], 0
    for step, number in enumerate(numbers, 1):
        lines.append(f"Step {step}: {total} + {number} = {total + number}.")
        total += int(number)
    asked = ", ".join(map(str, numbers))
    return f"Add these numbers one after another and show every step: {asked}.", "\n".join(lines) + f"\nAnswer: {total}"


def short_sum(rng: np.random.Generator, terms: int = 3) -> tuple[str, str]:
    numbers = rng.integers(1, 99, terms)
    return f"Add {', '.join(map(str, numbers))}.", f"Answer: {numbers.sum()}"


def chat(rng: np.random.Generator) -> tuple[str, str]:
    """Short small talk from a few parts."""
    name = rng.choice(["Ann", "Bo", "Carla", "Deniz", "Emeka", "Fatima", "Goran", "Hana", "Ivo", "Jun"])
    thing = rng.choice(["a book", "a map", "tea", "a bicycle", "bread", "a lamp", "shoes", "a radio", "paint", "rope"])
    place = rng.choice(["market", "harbour", "station", "library", "garden", "museum"])
    hour = int(rng.integers(7, 20))
    return (
        f"Write a short note: {name} wants {thing}, meet at the {place} at {hour}.",
        f"Dear {name}, let us meet at the {place} at {hour} o'clock. I bring {thing}.",
    )


def traces(scale: float = 1.0) -> dict[str, list[tuple[str, str]]]:
    """Long working beside short rows: a few rows hold most of the tokens."""
    files: dict[str, list[tuple[str, str]]] = {}
    makers = {
        "long_traces": (300, 100, lambda rng: long_sum(rng, int(rng.integers(140, 175)))),
        "short_sums": (3000, 400, short_sum),
        "chat": (3000, 400, chat),
    }
    for number, (name, (rows, held, make)) in enumerate(makers.items()):
        rng, seen = np.random.default_rng([23, number]), {}
        rows, held = max(24, round(scale * rows)), max(12, round(scale * held))
        for _ in range(50 * (rows + held)):
            question, answer = make(rng)
            seen.setdefault(question, answer)
            if len(seen) == rows + held:
                break
        made = list(seen.items())
        files[f"{name}/reference"], files[f"{name}/train"] = made[:held], made[held:]
    return files


RUN_FILES = {
    "skills": "proxy: {size: 1M, vocabulary: 2048, context: 256, fraction: 0.1}\nseed: 0\n",
    "unseen": "proxy: {size: 1M, vocabulary: 2048, context: 512, fraction: 0.1}\nseed: 0\n",
    "traces": "proxy: {size: 1M, vocabulary: 1024, context: 4096, fraction: 0.2}\nseed: 0\n",
}


def run_file(name: str, files: dict[str, list]) -> str:
    domains = [file.split("/")[0] for file in files if file.endswith("/train")]
    capabilities = [file.split("/")[0] for file in files if file.endswith("/reference")]
    lines = [f"name: {name}", "domains:"]
    lines += [f"  - {{name: {d}, path: {d}/train.jsonl}}" for d in domains]
    lines += ["capabilities:"]
    for capability in capabilities:
        own = f", domain: {capability}" if capability in domains else ""
        lines.append(f"  - {{name: {capability}, path: {capability}/reference.jsonl{own}}}")
    return "\n".join(lines) + "\n" + RUN_FILES[name]


def write(name: str, out: Path, scale: float = 1.0) -> dict[str, str]:
    """Write a suite's folder; return the hash of every file."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    if name in {"sft5", "sft5_all"}:
        source = HERE.parents[1] / "verdict" / f"{name}.yaml"
        text = source.read_text(encoding="utf-8").replace(SHARED, SFT5.as_posix())
        (folder / "mix.yaml").write_text(text, encoding="utf-8")
        return {"mix.yaml": digest(folder / "mix.yaml")}
    if name == "demo":
        shutil.copy(HERE.parents[1] / "verdict" / "demo_accuracy.yaml", folder / "mix.yaml")
        return {"mix.yaml": digest(folder / "mix.yaml")}
    files = {"skills": skills, "unseen": unseen, "traces": traces}[name](scale)
    hashes = {}
    for file, rows in sorted(files.items()):
        path = folder / f"{file}.jsonl"
        path.parent.mkdir(exist_ok=True)
        lines = (json.dumps({"instruction": q, "input": "", "output": a}, ensure_ascii=False) for q, a in rows)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        hashes[f"{file}.jsonl"] = digest(path)
    (folder / "mix.yaml").write_text(run_file(name, files), encoding="utf-8")
    hashes["mix.yaml"] = digest(folder / "mix.yaml")
    return hashes


def digest(path: Path) -> str:
    """The hash of a file, wherever the rows that it names lie."""
    return hashlib.sha256(path.read_bytes().replace(SFT5.as_posix().encode(), SHARED.encode())).hexdigest()[:16]


def differing(name: str, out: Path) -> list[str]:
    """Name the files of a suite that are missing, or others than were recorded."""
    recorded = json.loads(HERE.with_suffix(".json").read_text())[name]
    return [
        f"{name}/{file}" for file, wanted in recorded.items()
        if not (path := out / name / file).exists() or digest(path) != wanted
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all where none is named")
    parser.add_argument("--out", type=Path, default=Path("runs/suites"))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows, for rehearsals")
    parser.add_argument("--record", action="store_true", help="write the hashes to suites.json beside this script")
    parser.add_argument("--check", type=Path, default=None, help="compare a folder of suites with what was recorded")
    given = parser.parse_args()
    if other := set(given.names) - set(NAMES):
        parser.error(f"no suite is called {', '.join(sorted(other))}; there are {', '.join(NAMES)}")
    names, kept = given.names or NAMES, HERE.with_suffix(".json")
    if given.record and given.scale != 1:
        parser.error("--record is of whole suites: leave --scale out")
    if given.check is not None:
        wrong = [path for name in names for path in differing(name, given.check)]
        sys.exit(f"missing, or other rows than recorded: {', '.join(wrong)}" if wrong else 0)
    told = {name: write(name, given.out, given.scale) for name in names}
    for name, hashes in told.items():
        print(f"{name}: {len(hashes)} files, {hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]}")
    if given.record:
        kept.write_text(json.dumps(json.loads(kept.read_text()) | told, indent=1) + "\n")


if __name__ == "__main__":
    main()
