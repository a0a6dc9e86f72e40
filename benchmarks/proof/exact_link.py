"""What a change of loss is worth in exact match on SmolLM2, and ours with capabilities weighted by it.

    python benchmarks/proof/exact_link.py runs        # resumable; needs what `on_target.py search` left
    python benchmarks/proof/exact_link.py propose     # a prediction for `pretrained.py run`, to be committed before it

The search of `on_target.py` judged by loss, all capabilities alike, and kept no model. Here its runs at base and the
one with more of each domain are trained once more, and judged on reference rows that neither the search nor the tests
saw: loss, and whether every token of the answer and its end is the likeliest, which is when a greedy answer is the row's
word for word. Exact match of a capability over its log loss, over all these runs, is its weight in the mean; those whose
answers no loss here makes right weigh nothing.
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
FIRST, JUDGED, AT_ONCE = 40, 120, 20  # reference rows: those after the search's
HALF = 0.5
DOUBT = 0.05  # of the slope of exact match over log loss, before runs are seen; in shares


def answered(model: Any, tokenizer: Any, rows: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Which answers are the likeliest token by token, to their end; and the nats of each with its tokens: (N,), (N, 2)."""
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
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, :-1].float()  # padding stands behind, unseen by what is before it
        wanted, kept = ids[:, 1:], of_answer[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none") * kept
        exact += ((logits.argmax(-1) == wanted) | ~kept).all(dim=1).tolist()
        nats += torch.stack([loss.sum(dim=1), kept.sum(dim=1)], dim=1).tolist()
    return np.array(exact), np.array(nats)


def levers(table: pd.DataFrame, domains: list[str], capabilities: list[str]) -> pd.DataFrame:
    """The runs at base, and of each domain that has a capability the one with most of it alone."""
    rows = table[[f"rows/{name}" for name in domains]].to_numpy()
    change = np.log(rows / rows[0])
    up = [i for i in range(len(rows)) if (change[i] > 0.5).sum() == 1 and (change[i] > 0.1).sum() == 1]
    up = [i for i in up if domains[int(change[i].argmax())] in capabilities]
    return table.iloc[[i for i in range(len(rows)) if not np.any(np.abs(change[i]) > 0.01)] + up]


def runs(given: argparse.Namespace) -> None:
    """Train and judge what is not recorded yet; `--part I/N` takes every N-th run alone."""
    import jsonl
    import torch
    from gpu import exact_match
    from pretrained import BATCH, CONTEXT, RANK, RATE, source_of

    from ideal_proxy.data.rows import read_rows
    from ideal_proxy.data.template import make_template
    from ideal_proxy.data.tokenizing import tokenize_rows
    from ideal_proxy.mixture.draws import domain_order, draw, training_order
    from ideal_proxy.proxy.pretrained import Pretrained, load_causal_lm, load_tokenizer, save_model, with_lora
    from ideal_proxy.proxy.records import TrainSettings
    from ideal_proxy.proxy.training import train

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
        name: list(read_rows(given.suites / "skills" / name / "reference.jsonl"))[FIRST : FIRST + given.judged]
        for name in capabilities
    }
    table = pd.read_csv(HERE / "on_target_runs.csv").query("role == 'design'")
    settings = TrainSettings(learning_rate=RATE, batch_rows=BATCH, dtype=given.dtype)
    part, parts = map(int, given.part.split("/"))
    done = {row["run"] for row in jsonl.read(OUT)}
    for _, run in list(levers(table, domains, capabilities).iterrows())[part - 1 :: parts]:
        if run["run"] in done:
            continue
        start = time.monotonic()
        seed = int(run["seed"]) + 1
        drawn = [
            (rows.keys, *draw(domain_order(seed, name, rows.keys), round(HALF * run[f"rows/{name}"])))
            for name, rows in sets.items()
        ]
        model = with_lora(load_causal_lm(source, context=CONTEXT), RANK, seed)
        log = train(model, training_order(seed, list(sets), drawn), list(sets.values()), settings)
        save_model(model, tokenizer, work / "trained")
        plain = load_causal_lm(Pretrained(name=str(work / "trained")), context=CONTEXT, packed=False)
        plain = plain.to(getattr(torch, given.dtype)).eval()
        row: dict[str, Any] = {"run": run["run"], "seed": seed, "rows": log.rows, "tokens": log.tokens}
        found = [answered(plain, tokenizer, rows) for rows in judged.values()]
        row["exact"] = [round(float(exact.mean()), 5) for exact, _ in found]
        row["losses"] = [round(float(nats[:, 0].sum() / nats[:, 1].sum()), 5) for _, nats in found]
        if given.written:  # are these what greedy decoding writes?
            few = {name: rows[: given.written] for name, rows in judged.items()}
            row["written"] = list(exact_match(plain, tokenizer, few, 32, False).values())
            row["of_them"] = [round(float(exact[: given.written].mean()), 5) for exact, _ in found]
        row["seconds"] = time.monotonic() - start
        jsonl.add(OUT, row)
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
    """Optimise the mean weighted by the slopes, of the same fit, and say what it gives."""
    import jsonl
    import real
    from on_target import said_of
    from peers.ours import Ours
    from peers.task import Runs

    from ideal_proxy.optimizer import Objective
    from ideal_proxy.response import ResponseModel
    from ideal_proxy.store import read_json

    path = HERE / "predictions" / "smollm2.json"
    told, result = json.loads(path.read_text()), json.loads((HERE / "on_target.json").read_text())["result"]
    model = ResponseModel.from_json(read_json(given.work / "run" / "fit.json"))
    table = pd.read_csv(HERE / "on_target_runs.csv").query("role == 'design'")
    domains, capabilities = ([entry["name"] for entry in result[kind]] for kind in ("domains", "capabilities"))
    found = jsonl.read(OUT)
    exact, losses = (np.array([row[part] for row in found]) for part in ("exact", "losses"))
    slope, error = slopes(exact, losses)
    weight = np.maximum(-slope, 0)
    for name, w, e, x in zip(capabilities, slope, error, exact.mean(axis=0), strict=True):
        print(f"{name:26s} exact {100 * x:5.1f} %   {w:+.3f} ± {e:.3f} for a log loss one higher")
    base = np.array([float(entry["base_rows"]) for entry in result["domains"]])
    lengths = np.array([entry["base_tokens"] / entry["base_rows"] for entry in result["domains"]])
    task = real.task_of(base, np.array([float(entry["available"]) for entry in result["domains"]]))
    seen = Runs(
        table[[f"rows/{name}" for name in domains]].to_numpy(),
        table[[f"search_loss/{name}" for name in capabilities]].to_numpy(), table["seed"].to_numpy(),
    )  # fmt: skip
    del lengths, weight, seen, task, Ours, Objective, model, said_of
    raise NotImplementedError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("runs", "propose"))
    parser.add_argument("--suites", type=Path, default=Path("runs/suites"))
    parser.add_argument("--work", type=Path, default=Path("runs/on_target"))
    parser.add_argument("--model", type=Path, help="a folder with another model, for rehearsals")
    parser.add_argument("--judged", type=int, default=JUDGED, help="reference rows a capability")
    parser.add_argument("--written", type=int, default=0, help="of them greedily answered too, as a check")
    parser.add_argument("--part", default="1/1", help="I/N: every N-th run, from the I-th")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    globals()[given.stage](given)


if __name__ == "__main__":
    main()
