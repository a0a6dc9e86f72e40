"""`init --split-by`: the parts hold every row once, are the same each time, and a limit may name their parent."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import random
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders import run, write_rows
from explicit_law import ExplicitLaw

from ideal_proxy.amounts import parse_comparison
from ideal_proxy.config import load_config
from ideal_proxy.data.rows import read_rows
from ideal_proxy.domains import Domains
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.limits import Limits, read_limits
from ideal_proxy.optimizer.constraints import Constraints, Problem
from ideal_proxy.optimizer.objective import Objective
from ideal_proxy.optimizer.optimum import optimize
from ideal_proxy.pipeline.split import read_split_by
from ideal_proxy.pipeline.start import write_run_file

TOPICS = {"algebra": "Solve the equation x + {} = {}", "geometry": "Find the area of a triangle, base {} and height {}"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random_ = random.Random(0)
    for name in ("maths", "chat"):
        (tmp_path / name).mkdir()
    rows = []
    for n in range(240):
        topic = random_.choice(sorted(TOPICS))
        text = TOPICS[topic].format(n, random_.randint(1, 99))
        level = None if n % 8 == 0 else random_.random()
        rows.append({"instruction": text, "output": topic, "topic": topic if n % 60 else "a/b", "level": level})
    _write(tmp_path / "maths" / "train.jsonl", rows)
    _write(tmp_path / "chat" / "train.jsonl", [{"instruction": f"Say {n}", "output": f"{n}"} for n in range(60)])
    for name in ("maths", "chat"):
        _write(tmp_path / name / "reference.jsonl", [{"instruction": f"{name} {n}", "output": "y"} for n in range(30)])
    return tmp_path


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def split(data: Path, how: str, out: str = "mix.yaml") -> dict[str, list[dict[str, object]]]:
    place = data.parent / "runs" / out
    place.parent.mkdir(exist_ok=True)
    write_run_file(data, place, split_by=how, force=True)
    config = load_config(place)
    assert config.capability_names == ["chat", "maths"]
    return {d.name: [row.raw for row in read_rows(d.path)] for d in config.domains}


def test_parts_of_a_column_hold_every_row_once(data: Path) -> None:
    parts = split(data, "topic")
    assert list(parts) == ["chat", "maths/algebra", "maths/geometry", "maths/other"]
    for topic in ("algebra", "geometry"):
        assert {row["topic"] for row in parts[f"maths/{topic}"]} == {topic}
    assert [row["topic"] for row in parts["maths/other"]] == ["a/b"] * 4  # too few for a part of their own
    together = [row for name, rows in parts.items() if name != "chat" for row in rows]
    whole = [row.raw for row in read_rows(data / "maths" / "train.jsonl")]
    assert sorted(map(json.dumps, together)) == sorted(map(json.dumps, whole))


def test_quantiles_are_equal_parts_in_order(data: Path) -> None:
    parts = split(data, "quantile:level:3")
    assert set(parts) == {"chat", "maths/low", "maths/middle", "maths/high", "maths/none"}
    levels = {name: [row["level"] for row in parts[f"maths/{name}"]] for name in ("low", "middle", "high")}
    assert {len(values) for values in levels.values()} == {70}
    assert max(levels["low"]) < min(levels["middle"]) <= max(levels["middle"]) < min(levels["high"])
    assert {row["level"] for row in parts["maths/none"]} == {None}


def test_clusters_find_what_rows_are_about_and_are_the_same_each_time(data: Path) -> None:
    parts = split(data, "cluster:2")
    maths = [rows for name, rows in parts.items() if name.startswith("maths/")]
    assert [{row["output"] for row in rows} for rows in maths] == [{maths[0][0]["output"]}, {maths[1][0]["output"]}]
    assert any(name.endswith(("-equation", "-solve")) for name in parts)
    again = split(data, "cluster:2", "again.yaml")
    assert list(again) == list(parts)
    for name in parts:
        assert again[name] == parts[name]


def test_what_cannot_be_split_is_one_sentence(data: Path) -> None:
    with pytest.raises(UsageError, match="no domain can be split by nothing; the columns are instruction, level"):
        split(data, "nothing")
    with pytest.raises(
        UsageError, match=r"instruction of maths has .* write quantile:instruction:3|stays one|no domain"
    ):
        split(data, "instruction")
    for wrong in ("quantile:level", "quantile:level:1", "cluster:x", "cluster:99"):
        with pytest.raises(UsageError, match="write a column's name, quantile:COLUMN:3, cluster:8"):
            read_split_by(wrong)


def test_limits_may_name_the_parent(data: Path) -> None:
    names = ["chat", "maths/easy", "maths/hard", "mathsy"]
    group = parse_comparison("maths + 2 * chat <= 60 %", names)
    assert group.weights == {"maths/easy": 1.0, "maths/hard": 1.0, "chat": 2.0}
    read = read_limits({"upper": {"maths": "30 %", "chat": "10 %"}, "pinned": ["maths"]}, names, [])
    assert list(read["upper"]) == ["chat"]
    assert dict(read["pinned"]) == {"maths/easy": None, "maths/hard": None}
    (bound,) = read["groups"]
    assert (bound.weights, bound.sense, bound.constant) == ({"maths/easy": 1.0, "maths/hard": 1.0}, "<=", 0.3)
    split(data, "topic")
    place = data.parent / "runs" / "mix.yaml"
    raw = yaml.safe_load(place.read_text(encoding="utf-8"))
    raw["constraints"]["groups"] = ["maths <= 60%"]
    place.write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert load_config(place).limits.groups[0].weights == {
        "maths/algebra": 1.0, "maths/geometry": 1.0, "maths/other": 1.0
    }  # fmt: skip


def test_clusters_by_a_sentence_model_are_what_the_model_sees(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is a stub in `sys.modules`, as it is not installed here; its call is the documented one."""
    seen: dict[str, object] = {}

    class SentenceTransformer:
        """Sees how a prompt's last number ends, which no word tells."""

        def __init__(self, name: str) -> None:
            seen["model"] = name

        def encode(self, sentences: list[str], *, normalize_embeddings: bool = False) -> np.ndarray:
            seen["sentences"] = sorted([*seen.get("sentences", []), len(sentences)])  # type: ignore[misc]
            seen["normalized"] = normalize_embeddings
            return np.eye(2, dtype=np.float32)[[int(text[-1]) % 2 for text in sentences]]

    stub = types.ModuleType("sentence_transformers")
    stub.__spec__ = importlib.machinery.ModuleSpec("sentence_transformers", None)
    stub.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", stub)
    parts = split(data, "cluster:2:my/model")
    assert seen == {"model": "my/model", "sentences": [60, 240], "normalized": True}
    maths = [rows for name, rows in parts.items() if name.startswith("maths/")]
    ends = [{int(str(row["instruction"])[-1]) % 2 for row in rows} for rows in maths]
    assert sorted(map(sorted, ends)) == [[0], [1]]
    assert sum(map(len, maths)) == 240
    assert {name.split("/")[0] for name in parts} == {"chat", "maths"}


