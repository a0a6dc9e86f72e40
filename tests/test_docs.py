"""Every command of README and docs runs, every link leads somewhere, and every option named exists."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml
from builders import ROOT, environment, run, write_rows

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BASH = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)

TRAINER = "a trainer that is not installed; test_export.py repeats its arithmetic"
NOT_RUN = {  # a line here is not executed; each must occur
    "python3 cli.py search": "the embedded demo; test_demo.py and notebook 01 run it",
    "python3 cli.py test": "these tests",
    "accelerate launch --config_file fsdp2.yaml -m ideal_proxy.cli scale-up full.json --model path/or/hub-id "
    "--out runs/full": "several GPUs; test_sharded.py launches the command with two CPU processes",
    "llamafactory-cli train data/lf/sft.yaml": TRAINER,
    "bash data/swift/sft.sh": TRAINER,
    "bash data/oi/sft.sh": TRAINER,
    "trl sft --config data/trl/sft.yaml": TRAINER,
    "axolotl train data/axolotl/axolotl.yaml": TRAINER,
    "automodel data/automodel/sft.yaml": TRAINER,
    "bash data/verl/sft.sh": TRAINER,
    "bash data/skyrl/sft.sh": TRAINER,
}


def commands(page: Path) -> list[str]:
    """Give the lines of a page's bash blocks in order, continued lines joined, without comments."""
    text = "\n".join(BASH.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    lines = (shlex.join(shlex.split(line, comments=True)) for line in text.splitlines())
    return [line for line in lines if line]


def small_data(folder: Path) -> None:
    """Three domains of three formats and two tables of runs, as the pages suppose them."""
    for part, count, start in (("train", 80, 0), ("reference", 24, 500)):
        numbers = range(start, start + count)
        write_rows(
            folder / f"data/coding/{part}.jsonl",
            [{"instruction": f"add {n} to x", "input": "", "output": f"return x + {n}"} for n in numbers],
        )
        end = ".jsonl" if part == "train" else ".reference.jsonl"
        ask = [({"role": "user", "content": f"is {n} safe?"}, n) for n in numbers]
        answer = [[a, {"role": "assistant", "content": f"{n} is {'safe' if n % 2 else 'not'}"}] for a, n in ask]
        write_rows(folder / f"data/trust{end}", [{"messages": messages} for messages in answer])
        write_rows(folder / f"data/maths{end}", [{"prompt": f"{n} + {n}", "completion": str(2 * n)} for n in numbers])
    draw = random.Random(0)
    weights = [[draw.gammavariate(1, 1) for _ in range(3)] for _ in range(20)]
    shares = pd.DataFrame([[w / sum(row) for w in row] for row in weights], columns=["github", "arxiv", "books"])
    losses = pd.DataFrame({name: 2 + (1 + 9 * shares[name]) ** -0.6 for name in ("github", "arxiv")})
    shares[:14].to_csv(folder / "mixtures.csv", index_label="run")
    losses[:14].to_csv(folder / "losses.csv", index_label="run")
    shares[14:].to_csv(folder / "new.csv", index_label="run")


def shrink(folder: Path) -> None:
    """Cut what `init` wrote down to a search of seconds."""
    path = folder / "mix.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["proxy"] = {"size": "0.1M", "context": 64, "fraction": 0.8, "learning_rate": 0.006, "batch_rows": 32}
    settings["swarm"] = {"runs": 6, "workers": 1}
    settings["verify"] = {"pairs": 2, "max_pairs": 2}
    settings["rounds"] = 1
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def small_model(folder: Path, encoded: Path) -> None:
    """Put a model of 0.1M parameters where the pages say `path/or/hub-id`."""
    from transformers import AutoTokenizer

    from ideal_proxy.proxy.model import build_proxy

    tokenizer = AutoTokenizer.from_pretrained(encoded)
    build_proxy("0.1M", len(tokenizer), 64, 3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Shell:
    """A folder in which a page's lines are typed one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, str] = {}  # by the line that was typed
        program = folder.parent / "bin" / "ideal-proxy"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ideal_proxy.cli "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        self.env = environment(PATH=path, CUDA_VISIBLE_DEVICES="")

    def type(self, line: str) -> str:
        words = shlex.split(line)
        if "path/or/hub-id" in words and not (self.folder / "path").exists():
            small_model(self.folder / "path/or/hub-id", next(self.folder.glob("runs/mix/**/tokenizer.json")).parent)
        if words[1] == "--help":  # typed in a shell; the rest is called here, which spares fifty starts
            done = subprocess.run(
                line, shell=True, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=300,
                check=False,
            )  # fmt: skip
        else:
            assert words[0] == "ideal-proxy"
            done = run(*words[1:], cwd=self.folder)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert (done.stdout + done.stderr).strip(), f"{line} said nothing"
        if "--out" in words:
            assert (self.folder / words[words.index("--out") + 1]).exists(), line
        if words[:2] == ["ideal-proxy", "init"]:
            shrink(self.folder)
        return done.stdout


def type_page(shell: Shell, page: Path) -> dict[str, str]:
    """Run a page's lines in order, but those that an earlier page had; every line is either executed or in NOT_RUN."""
    lines = [line for line in commands(page) if line not in NOT_RUN]
    shell.said |= {line: shell.type(line) for line in lines if line not in shell.said}
    return {line: shell.said[line] for line in lines}


@pytest.fixture(scope="module")
def readme(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "readme"
    folder.mkdir()
    small_data(folder)
    shell = Shell(folder)
    said = type_page(shell, README)
    mixed = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob("data/mixed/*.jsonl"))
    return shell, said, mixed


def test_readme(readme):
    shell, said, mixed = readme
    folder = shell.folder
    verdicts = ("improves", "no better than base", "not enough evidence")
    assert any(f"Verdict: {v}" in said["ideal-proxy search mix.yaml"] for v in verdicts)
    assert "Nothing was trained" in said["ideal-proxy search mix.yaml --dry-run"]
    assert (folder / "runs/mix/report.html").stat().st_size > 50_000
    mixture = json.loads((folder / "runs/mix/mixture.json").read_text(encoding="utf-8"))
    assert mixed == sum(domain["rows"] for domain in mixture["domains"])


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if commands(page)], ids=lambda page: page.stem)
def test_page(readme, page):
    """The other pages start from the README's finished search, which the same commands take up again."""
    shell = readme[0]
    shutil.rmtree(shell.folder / "data")
    small_data(shell.folder)
    said = type_page(shell, page)
    assert said
    if page.stem == "tutorial":
        shown = said["ideal-proxy show runs/mix"].split("Verdict:")[1].split("next:")[0]
        assert shown in shell.said["ideal-proxy search mix.yaml"]
    if page.stem == "tables":
        optimum = json.loads((shell.folder / "mixture.json").read_text(encoding="utf-8"))
        assert {d["name"]: d["share"] for d in optimum["domains"]}["github"] <= 0.3 + 1e-6
        assert len(pd.read_csv(shell.folder / "predicted.csv")) == 6


