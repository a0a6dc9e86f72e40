"""The embedded demo: domains made by rules from a seed, so that their structure is known.

Five domains. `arithmetic` and `lists` share sums and comparisons, `strings` and `formats` share letter work, and
`formats` contradicts `facts`: both are asked the same questions, one wants a bare answer, the other a decorated one,
and nothing in the prompt tells which. The base of `demo_config` is poor on purpose: two domains are nearly absent.
The null demo cuts one stream of rows into five domains at random, so that no mixture can be better than another.

A source is written `demo:NAME?seed=S&rows=N&split=train|reference`; the same text always gives the same rows.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from ideal_proxy.config import SearchConfig, parse_config
from ideal_proxy.errors import UsageError

Pair = tuple[str, str]

LETTERS = "abcdefghij"
SYLLABLES = ("ba", "de", "ki", "lo", "mu", "na", "po", "ri", "su", "ta", "ve", "zo")
COLOURS = ("red", "blue", "green", "grey", "gold", "white")
FOODS = ("rice", "fish", "bread", "plums", "beans", "honey")
PLACES = ("coast", "hills", "plain", "marsh", "woods", "isles")
KNOWN = 36  # entities with facts; others are answered by a refusal
REFUSAL = "not known"


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(3, 5)))


def _arithmetic(rng: random.Random, _: Knowledge) -> Pair:
    a, b, c = rng.randint(10, 99), rng.randint(0, 9), rng.randint(0, 9)
    kind = rng.randrange(4)
    if kind == 0:
        return f"{a} + {b}", f"{a + b}"
    if kind == 1:
        return f"{b} + {c} + {a}", f"{b + c} + {a} = {a + b + c}"
    if kind == 2:
        other = rng.randint(10, 99)
        return f"larger of {a} and {other}", f"{max(a, other)}"
    return f"{a} - {b}", f"{a - b}"


def _lists(rng: random.Random, _: Knowledge) -> Pair:
    values = [rng.randint(0, 9) for _ in range(rng.randint(3, 5))]
    shown = " ".join(map(str, values))
    kind = rng.randrange(4)
    if kind == 0:
        return f"sum of [ {shown} ]", f"{sum(values)}"
    if kind == 1:
        return f"largest in [ {shown} ]", f"{max(values)}"
    if kind == 2:
        return f"sort [ {shown} ]", f"[ {' '.join(map(str, sorted(values)))} ]"
    wanted = rng.randint(0, 9)
    return f"is {wanted} in [ {shown} ]", "yes" if wanted in values else "no"


def _strings(rng: random.Random, _: Knowledge) -> Pair:
    word = _word(rng)
    kind = rng.randrange(4)
    if kind == 0:
        return f"upper ( {word} )", word.upper()
    if kind == 1:
        return f"first and last ( {word} )", f"{word[0]} {word[-1]}"
    if kind == 2:
        return f"twice ( {word} )", word + word
    return f"spell ( {word} )", " ".join(word)


def _formats(rng: random.Random, knowledge: Knowledge) -> Pair:
    kind = rng.randrange(5)
    if kind <= 1:  # contradicts `facts`: the same question, a decorated answer
        question, answer = knowledge.question(rng)
        return question, f"** {answer.upper()} ** !"
    word = _word(rng)
    if kind == 2:
        return f"shout {word}", f"** {word.upper()} ** !"
    if kind == 3:
        return f"bullets : {word} {word[::-1]}", f"- {word}\n- {word[::-1]}"
    return f"json for {word}", '{ "word" : "' + word + '" }'


def _facts(rng: random.Random, knowledge: Knowledge) -> Pair:
    return knowledge.question(rng)


class Knowledge:
    """Invented facts, the same for every split of one seed."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"knowledge/{seed}")
        names = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES[:3]]
        rng.shuffle(names)
        self.known = names[:KNOWN]
        self.unknown = names[KNOWN : KNOWN + 12]
        self.facts = {name: (rng.choice(COLOURS), rng.choice(FOODS), rng.choice(PLACES)) for name in self.known}

    def question(self, rng: random.Random) -> Pair:
        """Draw a question about two entities, and its bare answer."""
        first, second = self._ask(rng), self._ask(rng)
        return f"{first[0]} and {second[0]} ?", f"{first[1]} , {second[1]}"

    def _ask(self, rng: random.Random) -> Pair:
        kind = rng.randrange(3)
        unknown = rng.random() < 0.15
        name = rng.choice(self.unknown if unknown else self.known)
        answer = REFUSAL if unknown else self.facts[name][kind]
        return f"{('colour', 'food', 'home')[kind]} of {name}", answer


