"""What a change of loss is worth in exact match on SmolLM2, and ours with capabilities weighted by it.

    python benchmarks/proof/exact_link.py runs        # resumable; needs what `on_target.py search` left
    python benchmarks/proof/exact_link.py propose     # a prediction for `pretrained.py run`, to be committed before it

The search of `on_target.py` judged by loss, all capabilities alike, and kept no model. Here its runs at base, and of
each domain whose capability had a right answer there the one with more of it, are trained once more, and judged on
reference rows that neither the search nor the tests saw: loss, and whether every token of the answer and its end is the
likeliest, which is when a greedy answer is the row's word for word. Exact match of a capability over its log loss, over
all these runs, is its weight in the mean; those whose answers no loss here makes right weigh nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "proof")]
HERE = Path(__file__).parent
ARM = "ours, weighted by exact match, on the target"
OUT = HERE / "exact_link.jsonl"
JUDGED, AT_ONCE = 80, 20  # reference rows, which begin after the search's
PROTECT = 0.02
DOUBT = 0.3  # of the slope of exact match over log loss, before runs are seen: all right or all wrong over three of it


def answered(model: Any, tokenizer: Any, rows: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Which answers are the likeliest token by token, to their end; the nats of each with its tokens: (N,), (N, 2)."""
    import torch

    exact, nats = [], []
    for part in (rows[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE)):
        texts = []
        for row in part:
            turns = [{"role": "user", "content": row.messages[0].content}]
            asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            answer = row.messages[-1].content + tokenizer.eos_token
            texts.append([tokenizer(text, add_special_tokens=False)["input_ids"] for text in (asked, answer)])
        longest = max(len(q) + len(a) for q, a in texts)
        ids, of_answer = torch.zeros(len(part), longest, dtype=torch.long), torch.zeros(len(part), longest, dtype=bool)
        for i, (q, a) in enumerate(texts):
            ids[i, : len(q) + len(a)] = torch.tensor(q + a)
            of_answer[i, len(q) : len(q) + len(a)] = True
        wanted, kept = ids[:, 1:], of_answer[:, 1:]
        with torch.no_grad():  # padding stands behind, unseen by what is before it
            seen = model.get_decoder()(input_ids=ids).last_hidden_state[:, :-1]
            logits = model.get_output_embeddings()(seen[kept]).float()
        loss, right = torch.zeros(kept.shape), ~kept
        loss[kept] = torch.nn.functional.cross_entropy(logits, wanted[kept], reduction="none")
        right[kept] = logits.argmax(-1) == wanted[kept]
        exact += right.all(dim=1).tolist()
        nats += torch.stack([loss.sum(dim=1), kept.sum(dim=1)], dim=1).tolist()
    return np.array(exact), np.array(nats)


def levers(table: pd.DataFrame, domains: list[str], able: list[str]) -> pd.DataFrame:
    """The runs at base, and of each of these domains the one with more of it alone."""
    rows = table[[f"rows/{name}" for name in domains]].to_numpy()
    change = np.log(rows / rows[0])
    up = [i for i in range(len(rows)) if (change[i] > 0.5).sum() == 1 and (change[i] > 0.1).sum() == 1]
    up = [i for i in up if domains[int(change[i].argmax())] in able]
    return table.iloc[[i for i in range(len(rows)) if not np.any(np.abs(change[i]) > 0.01)] + up]


def runs(given: argparse.Namespace) -> None:
    """Train and judge what is not recorded yet; `--part I/N` takes every N-th run alone."""
    import jsonl
    import torch
    from gpu import exact_match
    from on_target import HALF, REFERENCE
    from pretrained import CONTEXT, by_lora, merged, source_of

    from ideal_proxy.data.rows import read_rows
    from ideal_proxy.data.template import make_template
    from ideal_proxy.data.tokenizing import tokenize_rows
    from ideal_proxy.proxy.pretrained import load_causal_lm, load_tokenizer

    torch.set_num_threads(given.threads)
    source = source_of(given.model)
    tokenizer = load_tokenizer(source)
    template, work = make_template(tokenizer), given.work / f"link-{given.part.replace('/', '-')}"
    result = json.loads((HERE / "on_target.json").read_text())["result"]
    domains, capabilities = ([entry["name"] for entry in result[kind]] for kind in ("domains", "capabilities"))
    sets = {}
    for name in domains:
        rows = list(read_rows(given.work / "train" / f"{name}.jsonl"))
        sets[name] = tokenize_rows(rows[: round(HALF * len(rows))], template, CONTEXT, work / "cache")
    judged = {
        name: list(read_rows(given.suites / "skills" / name / "reference.jsonl"))[REFERENCE : REFERENCE + given.judged]
        for name in capabilities
    }
    table = pd.read_csv(HERE / "on_target_runs.csv").query("role == 'design'")
    part, parts = map(int, given.part.split("/"))
    before = jsonl.read(OUT)  # the parts begin when base's first run is there
    done = {row["run"] for row in before}
    able = [name for name, exact in zip(capabilities, before[0]["exact"] if before else [], strict=False) if exact]
    for _, run in list(levers(table, domains, able).iterrows())[part - 1 :: parts]:
        if run["run"] in done:
            continue
        start = time.monotonic()
        seed = int(run["seed"]) + 1
        counts = [round(HALF * run[f"rows/{name}"]) for name in sets]
        model, log = by_lora(load_causal_lm(source, context=CONTEXT), sets, counts, seed, given.dtype)
        plain = merged(model, tokenizer, work / "trained", given.dtype)
        row: dict[str, Any] = {"run": run["run"], "seed": seed, "rows": log.rows, "tokens": log.tokens}
        found = [answered(plain, tokenizer, rows) for rows in judged.values()]
        row["exact"] = [round(float(exact.mean()), 5) for exact, _ in found]
        row["losses"] = [round(float(nats[:, 0].sum() / nats[:, 1].sum()), 5) for _, nats in found]
        if given.written and not done:  # are these what greedy decoding writes?
            few = {name: rows[: given.written] for name, rows in judged.items()}
            row["written"] = list(exact_match(plain, tokenizer, few, 32, False).values())
            row["of_them"] = [round(float(exact[: given.written].mean()), 5) for exact, _ in found]
        row["seconds"] = time.monotonic() - start
        jsonl.add(OUT, row)
        done.add(run["run"])
        print(f"{run['run']}: exact match {100 * np.mean(row['exact']):.2f} %", flush=True)


