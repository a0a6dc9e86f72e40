"""The JSON schema of the run file, which editors complete and check `mix.yaml` by; `init` names it in what it writes.

Shipped as `mix.schema.json`; `python -m ideal_proxy.pipeline.schema` writes it again from the settings' own classes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ideal_proxy.config import SearchConfig

FILE = Path(__file__).resolve().parents[1] / "mix.schema.json"
AMOUNT_OF_LOSS: dict[str, Any] = {  # 2%, 0.02 or none
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^\s*(none|[0-9.]+\s*%?)\s*$"}]
}


def run_file_schema() -> dict[str, Any]:
    """Return the schema: of the classes, with the short forms that a run file may have."""
    schema = SearchConfig.model_json_schema()
    parts = schema["$defs"]
    budget = parts["BudgetConfig"]["properties"]
    for unit in ("tokens", "rows"):  # {tokens: keep} is {unit: tokens, mode: keep}
        budget[unit] = {"enum": budget["mode"]["enum"], "description": f"short for unit: {unit} and mode"}
    loss = schema["properties"]["protect"]
    loss["anyOf"] = [*AMOUNT_OF_LOSS["anyOf"], {"type": "object", "additionalProperties": AMOUNT_OF_LOSS}]
    for name, value in schema["properties"].items():  # a key whose lines are all commented out
        if name not in {"domains", "capabilities"}:
            schema["properties"][name] = _or_null(value)
    schema |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ideal-proxy run file"}
    return schema


def _or_null(value: dict[str, Any]) -> dict[str, Any]:
    about: dict[str, Any] = {key: value[key] for key in ("description", "default") if key in value}
    rest = {key: part for key, part in value.items() if key not in {*about, "title"}}
    return {**about, "anyOf": [*(rest["anyOf"] if set(rest) == {"anyOf"} else [rest]), {"type": "null"}]}


def schema_text() -> str:
    """Return the shipped file's text."""
    return json.dumps(run_file_schema(), indent=1, ensure_ascii=True) + "\n"


def yaml_text(value: Any) -> str:
    """Write a text, or columns, as JSON that YAML reads back: it does not join JSON's two halves of an emoji."""
    text = json.dumps(value, ensure_ascii=False)
    return UNREAD.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)


UNREAD = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")  # what YAML reads as escapes only


if __name__ == "__main__":
    FILE.write_text(schema_text(), encoding="utf-8")
