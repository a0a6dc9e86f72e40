"""The command `influence`: responses of any causal LM, from gradients. Heavy imports stand inside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ideal_proxy.terminal import say


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command(epilog="Example: ideal-proxy influence runs/mix --model my/model")(influence)


def influence(
    source: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run directory, or a run file; its base is the mixture.")
    ] = None,
    *,
    model: Annotated[str, typer.Option(help="Folder or Hugging Face id of a model tuned on that mixture.")],
    config: Annotated[Path | None, typer.Option(metavar="MIX.YAML", help="The run file, if not named first.")] = None,
    gguf: Annotated[str | None, typer.Option(metavar="FILE", help="GGUF file inside the model's folder.")] = None,
    method: Annotated[str, typer.Option(help="implicit or first-order.")] = "implicit",
    rows: Annotated[int | None, typer.Option(min=2, help="Most rows of each source; default 400.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default runs/NAME-influence.")] = None,
    context: Annotated[
        int | None, typer.Option(min=2, help="Longest row in tokens; default the run file's or the data's.")
    ] = None,
    tau: Annotated[
        list[str] | None, typer.Option(metavar="CAPABILITY=NATS", help="dL/dlog N, where known; for each.")
    ] = None,
    bf16: Annotated[bool | None, typer.Option("--bf16/--no-bf16", help="Default: on CUDA.")] = None,
    on_disk: Annotated[bool, typer.Option("--on-disk", help="Gradients and curvature on disk.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Ask a model's gradients how each domain moves each loss."""
    from ideal_proxy.config import load_config
    from ideal_proxy.errors import UsageError
    from ideal_proxy.store import run_folder
    from ideal_proxy.terminal import Reporter

    if (source is None) == (config is None):
        raise UsageError("give one run directory or run file, such as ideal-proxy influence runs/mix --model MODEL")
    place = run_folder(source or config or "")
    settings = load_config(place / "config.yaml" if place.is_dir() else place)
    if method not in {"implicit", "first-order"}:
        raise UsageError(f"--method is {method!r}; choose implicit or first-order")
    from ideal_proxy.gradients import estimate, influence_tables, open_folder, read_tau
    from ideal_proxy.proxy import pick_device
    from ideal_proxy.scaleup import ModelSpec, ProxySetting, load_model, load_template

    known = read_tau(tau or [], settings.capability_names)
    spec = ModelSpec(name=model, gguf=gguf)
    if spec.scratch is not None:
        raise UsageError(f"--model {model}: a scratch model has learned nothing yet; give a folder or a hub id")
    spec.check()
    used = pick_device(device)
    folder = open_folder(out or Path("runs") / f"{settings.name}-influence")
    length = context or settings.proxy.context
    template = load_template(spec, ProxySetting(), [], folder)
    loaded = load_model(spec, template, context=length or 1, seed=settings.seed).to(used)
    result = estimate(
        settings, loaded, template, folder, Reporter(quiet=quiet or as_json), name=model, method=method,
        context=length, rows=rows, tau=known, bf16=used.type == "cuda" if bf16 is None else bf16, on_disk=on_disk,
    )  # fmt: skip
    say(json.dumps(result, indent=1) if as_json else influence_tables(result, folder))
