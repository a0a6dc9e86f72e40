"""What `mkdocs build` adds to the pages of this folder: three reference pages, written from the code, and formulas.

A page written here is never stored, so it cannot be out of date. Formulas (fences named `math`) become MathML, which
browsers draw without a script. Links to files outside of this folder become their names.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any

import typer
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

MATH = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for name, text in (("commands.md", commands()), ("run-file.md", run_file()), ("python.md", python())):
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write formulas as MathML, and name what is not part of the site."""
    drawn = MATH.sub(lambda found: f"\n<div>{convert(found[1].strip(), display='block')}</div>\n", markdown)
    return OUTSIDE.sub(lambda found: f"`{found[2]}`", drawn)


def cell(text: object) -> str:
    """Make a text fit for a cell of a table."""
    return html.escape(str(text), quote=False).replace("|", "\\|").replace("\n", " ")


def commands() -> str:
    """Every command with its arguments and options, from the program itself."""
    from ideal_proxy.cli.app import app

    lines = ["# Commands", "", "Written from the program; `ideal-proxy COMMAND --help` says the same.", ""]
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        given = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        arguments = " ".join(p.metavar or p.name.upper() for p in given if p.param_type_name == "argument")
        lines += [f"## {name}", "", command.help or "", "", f"    ideal-proxy {name} {arguments}".rstrip(), ""]
        if command.epilog:
            lines += [command.epilog.replace("Example: ", "Example: `", 1) + "`", ""]
        lines += ["| | | default |", "|---|---|---|"]
        for p in given:
            called = ", ".join((*p.opts, *p.secondary_opts)) if p.param_type_name == "option" else p.metavar or p.name
            shown = "" if p.default in (None, False, ()) or p.required or callable(p.default) else p.default
            lines.append(f"| `{called}` | {cell(p.help or '')} | {cell(shown)} |")
        lines.append("")
    return "\n".join(lines)


def run_file() -> str:
    """Every key of the run file, from its JSON schema."""
    from ideal_proxy.pipeline.schema import run_file_schema

    schema = run_file_schema()
    intro = "Every key of `mix.yaml`, from the schema that `init` names in the file's first line."
    lines = ["# Run file", "", intro, ""]
    lines += keys(schema["properties"])
    for name, part in schema["$defs"].items():
        if part.get("properties"):
            about = str(part.get("description", "")).split("\n\n")[0]
            lines += ["", f"## {name.removesuffix('Config')}", "", cell(about), "", *keys(part["properties"])]
    return "\n".join(lines)


def keys(properties: dict[str, Any]) -> Iterator[str]:
    """The table of one block."""
    yield from ("| key | takes | meaning | default |", "|---|---|---|---|")
    for key, value in properties.items():
        kind, default = takes(value), value.get("default")
        shown = "" if default is None or "](#" in kind else f"`{json.dumps(default)}`"  # a block has its own table
        yield f"| `{key}` | {kind} | {cell(value.get('description', ''))} | {shown} |"


def takes(value: dict[str, Any]) -> str:
    """Say what a value may be."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2].removesuffix("Config")
        return f"[{name}](#{name.lower()})"
    for many in ("anyOf", "oneOf", "allOf"):
        if many in value:
            return " or ".join(dict.fromkeys(takes(one) for one in value[many] if one != {"type": "null"}))
    if "enum" in value or "const" in value:
        return ", ".join(f"`{one}`" for one in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"list of {takes(value.get('items', {}))}"
    return {"object": "keys and values", "string": "text", "integer": "whole number", "boolean": "true or false"}.get(
        value.get("type", ""), str(value.get("type", "anything"))
    )


def python() -> str:
    """Every public name, from its docstring."""
    import ideal_proxy

    names = [name for name in ideal_proxy.__all__ if not name.startswith("_")]
    intro = "# Python, every name\n\nFrom the docstrings of `ideal_proxy`'s public names; [examples](api.md).\n\n"
    return intro + "\n\n".join(f"::: {place(getattr(ideal_proxy, name), name)}" for name in names)


def place(thing: Any, name: str) -> str:
    """The module that defines a name: the names of `ideal_proxy` are imported when they are first used."""
    return f"{thing.__module__}.{name}"
