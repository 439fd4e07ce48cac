"""What every command has in common: help, version, errors and Ctrl-C."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import typer


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command and group of commands."""
    for name, command in getattr(group, "commands", {}).items():
        yield (*path, name)
        yield from commands(command, (*path, name))


def test_every_command_has_help(saesteer, no_loading):
    from saesteer.cli.main import app

    known = set(commands(typer.main.get_command(app)))
    assert {("steer",), ("run",), ("compare",), ("configs",), ("sae", "train")} <= known
    for words in known:
        answer = saesteer(*words, "--help")
        assert (answer.code, answer.err) == (0, ""), words
        assert f"Usage: saesteer {' '.join(words)}" in answer.out


def test_the_version_or_nothing_or_a_mistyped_command_is_answered(saesteer):
    from saesteer import __version__

    assert saesteer("--version") == (0, f"{__version__}\n", "")
    answer = saesteer()
    assert "Usage: saesteer" in answer.out + answer.err and "Traceback" not in answer.err
    for words in ("rnu", "--vresion", "probe raed", "generate", "run a.yaml --sett x=1"):
        answer = saesteer(*words.split())
        assert (answer.code, answer.out) == (2, "")
        assert "Usage: saesteer" in answer.err and "Traceback" not in answer.err


def test_ctrl_c_says_how_to_go_on(saesteer, config, monkeypatch):
    def stopped(*args: object, **kwargs: object):
        raise KeyboardInterrupt

    monkeypatch.setattr("saesteer.experiments.steer.experiment.Steer.run", stopped)
    answer = saesteer("run", config)
    assert answer.code == 130
    assert answer.out == ""
    assert answer.err.strip() == "stopped; run the same command again to go on where it stopped."


def test_an_error_of_ours_is_one_sentence(refused, monkeypatch, config):
    from saesteer.utils.errors import HookError

    def failed(*args: object, **kwargs: object):
        raise HookError("nothing passed through; choose another site.")

    monkeypatch.setattr("saesteer.experiments.steer.experiment.Steer.run", failed)
    assert refused("run", config) == "nothing passed through; choose another site."


def test_the_command_starts_without_loading_a_library_for_models():
    code = (
        "import sys, saesteer.cli.main\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'sae_lens', 'sklearn', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_installed_command_answers_and_exits_with_2(tmp_path):
    command = [sys.executable, "-m", "saesteer.cli.main", "run", str(tmp_path / "none.yaml")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith("error: ")
    assert "none.yaml cannot be read" in found.stderr
