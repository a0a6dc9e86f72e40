"""What the terminal shows: progress with an honest estimate, and tables that fit 80 columns, or a narrower terminal.

Results go to stdout; everything else, progress included, to stderr. Where stderr is no terminal: plain lines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ideal_proxy.errors import UNSEEN

WIDTH, LEAST_WIDTH = 80, 30
GAP = 2  # between the columns of a table
PLAIN_SECONDS = 15.0  # between two plain progress lines


class Update(Protocol):
    """Tells how much of the announced work is done."""

    def __call__(self, done: float, detail: str = "", left: float | None = None) -> None:
        """Report work done in the unit of the total; `left` is a better estimate of the seconds left, where known."""


def duration(seconds: float) -> str:
    """Write a time span as people say it, such as '40 s', '12 min' or '3.5 h'."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99 * 60 else f"{seconds / 3600:.1f} h"


def money(amount: float, currency: str) -> str:
    """Write an amount of money, such as '12.50 USD'; the currency is a label only."""
    text = f"{amount:,.2f}" if amount >= 1 else f"{amount:.2g}" if amount >= 0.01 else "under 0.01"
    return f"{text} {currency}".strip()


def number_text(value: float | None, form: str) -> str:
    """Write a number in Python's format language, as a dash where there is none."""
    return "–" if value is None else format(value, form)


def interval_text(bound: Mapping[str, float], form: str = "+.2%", *, less: float = 0.0) -> str:
    """Write an interval, such as '[+1.98%, +2.88%]'; `less` is taken from both ends: 1 turns ratios into changes."""
    write = signed if form.startswith("+") else format
    return "[" + ", ".join(write(bound[end] - less, form.removeprefix("+")) for end in ("lower", "upper")) + "]"


def harmless(text: str) -> str:
    """Replace what a terminal would act upon instead of showing it."""
    return re.sub(rf"(?![\n\t])[{UNSEEN}]", "\N{REPLACEMENT CHARACTER}", text)


def say(text: str, *, file: TextIO | None = None, end: str = "\n") -> None:
    """Print what may hold names and paths of strangers."""
    print(harmless(text), file=file, end=end)


class HarmlessRecord(logging.LogRecord):
    """A line of the log, which may hold names and paths of strangers too."""

    def getMessage(self) -> str:
        """Give its text, harmless to a terminal."""
        return harmless(super().getMessage())


def signed(value: float, form: str) -> str:
    """Write a number with its sign, nothing where it is shown as zero: '+1.2%', '-0.4%', '0.0%'."""
    text = format(value, f"+{form}")
    return text if re.search("[1-9]", text) else text.lstrip("+-")


def change_text(change: float | None) -> str:
    """Write how much a volume changed: '+12%', or 'new' where there was none before."""
    return "new" if change is None else signed(change, ".0%")


def count_text(number: int, what: str) -> str:
    """Write a count with its noun: '1 round', '2 rounds'."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def sentence(text: str) -> str:
    """Give a text its capital letter and its full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


