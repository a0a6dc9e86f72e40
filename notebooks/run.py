"""Run the notebooks and store what they show: `python notebooks/run.py [NAME ...]`, by hand, some minutes on two idle cores.

A notebook's metadata then holds a hash of its source, so that `tests/test_notebooks.py` can tell outputs that belong to
an earlier source. The tests (two of them with `-m slow`) run every notebook too, on settings too small to mean
anything, and store nothing.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def source_hash(notebook: nbformat.NotebookNode) -> str:
    """Hash what was run: the source of every code cell."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(cells).encode()).hexdigest()[:16]


def main(names: list[str]) -> None:
    """Run the notebooks named, or all, in the folder where they lie."""
    for path in sorted(HERE.glob("*.ipynb")):
        if names and not any(name in path.name for name in names):
            continue
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(HERE)}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times, which change with every run
            if cell.cell_type == "code":
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]  # progress
        notebook.metadata["ran"] = source_hash(notebook)
        text = nbformat.writes(notebook)
        if str(HERE.parent) in text:
            raise SystemExit(f"{path.name} shows a path of this machine; print a relative one")
        path.write_text(text + "\n", encoding="utf-8")
        print(f"{path.name}: {len(text) / 1e3:,.0f} KB")


if __name__ == "__main__":
    main(sys.argv[1:])