def test_a_sentence_model_without_its_library_is_one_sentence(data: Path) -> None:
    if importlib.util.find_spec("sentence_transformers") is not None:
        pytest.skip("sentence-transformers is installed here")
    with pytest.raises(UserError, match="needs sentence-transformers; install it, or write cluster:K for TF-IDF"):
        split(data, "cluster:2:my/model")


def test_a_limit_of_the_parent_holds_in_the_optimum(data: Path) -> None:
    """A law that only maths helps puts as much into its parts, together, as the parent's limit lets it."""
    split(data, "quantile:level:3")
    place = data.parent / "runs" / "mix.yaml"
    raw = yaml.safe_load(place.read_text(encoding="utf-8"))
    raw["constraints"]["groups"] = ["maths <= 85%", "maths/high >= 5%"]
    place.write_text(yaml.safe_dump(raw), encoding="utf-8")
    config = load_config(place)
    names = tuple(d.name for d in config.domains)
    base = np.array([float(str(d.base)) for d in config.domains])
    maths_D = np.array([float(name.startswith("maths/")) for name in names])
    law = ExplicitLaw(
        np.ones(1), np.full(1, 3.0), 5 * maths_D[None] + 0.1, np.full(1, 0.5), np.full(1, 0.7), base.sum()
    )
    problem = Problem(domains=Domains(names=names, base=base, available=base), capabilities=("maths",))
    for groups, most in ((config.limits.groups, 0.85), ((), 1.0)):
        v = optimize(law, Objective(kind="mean"), Constraints(problem=problem, limits=Limits(groups=groups))).volumes
        assert v @ maths_D / v.sum() == pytest.approx(most, abs=1e-3)


@pytest.mark.slow
def test_a_search_over_parts_goes_to_full_size(tmp_path: Path) -> None:
    """About 25 seconds: search over the parts of a domain, then `apply` and `scale-up` of its mixture file."""
    for name in ("arithmetic", "strings"):
        for part, source in (("train", "rows=300"), ("reference", "rows=120&split=reference")):
            records = [
                {"instruction": row.prompt, "input": "", "output": row.answer, "level": len(row.prompt)}
                | ({} if name == "arithmetic" else {"level": 1})
                for row in read_rows(f"demo:{name}?seed=1&{source}")
            ]
            write_rows(tmp_path / "data" / name / f"{part}.jsonl", records)
    init = run("init", "data", "--split-by", "quantile:level:2", cwd=tmp_path)
    assert init.returncode == 0, init.stderr
    place = tmp_path / "mix.yaml"
    settings = yaml.safe_load(place.read_text())
    settings |= {"rounds": 1, "swarm": {"runs": 6}, "verify": {"pairs": 2, "max_pairs": 2}}
    settings["proxy"] = {"size": "0.1M", "vocabulary": 300}
    settings["constraints"]["groups"] = ["arithmetic <= 70%"]
    place.write_text(yaml.safe_dump(settings))
    searched = run("search", "mix.yaml", "--quiet", "--json", cwd=tmp_path)
    assert searched.returncode == 0, searched.stderr
    names = [domain["name"] for domain in json.loads(searched.stdout)["domains"]]
    assert names == ["arithmetic/high", "arithmetic/low", "strings"]
    mixture = "runs/mix/mixture.json"
    applied = json.loads(run("apply", mixture, "--out", "rows", "--json", cwd=tmp_path).stdout)
    full = run(
        "scale-up", mixture, "--model", "scratch:0.1M", "--out", "full", "--device", "cpu", "--quiet", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert full.returncode == 0, full.stderr
    written = (tmp_path / "rows" / "train.jsonl").read_text().splitlines()
    assert len(written) == sum(domain["rows"] for domain in json.loads((tmp_path / mixture).read_text())["domains"])
    assert sum(domain["rows"] for domain in applied["domains"]) == len(written)
    (log,) = [json.loads(path.read_text()) for path in (tmp_path / "full" / "runs").glob("*/log.json")]
    assert sum(log["rows"].values()) == len(written), "full size trains the rows that apply writes"
