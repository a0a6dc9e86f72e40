"""What a search costs on the way to an 8B model: 5, 20 and 100 domains, proxies of 135M and 0.5B, in full and as LoRA.

    python benchmarks/speed/scale_costs.py

Arithmetic only; nothing is trained. The numbers come from the same code as `search --dry-run --device-flops`, applied
to the published shapes of the models. Every assumption is printed with the table, and each is an option. The search is
set against one SFT of the 8B model on the base mixture, and against one iteration of IDEAL, which trains that model and
then takes its gradients over the training rows (its curvature is left out, so that is a lower bound).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ideal_proxy.config import parse_config
from ideal_proxy.data.context import Context
from ideal_proxy.pipeline.facts import CapabilityFacts, DomainFacts
from ideal_proxy.pipeline.plan import PROXY_ROWS
from ideal_proxy.pipeline.plan_cost import Plan, describe_plan
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.proxy import RATES
from ideal_proxy.proxy.cost import Products, count_products
from ideal_proxy.store import atomic_write_json, atomic_write_text
from ideal_proxy.terminal import duration

RESULTS = Path(__file__).parent
DOMAINS = (5, 20, 100)
MOST_CAPABILITIES = 20
LEAST_ROWS = 50  # of each domain in a proxy's mixture
LORA_RANK = 16
SHAPES: dict[str, dict[str, Any]] = {  # as published with the models
    "135M": {
        "kind": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "0.5B": {
        "kind": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "8B": {
        "kind": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip
PROXIES = (("135M", False), ("135M", True), ("0.5B", False), ("0.5B", True))


def shape(name: str, *, lora: bool = False) -> tuple[int, Products]:
    """Build a model without storage; return its parameters and products."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(SHAPES[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("kind"), **settings))
    parameters = sum(p.numel() for p in model.parameters())
    if lora:
        from ideal_proxy.proxy.pretrained import with_lora

        with torch.device("meta"):
            model = with_lora(model, LORA_RANK, 0)
    return parameters, count_products(model)


def problem(domains: int, options: argparse.Namespace) -> tuple[Any, Prepared]:
    """Describe a problem of equal domains."""
    names = [f"d{k}" for k in range(domains)]
    judged = names[:MOST_CAPABILITIES]
    config = parse_config({
        "domains": [{"name": n, "path": "demo:lists"} for n in names],
        "capabilities": [{"name": n, "path": "demo:lists"} for n in judged],
        "rounds": 1,
        "cost": {"price": options.price, "devices": options.devices},
    })
    facts = [
        DomainFacts(
            name=n, source="", format="auto", fingerprint="", available=options.rows, base=options.rows, lower=0,
            upper=4 * options.rows, tokens_per_row=options.tokens, supervised_per_row=options.supervised, reserved=0,
            truncated=0, dropped=0, longest=int(4 * options.tokens),
        )
        for n in names
    ]  # fmt: skip
    references = [
        CapabilityFacts(
            name=n, source="", format="auto", fingerprint="", rows=400, search_rows=200, verify_rows=200,
            supervised_tokens=int(400 * options.supervised), truncated=0,
        )
        for n in judged
    ]  # fmt: skip
    return config, Prepared(
        folder=Path(),
        facts=tuple(facts),
        capabilities=tuple(references),
        health={},
        vocabulary=0,
        template={},
        context=Context(512),
    )


def work_out(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Work out every row of the table."""
    _, target = shape("8B")
    found = []
    for domains in DOMAINS:
        config, prepared = problem(domains, options)
        rows = domains * options.rows
        tokens, labelled = rows * options.tokens, rows * options.supervised
        sft = target.training(tokens, labelled, options.tokens)
        for name, lora in PROXIES:
            parameters, products = shape(name, lora=lora)
            plan = Plan(
                fraction=max(PROXY_ROWS, LEAST_ROWS * domains) / rows, rates=RATES["1M"], runs=3 * (domains + 1),
                more_runs=0, rounds=1, looks=(3, 5, 8), workers=options.devices, dtype="bfloat16", device="cuda",
                tokens_per_second=1.0, parameters=parameters, products=products,
                flops_per_second=options.device_flops * options.utilisation, devices=options.devices,
            )  # fmt: skip
            described = describe_plan(config, prepared, plan)
            found.append({
                "domains": domains, "proxy": f"{name}{' LoRA' if lora else ''}", "runs": described["total"]["runs"],
                "proxy_rows": round(plan.fraction * rows), "flops": described["total"]["flops"],
                "device_hours": described["total"]["device_hours"], "cost": described["total"]["cost"],
                "hours": described["total"]["seconds"] / 3600, "sft_flops": sft,
                "sft_device_hours": sft / (options.device_flops * options.utilisation_target) / 3600,
                # Training, then one forward and backward over the same rows: all three products twice.
                "ideal_device_hours": 2 * sft / (options.device_flops * options.utilisation_target) / 3600,
            })  # fmt: skip
    return found


def lay_out(found: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    """Write the table as Markdown."""
    lines = [
        f"| domains | proxy | runs | FLOPs | device-hours | time on {options.devices} | USD | one 8B SFT, USD | "
        "search / SFT | search / IDEAL iteration |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for e in found:
        lines.append(
            f"| {e['domains']} | {e['proxy']} | {e['runs']} | {e['flops']:.1e} | {e['device_hours']:.2f} | "
            f"{duration(3600 * e['hours'])} | {e['cost']:.2f} | {e['sft_device_hours']:.1f} h, "
            f"{e['sft_device_hours'] * options.price:.0f} | {e['device_hours'] / e['sft_device_hours']:.2f} | "
            f"{e['device_hours'] / e['ideal_device_hours']:.2f} |"
        )
    return lines


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="of each domain, all of them in the base")
    parser.add_argument("--tokens", type=float, default=600.0, help="of a row")
    parser.add_argument("--supervised", type=float, default=300.0, help="of those")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--device-flops", type=float, default=989e12, help="dense bfloat16 peak")
    parser.add_argument("--utilisation", type=float, default=0.2, help="share of the peak in a proxy")
    parser.add_argument("--utilisation-target", type=float, default=0.35, help="share of the peak in the 8B SFT")
    parser.add_argument("--price", type=float, default=2.5, help="of a device-hour")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    found = work_out(options)
    lines = lay_out(found, options)
    print("\n".join(lines))
    atomic_write_json(RESULTS / "scale_costs.json", {"assumptions": vars(options), "results": found})
    assumed = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in vars(options).items())
    head = ["# Costs towards an 8B model", "", "`python benchmarks/speed/scale_costs.py`; arithmetic, nothing was run."]
    atomic_write_text(RESULTS / "scale_costs.md", "\n".join([*head, f"Assumed: {assumed}.", "", *lines, ""]))


if __name__ == "__main__":
    main()
