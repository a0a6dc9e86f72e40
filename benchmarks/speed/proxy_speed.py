"""Speed of one proxy against the Hugging Face Trainer: same model, rows, steps and optimiser, interleaved pairs.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/speed/proxy_speed.py --sizes 1M 3M 10M --rows 800 480 320 \\
        --pairs 5 --threads 1 --out benchmarks/speed/proxy_speed.json

Both arms start from the same weights and take the same rows in the same order, 32 a step, with fused AdamW, our
warm-up and cosine, gradients clipped at 1. The Trainer is set up as a user would: padded to the longest row of the
batch, SDPA attention, no logging, saving or evaluation (its schedule is ours, since its own gives the first step a rate
of 0 and the losses could not be compared). Reported: supervised tokens a second (median of the pairs, each pair run
one arm after the other, in turn), the ratio pair by pair, both final reference losses, and the share of this machine's
matrix product peak that our products are (counted, padding of attention blocks included, elementwise work excluded).
On a CPU the seconds are those that the process computed, so that what else runs on the machine counts little; the
seconds of the clock are kept beside them. A JSON of results that exists already is extended by the sizes given.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ideal_proxy.data.rows import read_rows
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.data.tokenizing import tokenize_rows
from ideal_proxy.data.tokens import IGNORED, TokenRows
from ideal_proxy.provenance import provenance
from ideal_proxy.proxy import model as models
from ideal_proxy.proxy import training
from ideal_proxy.proxy.attention import row_layout
from ideal_proxy.proxy.model import MICRO_BATCH_TOKENS, collate_across, micro_batches, proxy_shape
from ideal_proxy.store import atomic_write_json, atomic_write_text, read_json

SFT5 = Path(__file__).resolve().parents[3] / "shared" / "data" / "sft5"
DOMAINS = ("mathematics", "coding", "reasoning", "instruction", "trust")


def prepare(rows: int, vocabulary: int, context: int) -> tuple[list[TokenRows], TokenRows]:
    """Tokenise equal parts of the five domains, and 200 reference rows."""
    parts = {name: list(read_rows(SFT5 / name / "train.jsonl"))[: rows // len(DOMAINS)] for name in DOMAINS}
    texts = (content for part in parts.values() for row in part for _, content in row.pairs)
    template = make_template(train_tokenizer(texts, vocabulary), plain=True)
    reference = [row for name in DOMAINS for row in list(read_rows(SFT5 / name / "reference.jsonl"))[:40]]
    return (
        [tokenize_rows(part, template, context) for part in parts.values()],
        tokenize_rows(reference, template, context),
    )


def order_of(token_rows: list[TokenRows], seed: int) -> tuple[np.ndarray, np.ndarray]:
    domain = np.concatenate([np.full(len(rows), d) for d, rows in enumerate(token_rows)])
    row = np.concatenate([np.arange(len(rows)) for rows in token_rows])
    turn = np.random.default_rng(seed).permutation(len(domain))
    return domain[turn], row[turn]


class Clock:
    """Seconds of the wall clock and of the process since it was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {"wall": wall, "cpu": cpu / torch.get_num_threads() if self.device.type == "cpu" else wall}


def ours(model: Any, order: Any, token_rows: list[TokenRows], settings: training.TrainSettings) -> dict[str, float]:
    clock = Clock(next(model.parameters()).device)
    training.train(model, order, token_rows, settings)
    return clock.read()


