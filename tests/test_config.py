"""The run file: what it accepts, and one sentence for what it does not."""

from __future__ import annotations

import pytest

from ideal_proxy.config import dump_config, load_config, parse_config, rows_of
from ideal_proxy.errors import UsageError

GOOD = """
domains:
  - {name: math, path: math.jsonl}
  - {name: code, path: "/data/*.jsonl", base: 30%}
capabilities:
  - {name: math, path: ref.jsonl, must_not_drop: 0.01}
"""

SWITCHES = [
    "seed: true",
    "rounds: true",
    "max_bad: false",
    "budget: {total: true}",
    "constraints: {max_repeat: true}",
    "swarm: {spread: true}",
    "swarm: {keep_weights: true}",
    "swarm: {max_hours: true}",
    "cost: {price: true}",
    "proxy: {learning_rate: true}",
    "base: {epochs: true}",
    "batch: {rows: true}",
    "protect: true",
]


def write(tmp_path, text):
    path = tmp_path / "mix.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_and_paths(tmp_path):
    config = load_config(write(tmp_path, GOOD))
    assert config.domains[0].path == str(tmp_path / "math.jsonl")
    assert config.domains[1].path == "/data/*.jsonl"
    assert config.budget.unit == "tokens"
    assert config.budget.mode == "keep"
    assert config.constraints.max_repeat == 4
    assert config.objective.min_gain == 0.005
    assert config.capabilities[0].must_not_drop == 0.01


def test_a_folder_is_no_run_file(tmp_path):
    with pytest.raises(UsageError, match=r"is a folder, not a run file; `ideal-proxy init .*` writes one"):
        load_config(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UsageError, match=r"is a run directory; its run file is .*config\.yaml"):
        load_config(tmp_path)
    (tmp_path / "mixture.json").write_text('{"format": "ideal-proxy/mixture/1", "domains": []}')
    with pytest.raises(UsageError, match=r"is a file that ideal-proxy wrote .* not a run file"):
        load_config(tmp_path / "mixture.json")


def test_a_block_whose_lines_are_all_commented_out_is_not_given(tmp_path):
    text = GOOD + "proxy:\n  # size: 3M\nrounds:\n"
    assert load_config(write(tmp_path, text)) == load_config(write(tmp_path, GOOD))


def test_a_folder_named_like_a_pattern_is_a_folder(tmp_path):
    (tmp_path / "data [1]").mkdir()
    config = load_config(write(tmp_path / "data [1]", GOOD.replace("/data/*.jsonl", "*.jsonl")))
    assert config.domains[0].path == str(tmp_path / "data [1]" / "math.jsonl")
    assert config.domains[1].path == str(tmp_path / "data [[]1]" / "*.jsonl")