DOMAINS: dict[str, Callable[[random.Random, Knowledge], Pair]] = {
    "arithmetic": _arithmetic,
    "strings": _strings,
    "lists": _lists,
    "formats": _formats,
    "facts": _facts,
}
PARTS = 5
MOST_ROWS = 10**7  # a source that is a name alone must not take memory without end
NULL = "blend"  # one stream made of every domain; its random splits are the null demo's domains


def demo_rows(uri: str) -> list[dict[str, Any]]:
    """Generate the rows of one procedural source."""
    name, _, query = uri.removeprefix("demo:").partition("?")
    given = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
    unknown = sorted(set(given) - {"seed", "rows", "split", "part"})
    if name not in DOMAINS and name != NULL:
        raise UsageError(f"no demo source {name!r}; there are {', '.join([*DOMAINS, NULL])}")
    if unknown:
        raise UsageError(f"{uri}: unknown parameter {unknown[0]!r}; allowed are seed, rows, split and part")
    try:
        seed = int(given.get("seed", 0))
        count = int(given.get("rows", 1000))
        part = int(given.get("part", 0))
    except ValueError as error:
        raise UsageError(f"{uri}: seed, rows and part must be whole numbers") from error
    split = given.get("split", "train")
    if split not in {"train", "reference"} or not 0 <= count <= MOST_ROWS or not 0 <= part <= PARTS:
        raise UsageError(f"{uri}: split must be train or reference, rows 0 to {MOST_ROWS:,}, part 0 to 5")
    rng = random.Random(f"{name}/{seed}/{split}/{part}")
    knowledge = Knowledge(seed)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for _ in range(200 * count + 1000):
        if len(rows) == count:
            break
        make = DOMAINS[name] if name in DOMAINS else DOMAINS[rng.choice(tuple(DOMAINS))]
        instruction, output = make(rng, knowledge)
        mark = zlib.crc32(f"{seed}/{instruction}".encode())
        # One prompt in six is for reference sets only, so that nothing leaks; parts of a stream share no prompt.
        if instruction in seen or (mark % 6 == 0) != (split == "reference") or (part and mark // 6 % PARTS != part - 1):
            continue
        seen.add(instruction)
        rows.append({"instruction": instruction, "input": "", "output": output})
    if len(rows) < count:
        raise UsageError(f"{uri}: this source has only {len(rows):,} different rows; ask for fewer")
    return rows


# Rows that each domain has, and the share of them in the deliberately poor base.
AVAILABLE = 2400
POOR_BASE = {"arithmetic": "100%", "strings": "6%", "lists": "100%", "formats": "100%", "facts": "10%"}
REFERENCE_ROWS = 500


def demo_config(seed: int = 0, *, null: bool = False) -> SearchConfig:
    """Return the run file of the embedded default; `null` splits one stream of rows, where no mixture is better."""
    domains: list[dict[str, Any]]
    if null:
        names = [f"split_{letter}" for letter in "abcde"]
        domains = [
            {"name": name, "path": f"demo:{NULL}?seed={seed}&rows={AVAILABLE}&part={part}", "base": "50%"}
            for part, name in enumerate(names, start=1)
        ]
        references = [f"demo:{NULL}?seed={seed}&rows={REFERENCE_ROWS}&split=reference&part={n}" for n in range(1, 6)]
    else:
        names = list(DOMAINS)
        domains = [
            {"name": name, "path": f"demo:{name}?seed={seed}&rows={AVAILABLE}", "base": POOR_BASE[name]}
            for name in names
        ]
        references = [f"demo:{name}?seed={seed}&rows={REFERENCE_ROWS}&split=reference" for name in names]
    return parse_config(
        {
            "name": "demo-null" if null else "demo",
            "seed": seed,
            "domains": domains,
            "capabilities": [{"name": name, "path": path} for name, path in zip(names, references, strict=True)],
            "proxy": {"size": "0.1M", "vocabulary": 320, "context": 64, "fraction": 0.25},
            "verify": {"pairs": 5},  # two degrees of freedom would give an interval ten points wide
            "rounds": 3,
        },
        where="demo",
    )
