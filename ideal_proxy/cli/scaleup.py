"""The commands that carry a mixture to full size: `scale-up` and `export`. Heavy imports stand inside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from ideal_proxy.cli.options import Json, Mixture, Public, Push, Quiet, Track, open_mixture
from ideal_proxy.errors import MOST_SEED
from ideal_proxy.terminal import say

TARGETS = (
    "trl", "llamafactory", "ms-swift", "axolotl", "open-instruct", "megatron-bridge", "automodel", "verl", "skyrl",
    "streaming", "interleave", "hf", "jsonl", "parquet",
)  # fmt: skip

TotalRows = Annotated[
    int | None, typer.Option(min=1, help="Rows of the full-size run; default the mixture's, or what `repeat` gives.")
]
Data = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=PATH", help="A domain's rows at full size, if not the search's; may repeat."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command(
        "scale-up", epilog="Example: ideal-proxy scale-up runs/mix/mixture.json --model my/model --baseline --seeds 3"
    )(scale_up)
    app.command(
        epilog="Example: ideal-proxy transfer runs/mix/mixture.json --mode law --total-rows 100000 --out full.json"
    )(transfer)
    app.command(epilog="Example: ideal-proxy export runs/mix/mixture.json --to llamafactory --out data/lf")(export)


def scale_up(
    mixture: Mixture,
    model: Annotated[str, typer.Option(help="Folder, Hugging Face id, or scratch:0.1M|1M|3M|10M.")],
    gguf: Annotated[str | None, typer.Option(metavar="FILE", help="GGUF file inside the model's folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for runs and models; default beside the mixture.")] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Train the base mixture beside it and compare.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each; 2 or more give intervals.")] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MOST_SEED, help="Of the first run; default the mixture's.")
    ] = None,
    fraction: Annotated[float, typer.Option(help="Train on this share of the volumes (repeats stay).")] = 1.0,
    transfer: Annotated[
        str | None, typer.Option(help="Move the volumes to another total first: share, repeat or law.")
    ] = None,
    total_rows: TotalRows = None,
    data: Data = None,
    refine: Annotated[
        int, typer.Option(metavar="N", min=0, help="Then so many steps by the full-size model's own gradients.")
    ] = 0,
    refine_step: Annotated[float, typer.Option(help="Largest |log change| of a volume in one of them.")] = 0.15,
    refine_rows: Annotated[int, typer.Option(min=2, help="Most rows of each source in their gradients.")] = 400,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate; default by model.")] = None,
    batch_rows: Annotated[int | None, typer.Option(min=1, help="Rows of an optimiser step.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Its tokens, instead of rows.")] = None,
    loss: Annotated[str | None, typer.Option(help="token or row; default the search's.")] = None,
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
    metrics: Annotated[
        Path | None, typer.Option(metavar="MIX.YAML", help="Judge by the metrics of this run file, not by loss.")
    ] = None,
    track: Track = None,
    push_to_hub: Push = None,
    public: Public = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the full-size model on a mixture; compare with base."""
    from ideal_proxy.errors import UsageError
    from ideal_proxy.terminal import Reporter

    if transfer is None and (total_rows is not None or data):
        raise UsageError("--total-rows and --data need --transfer share, repeat or law; add it, or leave them out")
    loaded, beside, moved = open_mixture(mixture, data, "--data")
    from ideal_proxy.scaleup import ModelSpec, ScaleUp, scale_up_tables
    from ideal_proxy.scaleup import scale_up as run

    reporter = Reporter(quiet=quiet or as_json)
    if transfer is not None:
        from ideal_proxy.scaleup import carry

        loaded = carry(loaded, transfer, total_rows, reporter, data=moved, folder=beside)
    short = model.rstrip("/").rsplit("/", 1)[-1].replace(":", "-")
    folder = out or beside / f"scale-up-{short}"
    if out is None and folder.is_symlink():  # in a stranger's run directory it may lead anywhere
        raise UsageError(f"{folder} is a link; name the folder that is meant with --out")
    wanted = ScaleUp(
        spec=ModelSpec(name=model, gguf=gguf, lora=lora, gradient_checkpointing=gradient_checkpointing),
        baseline=baseline,
        seeds=seeds,
        seed=seed,
        fraction=fraction,
        learning_rate=learning_rate,
        batch_rows=batch_rows,
        batch_tokens=batch_tokens,
        loss=loss,  # type: ignore[arg-type]  # scale_up refuses any other word
        context=context,
        dtype={None: "auto", True: "bfloat16", False: "float32"}[bf16],
        device=device,
        packed=packing,
        evaluations=evaluations,
        save_seconds=save_minutes * 60,
        save_steps=save_steps,
        resume=resume,
        track=tuple(track or ()),
        refine=refine,
        refine_step=refine_step,
        refine_rows=refine_rows,
        metrics=None if metrics is None else str(metrics.resolve()),
    )
    result = run(loaded, wanted, folder, reporter, folder=beside)
    if not as_json:
        say(scale_up_tables(result, str(folder)))
    if push_to_hub is not None and os.environ.get("RANK", "0") == "0":
        from ideal_proxy.export import licences_of, model_card, push

        trained = folder / "runs" / f"mixture-{result['seeds'][0]}" / "model"
        card = model_card(loaded, result, licences_of(loaded, beside, moved))
        result["hub"] = push(trained, push_to_hub, "model", card, public=public)
        reporter.note(f"uploaded: {result['hub']}")
    if as_json:
        say(json.dumps(result, indent=1))


