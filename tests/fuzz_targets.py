"""What fuzzing feeds with bytes: every reader of a file that somebody else may have written, with a seed for each.

A target takes the bytes and a folder; it may raise UserError, whose message is one short sentence, and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import yaml
from builders import small_search
from finished_run import folder as finished_folder

from ideal_proxy.config import load_config
from ideal_proxy.data.rows import read_rows
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.errors import UserError
from ideal_proxy.export.terms import terms_of
from ideal_proxy.mixture.apply import base_of
from ideal_proxy.mixture.file import load_mixture
from ideal_proxy.pipeline.finished import load_run
from ideal_proxy.pipeline.status import read_status, status_text
from ideal_proxy.scaleup.limits import file_limits, file_objective
from ideal_proxy.scaleup.model import ModelSpec
from ideal_proxy.scaleup.result import size_step
from ideal_proxy.scaleup.source import proxy_setting
from ideal_proxy.scaleup.transfer import usable_law
from ideal_proxy.tables.proposing import load_fit, table_constraints, table_problem
from ideal_proxy.tables.reading import read_metrics, read_ratios

ROWS = [
    {"instruction": "i", "input": "", "output": "o"}, {"messages": [{"role": "user", "content": "q"}, {"role":
    "assistant", "content": "a", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
    {"prompt": "p", "completion": "c", "weight": 1}, {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt",
    "value": "a"}], "tools": "[]"},
]  # fmt: skip
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrow")
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] | trim + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
PARTS = ("config.yaml", "fit.json", "mixture.json", "plan.json", "prepared/facts.json", "provenance.json", "rate.json",
         "result.json", "runs.parquet", "status.json")  # fmt: skip


def rows(content: bytes, folder: Path) -> None:
    """The first byte chooses the kind of file."""
    path = folder / f"rows{KINDS[content[0] % len(KINDS)] if content else '.jsonl'}"
    path.write_bytes(content[1:])
    for row in read_rows(path, max_bad=-1):
        assert row.messages


def mixture(content: bytes, folder: Path) -> None:
    """What `export` and `scale-up` read of it too."""
    (folder / "mixture.json").write_bytes(content)
    found = load_mixture(folder / "mixture.json")
    assert found.domains
    for read in (terms_of, proxy_setting, file_limits, file_objective, usable_law, base_of):
        try:
            read(found)
        except UserError as error:
            _sentence(error)
    size_step(found, ModelSpec(name="scratch:1M"))


def run_file(content: bytes, folder: Path) -> None:
    (folder / "mix.yaml").write_bytes(content)
    assert load_config(folder / "mix.yaml").domains


def table(content: bytes, folder: Path) -> None:
    (folder / "table.csv").write_bytes(content)
    for read in (read_ratios, read_metrics):
        try:
            assert read(folder / "table.csv").values.shape[1]
        except UserError as error:
            _sentence(error)


def fit(content: bytes, folder: Path) -> None:
    (folder / "fit.json").write_bytes(content)
    model, explored = load_fit(folder / "fit.json")
    assert table_constraints({}, None, table_problem(model, explored, base=None, tokens_per_row=None), explored)


@functools.cache
def _tokenizer() -> Any:
    return train_tokenizer(["some text of this and that"] * 9, 300)


def template(content: bytes, _: Path) -> None:
    tokenizer = _tokenizer()
    tokenizer.chat_template = content.decode("utf-8", "replace") or " "
    make_template(tokenizer).render([("user", "q"), ("assistant", "a")])


def run_directory(content: bytes, folder: Path) -> None:
    """The first byte chooses the file that is replaced."""
    place = folder / "run"
    if not place.exists():
        shutil.copytree(finished_folder(), place)
    part = place / PARTS[content[0] % len(PARTS) if content else 0]
    before = part.read_bytes() if part.exists() else None
    part.write_bytes(content[1:])
    try:
        for read in (load_run, lambda run: status_text(read_status(run), run)):
            try:
                read(place)
            except UserError as error:
                _sentence(error)
    finally:
        part.unlink() if before is None else part.write_bytes(before)


ODD: list[Any] = [
    None, True, -1, 0, 1e308, -0.0, 10**400, float("nan"), "", " ", "\0", "\ud800", "9" * 5_000, [], {}, [[]], [{}],
    "2026-99-99", "1e999", "NaN", "../..", "*", "demo:", "hf:", "\u202e", "=1+1", "1,5", "50 %", 2**63, "x" * 9_999,
]  # fmt: skip
PIECES = (
    b"\0",
    b"\xff",
    b"[" * 90,
    b"{",
    b'"',
    b",",
    b": ",
    b"\n- ",
    b"\r",
    b"&a",
    b"*a",
    b"!!",
    b"%",
    b"{{",
    b"1e999",
)


def mutated(name: str, rng: random.Random) -> bytes:
    """Bend a file that was right: other values in its places, or other bytes."""
    seed = rng.choice(seeds(name))
    head = seed[:1] if seed[:1] < b" " else b""
    content = seed[len(head) :]
    if rng.random() < 0.5:
        with contextlib.suppress(ValueError):
            lines = [json.loads(line) for line in content.splitlines()] if name == "rows" else [json.loads(content)]
            for _ in range(rng.randint(1, 3)):
                container, key = rng.choice(places(lines, []))
                container[key] = copy.deepcopy(rng.choice([*ODD, rng.randint(-99, 99), rng.random()]))
            return head + "\n".join(json.dumps(line) for line in lines).encode()
    bent = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, max(0, len(bent) - 1))
        bent[at : at + rng.choice((0, 1, 1, 4, 40, len(bent)))] = rng.choice((
            *PIECES,
            rng.randbytes(rng.randint(0, 6)),
        ))
    return (head if rng.random() < 0.9 else rng.randbytes(1)) + bytes(bent)


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """List every place of a JSON value, as container and key."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        places(value[key], found)
    return found


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "rows": rows, "mixture": mixture, "run file": run_file, "table": table, "template": template,
    "run directory": run_directory, "fit": fit,
}  # fmt: skip


