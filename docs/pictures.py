"""Take the README's two pictures from a finished search: `python docs/pictures.py runs/mix`; the page needs Chromium.

`docs/terminal.svg` is what the terminal shows, by rich's export. `docs/page.png` is the top of the report's page.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from ideal_proxy.pipeline import load_result
from ideal_proxy.report import result_screen

HERE = Path(__file__).resolve().parent
WIDE, HIGH, COLOURS = 1100, 1500, 128


def terminal(run: Path) -> None:
    """Export the screen that a search ends with."""
    console = Console(record=True, width=80, file=io.StringIO(), highlight=False)
    console.print(Text("$ ideal-proxy search mix.yaml", style="bold green"))
    for line in result_screen(load_result(run), Path("runs/mix")).replace(sys.argv[0], "ideal-proxy").splitlines():
        strong = line.startswith("Verdict:") or (line[:1].isupper() and line.endswith(("train on", "unseen rows")))
        console.print(Text(line, style="bold" if strong else ""))
    svg = console.export_svg(title="ideal-proxy")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # fonts from elsewhere
    (HERE / "terminal.svg").write_text(svg, encoding="utf-8")


def page(run: Path) -> None:
    """Take a picture of the top of the report's page."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))))
    with tempfile.TemporaryDirectory() as place:
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={place}", "--hide-scrollbars",
            "--virtual-time-budget=6000", f"--window-size={WIDE},{HIGH}", f"--screenshot={place}/page.png",
            (run / "report.html").resolve().as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=240)
        with Image.open(f"{place}/page.png") as shot:
            shot.convert("RGB").quantize(COLOURS).save(HERE / "page.png", optimize=True)


if __name__ == "__main__":
    terminal(Path(sys.argv[1]))
    page(Path(sys.argv[1]))