def test_every_exception_is_needed_and_every_other_line_is_ours():
    lines = [line for page in PAGES for line in commands(page)]
    assert set(NOT_RUN) <= set(lines), "an exception that no page needs any more"
    other = [line for line in lines if line not in NOT_RUN and not line.startswith("ideal-proxy ")]
    assert not other, other
    assert len(lines) > 30


def test_recipes_cover_every_target():
    from ideal_proxy.export.hand_over import TARGETS

    exported = {line.split("--to ")[1].split()[0] for line in commands(ROOT / "docs/recipes.md") if "--to " in line}
    assert exported == set(TARGETS)


def options() -> dict[str, set[str]]:
    """Give every command's options."""
    from ideal_proxy.cli.app import app

    return {
        name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_exist_in_the_command_they_are_used_with(page):
    known = options()
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    used = re.findall(r"ideal-proxy ([a-z][a-z-]*)((?:[^\n`#]|\\\n)*)", "\n".join(re.findall(r"`[^`]+`", text)))
    used += [(words[1], line) for line in commands(page) if (words := line.split())[0] == "ideal-proxy"]
    for command, rest in used:
        assert command in known or command.startswith("-"), f"{page.name}: no command {command!r}"
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest):
            assert option in known.get(command, set()) | {"--help", "--version"}, f"{page.name}: {command} {option}"


def test_scripts_parse_and_use_known_options():
    """What is to be saved as a file (the Slurm script) cannot run here, but must be sound."""
    scripts = [s for page in PAGES for s in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)]
    assert scripts
    for script in scripts:
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
        for command, rest in re.findall(r"ideal-proxy ([a-z-]+)([^\n]*)", script):
            assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)) <= options()[command]


def test_the_site_is_whole(tmp_path):
    """`mkdocs build --strict` finds every link and page; the reference is the code's; nothing comes from a network."""
    for needed in ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml"):
        pytest.importorskip(needed, reason="the extra `docs` is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")], cwd=ROOT,
        env=environment(NO_MKDOCS_2_WARNING="1"), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "site").glob("*.html")}
    assert set(text) >= {page.stem for page in PAGES[1:]}
    for command, known in options().items():
        assert f'<h2 id="{command}">' in text["commands"]
        named = {option for option in known - {"--null"} if option.startswith("-")}
        assert not [option for option in named if option not in text["commands"]]
    assert {"optimize", "SearchRun", "write_report"} <= set(re.findall(r'<h2 id="[\w.]*?(\w+)" ', text["python"]))
    assert '<h2 id="constraints">' in text["run-file"]
    assert text["how-it-works"].count("<math") >= 8
    for name, page in text.items():
        assert not re.findall(r'(?:src|<link[^>]*href)="https?://[^"]*"', page), name


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        place = page.parent / target if target else page
        assert place.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), f"{page.name}: {link}"