def fed(name: str, content: bytes, folder: Path) -> bool:
    """Feed a target; tell whether it took the bytes. Anything but a sentence comes through."""
    logging.disable()
    try:
        TARGETS[name](content, folder)
    except UserError as error:
        _sentence(error)
        return False
    finally:
        logging.disable(logging.NOTSET)
    return True


def _sentence(error: UserError) -> None:
    text = str(error)
    assert text, "an error without a word"
    assert len(text) < 2_000, f"a message of {len(text)} characters"


@functools.cache
def seeds(name: str) -> list[bytes]:
    """Give files that the target takes."""
    if name == "rows":
        lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        cells = b'instruction,output\n"a, b",c\nd,e\n'
        sink = arrow.BufferOutputStream()
        stream, table = arrow.BufferOutputStream(), arrow.Table.from_pylist(ROWS[:1] * 3)
        parquet.write_table(table, sink)
        with arrow.ipc.new_stream(stream, table.schema) as file:
            file.write_table(table)
        packed = (b"\6" + sink.getvalue().to_pybytes(), b"\7" + stream.getvalue().to_pybytes())
        return [b"\0" + lines, b"\1" + json.dumps(ROWS).encode(), b"\2" + cells, *packed]
    if name == "mixture":
        plain = (finished_folder() / "mixture.json").read_bytes()
        fit = json.loads((finished_folder() / "fit.json").read_text())
        told = {
            "proxy": {"size": "0.1M", "context": 48, "learning_rate": 6e-3, "model": None},
            "objective": {"kind": "weighted", "weights": {"coding": 1.0}, "min_gain": 0.005, "kl": 0.0},
            "constraints": {"budget": "keep", "repeat_cap": 4.0, "upper": {"coding": "40 %"}, "protect": {}},
        }
        return [plain, json.dumps(json.loads(plain) | {"law": fit, "provenance": told}).encode()]
    if name == "run file":
        metric = {"metric": {"command": "python score.py {model}"}, "must_not_drop": 0.01}
        config = small_search(
            constraints={"groups": ["strings + formats <= 60 %"]}, budget={"mode": "at_most", "total": 900}
        )
        config["capabilities"][0] |= metric
        return [yaml.safe_dump(json.loads(json.dumps(config))).encode(), json.dumps(small_search()).encode()]
    if name == "table":
        return [b"run,a,b\n1,0.5,0.5\n2,0.4,0.6\n3,0.1,0.9\n", b"index;train_a;train_b\n1;50 %;50 %\n2;20 %;80 %\n"]
    if name == "fit":
        fitted = json.loads((finished_folder() / "fit.json").read_text())
        volumes = dict.fromkeys(("mean", "low", "high"), [1.0] * len(fitted["domain_names_"]))
        return [json.dumps(fitted | {"explored": volumes}).encode()]
    if name == "template":
        return [TEMPLATE.encode()]
    return [bytes([n]) + (finished_folder() / part).read_bytes() for n, part in enumerate(PARTS[:-1])]