def slopes(exact: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact match over log loss by capability and its error, (J,), drawn towards zero by `DOUBT`."""
    x, y = np.log(losses) - np.log(losses).mean(axis=0), exact - exact.mean(axis=0)
    squares = (x**2).sum(axis=0)
    raw = (x * y).sum(axis=0) / squares
    noise = np.maximum(((y - raw * x) ** 2).sum(axis=0) / (len(x) - 2), 1e-6)
    precision = squares / noise
    return raw * precision / (precision + 1 / DOUBT**2), 1 / np.sqrt(precision + 1 / DOUBT**2)


def propose(given: argparse.Namespace) -> None:
    """Optimise the mean weighted by the slopes, of the search's fit and limits, and say what it gives.

    With `--clean` base and proposal have no row of the two poisoned domains; the fit, which knows them, is the same.
    """
    import jsonl
    from on_target import said_of
    from pretrained import base_rows, recorded
    from real import CLEAN, POISONED

    from ideal_proxy.domains import Domains
    from ideal_proxy.limits import Limits
    from ideal_proxy.optimizer import Constraints, Objective, Problem, explored_region, nearest_base, optimize
    from ideal_proxy.response import ResponseModel
    from ideal_proxy.store import read_json

    path = HERE / "predictions" / "smollm2.json"
    told, result = json.loads(path.read_text()), json.loads((HERE / "on_target.json").read_text())["result"]
    arm, left_out = (ARM + CLEAN, POISONED) if given.clean else (ARM, ())
    if arm in {row["contender"] for row in recorded()}:
        sys.exit("there are outcomes: predictions are not written anew")
    model = ResponseModel.from_json(read_json(given.work / "run" / "fit.json"))
    entries, capabilities = result["domains"], tuple(entry["name"] for entry in result["capabilities"])
    names = tuple(entry["name"] for entry in entries)
    whole = {entry["name"]: entry["base_rows"] for entry in entries}
    base = base_rows(arm, whole)
    domains = Domains(
        names=names, base=base, available=np.array([float(entry["available"]) for entry in entries]),
        tokens_per_row=np.array([entry["base_tokens"] / entry["base_rows"] for entry in entries]),
    )  # fmt: skip
    found = jsonl.read(OUT)
    exact, losses = (np.array([row[part] for row in found]) for part in ("exact", "losses"))
    slope, error = slopes(exact, losses)
    for name, *numbers in zip(capabilities, 100 * exact.mean(axis=0), 100 * slope, 100 * error, strict=True):
        print("{:26s} exact {:5.1f} %, {:+6.1f} ± {:4.1f} points for a log loss one higher".format(name, *numbers))
    weights = dict(zip(capabilities, np.maximum(-slope, 0).round(4).tolist(), strict=True))
    objective = Objective(kind="weighted", weights=weights)
    table = pd.read_csv(HERE / "on_target_runs.csv").query("role == 'design'")
    region = explored_region(table[[f"rows/{name}" for name in names]].to_numpy(), domains)
    protected = {name: PROTECT for name, w in weights.items() if w > 0}
    limits = Limits(budget_unit="tokens", protect=protected, pinned=dict.fromkeys(left_out))
    problem = Problem(domains=domains, capabilities=capabilities)
    held = Constraints(problem=problem, limits=limits, trust_region=region)
    best = nearest_base(model, objective, held, optimize(model, objective, held, random_state=0)).volumes
    record = said_of(arm, dict(zip(names, best, strict=True)), model, result, told)
    change = np.log([record["ratios"][name][0] for name in capabilities])
    record["exact"] = {"slopes": dict(zip(capabilities, slope.round(4).tolist(), strict=True)),
                       "gain": round(float((slope @ change) / len(change)), 5)}  # fmt: skip
    print(f"exact match predicted {100 * record['exact']['gain']:+.2f} points in the mean")
    for name, rows, r in zip(names, base, best, strict=True):
        print(f"{name:26s} {rows:4.0f} -> {r:5.1f} rows")
    told["mixtures"][arm] = record
    path.write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("runs", "propose"))
    parser.add_argument("--suites", type=Path, default=Path("runs/suites"))
    parser.add_argument("--work", type=Path, default=Path("runs/on_target"))
    parser.add_argument("--model", type=Path, help="a folder with another model, for rehearsals")
    parser.add_argument("--clean", action="store_true", help="propose: without the two poisoned domains")
    parser.add_argument("--judged", type=int, default=JUDGED, help="reference rows a capability")
    parser.add_argument("--written", type=int, default=0, help="of them greedily answered too, as a check")
    parser.add_argument("--part", default="1/1", help="I/N: every N-th run, from the I-th")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    globals()[given.stage](given)


if __name__ == "__main__":
    main()
