"""The house: rooms in the order in which data flows, entered by their doors alone; the command line starts light."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ideal_proxy"
MAP = PACKAGE.parent / "docs" / "modules.md"  # written by `python tests/test_layers.py`

GROUND = [
    "errors",
    "amounts",
    "domains",
    "limits",
    "batching",
    "complaints",
    "metric_section",
    "sections",
    "store",
    "config",
    "provenance",
    "terminal",
    "hooks",
]
ROOMS = [
    "data",
    "response",
    "optimizer",
    "mixture",
    "export",
    "proxy",
    "swarm",
    "gradients",
    "tables",
    "pipeline",
    "report",
    "scaleup",
    "cli",
]
MOST_LINES = 600


def files() -> list[Path]:
    """Every module of the package, as a path inside it."""
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def floor(path: Path) -> int:
    """The floor a module stands on: 0 for the ground, then a room a floor."""
    return 0 if len(path.parts) == 1 else 1 + ROOMS.index(path.parts[0])


def imports(path: Path) -> set[tuple[str, ...]]:
    """Every name of the package that a module imports anywhere, in functions too, as parts below the package."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module and node.module.split(".")[0] == "ideal_proxy":
                found |= {(*node.module.split(".")[1:], alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == "ideal_proxy"}
    return found


def notebook_imports() -> set[tuple[str, ...]]:
    """What the notebooks import from rooms; a user may, so it is public."""
    found = set()
    for path in sorted((PACKAGE.parent / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        lines = [line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).splitlines()]
        for node in ast.walk(ast.parse("\n".join(line for line in lines if not line.startswith(("%", "!"))))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ideal_proxy."):
                found |= {(*node.module.split(".")[1:], alias.name) for alias in node.names}
    return found


def door(room: str) -> set[str]:
    """The public names of a room: what its `__init__.pyi` lists."""
    tree = ast.parse((PACKAGE / room / "__init__.pyi").read_text(encoding="utf-8"))
    return {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def purpose(path: Path) -> str:
    """Give the first paragraph of a module's docstring as one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def module_map() -> str:
    """Write the map of the house: what each room and each of its modules is for, in the order in which data flows."""
    lines = ["# Map of the house", ""]
    lines += [
        "In the order in which data flows; nothing imports what stands below it, and a room is entered by the names"
    ]
    lines += ["of its `__init__.pyi` alone. Written from the modules' own docstrings by `python tests/test_layers.py`."]
    lines += ["Where to begin: `pipeline/outer_loop` (a search), then `pipeline/laboratory` (what it trains),", ""]
    lines[-2:] = [lines[-2] + " `pipeline/proposal`", "(fit and optimum) and `pipeline/verdict`.", ""]
    lines += ["## Ground floor", "", "| module | purpose |", "|---|---|"]
    lines += [f"| `{name}` | {purpose(PACKAGE / f'{name}.py')} |" for name in GROUND]
    for room in ROOMS:
        text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
        lines += ["", f"## `{room}/`", "", text.strip(), "", "| module | purpose |", "|---|---|"]
        for path in sorted((PACKAGE / room).glob("*.py")):
            if not path.stem.startswith("__"):
                lines.append(f"| `{room}/{path.stem}` | {purpose(path)} |")
    return "\n".join(lines) + "\n"


def test_every_module_stands_in_a_room():
    assert {path.stem for path in files() if len(path.parts) == 1} == {"__init__", "__main__", *GROUND}
    assert {path.parts[0] for path in files() if len(path.parts) > 1} == set(ROOMS)


def test_the_map_of_the_house_is_up_to_date():
    assert MAP.read_text(encoding="utf-8") == module_map(), "run: python tests/test_layers.py"


@pytest.mark.parametrize("path", files(), ids=str)
def test_no_import_goes_up_or_past_a_door(path):
    own = path.parts[0] if len(path.parts) > 1 else None
    for name in imports(path):
        target = name[0]
        if path.name in {"__init__.py", "__main__.py"} or target == "__version__":
            continue
        if target in GROUND:
            if own is None:
                assert GROUND.index(target) < GROUND.index(path.stem), f"{path} imports {target}"
        elif target != own:
            assert own is not None, f"the ground floor imports {target}"
            assert ROOMS.index(target) < ROOMS.index(own), f"{path} imports {target}, which stands above it"
            assert len(name) == 2, f"{path} reaches past the door of {target}: {'.'.join(name)}"
            assert name[1] in door(target), f"{name[1]} is no public name of {target}"
        else:
            assert not name[-1].startswith("_") or name[-1] == "__version__", f"{path}: {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_a_sign_and_every_public_name_exists(room):
    module = importlib.import_module(f"ideal_proxy.{room}")
    assert module.__doc__
    assert "In:" in module.__doc__ or room == "cli"
    assert set(module.__all__) == door(room)
    for name in door(room):
        assert not name.startswith("_")
        assert getattr(module, name) is not None


def test_no_public_name_is_listed_in_vain():
    """A door lists what another room, the package itself or the documentation takes; the rest is private."""
    taken = {name[:2] for path in files() for name in imports(path)} | notebook_imports()
    public = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    taken |= {(n.module, a.name) for n in public.body if isinstance(n, ast.ImportFrom) and n.module for a in n.names}
    unused = {(room, name) for room in ROOMS for name in door(room)} - taken
    assert not unused - {("cli", "app")}


@pytest.mark.parametrize("room", ROOMS)
def test_no_name_of_a_door_is_that_of_a_file_behind_it(room):
    files_here = {path.stem for path in (PACKAGE / room).glob("*.py")}
    files_shown = {"report": {"plots"}, "cli": {"app"}}.get(room, set())
    assert door(room) & files_here <= files_shown, "who imports the file gets it for the name"


def test_notebooks_come_in_by_the_doors():
    taken = notebook_imports()
    assert taken
    assert not [name for name in taken if len(name) != 2 or name[1] not in door(name[0])]


@pytest.mark.parametrize("path", files(), ids=str)
def test_files_are_short(path):
    assert len((PACKAGE / path).read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("module", ["ideal_proxy.cli", "ideal_proxy.config", "ideal_proxy.mixture"])
def test_light_modules_load_nothing_heavy(module):
    code = f"import sys, {module}; {module}.__all__ if hasattr({module}, '__all__') else 0; "
    code += "print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert answer.stdout.strip() == "[]"


if __name__ == "__main__":
    MAP.write_text(module_map(), encoding="utf-8")