def test_dump_reads_back_to_the_same(tmp_path):
    config = load_config(write(tmp_path, GOOD))
    again = load_config(write(tmp_path, dump_config(config)))
    assert again == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "budgte: {}\n", r"unknown key 'budgte'; did you mean 'budget'\?"),
        (GOOD + "swarm: {worker: 2}\n", r"unknown key 'swarm.worker'; did you mean 'workers'\?"),
        (GOOD.replace("base: 30%", "bsae: 3"), r"unknown key 'domains.1.bsae'; did you mean 'base'\?"),
        (GOOD.replace("name: code", "name: math"), "'math' stands twice"),
        ("domains: [{name: a, path: b}]\ncapabilities: [{name: a, path: b}]", "'domains'.*at least 2"),
        ("capabilities: []", "'domains' is missing"),
        (GOOD + "rounds: 0\n", "'rounds'.*greater than or equal to 1, got 0"),
        (
            GOOD + "swarm: {runs: [0, 5]}\n",
            "'swarm': a list of runs is for a ladder, one for each of sizes;.* 4 or more$",
        ),
        (GOOD + "verify: {pairs: 5, max_pairs: 3}\n", r"max_pairs \(3\) is below pairs \(5\)"),
        (GOOD.replace("base: 30%", "base: 0.5"), r"'domains.1.base' \(code\): must be a count of rows .*, got 0.5$"),
        (GOOD.replace("base: 30%", "base: true"), r"'domains.1.base' \(code\): must be a number, not .*, got True$"),
        *((GOOD + f"{block}\n", "must be a number, not true or false") for block in SWITCHES),
        (
            GOOD.replace("must_not_drop: 0.01", "weight: true"),
            r"'capabilities.0.weight' \(math\): must be a number, not",
        ),
        (GOOD.replace("path: math.jsonl", "path: ''"), r"'domains.0.path' \(math\): must not be empty"),
        (GOOD.replace("name: code", "name: ../b"), r"'domains.1.name' .*: a name has"),
        (GOOD.replace("name: code", "name: 3"), r"'domains.1.name' .*: must be text, got 3; put it in quotes"),
        (
            GOOD.replace("}\ncap", ", pinned: true}\ncap").replace("math.jsonl}", "m, pinned: true}"),
            "nothing to search",
        ),
        ("domains: {a: b}\ncapabilities: []", "'domains': must be a list, .* got {'a': 'b'}"),
        (GOOD + "proxy: 1M\n", "'proxy': must be a block of 'key: value' lines, got '1M'"),
        (GOOD + "rounds: two\n", "'rounds': must be a whole number, got 'two'"),
        ("a: [", "not valid YAML at line"),
        (GOOD + "swarm: {runs: 9}\nswarm: {workers: 2}\n", "at line 8: the key 'swarm' stands twice"),
        (GOOD + "swarm: {runs: 9, runs: 12}\n", "the key 'runs' stands twice"),
        (GOOD + "freeze: {1: x, 0x1: y}\n", "at line 7: the key '0x1' stands twice"),
        (GOOD + "freeze: {true: x, yes: y}\n", "the key 'yes' stands twice"),
        *((GOOD + f"a: !!{kind} x\n", "holds a value that cannot be read") for kind in ("int", "bool", "timestamp")),
        (GOOD + "freeze: {~: x, null: y}\n", "the key 'null' stands twice"),
        (GOOD + "proxy: {learning_rate: .inf}\n", "'proxy.learning_rate': must be a finite number, got inf"),
        (GOOD + "constraints: {max_repeat: .inf}\n", "'constraints.max_repeat': must be a finite number, got inf"),
        (GOOD.replace("ref.jsonl", "ref.jsonl, weight: .inf"), "must be a finite number, got inf"),
        *((GOOD + f'name: "{name}"\n', "'name': a name has") for name in ("../x", "/x", "..", "a\\0", "a\\e[1m")),
        (GOOD + "name: " + "x" * 81 + "\n", "'name'.*80"),
        (GOOD + "proxy: {mode: target}\nswarm: {sizes: [0.1M, 1M]}\n", "a ladder.* or mode: target"),
        ("- 1", "must be a mapping"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path, text, says):
    with pytest.raises(UsageError, match=says) as caught:
        load_config(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_missing_and_not_utf8(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_config(tmp_path / "x.yaml")


@pytest.mark.parametrize(("text", "rows"), [(7, 7), ("7", 7), ("30%", 60), ("1.5x", 300), ("2×", 400), (None, 11)])
def test_volumes(text, rows):
    assert rows_of(text, 200, default=11, what="base") == rows


@pytest.mark.parametrize("text", ["many", "-3", "%", "1e3"])
def test_bad_volumes(text):
    with pytest.raises(UsageError, match="base of math is"):
        rows_of(text, 200, default=0, what="base of math")


def test_parse_config_without_folder_keeps_paths():
    config = parse_config({
        "domains": [{"name": n, "path": f"demo:{n}"} for n in ("a", "b")],
        "capabilities": [{"name": "a", "path": "x.jsonl"}],
    })
    assert config.capabilities[0].path == "x.jsonl"


@pytest.mark.parametrize(
    ("given", "pairs"),
    [("{max_pairs: 2}", (2, 2)), ("{max_pairs: 5}", (3, 5)), ("{pairs: 9}", (9, 9)), ("{pairs: 4}", (4, 8))],
)
def test_one_of_the_two_numbers_of_pairs_takes_the_other_along(tmp_path, given, pairs):
    verify = load_config(write(tmp_path, GOOD + f"verify: {given}\n")).verify
    assert (verify.pairs, verify.max_pairs) == pairs


def test_a_date_is_read_as_its_text(tmp_path):
    settings = "chat_template_kwargs: {date: 2024-07-26}"
    config = load_config(write(tmp_path, GOOD.replace("path: math.jsonl", f"path: math.jsonl, {settings}")))
    assert config.domains[0].chat_template_kwargs == {"date": "2024-07-26"}
    assert config.domains[0].format == 'auto chat_template_kwargs:{"date": "2024-07-26"}'
    assert load_config(write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(
    "block",
    [
        "chat_template_kwargs: {a: !!binary aGk=}",
        "chat_template_kwargs: {a: !!set {x, y}}",
        "chat_template_kwargs: {1: a, b: c}",
        "chat_template_kwargs: {a: !!timestamp 2024-07-26}",
        "chat_template_kwargs: [a], enable_thinking: true",
        "columns: {prompt: !!set {x}, completion: b}",
        "columns: {1: a, prompt: b}",
        "columns: {1: a}",
    ],
)
def test_a_block_that_json_has_no_word_for_is_one_sentence(block, tmp_path):
    with pytest.raises(UsageError, match=r"columns|chat_template_kwargs"):
        load_config(write(tmp_path, GOOD.replace("path: math.jsonl", f"path: math.jsonl, {block}")))


def test_switches_stay_where_they_are_asked(tmp_path):
    text = GOOD.replace("base: 30%", "pinned: true, enable_thinking: true") + "proxy: {allow_truncation: true}\n"
    config = load_config(write(tmp_path, text + "swarm: {engine: slurm, slurm: {exclusive: true}}\n"))
    assert config.domains[1].pinned
    assert config.domains[1].chat_template_kwargs == {"enable_thinking": True}
    assert config.proxy.allow_truncation
    assert config.swarm.slurm == {"exclusive": True}