def transfer(
    mixture: Mixture,
    out: Annotated[Path, typer.Option(help="The full-size mixture file to write.")],
    mode: Annotated[str, typer.Option(help="share, repeat or law.")] = "law",
    total_rows: TotalRows = None,
    data: Data = None,
    swarm: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="A search at another proxy size or share; give two or more."),
    ] = None,
    parameters: Annotated[
        str | None, typer.Option(help="Of the full-size model, such as 135M or 8B; with --swarm.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Carry a mixture to a full-size budget or other rows."""
    from ideal_proxy.errors import UsageError
    from ideal_proxy.mixture import save_mixture
    from ideal_proxy.store import mixture_file
    from ideal_proxy.terminal import Reporter

    loaded, folder, moved = open_mixture(mixture, data, "--data")
    if out.exists() and out.samefile(mixture_file(mixture)):
        raise UsageError(f"--out {out} is the mixture file itself; choose another name")
    from ideal_proxy.scaleup import carry, transfer_tables

    reporter = Reporter(quiet=quiet or as_json)
    law = None
    if swarm:
        from ideal_proxy.pipeline import load_run
        from ideal_proxy.scaleup import law_across, read_size

        if mode != "law":
            raise UsageError("--swarm moves the law, which only --mode law asks; leave one of them out")
        found = law_across(
            [load_run(run) for run in swarm], loaded, parameters=read_size(parameters), random_state=loaded.seed
        )
        law = found.at
        for note in found.notes:
            reporter.note(note)
    carried = carry(loaded, mode, total_rows, reporter, data=moved, law=law, folder=folder)
    save_mixture(out, carried)
    if as_json:
        say(carried.model_dump_json(indent=1, exclude={"law"}))
        return
    say(transfer_tables(loaded, carried) + f"\n\nMixture file: {out}")


def export(
    mixture: Mixture,
    to: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            autocompletion=lambda: TARGETS,
            help=f"{', '.join(TARGETS[:-1])} or {TARGETS[-1]}.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the rows and the configuration.")],
    model: Annotated[
        str | None, typer.Option(help="Model to train: its tokenizer counts, and writes tokens where it can.")
    ] = None,
    context: Annotated[int | None, typer.Option(min=2, help="Longest row in tokens; default the search's.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak rate; default the search's of this model, else 2e-5, as LoRA 2e-4.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Write turns even where the target reads tokens.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where the target would cut or drop tokens with loss.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a mixture for another trainer, and say what it will draw."""
    from ideal_proxy.export import export_mixture, export_table

    loaded, folder, _ = open_mixture(mixture)
    report = export_mixture(
        loaded, to, out, model=model, context=context, learning_rate=learning_rate, text=text, strict=strict,
        folder=folder,
    )  # fmt: skip
    say(json.dumps(report.to_dict() | report.counts(), indent=1) if as_json else export_table(report))
