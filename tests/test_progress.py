"""Progress is a bar on a terminal, lines in a log and nothing without a console."""

from __future__ import annotations

import io

import pytest

from saesteer.utils import progress as module
from saesteer.utils.progress import Progress, terminal_progress
from saesteer.utils.terminal import Console


class Clock:
    """A clock that a test winds on."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


def lines(log: io.StringIO) -> list[str]:
    return log.getvalue().splitlines()


def test_a_log_gets_a_line_now_and_then_with_the_time_left(clock, log):
    with Progress(Console(file=log, width=100)).task("reading", 1000, "tokens") as task:
        for _ in range(4):
            clock.now += 20
            task.advance(100, "loss 0.5")
    # A task of nothing is done.
    with Progress(Console(file=log, width=100)).task("training", 0, "steps") as task:
        clock.now += 31
        task.advance(0)
    assert lines(log) == [
        "  reading: 200 of 1,000 tokens, 40 s, about 160 s left loss 0.5",
        "  reading: 400 of 1,000 tokens, 80 s, about 120 s left loss 0.5",
        "  training: 0 of 0 steps, 31 s, about 0 s left",
    ]


def test_a_terminal_gets_a_bar_that_is_gone_afterwards_also_when_the_work_fails(log):
    console = Console(file=log, force_terminal=True, width=100)
    with Progress(console).task("scoring [x]", 4, "vectors") as task:
        for number in range(4):
            task.advance(1, f"random {number}")
    assert "scoring [x] random 3" in log.getvalue()
    assert "vectors" in log.getvalue()
    with pytest.raises(ZeroDivisionError), Progress(console).task("scoring", 4):
        raise ZeroDivisionError
    # A second bar on one console is an error as long as the first one lives.
    with Progress(console).task("again", 1) as task:
        task.advance()


def test_what_is_said_is_shown_letter_by_letter_on_standard_error_alone(capsys):
    terminal_progress().say("Loading model runs/[bold]x[/bold] ...")
    assert capsys.readouterr() == ("", "Loading model runs/[bold]x[/bold] ...\n")
