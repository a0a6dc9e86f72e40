"""What an implicit response matrix costs beside the training of its proxy.

    python benchmarks/gradients/cost.py --problem sft5 --sizes 0.1M 1M 3M

Each turn trains a proxy on the base mixture, then makes its factors and its whole matrix (EK-FAC, rows chosen by
`InfluenceSettings.within(1.5, …)`), one after the other in one process on one thread. Seconds are those that the
process computed; the ratio is that of the medians, its range the least and greatest of a turn. Weights are fresh, not
warm-started: the time of a step does not depend on them. Memory: bytes that the estimate holds beside the model, by
count (factors, D + J gradients, the kept reference shards), and what the process's peak grew by over its training's.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from problem import prepare

from ideal_proxy.gradients.influence import InfluenceSettings, mixture_factors, responses
from ideal_proxy.provenance import provenance
from ideal_proxy.proxy.model import build_proxy
from ideal_proxy.proxy.training import train
from ideal_proxy.store import atomic_write_json


def factor_bytes(factors: Any) -> int:
    """Bytes of all blocks."""
    blocks = [factors.block(layer.name) for layer in factors.layers]
    tensors = [t for block in blocks for t in (block.left, block.right, block.values) if t is not None]
    return sum(t.numel() * t.element_size() for t in tensors)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(size: str, arguments: Any, folder: Path) -> dict[str, Any]:
    """Seconds of each turn, and the memory of the first."""
    problem = prepare(
        arguments.problem, folder, size=size, rows=arguments.rows, context=arguments.context,
        vocabulary=arguments.vocabulary, learning_rate=1e-3, workers=1,
    )  # fmt: skip
    sources = len(problem.names) + len(problem.references)
    settings = InfluenceSettings().within(1.5, arguments.rows, sources)
    context, drawn = problem.context, problem.drawn(1)
    turns = []
    memory: dict[str, float] = {}
    for _ in range(arguments.turns):
        model = build_proxy(size, context.vocab_size, context.context, context.init_seed)
        clock = [time.process_time()]
        train(model, problem.order(1), list(problem.domains.values()), problem.settings)
        clock.append(time.process_time())
        before = peak_bytes()
        factors, tokens = mixture_factors(model, drawn, problem.base, settings)
        clock.append(time.process_time())
        matrix = responses(
            model,
            drawn,
            problem.references,
            problem.base,
            settings=settings,
            operator=factors.inverse(settings.damping),
        )
        clock.append(time.process_time())
        turns.append([after - since for since, after in itertools.pairwise(clock)])
        if not memory:
            parameters = sum(p.numel() for p in model.parameters())
            memory = {
                "parameters": parameters,
                "factors": factor_bytes(factors) / parameters,
                "gradients": 4.0 * sources,
                "reference_shards": 4.0 * settings.shards * len(problem.references),
                "peak_growth": (peak_bytes() - before) / parameters,
            }
    training, curvature, rest = (statistics.median(column) for column in zip(*turns, strict=True))
    ratios = [(b + c) / a for a, b, c in turns]
    return {
        "size": size, "turns": turns, "training_seconds": training, "factor_seconds": curvature,
        "response_seconds": rest, "ratio": (curvature + rest) / training, "range": [min(ratios), max(ratios)],
        "tokens": (matrix.cost.gradient_tokens + tokens) / problem.training_tokens(),
        "factor_rows": settings.factor_rows, "gradient_rows": settings.gradient_rows,
        "bytes_per_parameter": memory,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=("demo", "sft5", "sources"), default="sft5")
    parser.add_argument("--sizes", nargs="+", default=["0.1M", "1M"])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(size, arguments, Path(folder)))
        print({key: value for key, value in rows[-1].items() if key != "turns"}, flush=True)
    out = arguments.out or Path(__file__).parent / f"cost_{arguments.problem}.json"
    options = {key: str(value) for key, value in vars(arguments).items()}
    atomic_write_json(out, {"sizes": rows, "options": options, "environment": provenance()})


if __name__ == "__main__":
    main()