class Reporter:
    """The one way in which a long command speaks to its user; `on_note` hears every note (a search's log.txt)."""

    def __init__(self, *, quiet: bool = False, on_note: Callable[[str], None] | None = None) -> None:
        self.quiet = quiet
        self.on_note = on_note
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._facts: dict[str, str] = {}
        self._panel: str | None = None  # the title of the one that is on the screen
        self._work: RenderableType = ""

    @property
    def moves(self) -> bool:
        """Whether there is a terminal on which lines may be written over."""
        return not self.quiet and self.console.is_terminal and not self.console.is_dumb_terminal

    @contextlib.contextmanager
    def panel(self, title: str) -> Iterator[None]:
        """Keep one panel on a terminal while work goes on: what is being done, and the facts told by `fact`."""
        if not self.moves:
            yield
            return
        self._panel = title
        try:
            with Live(get_renderable=self._drawn, console=self.console, transient=True, refresh_per_second=4):
                yield
        finally:
            self._panel = None

    def doing(self, text: str) -> None:
        """Say on the panel what is being done where its size is not known."""
        self._work = Text(harmless(text))

    def fact(self, name: str, text: str) -> None:
        """Set a line of the panel, in the order in which they were first told; without a panel it is not shown."""
        self._facts[name] = text

    def _drawn(self) -> RenderableType:
        grid = Table.grid(padding=(0, GAP, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column()
        grid.add_row("now", self._work)
        for name, text in self._facts.items():
            grid.add_row(name, Text(harmless(text)))
        wide = min(WIDTH, self.console.width)
        return Panel(grid, title=escape(harmless(self._panel or "")), title_align="left", box=box.ROUNDED, width=wide)

    def note(self, text: str) -> None:
        """Write one line to stderr and to the log."""
        self.record(text)
        self.show(text)

    def record(self, text: str) -> None:
        """Write one line to the log alone."""
        if self.on_note is not None:
            self.on_note(text)

    def show(self, text: str) -> None:
        """Write one line to stderr alone."""
        if not self.quiet:
            # a log keeps one line a note; a terminal breaks it between words
            self.console.print(escape(harmless(text)), soft_wrap=not self.console.is_terminal)

    @contextlib.contextmanager
    def work(self, label: str, total: float) -> Iterator[Update]:
        """Show the progress of work whose size, in any unit that grows with the time it takes, is known."""
        started = time.monotonic()
        if self.quiet or total <= 0:
            yield lambda *_, **__: None
            return
        if self.moves:
            bar = max(4, min(20, self.console.width // 8))
            columns = (
                TextColumn("{task.description}"), BarColumn(bar), TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[left]}"), TextColumn("{task.fields[detail]}"),
            )  # fmt: skip
            progress = Progress(*columns, console=self.console, transient=True, auto_refresh=self._panel is None)
            with contextlib.nullcontext() if self._panel else progress:
                self._work = progress
                task = progress.add_task(escape(label), total=total, left="", detail="")

                def update(done: float, detail: str = "", left: float | None = None) -> None:
                    text = remaining(done, total, time.monotonic() - started, left)
                    progress.update(task, completed=done, left=text, detail=escape(detail))

                yield update
        else:
            last = started

            def plain(done: float, detail: str = "", left: float | None = None) -> None:
                nonlocal last
                now = time.monotonic()
                if now - last < PLAIN_SECONDS:
                    return
                last = now
                text = remaining(done, total, now - started, left)
                self.console.print(escape(f"{label}: {done / total:.0%} {text} {detail}".rstrip()))

            yield plain
        took = time.monotonic() - started
        if took > 3:
            self.note(f"{label}: done in {duration(took)}")

    @contextlib.contextmanager
    def counted(self, label: str) -> Iterator[Callable[[str, int, int], None]]:
        """Show the progress of work that counts things; what it gives is called with (what, done, total)."""
        with self.work(label, 1.0) as update:
            yield lambda what, done, total: update(done / max(total, 1), f"{what}: {done:,} of {total:,}")


LEAST_DONE = 0.03  # the first steps are slow


def remaining(done: float, total: float, elapsed: float, left: float | None = None) -> str:
    """Say 'about 3 min left' by the estimate given, or by what was done so far; '' while there is no ground for one."""
    if done < LEAST_DONE * total or elapsed < 1 or done >= total:
        return ""
    return f"about {duration(elapsed / done * (total - done) if left is None else left)} left"


def paragraph(text: str) -> str:
    """Break a paragraph at the terminal's width, never within a word; further lines of one set in by two more."""
    text = harmless(text)
    lead = len(text) - len(text.lstrip(" "))
    whole = re.sub(r"(\[[^\s\[\]]+,) (?=[^\s\[\]]+\])", "\\1\0", text)  # an interval stays on its line
    lines = textwrap.fill(
        whole.lstrip(), width(), initial_indent=" " * lead, subsequent_indent=" " * (lead + 2 if lead else 0),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return lines.replace("\0", " ")


def width() -> int:
    """Columns to write in: 80, or those of a narrower terminal."""
    return max(LEAST_WIDTH, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def program() -> str:
    """The command that the user called us by, to print before what may be called next."""
    called = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path("ideal-proxy")
    if called.name == "cli.py":
        place = os.path.relpath(called)
        return f"python3 {place if len(place) <= len(str(called)) else called}"
    if called.name == "__main__.py" and called.parent.name in {"cli", "ideal_proxy"}:
        return f"python3 -m ideal_proxy{'.cli' * (called.parent.name == 'cli')}"
    known = called.name != "ideal-proxy" or shutil.which("ideal-proxy") is not None
    return "ideal-proxy" if known else str(called)


def step(label: str, command: str, why: str = "") -> str:
    """Write what may be called next: a line to copy, and what it is for beside or below it."""
    line = f"{label}{program()} {command}"
    if not why:
        return line
    beside = f"{line}   ({why})"
    return beside if cell_len(beside) <= width() else f"{line}\n{' ' * cell_len(label)}({why})"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Lay out a table that fits the terminal: what is too wide goes on below, under its first `left` columns."""
    # The columns on the left hold text; all others are numbers, which are never cut.
    room = width()
    cells = [max(map(cell_len, column), default=0) for column in zip(*rows, strict=True)] or [0] * len(header)
    widths = [max(cell, cell_len(name)) for cell, name in zip(cells, header, strict=True)]
    blocks = [list(range(left, len(header)))]
    if _total(widths) > room:  # names of columns may take several lines
        words = [max(cell, *map(cell_len, name.split() or [""])) for cell, name in zip(cells, header, strict=True)]
        widths = [*widths[:left], *words[left:]]
    for k in sorted(range(left), key=lambda k: -widths[k]):  # then the texts on the left
        widths[k] -= min(max(0, _total(widths) - room), max(0, widths[k] - room // 3))
    if _total(widths) > room:  # then numbers go on below
        blocks = [[]]
        for k in range(left, len(header)):
            widths[k] = min(widths[k], room - (_total(widths[:left]) + GAP if left else 0))
            if blocks[-1] and _total([widths[j] for j in (*range(left), *blocks[-1], k)]) > room:
                blocks.append([])
            blocks[-1].append(k)
    grids = [_grid([*range(left), *block], header, rows, widths, left) for block in blocks]
    return "\n".join([*([paragraph(title)] if title else []), "\n\n".join(grids)])


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _grid(
    columns: Sequence[int], header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int], left: int
) -> str:
    """Lay out some columns of a table in the widths given."""
    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for k in columns:
        grid.add_column(
            escape(harmless(header[k])), justify="left" if k < left else "right", width=widths[k], overflow="fold"
        )
    for row in rows:
        grid.add_row(*(escape(harmless(row[k])) for k in columns))
    console = Console(width=max(width(), _total([widths[k] for k in columns])), color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").splitlines())
