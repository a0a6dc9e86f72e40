"""The commands that carry a mixture to full size: `scale-up` and `export`. Heavy imports stand inside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

Mixture = Annotated[Path, typer.Argument(metavar="MIXTURE.JSON", help="A mixture file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def register(app: typer.Typer) -> None:
    """Add the commands to an application.

    Args:
        app: the application.
    """
    app.command(
        "scale-up", epilog="Example: ideal-proxy scale-up runs/mix/mixture.json --model my/model --baseline --seeds 3"
    )(scale_up)
    app.command(epilog="Example: ideal-proxy export runs/mix/mixture.json --to llamafactory --out data/lf")(export)


def scale_up(
    mixture: Mixture,
    model: Annotated[str, typer.Option(help="Folder, Hugging Face id, or scratch:0.1M|1M|3M|10M.")],
    gguf: Annotated[str | None, typer.Option(metavar="FILE", help="GGUF file inside the model's folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for runs and models; default beside the mixture.")] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Train the base mixture beside it and compare.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each; 2 or more give intervals.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the first run; default the mixture's.")] = None,
    fraction: Annotated[float, typer.Option(help="Train on this share of the volumes (repeats stay).")] = 1.0,
    transfer: Annotated[
        str | None, typer.Option(help="Move the volumes to another total first: share, repeat or law.")
    ] = None,
    total_rows: Annotated[int | None, typer.Option(min=1, help="Rows of the full-size run, for --transfer.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate; default by model.")] = None,
    batch_rows: Annotated[int | None, typer.Option(min=1, help="Rows of an optimiser step.")] = None,
    context: Annotated[int | None, typer.Option(min=2, help="Longest row in tokens; default the search's.")] = None,
    lora: Annotated[int | None, typer.Option(min=1, help="Train low-rank updates of this rank.")] = None,
    bf16: Annotated[bool | None, typer.Option("--bf16/--no-bf16", help="Default: on CUDA.")] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = False,
    packing: Annotated[bool, typer.Option("--packing/--padding", help="Rows end to end, or padded.")] = True,
    evaluations: Annotated[int, typer.Option(min=0, help="Reference losses measured during training.")] = 4,
    save_minutes: Annotated[float, typer.Option(min=0.0, help="Minutes between checkpoints; 0: none by time.")] = 10.0,
    save_steps: Annotated[int | None, typer.Option(min=1, help="A checkpoint every so many steps as well.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the scale-up in --out.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the full-size model on a mixture; compare with base."""
    from ideal_proxy.errors import UsageError
    from ideal_proxy.mixture_file import load_mixture
    from ideal_proxy.terminal import Reporter

    if (transfer is None) != (total_rows is None):
        raise UsageError("--transfer and --total-rows belong together; give both, or neither")
    loaded = load_mixture(mixture)
    from ideal_proxy.scaleup.model import ModelSpec
    from ideal_proxy.scaleup.result import scale_up_tables
    from ideal_proxy.scaleup.train import ScaleUp
    from ideal_proxy.scaleup.train import scale_up as run

    reporter = Reporter(quiet=quiet or as_json)
    if transfer is not None and total_rows is not None:
        from ideal_proxy.scaleup.transfer import transfer_mixture

        loaded = transfer_mixture(loaded, transfer, total_rows, reporter)
    short = model.rstrip("/").rsplit("/", 1)[-1].replace(":", "-")
    folder = out or mixture.resolve().parent / f"scale-up-{short}"
    wanted = ScaleUp(
        spec=ModelSpec(name=model, gguf=gguf, lora=lora, gradient_checkpointing=gradient_checkpointing),
        baseline=baseline,
        seeds=seeds,
        seed=seed,
        fraction=fraction,
        learning_rate=learning_rate,
        batch_rows=batch_rows,
        context=context,
        dtype={None: "auto", True: "bfloat16", False: "float32"}[bf16],
        device=device,
        packed=packing,
        evaluations=evaluations,
        save_seconds=save_minutes * 60,
        save_steps=save_steps,
        resume=resume,
    )
    result = run(loaded, wanted, folder, reporter, folder=mixture.resolve().parent)
    typer.echo(json.dumps(result, indent=1) if as_json else scale_up_tables(result, str(folder)))


def export(
    mixture: Mixture,
    to: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="jsonl, parquet, hf, llamafactory, ms-swift, open-instruct, trl, axolotl, megatron-bridge, streaming "
            "or interleave.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the rows and the configuration.")],
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail (exit code 2) where the target cannot express exact counts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hand a mixture to another trainer, with its real counts."""
    from ideal_proxy.export import export_mixture, export_table
    from ideal_proxy.mixture_file import load_mixture

    report = export_mixture(load_mixture(mixture), to, out, strict=strict, folder=mixture.resolve().parent)
    typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else export_table(report))
