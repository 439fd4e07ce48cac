"""What every error promises: one sentence, from one tree."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import saesteer
from saesteer.utils import errors

PACKAGE = Path(saesteer.__file__).parent
TREE = [c for _, c in inspect.getmembers(errors, inspect.isclass)]


def test_one_except_clause_catches_every_error_of_ours_and_no_other():
    for kind in TREE:
        assert issubclass(kind, errors.SaesteerError) and kind.__doc__
    assert not issubclass(errors.SaesteerError, ValueError | RuntimeError | OSError)


def _raised(path: Path):
    names = {kind.__name__ for kind in TREE}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            call = node.exc
            name = getattr(call.func, "id", getattr(call.func, "attr", ""))
            if name in names:
                yield node.lineno, call.args


def _literal(message: ast.expr) -> str | None:
    """Return the message with {} for what is filled in, or None if it is made elsewhere."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(str(getattr(part, "value", "{}")) for part in _parts(message))
    return None


def _parts(message: ast.JoinedStr):
    for part in message.values:
        yield part if isinstance(part, ast.Constant) else ast.Constant("{}")


def test_every_message_is_one_sentence_on_one_line():
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, arguments in _raised(path):
            assert arguments, f"{path}:{line} raises without a message"
            text = _literal(arguments[0])
            if text is not None:
                place = f"{path}:{line}: {text!r}"
                assert text == text.strip(), place
                assert "\n" not in text, place
                assert len(text) > 20 or "{}" in text, place
                assert not re.search(r"[a-z{}]\. [A-Z]", text), place
