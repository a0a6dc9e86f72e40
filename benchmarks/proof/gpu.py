"""The steps of `gpu.sh`, one at a time; each writes `OUT/gpu_STEP.json` when it is done.

correctness: packed rows lose what each loses alone, bf16 is near float32, a stopped training ends with the same bits.
speed: tokens a second and share of the card's peak of one proxy, then of 4, 8 and 16 workers on one card.
skills: a search of the `skills` suite from run file to verdict. smollm2: SmolLM2-135M fine-tuned on base and on the
search's proposal, exact match on test rows, three seeds, beside the untuned model. `--smoke` is small enough for one
CPU core and takes a scratch model in SmolLM2's place. `show` writes `gpu.md` from what is there; what was not run stays
empty and says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT, ROOT / "benchmarks", ROOT / "benchmarks" / "gradients", ROOT / "benchmarks" / "proof"):
    sys.path.insert(0, str(place))
STEPS = ("correctness", "speed", "skills", "smollm2")
PEAK = {"H100": 989e12, "H200": 989e12}  # bf16, dense, FLOP/s
ANSWER = 48  # new tokens at most


class Bench:
    """Where things lie, and how large they are."""

    def __init__(self, given: argparse.Namespace) -> None:
        import torch

        self.smoke, self.out = given.smoke, given.out
        self.suite, self.model = given.suites / "skills", given.model
        self.cuda = torch.cuda.is_available()
        self.device = "cuda" if self.cuda else "cpu"
        self.name = torch.cuda.get_device_name() if self.cuda else "CPU"
        self.work = given.work
        self.size = "0.1M" if given.smoke else "10M"
        self.context = 256

    def rows(self, kind: str) -> dict[str, list]:
        from ideal_proxy.data.rows import read_rows

        found = {path.parent.name: list(read_rows(path)) for path in sorted(self.suite.glob(f"*/{kind}.jsonl"))}
        return found or sys.exit(f"{self.suite} holds no {kind} rows of skills")

    def problem(self, size: str, workers: int = 1, **options: Any) -> Any:
        from problem import prepare_rows

        from ideal_proxy.proxy.records import TrainSettings

        dtype = "bfloat16" if self.cuda else "float32"
        return prepare_rows(
            "skills", self.work / f"{size}-{workers}", self.rows("train"), self.rows("reference"), size=size,
            context=self.context, vocabulary=512 if self.smoke else 4096, learning_rate=2e-3, workers=workers,
            most_judged=8, device=self.device, warm=False,
            settings=TrainSettings(learning_rate=2e-3, dtype=dtype), **options,
        )  # fmt: skip

    def write(self, step: str, **told: Any) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        import torch

        about = {"step": step, "device": self.name, "torch": torch.__version__, "smoke": self.smoke}
        (self.out / f"gpu_{step}.json").write_text(json.dumps(about | told, indent=1) + "\n")
        print(json.dumps(about | told), flush=True)


def correctness(bench: Bench) -> None:
    import torch

    from ideal_proxy.proxy.model import build_proxy, evaluate
    from ideal_proxy.proxy.training import TrainingStopped, train

    problem = bench.problem(bench.size)
    rows = next(iter(problem.references.values()))
    rows = rows.select(np.arange(min(len(rows), 8)))

    def model() -> Any:
        return build_proxy(bench.size, problem.context.vocab_size, bench.context, 0).to(bench.device)

    torch.backends.cuda.matmul.allow_tf32 = False
    together = evaluate(model(), rows).loss_sum
    alone = np.concatenate([evaluate(model(), rows.select(np.array([i]))).loss_sum for i in range(len(rows))])
    rough = evaluate(model(), rows, autocast=torch.bfloat16).loss_sum
    on_cpu = evaluate(model().cpu(), rows).loss_sum

    def far(a: Any, b: Any) -> float:
        return float(np.abs(a / b - 1.0).max())

    domain, row = problem.order(1)
    order = (domain[:320], row[:320])
    token_rows = list(problem.domains.values())
    settings = dataclasses.replace(problem.settings, dtype="float32")
    whole, stopped, steps = model(), model(), 0
    train(whole, order, token_rows, settings)
    folder = bench.work / "resume"
    folder.mkdir(parents=True, exist_ok=True)

    def half() -> bool:
        nonlocal steps
        steps += 1
        return steps == 5

    try:
        train(stopped, order, token_rows, settings, checkpoint_dir=folder, should_stop=half)
    except TrainingStopped:
        stopped = model()
    log = train(stopped, order, token_rows, settings, checkpoint_dir=folder)
    pairs = list(zip(whole.parameters(), stopped.parameters(), strict=True))
    apart = max(float((a - b).detach().abs().max()) for a, b in pairs)
    right = bool(
        far(together, alone) < 1e-5 and far(rough, together) < 1e-2 and far(together, on_cpu) < 1e-4
        and log.steps_resumed == 5 and apart == 0.0
    )  # fmt: skip
    bench.write(
        "correctness", packed_against_alone=far(together, alone), bf16_against_float32=far(rough, together),
        device_against_cpu=far(together, on_cpu), resumed_steps=log.steps_resumed, resume_apart=apart,
        right=right,
    )  # fmt: skip
    if not right:
        sys.exit("correctness: what should agree does not")


def speed(bench: Bench) -> None:
    from ideal_proxy.proxy.model import build_proxy
    from ideal_proxy.proxy.training import train
    from ideal_proxy.swarm.scheduler import Swarm

    peak = next((flops for name, flops in PEAK.items() if name in bench.name), None)
    told: dict[str, Any] = {"one": {}, "workers": {}}
    for size in ("0.1M",) if bench.smoke else ("1M", "10M"):
        problem = bench.problem(size)
        domain, row = problem.order(1)
        count = 256 if bench.smoke else 16_000
        token_rows = list(problem.domains.values())
        cold = build_proxy(size, problem.context.vocab_size, bench.context, 0).to(bench.device)
        train(cold, (domain[:128], row[:128]), token_rows, problem.settings)  # kernels are chosen
        model = build_proxy(size, problem.context.vocab_size, bench.context, 0).to(bench.device)
        log = train(model, (domain[:count], row[:count]), token_rows, problem.settings)
        parameters, rate = sum(p.numel() for p in model.parameters()), log.tokens / log.seconds
        told["one"][size] = {"parameters": parameters, "tokens_per_second": rate, "tokens": log.tokens,
                             "share_of_peak": 6 * parameters * rate / peak if peak else None}  # fmt: skip
        bench.write("speed", **told)
    size = "0.1M" if bench.smoke else "1M"
    for workers in (1, 2) if bench.smoke else (4, 8, 16):
        problem = bench.problem(size, workers)
        rows = np.ceil(problem.base * (0.05 if bench.smoke else 0.25))
        specs = [problem.spec(rows, seed) for seed in range(1, 1 + 3 * workers)]
        with Swarm(problem.context, problem.run_dir, workers=workers) as swarm:
            swarm.run(specs[:workers])  # processes start, kernels are chosen
            start = time.monotonic()
            done = swarm.run(specs[workers:])
            wall = time.monotonic() - start
        tokens = sum(done.results[spec.id].metrics["tokens"] for spec in specs[workers:])
        rate = tokens / wall
        told["workers"][workers] = {"runs": 2 * workers, "tokens": tokens, "tokens_per_second": rate, "wall": wall}
        bench.write("speed", **told)


def skills(bench: Bench) -> None:
    out = bench.work / "search"
    config = bench.work / "mix.yaml"
    text = (bench.suite / "mix.yaml").read_text().replace("path: ", f"path: {bench.suite.resolve()}/")
    size, fraction, vocabulary = ("0.1M", 0.05, 512) if bench.smoke else ("1M", 0.25, 4096)
    head = text.split("proxy:")[0]
    bench.work.mkdir(parents=True, exist_ok=True)
    proxy = f"size: {size}, vocabulary: {vocabulary}, context: 256, fraction: {fraction}, learning_rate: 0.002"
    short = "verify: {pairs: 2, max_pairs: 2}\nswarm: {runs: 20}\nrounds: 1\n"
    rest = short if bench.smoke else "swarm: {runs: 57}\nrounds: 2\n"
    config.write_text(f"{head}proxy: {{{proxy}}}\n{rest}seed: 0\n")
    start = time.monotonic()
    workers = "1" if bench.smoke else "8"
    command = [sys.executable, str(ROOT / "cli.py"), "search", str(config), "--out", str(out), "--workers", workers]
    kept = bench.out / "gpu_skills.log"  # written as it goes: the step may run out of time
    with kept.open("w") as log:
        done = subprocess.run(command, check=False, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode or not (out / "result.json").exists():
        bench.write("skills", failed=done.returncode, tail=kept.read_text()[-1500:])
        sys.exit(1)
    result, mixture = json.loads((out / "result.json").read_text()), json.loads((out / "mixture.json").read_text())
    told = {row["name"]: row.get("rows", row.get("volume")) for row in mixture["domains"]}
    bench.write("skills", seconds=time.monotonic() - start, verdict=result["verdict"], proposal=told)


def smollm2(bench: Bench) -> None:
    import torch
    from pretrained import train_on

    from ideal_proxy.data.template import make_template
    from ideal_proxy.data.tokenizing import tokenize_rows
    from ideal_proxy.mixture.draws import apportion
    from ideal_proxy.proxy.model import evaluate
    from ideal_proxy.proxy.pretrained import Pretrained, load_causal_lm, load_tokenizer, save_model
    from ideal_proxy.proxy.records import TrainSettings

    if bench.smoke:
        source = scratch(bench)
    else:
        file = next(bench.model.glob("*.gguf"), None)
        if file is None:
            sys.exit(f"{bench.model} holds no GGUF file of SmolLM2: keep all three parts first")
        source = Pretrained(name=str(bench.model), gguf=file.name)
    tokenizer = load_tokenizer(source)
    template = make_template(tokenizer)
    context, share = (128, 0.01) if bench.smoke else (256, 0.5)
    rows = {name: part[: max(4, round(share * len(part)))] for name, part in bench.rows("train").items()}
    sets = {name: tokenize_rows(part, template, context, bench.work / "cache") for name, part in rows.items()}
    tests = {name: part[: 2 if bench.smoke else 100] for name, part in bench.rows("test").items()}
    judged = {name: tokenize_rows(part, template, context, bench.work / "cache") for name, part in tests.items()}
    base = np.array([len(part) for part in sets.values()], dtype=float)
    arms = {"base": base}
    searched = bench.out / "gpu_skills.json"
    if searched.exists() and (told := json.loads(searched.read_text()).get("proposal")):
        wanted = np.array([told[name] for name in sets], dtype=float) * share
        lengths = np.array([part.lengths.mean() for part in sets.values()])
        arms["proposal"] = wanted * (base @ lengths) / (wanted @ lengths)
    dtype = "bfloat16" if bench.cuda else "float32"
    settings = TrainSettings(learning_rate=3e-4, dtype=dtype)
    found: dict[str, Any] = {"rows": int(base.sum()), "arms": {k: v.round(1).tolist() for k, v in arms.items()},
                             "domains": list(sets), "runs": []}  # fmt: skip

    def judge(model: Any, arm: str, seed: int, seconds: float) -> None:
        autocast = torch.bfloat16 if bench.cuda else None
        losses = {name: evaluate(model, part, autocast=autocast).mean for name, part in judged.items()}
        folder = bench.work / "trained"
        save_model(model, tokenizer, folder)
        plain = load_causal_lm(Pretrained(name=str(folder)), context=context, packed=False)
        exact = exact_match(plain.to(bench.device), tokenizer, tests, 8 if bench.smoke else ANSWER, bench.cuda)
        found["runs"].append({"arm": arm, "seed": seed, "train_seconds": seconds, "losses": losses, "exact": exact})
        bench.write("smollm2", **found)

    judge(load_causal_lm(source, context=context).to(bench.device), "untuned", 0, 0.0)
    for seed in (1,) if bench.smoke else (1, 2, 3):
        for arm, volumes in arms.items():
            whole = apportion(volumes, round(float(volumes.sum())))
            model = load_causal_lm(source, context=context).to(bench.device)
            log = train_on(model, sets, whole, seed, settings)
            judge(model, arm, seed, log.seconds)


def scratch(bench: Bench) -> Any:
    """A small Llama with a tokenizer of its own, as a folder, for the rehearsal."""
    from ideal_proxy.data.template import make_template
    from ideal_proxy.data.tokenizer import train_tokenizer
    from ideal_proxy.proxy.model import build_proxy
    from ideal_proxy.proxy.pretrained import Pretrained, save_model

    folder = bench.work / "scratch"
    texts = (text for part in bench.rows("train").values() for row in part[:50] for _, text in row.pairs)
    tokenizer = train_tokenizer(texts, 512)
    make_template(tokenizer, plain=True)
    save_model(build_proxy("0.1M", len(tokenizer), 256, 0), tokenizer, folder)
    return Pretrained(name=str(folder))


def exact_match(model: Any, tokenizer: Any, tests: dict, longest: int, cuda: bool) -> dict[str, float]:
    """Greedy answers, word for word."""
    import torch

    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval()
    model.config.use_cache = True
    told = {}
    for name, rows in tests.items():
        prompts = [
            tokenizer.apply_chat_template([{"role": "user", "content": row.messages[0].content}], tokenize=False,
                                          add_generation_prompt=True) for row in rows
        ]  # fmt: skip
        batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=cuda):
            made = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=longest,
                do_sample=False, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        answers = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right = sum(a.strip() == row.messages[-1].content.strip() for a, row in zip(answers, rows, strict=True))
        told[name] = right / len(rows)
    return told


def show(out: Path, page: Path) -> None:
    """One page of what is there; rows that were not run stay and say so."""
    told = {step: json.loads(path.read_text()) for step in STEPS if (path := out / f"gpu_{step}.json").exists()}
    ends = {step: path.read_text().strip() for step in STEPS if (path := out / f"gpu_{step}.failed").exists()}

    def empty(step: str) -> str:
        if step not in ends:
            return "not run: no GPU was at hand"
        return "**out of time**" if ends[step] == "124" else f"**failed** (exit {ends[step]})"

    lines = ["# On one GPU", "", "`bash benchmarks/proof/gpu.sh`, at most eight minutes on one H100.", "",
             "| what | result |", "|---|---|"]  # fmt: skip
    if any(step.get("smoke") for step in told.values()):
        lines[2:2] = ["A rehearsal on a small scratch model and no GPU: the figures mean nothing.", ""]
    here = told.get("correctness")
    text = json.dumps({k: here[k] for k in list(here)[4:]}) if here else empty("correctness")
    lines.append(f"| packed = alone, bf16, resume | {text} |")
    here = told.get("speed", {"one": {}, "workers": {}})
    for size in ("1M", "10M"):
        text, one = empty("speed"), here["one"].get(size)
        if one:
            text = f"{one['tokens_per_second']:,.0f}"
            text += f", {100 * one['share_of_peak']:.2f} % of peak" if one["share_of_peak"] else ""
        lines.append(f"| one proxy of {size}, tokens a second | {text} |")
    for workers in ("4", "8", "16"):
        some = here["workers"].get(workers)
        text = f"{some['tokens_per_second']:,.0f}" if some else empty("speed")
        lines.append(f"| {workers} workers of 1M proxies on one card, tokens a second | {text} |")
    here = told.get("skills")
    if here and "failed" in here:
        ends["skills"] = str(here["failed"])
    text = json.dumps(here["verdict"]) if here and "verdict" in here else empty("skills")
    lines.append(f"| a search of `skills` from run file to verdict | {text} |")
    runs = told.get("smollm2", {}).get("runs", [])
    for arm in ("untuned", "base", "proposal"):
        means = [100 * float(np.mean(list(run["exact"].values()))) for run in runs if run["arm"] == arm]
        text = f"{np.mean(means):.2f} % (seeds: {', '.join(f'{m:.2f}' for m in means)})" if means else empty("smollm2")
        lines.append(f"| SmolLM2-135M, {arm}: mean exact match over 18 capabilities | {text} |")
    page.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=(*STEPS, "show"))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--suites", type=Path, default=Path("runs/suites"))
    parser.add_argument("--model", type=Path, default=Path("/tmp/gpu/smollm2"), help="folder with SmolLM2's GGUF file")
    parser.add_argument("--work", type=Path, default=Path("/tmp/gpu/work"))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")))
    parser.add_argument("--page", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    if given.step == "show":
        show(given.out, given.page)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    globals()[given.step](Bench(given))


if __name__ == "__main__":
    main()