def theirs(model: Any, order: Any, token_rows: list[TokenRows], settings: training.TrainSettings) -> dict[str, float]:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model.set_attn_implementation("sdpa")
    examples = []
    for d, r in zip(*order, strict=True):
        first, end = token_rows[d].offsets[r : r + 2]
        ids = token_rows[d].ids[first:end].astype(np.int64)
        examples.append({
            "input_ids": ids.tolist(), "attention_mask": [1] * len(ids),
            "labels": np.where(token_rows[d].supervised[first:end], ids, IGNORED).tolist(),
        })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=settings.batch_rows, num_train_epochs=1,
            learning_rate=settings.learning_rate, lr_scheduler_type="cosine", warmup_steps=settings.warmup_fraction,
            weight_decay=settings.weight_decay, adam_beta1=settings.beta1, adam_beta2=settings.beta2,
            max_grad_norm=settings.grad_clip, train_sampling_strategy="sequential", save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
            bf16=settings.dtype == "bfloat16",
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=arguments, train_dataset=examples, data_collator=DataCollatorForSeq2Seq(_Padder(), model)
        )
        optimizer = trainer.create_optimizer()
        rates = training.learning_rates(settings, -(-len(examples) // settings.batch_rows)) / settings.learning_rate
        trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: float(rates[min(k, len(rates) - 1)])
        )
        clock = Clock(next(model.parameters()).device)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        seconds = clock.read()
    models.use_packed_attention(model)
    return seconds


class _Padder:
    """The one method of a tokenizer that the collator uses."""

    padding_side = "right"

    def pad(self, features: list[dict[str, Any]], **_: Any) -> Any:
        from transformers import BatchEncoding

        longest = max(len(f["input_ids"]) for f in features)
        fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
        return BatchEncoding({
            key: torch.tensor([list(f[key]) + [fill[key]] * (longest - len(f[key])) for f in features])
            for key in features[0]
        })  # fmt: skip


def product_flops(size: str, vocabulary: int, order: Any, token_rows: list[TokenRows], batch_rows: int) -> float:
    """Count multiply-adds × 2 of the products really done, forward once and backward twice."""
    shape = proxy_shape(size, vocabulary)
    layer = 4 * shape.width**2 + 3 * shape.width * shape.hidden
    total = 0.0
    domain, row = order
    lengths = [rows.lengths for rows in token_rows]
    for first in range(0, len(row), batch_rows):
        d, r = domain[first : first + batch_rows], row[first : first + batch_rows]
        length = np.array([lengths[a][b] for a, b in zip(d, r, strict=True)])
        for part in micro_batches(length, MICRO_BATCH_TOKENS["cpu"]):
            batch = collate_across(token_rows, d[part], r[part])
            labels = int((batch.labels != IGNORED).sum())
            blocks = row_layout(batch.starts, torch.device("cpu")).blocks
            attention = sum(b.rows * b.longest**2 for b in blocks) * shape.width  # QKᵀ and PV, causal half of each
            total += shape.layers * (layer * len(batch.input_ids) + attention) + shape.width * vocabulary * labels
    return 6 * total


def peak_flops(device: torch.device) -> float:
    """Measure the best rate of a float32 matrix product on the threads in use."""
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    best = float("inf")
    for _ in range(12):
        clock = Clock(device)
        a @ b
        best = min(best, clock.read()["cpu"])
    return 2 * 1536**3 / best


def measure(size: str, rows: int, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Run the pairs of one size."""
    token_rows, reference = prepare(rows, options.vocabulary, options.context)
    settings = training.TrainSettings(learning_rate=1e-3, dtype=options.dtype)
    flops = product_flops(size, options.vocabulary, order_of(token_rows, 0), token_rows, settings.batch_rows)
    pairs: list[dict[str, Any]] = []
    peak = 0.0
    for pair in range(options.pairs):
        order = order_of(token_rows, pair)
        arms = [ours] if options.only_ours else [ours, theirs][:: 1 if pair % 2 else -1]
        line: dict[str, Any] = {}
        for arm in arms:
            if device.type == "cpu":
                peak = max(peak, peak_flops(device))
            model = models.build_proxy(size, options.vocabulary, options.context, pair).to(device)
            line[arm.__name__] = arm(model, order, token_rows, settings)
            line[f"{arm.__name__}_loss"] = models.evaluate(model, reference).mean
        pairs.append(line)
        print(size, line, file=sys.stderr, flush=True)
    return entry_of(size, rows, pairs, peak, flops, token_rows, options.dtype, options.vocabulary)


def entry_of(
    size: str,
    rows: int,
    pairs: list[dict[str, Any]],
    peak: float,
    flops: float,
    token_rows: list[TokenRows],
    dtype: str,
    vocabulary: int,
) -> dict[str, Any]:
    """Sum up the pairs of one size."""
    supervised = sum(int(part.supervised_tokens.sum()) for part in token_rows)
    seconds = {arm: statistics.median(p[arm]["cpu"] for p in pairs) for arm in ("ours", "theirs") if arm in pairs[0]}
    entry: dict[str, Any] = {
        "size": size, "parameters": proxy_shape(size, vocabulary).parameters, "dtype": dtype,
        "rows": rows, "tokens": sum(int(part.offsets[-1]) for part in token_rows), "supervised_tokens": supervised,
        "ours_supervised_tokens_per_second": round(supervised / seconds["ours"]),
        "peak_gflops": round(peak / 1e9, 1), "peak_share": round(flops / seconds["ours"] / peak, 3) if peak else None,
        "pairs": pairs,
    }  # fmt: skip
    if "theirs" in seconds:
        entry["trainer_supervised_tokens_per_second"] = round(supervised / seconds["theirs"])
        for clock in ("cpu", "wall"):
            ratios = [p["theirs"][clock] / p["ours"][clock] for p in pairs]
            entry[f"ratio_{clock}"] = round(statistics.median(ratios), 2)
            entry[f"ratios_{clock}"] = [round(r, 2) for r in ratios]
        entry["largest_loss_difference"] = max(abs(p["ours_loss"] - p["theirs_loss"]) for p in pairs)
    return entry


def lay_out(found: dict[str, Any]) -> str:
    """Write the table of a results file as Markdown."""
    machine, versions = found["provenance"]["machine"], found["provenance"]["versions"]
    header = (
        "proxy", "parameters", "precision", "rows", "ours, supervised tokens/s", "Trainer", "ratio (median)",
        "ratio of each pair", "by the clock", "peak share", "loss difference",
    )  # fmt: skip
    lines = [
        "# One proxy against the Hugging Face Trainer", "",
        "`benchmarks/speed/proxy_speed.py` with the command in its head. "
        f"{found['device']}: {machine['processor']}, one thread pinned to one core; torch {versions['torch']}, "
        f"transformers {versions['transformers']}. Other work ran beside it (load 5 to 30 on two cores): the seconds",
        "are those that the process computed; the clock's ratios stand beside them. No GPU was at hand: no such rows.",
        "", f"| {' | '.join(header)} |", "|---|---:|---|---:|---:|---:|---:|---|---:|---:|---:|",
    ]  # fmt: skip
    for e in found["results"]:
        lines.append(
            f"| {e['size']} | {e['parameters']:,} | {e['dtype']} | {e['rows']} | "
            f"{e['ours_supervised_tokens_per_second']:,} | {e['trainer_supervised_tokens_per_second']:,} | "
            f"{e['ratio_cpu']:.2f} | {', '.join(f'{r:.2f}' for r in e['ratios_cpu'])} | {e['ratio_wall']:.2f} | "
            f"{e['peak_share']:.0%} of {e['peak_gflops']:.0f} GFLOP/s | {e['largest_loss_difference']:.0e} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(models.SIZES))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[1600], help="one number, or one for each size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = options.rows * len(options.sizes) if len(options.rows) == 1 else options.rows
    for size, count in zip(options.sizes, rows, strict=True):
        entry = measure(size, count, options, device)
        print({k: v for k, v in entry.items() if k not in {"pairs"}}, flush=True)
        if options.out:
            before = read_json(options.out)["results"] if options.out.exists() else []
            kept = [e for e in before if (e["size"], e["dtype"]) != (size, options.dtype)]
            atomic_write_json(options.out, {
                "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
                "settings": dataclasses.asdict(training.TrainSettings(learning_rate=1e-3)),
                "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
                "results": [*kept, entry], "provenance": provenance(),
            })  # fmt: skip
            if not options.only_ours:
                atomic_write_text(options.out.with_suffix(".md"), lay_out(read_json(options.out)))


if __name__ == "__main__":
    main()
