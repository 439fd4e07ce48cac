"""Run the tutorials and write each with its output to docs/tutorials; names choose some of them.

A tutorial is a script in jupytext's percent format, which Jupyter opens as a notebook. Pages and
pictures are committed, so that a site is built without a model; a page names the script that made
it by its SHA-256, and a test says when the two have parted.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS, PAGES = ROOT / "tutorials", ROOT / "docs" / "tutorials"
MARK = re.compile(r"^# %%(?: \[(?P<kind>markdown)\])?(?: language=\"(?P<language>bash)\")?$")
# Where text that is printed ends: enough for a table, and no page of progress.
LONGEST = 6000


@dataclass
class Cell:
    """A cell: "markdown", "bash" or "python"."""

    kind: str
    source: str
    # What came of it: ("text" or "html", words), or ("image", PNG).
    outputs: list[tuple[str, Any]] = field(default_factory=list)


def cells(script: str) -> list[Cell]:
    """Return the cells of a script in percent format."""
    found: list[Cell] = []
    for line in script.splitlines():
        if mark := MARK.match(line):
            found.append(Cell(mark["kind"] or mark["language"] or "python", ""))
        elif line.startswith("# %%"):
            raise SystemExit(f"{line!r} is no cell that scripts/tutorials.py knows")
        elif found:
            found[-1].source += line + "\n"
    for cell in found:
        cell.source = cell.source.strip("\n")
        if cell.kind != "python":
            cell.source = re.sub(r"^# ?", "", cell.source, flags=re.MULTILINE)
    return found


def run(script: str, folder: Path) -> list[Cell]:
    """Run a script's cells in a folder, in one process, and return them with their outputs."""
    import matplotlib

    matplotlib.use("Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    found = cells(script)
    with contextlib.chdir(folder):
        for cell in found:
            if cell.kind == "python":
                cell.outputs = list(_python(cell.source, names))
            elif cell.kind == "bash":
                cell.outputs = [("text", _bash(cell.source))]
    return found


def _python(source: str, names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    from matplotlib import pyplot

    tree, printed = ast.parse(source), io.StringIO()
    shown: Any = None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    if printed.getvalue().strip():
        yield "text", printed.getvalue()
    if type(shown).__module__.startswith("matplotlib"):
        # The picture says it all.
        shown = None
    if hasattr(shown, "to_html"):
        # Cells are escaped: a model's words never become markup.
        table = shown.to_html(border=0, float_format="{:.3g}".format)
        # The site's own styles are for tables without a class.
        yield "html", re.sub(r' class="dataframe"| style="text-align: right;"', "", table)
    elif shown is not None:
        yield "text", str(shown)
    for number in pyplot.get_fignums():
        picture = io.BytesIO()
        pyplot.figure(number).savefig(picture, format="png", dpi=100, bbox_inches="tight")
        yield "image", picture.getvalue()
    pyplot.close("all")


def _bash(source: str) -> str:
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", source],
        env={**os.environ, "PATH": beside, "COLUMNS": "100", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{source}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def digest(script: str) -> str:
    """Return what a page says of the script that made it."""
    return hashlib.sha256(script.encode()).hexdigest()


def page(name: str, script: str, ran: list[Cell], images: Path) -> str:
    """Return a tutorial's page, and write its pictures."""
    parts = [
        f"<!-- Made by scripts/tutorials.py; tutorials/{name}.py has SHA-256 {digest(script)} -->"
    ]
    number = 0
    for cell in ran:
        if cell.kind == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```{cell.kind}\n{cell.source}\n```")
        for kind, output in cell.outputs:
            if kind == "image":
                number += 1
                file = images / f"{name}-{number}.png"
                file.write_bytes(output)
                parts.append(f"![Figure {number} of this tutorial]({images.name}/{file.name})")
            elif kind == "html":
                parts.append(output)
            elif output.strip():
                lines = "\n".join(line.rstrip() for line in output[:LONGEST].splitlines())
                parts.append("```text\n" + lines.strip("\n").replace("```", "'''") + "\n```")
    return "\n\n".join(parts) + "\n"


def main(wanted: list[str]) -> None:
    """Run the named tutorials, or all, and write their pages."""
    images = PAGES / "images"
    images.mkdir(parents=True, exist_ok=True)
    for path in sorted(SCRIPTS.glob("*.py")):
        if wanted and path.stem not in wanted:
            continue
        script, start, used = (
            path.read_text(encoding="utf-8"),
            time.monotonic(),
            sum(os.times()[:4]),
        )
        with tempfile.TemporaryDirectory() as folder:
            ran = run(script, Path(folder))
        for old in images.glob(f"{path.stem}-*.png"):
            old.unlink()
        text = page(path.stem, script, ran, images)
        (PAGES / f"{path.stem}.md").write_text(text, encoding="utf-8")
        wall, processor = time.monotonic() - start, sum(os.times()[:4]) - used
        print(f"{path.stem}: {wall:.0f} s, of which {processor:.0f} s on a processor", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
