"""`preview`: rows as they will be trained. Heavy imports stand inside the command."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ideal_proxy.errors import UsageError

if TYPE_CHECKING:
    from ideal_proxy.data import Preview

Json = Annotated[bool, typer.Option("--json", help="Print the rows as JSON on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command(epilog="Example: ideal-proxy preview mix.yaml --domain coding --rows 2")(preview)


def preview(
    source: Annotated[str, typer.Argument(metavar="MIX.YAML|SOURCE", help="A run file, or one source of rows.")],
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id whose tokenizer and template write the rows.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Of a run file: show this domain alone.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each domain, from its first.")] = 3,
    as_json: Json = False,
) -> None:
    """Show rows as they will be trained: «with loss», what is cut."""
    from ideal_proxy.config import load_config
    from ideal_proxy.data import SourceReader, preview_rows
    from ideal_proxy.pipeline import preview_sources

    config = load_config(Path(source)) if source.endswith((".yaml", ".yml")) else None
    template, sources, context = preview_sources(source if config is None else config, model)
    if domain is not None and domain not in sources:
        raise UsageError(f"there is no domain {domain!r}; there are {', '.join(sources)}")
    shown = [
        one
        for name, (path, form) in sources.items()
        if domain in {None, name}
        for one in preview_rows(name, SourceReader(path, format=form), template, context.tokens, rows)
    ]
    if as_json:
        print(json.dumps([one.to_dict() for one in shown], indent=1))
    else:
        print(_page(shown, context.tokens, colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))


def _page(shown: list[Preview], context: int, *, colour: bool) -> str:
    """Lay the rows out for the terminal, as wide as it is."""
    import io

    from rich.console import Console
    from rich.text import Text

    from ideal_proxy.terminal import count_text, harmless

    console = Console(file=io.StringIO(), force_terminal=colour, highlight=False, legacy_windows=False)
    mark = "coloured" if colour else "in « »"
    console.print(f"What carries loss is {mark}; rows are cut to {context:,} tokens.", markup=False)
    for one in shown:
        console.print()
        said = [
            f"{count_text(number, 'token')} of the {what} cut"
            for number, what in ((one.prompt_cut, "prompt"), (one.answer_cut, "answers")) if number
        ]  # fmt: skip
        said += [f"left out: {one.left_out}"] if one.left_out else []
        console.print(Text(harmless("; ".join([f"{one.domain}, row {one.row}", *said])), style="bold"), overflow="fold")
        if one.text:
            console.print(_marked(one, colour=colour), overflow="fold")
    return str(console.file.getvalue()).rstrip("\n")  # type: ignore[attr-defined]


def _marked(one: Preview, *, colour: bool) -> object:
    """Mark what carries loss, by colour or by « and »; control characters are shown as replacements."""
    from rich.text import Text

    from ideal_proxy.terminal import harmless

    safe = harmless(one.text)
    if colour:
        text = Text(safe)
        for start, end in one.supervised:
            text.stylize("green reverse", start, end)
        return text
    parts, at = [], 0
    for start, end in one.supervised:
        parts += [safe[at:start], "«", safe[start:end], "»"]
        at = end
    return Text("".join([*parts, safe[at:]]))
