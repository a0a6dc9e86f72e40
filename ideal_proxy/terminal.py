"""What the terminal shows: progress with an honest estimate, and tables that fit 80 columns.

Results go to stdout; everything else, progress included, to stderr. Where stderr is no terminal: plain lines.
"""

from __future__ import annotations

import contextlib
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

WIDTH = 80
PLAIN_SECONDS = 15.0  # between two plain progress lines


class Update(Protocol):
    """Tells how much of the announced work is done."""

    def __call__(self, done: float, detail: str = "", left: float | None = None) -> None:
        """Report work done in the unit of the total; `left` is a better estimate of the seconds left, where known."""


def duration(seconds: float) -> str:
    """Write a time span as people say it.

    Args:
        seconds: the span.

    Returns:
        str: such as '40 s', '12 min' or '3.5 h'.
    """
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
    return f"[{format(bound['lower'] - less, form)}, {format(bound['upper'] - less, form)}]"


def change_text(change: float | None) -> str:
    """Write how much a volume changed: '+12%', or 'new' where there was none before."""
    return "new" if change is None else f"{change:+.0%}"


def count_text(number: int, what: str) -> str:
    """Write a count with its noun: '1 round', '2 rounds'."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def sentence(text: str) -> str:
    """Give a text its capital letter and its full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


class Reporter:
    """The one way in which a long command speaks to its user.

    Args:
        quiet: say nothing on the terminal.
        on_note: called with every note; a search writes them to its log.txt.
    """

    def __init__(self, *, quiet: bool = False, on_note: Callable[[str], None] | None = None) -> None:
        self.quiet = quiet
        self.on_note = on_note
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Write one line to stderr and to the log.

        Args:
            text: the line.
        """
        if self.on_note is not None:
            self.on_note(text)
        if not self.quiet:
            self.console.print(escape(text))

    @contextlib.contextmanager
    def work(self, label: str, total: float) -> Iterator[Update]:
        """Show the progress of work whose size is known.

        Args:
            label: what is being done.
            total: its size in any unit that grows with the time it takes.

        Yields:
            Update: to be called as the work goes on.
        """
        started = time.monotonic()
        if self.quiet or total <= 0:
            yield _ignore
            return
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[left]}"), TextColumn("{task.fields[detail]}"),
            )  # fmt: skip
            with Progress(*columns, console=self.console, transient=True) as progress:
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
        """Show the progress of work that counts things, such as rows.

        Args:
            label: what is being done.

        Yields:
            a function of (what, done, total).
        """
        with self.work(label, 1.0) as update:
            yield lambda what, done, total: update(done / max(total, 1), f"{what}: {done:,} of {total:,}")


def _ignore(done: float, detail: str = "", left: float | None = None) -> None:
    pass


def remaining(done: float, total: float, elapsed: float, left: float | None = None) -> str:
    """Say 'about 3 min left' by the estimate given, or by what was done so far; '' while there is no ground for one."""
    if done <= 0 or elapsed < 1 or done >= total:
        return ""
    return f"about {duration(elapsed / done * (total - done) if left is None else left)} left"


def paragraph(text: str) -> str:
    """Break prose at 80 columns, never within a word.

    Args:
        text: one paragraph.

    Returns:
        str: its lines.
    """
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Lay out a table that fits 80 columns.

    Args:
        title: line above it; empty for none.
        header: column names.
        rows: cells, as text.
        left: number of columns aligned left; the others are numbers.

    Returns:
        str: the table as plain text.
    """
    grid = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, name in enumerate(header):
        first = position < left
        grid.add_column(name, justify="left" if first else "right", no_wrap=not first, overflow="fold")
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    console = Console(width=WIDTH, color_system=None, highlight=False, file=sys.stdout)
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").splitlines())
