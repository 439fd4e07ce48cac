"""One place prints to the terminal, and nothing that a terminal would obey gets through."""

from __future__ import annotations

import ast
import io
import json
import re
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

import saesteer
from saesteer.utils.files import append_json, write_atomic
from saesteer.utils.progress import Progress
from saesteer.utils.redaction import check_no_secret
from saesteer.utils.terminal import Console, say, say_json

# A window's title, a line wiped, a lone CSI of 8 bits, a half of a character.
HOSTILE = "a\x1b]0;title\x07b\x1b[2Kc\x9b1Ad\rE\ud800f\tg\nh"
OBEYED = "[\x00-\x08\x0b-\x1f\x7f-\x9f]"


def test_nothing_that_a_terminal_would_obey_is_printed(capsys):
    say(HOSTILE)
    say(HOSTILE, err=True)
    for text in capsys.readouterr():
        assert text == "a�]0;title�b�[2Kc�1Ad�E�f\tg\nh\n"
    say_json([HOSTILE])
    shown = capsys.readouterr().out
    assert json.loads(shown) == [HOSTILE]
    assert re.search(OBEYED, shown) is None
    file = io.StringIO()
    out = Console(file=file, force_terminal=True, width=60, color_system="standard")
    table = Table(HOSTILE)
    table.add_row(Text(HOSTILE, style="red"))
    out.print(table)
    out.print(HOSTILE)
    with Progress(out).task(HOSTILE, 1) as task:
        task.advance(note=HOSTILE)
    # rich's own colours and cursor stay.
    rest = re.sub(r"\x1b\[[0-9;]*[mK]|\x1b\[1A|\x1b\[\?25[lh]|\r", "", file.getvalue())
    assert "\x1b[31m" in file.getvalue()
    assert re.search(OBEYED, rest) is None


def test_nobody_else_prints():
    package = Path(saesteer.__file__).parent
    ways = {"print", "typer.echo", "click.echo", "sys.stdout.write", "sys.stderr.write"}
    found = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Call) and ast.unparse(node.func) in ways)
        or (isinstance(node, ast.ImportFrom) and node.module == "rich.console")
    }
    assert found == {"utils/terminal.py"}


def test_a_known_key_is_masked_in_every_text_that_is_written_or_shown(
    tmp_path, monkeypatch, capsys
):
    key, known, digits = 'quote"open-sesame-1', "sk-" + "abc1" * 8, "20261129"
    monkeypatch.setenv("SOME_API_KEY", key)
    monkeypatch.setenv("PIN_TOKEN", digits)
    said = f"use {key} or {known} or {digits}"
    append_json(tmp_path / "journal.jsonl", {"content": said})
    pages = {"a.html": said.replace('"', "&quot;"), "a.csv": said, "a.json": json.dumps(said)}
    for name, text in pages.items():
        write_atomic(tmp_path / name, text.encode())
    say(said)
    shown = [file.read_text() for file in tmp_path.iterdir()] + [capsys.readouterr().out]
    for text in shown:
        assert "sesame" not in text and known not in text and text.count("***") == 3
    # Nothing else changes, whatever its bytes are.
    plain = b"a bearer bond, sk-toggleable__content-arrow, 0.20261129, \xff\r\n"
    assert write_atomic(tmp_path / "b.csv", plain).read_bytes() == plain
    for name in (known, f"x-{digits}"):
        with pytest.raises(ValueError, match="holds a key"):
            check_no_secret(name)
    assert check_no_secret("kind-2") == "kind-2"
