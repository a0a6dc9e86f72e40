"""Rows or a trained model on the Hugging Face hub, with a card that says what they are; private by default."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from ideal_proxy.data import HUB, is_virtual, parse_hub
from ideal_proxy.errors import UserError
from ideal_proxy.export.job import cell
from ideal_proxy.mixture import MixtureFile, resolve

Kind = Literal["dataset", "model"]
PROGRAM = "ideal-proxy"


def push(
    folder: Path, name: str, kind: Kind, card: str, *, public: bool = False, files: Sequence[str] = ("**",)
) -> str:
    """Upload a folder and its card; returns the address. A repository that is public already is refused unless told."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        address = str(api.create_repo(name, repo_type=kind, private=not public, exist_ok=True))
        if not public and not api.repo_info(name, repo_type=kind).private:
            raise UserError(f"{name} is public on the hub, and nothing was uploaded; add --public, or name another")
        api.upload_folder(
            repo_id=name, repo_type=kind, folder_path=folder, allow_patterns=list(files),
            ignore_patterns=[".*", "README.md"], commit_message=f"Written by {PROGRAM}",
        )  # fmt: skip
        api.upload_file(
            path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=name, repo_type=kind,
            commit_message="Card",
        )  # fmt: skip
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot push to {name}: {reason}; log in with `hf auth login`, check the name (OWNER/NAME), and give the "
            f"same command again: {folder} is kept"
        ) from error
    return address


def data_card(mixture: MixtureFile, licences: Mapping[str, str]) -> str:
    """Write the card of a mixture's rows: sources, licences where known, rows, verdict, command."""
    told = sorted({licence for licence in licences.values() if licence})
    facts = {
        "tags": [PROGRAM],
        **({"license": told[0]} if len(told) == 1 and all(licences.values()) else {}),
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train*.jsonl"}]}],
    }
    return "\n".join([
        _front(facts), f"# {cell(mixture.name)}", "",
        f"A mixture by {PROGRAM}: the exact rows in training order, repeats included. Train one epoch.", "",
        *_mixture_lines(mixture, licences), "",
        f"Command: `{PROGRAM} apply mixture.json --out DIR` (seed {mixture.seed})", "",
    ])  # fmt: skip


def model_card(mixture: MixtureFile, result: Mapping[str, Any], licences: Mapping[str, str]) -> str:
    """Write the card of a model that `scale-up` trained: base model, mixture, losses, verdict, command."""
    base = str(result["model"])
    on_hub = not Path(base).expanduser().exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None
    facts = {"tags": [PROGRAM], "library_name": "transformers", **({"base_model": base} if on_hub else {})}
    gain = result.get("gain")
    losses = [
        f"| {cell(entry['name'])} | {entry['before']:.4f} | {entry['after']:.4f} | "
        + (f"{entry['base_after']:.4f} |" if "base_after" in entry else "not trained |")
        for entry in result["capabilities"]
    ]
    shown = base if on_hub else Path(base).name
    size = f"{int(result['rows']):,} rows, {int(result['steps']):,} steps"
    return "\n".join([
        _front(facts), f"# {cell(mixture.name)}", "",
        f"`{shown}`, fine-tuned by {PROGRAM} on a mixture: {size}.",
        "", *_mixture_lines(mixture, licences), "",
        "Reference loss, nats a supervised token:", "",
        "| capability | before | after | base mixture |", "|---|---:|---:|---:|", *losses, "",
        *([f"Against the base mixture: {gain['sentence']}.", ""] if gain else []),
        f"Command: `{PROGRAM} scale-up mixture.json --model {shown}` (seed {result['seeds'][0]})", "",
    ])  # fmt: skip


def licences_of(mixture: MixtureFile, folder: Path, moved: Mapping[str, str]) -> dict[str, str]:
    """Find each domain's licence where its source states one: the hub's card, or a README.md beside the rows."""
    return {d.name: _licence(moved.get(d.name) or resolve(d.source, folder)) for d in mixture.domains if d.rows}


def _licence(source: str) -> str:
    if source.startswith(HUB):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            card: Any = HfApi().dataset_info(parse_hub(source).name, timeout=10).card_data
        except (HfHubHTTPError, HFValidationError, OSError):
            return ""
        return _one((card or {}).get("license"))
    if is_virtual(source):
        return ""
    place = Path(source)
    page = (place if place.is_dir() else place.parent) / "README.md"
    try:
        found = re.match(r"---\n(.*?)\n---\n", page.read_text(encoding="utf-8"), re.DOTALL)
        facts = yaml.safe_load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return ""
    return _one(facts.get("license")) if isinstance(facts, dict) else ""


def _one(licence: Any) -> str:
    return ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence or "")


def _front(facts: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(facts), sort_keys=False)}---\n"


def _mixture_lines(mixture: MixtureFile, licences: Mapping[str, str]) -> list[str]:
    lines = ["| domain | source | licence | rows | repeat |", "|---|---|---|---:|---:|"]
    for d in mixture.domains:
        if d.rows:
            shown = d.source if is_virtual(d.source) else Path(d.source).name  # no paths of this machine
            lines.append(
                f"| {cell(d.name)} | {cell(shown)} | {cell(licences.get(d.name, '') or 'not stated')} | {d.rows:,} | "
                f"{d.rows / d.available:.2f} |"
            )
    return [*lines, "", f"Verdict of the search: {mixture.verdict_text or mixture.verdict or 'none'}."]
