"""Progress with remaining time, shown on a terminal and as plain lines in a log."""

from __future__ import annotations

import sys
import time

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from saesteer.utils.terminal import Console


class Task:
    """One stretch of work; use it as a context manager and call `advance`."""

    def __init__(self, console: Console | None, name: str, total: float, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._done = 0.0
        self._console = console
        self._bar: RichProgress | None = None
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> Task:
        self._start = self._last_line = time.monotonic()
        if self._console is not None and self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("  {task.description:<28}", markup=False),
                BarColumn(24),
                MofNCompleteColumn(),
                TextColumn(self._unit),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(self._name, total=int(self._total))
        return self

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Say that `amount` more units are done; `note` stands behind the name."""
        self._done += amount
        if self._bar is not None:
            task = self._bar.tasks[0].id
            name = f"{self._name} {note}".strip()
            self._bar.update(task, advance=int(amount), description=name)
        elif self._console is not None and time.monotonic() - self._last_line > 30:
            self._last_line = time.monotonic()
            line = f"  {self._line(note)}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _line(self, note: str) -> str:
        elapsed = time.monotonic() - self._start
        share = self._done / self._total if self._total else 1.0
        left = f", about {elapsed / share - elapsed:.0f} s left" if share else ""
        head = f"{self._name}: {self._done:,.0f} of {self._total:,.0f} {self._unit}".rstrip()
        return f"{head}, {elapsed:.0f} s{left} {note}".rstrip()

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class Progress:
    """Makes tasks; without a console it shows nothing, which is what a notebook or test wants."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console

    def task(self, name: str, total: float, unit: str = "") -> Task:
        return Task(self._console, name, total, unit)

    def say(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def terminal_progress() -> Progress:
    """Return progress on standard error, so that standard output holds results alone."""
    return Progress(Console(file=sys.stderr))
