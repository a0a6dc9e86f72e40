"""The import graph is the data flow: nothing imports to its right, and the command line starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ideal_proxy"
MAP = PACKAGE.parent / "docs" / "modules.md"  # written by `python tests/test_layers.py`

# Left to right; modules of one line may not import each other unless the line is ordered, as it is.
ORDER = """
errors entry_point config store terminal tracker
files hub rows line_keys block_reader row_index template duplicates data
mixture_file mixture shuffle materialise demo
design
cost proxy_records packed_attention fused_head proxy_model proxy
pretrained base_model
metric swarm_context metric_runs swarm_worker swarm_pool swarm_forecast swarm_local
swarm_ship swarm_ray_worker swarm_ray swarm
curvature factors kfac
influence_records influence unrolled finite gradient_worker
relative law fit_solver fit_responses fit_law fit_input fit_residual fit_choice fit_trust fit_report fit_json fit tables
constraint_text constraints rounding objective program conflicts optimize pareto
export_job export_formats export_trainers export
prepare verdict plan proposal status_record runs trust outcome search
show status finished curves plot_style plots
table_mixture what_if check layout start report_page report influence_report
cli_report cli_tables cli_scaleup cli_influence cli
"""
LAYERS = ORDER.split()


def modules():
    return sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(name: str) -> set[str]:
    """Every module of the package that a module imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ideal_proxy."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("ideal_proxy.")}
    return found


def purpose(path: Path) -> str:
    """Give the first paragraph of a module's docstring as one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def module_map() -> str:
    """Write the map of the modules: what each is for, in the order in which data flows."""
    lines = [
        "# Map of the modules",
        "",
        "In the order in which data flows; nothing imports what stands below it. Written from the modules' own first",
        "sentences by `python tests/test_layers.py`. Where to begin: `search` (the outer loop), then `runs` (what it",
        "trains), `proposal` (fit and optimum) and `verdict`.",
        "",
        "| module | purpose |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {purpose(PACKAGE / f'{name}.py')} |" for name in LAYERS if name in modules()]
    lines += [
        "",
        "Apart, reached from the command line alone, and starting from a mixture file:",
        "",
        "| module | purpose |",
    ]
    lines += ["|---|---|"]
    parts = sorted(path for path in (PACKAGE / "scaleup").glob("*.py") if path.stem != "__init__")
    lines += [f"| `scaleup/{path.stem}` | {purpose(path)} |" for path in parts]
    return "\n".join(lines) + "\n"


def test_every_module_has_a_place():
    assert not set(modules()) - set(LAYERS), "give the new module its place in LAYERS"


def test_the_map_of_the_modules_is_up_to_date():
    assert MAP.read_text(encoding="utf-8") == module_map(), "run: python tests/test_layers.py"


# Reading a `demo:` source is the one look to the right: rows ask for it by name, inside a function.
ALLOWED = {("files", "demo"), ("rows", "demo")}


@pytest.mark.parametrize("name", modules())
def test_nothing_imports_to_its_right(name):
    place = LAYERS.index(name)
    wrong = {
        other
        for other in imports(name)
        if other in LAYERS and LAYERS.index(other) > place and (name, other) not in ALLOWED
    }
    assert not wrong


def test_scale_up_is_reached_from_the_command_line_alone():
    for name in modules():
        if not name.startswith("cli"):
            assert "scaleup" not in imports(name)


@pytest.mark.parametrize("module", ["ideal_proxy.cli", "ideal_proxy.config", "ideal_proxy.mixture"])
def test_light_modules_load_nothing_heavy(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'matplotlib'}} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert answer.stdout.strip() == "[]"


if __name__ == "__main__":
    MAP.write_text(module_map(), encoding="utf-8")
