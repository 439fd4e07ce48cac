"""Assemble the site's pages and build them: scripts/build_docs.py [FOLDER]

Most pages are files of docs/. Made here are those whose words stand elsewhere: the commands from
their own help, the reference from docstrings, and pages of the README's and other folders' files.
Nothing is fetched; a warning, such as a link that leads nowhere, is an error.
"""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import saesteer

ROOT = Path(__file__).resolve().parents[1]
# Files outside docs/ that are pages of the site.
ELSEWHERE = {
    "benchmarks/README.md": "benchmarks.md",
    "datasets/README.md": "datasets.md",
    "CHANGELOG.md": "changelog.md",
}
# The README's sections that hold figures.
FIGURES = ("Does it steer?", "Where does it live?", "Measured", "Tested releases")
# Columns of the commands' help, which a page shows without scrolling.
WIDTH = 84


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield every command that can be called, with the words that call it."""
    if commands := getattr(command, "commands", None):
        for word, inner in commands.items():
            yield from leaves(inner, f"{name} {word}")
    else:
        yield name, command


def commands_page() -> str:
    """Return a page of every command's own help."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from saesteer.cli.main import app

    runner = CliRunner(env={"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"})
    parts = ["# Commands", "What `--help` prints, for every command."]
    for name, _ in leaves(get_command(app), "saesteer"):
        asked = runner.invoke(app, [*name.split()[1:], "--help"], prog_name="saesteer")
        if asked.exit_code:
            raise SystemExit(f"{name} --help failed: {asked.output}")
        lines = "\n".join(line.rstrip() for line in asked.output.strip("\n").splitlines())
        parts.append(f"## {name}\n\n```text\n{lines}\n```")
    return "\n\n".join(parts) + "\n"


def public_names() -> dict[str, list[str]]:
    """Return the public names of each room, in the order of `__init__.pyi`."""
    stub = ast.parse((ROOT / "saesteer" / "__init__.pyi").read_text(encoding="utf-8"))
    found = defaultdict(list)
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            found[str(node.module).split(".")[1]] += [str(alias.asname) for alias in node.names]
    return dict(found)


def reference_page(room: str, names: list[str]) -> str:
    """Return the page of a room's public names, filled from their docstrings."""
    about = importlib.import_module(f"saesteer.{room}").__doc__ or ""
    parts = [f"# {room.capitalize()}", about.strip()]
    if room == "methods":
        parts.append(methods_table())
    for name in names:
        thing = getattr(saesteer, name)
        if thing.__name__ == name:
            parts.append(f"::: saesteer.{name}")
        else:  # Its docstring stands under the name that it has at home.
            parts.append(f"## {name} {{ #saesteer.{name} }}")
            parts.append(
                f"::: {thing.__module__}.{thing.__name__}\n    options: {{heading_level: 3}}"
            )
    return "\n\n".join(parts) + "\n"


def methods_table() -> str:
    """Return a table of the methods that settings files know, with their classes."""
    from saesteer.methods.registry import METHODS

    rows = ["| `method=` | class | what it is |", "| --- | --- | --- |"]
    for name, entry in METHODS.items():
        made = entry.make.__name__
        known = f"[`{made}`](#saesteer.{made})"
        rows.append(f"| `{name}` | {known} | {entry.label} |")
    return "\n".join(rows)


def figures_page() -> str:
    """Return the README's sections that hold figures, as a page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n?)*)", readme, re.MULTILINE))
    lost = [name for name in FIGURES if name not in sections]
    if lost:
        raise SystemExit(
            f"README.md has no section {lost[0]!r}; change FIGURES in {Path(__file__).name}"
        )
    parts = ["# Figures, and how they were measured"]
    parts.append(
        "Every figure stands beside the command that repeats it. Those of single parts stand on"
        " their pages: [the bundled SAE](docs/sae.md), [probes](docs/probes.md#figures),"
        " [layer programs](docs/corruption.md#smollm2-what-holds-of-what-was-seen-on-gpt-2-small),"
        " [the parts of the method](docs/method.md), [benchmarks](benchmarks/README.md)."
    )
    parts += [f"## {name}\n{sections[name].strip()}" for name in FIGURES]
    return moved("\n\n".join(parts) + "\n", ROOT / "README.md")


def moved(text: str, path: Path) -> str:
    """Return a file's text with its links as they are in the assembled folder."""

    def link(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        file = (path.parent / target).resolve()
        if not target or not file.is_relative_to(ROOT):
            return match[0]
        inside = file.relative_to(ROOT).as_posix()
        if inside == "README.md":
            return "](figures.md)"
        return f"]({ELSEWHERE.get(inside, inside.removeprefix('docs/'))}{anchor})"

    return re.sub(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", link, text)


def assemble(folder: Path) -> None:
    """Write every page of the site to a folder, and the settings beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "pages"
    shutil.copytree(ROOT / "docs", pages, ignore=shutil.ignore_patterns("*.toml"))
    for page in (ROOT / "docs").glob("*.md"):
        text = moved(page.read_text(encoding="utf-8"), page)
        (pages / page.name).write_text(text, encoding="utf-8")
    for source, name in ELSEWHERE.items():
        text = moved((ROOT / source).read_text(encoding="utf-8"), ROOT / source)
        (pages / name).write_text(text, encoding="utf-8")
    (pages / "figures.md").write_text(figures_page(), encoding="utf-8")
    (pages / "commands.md").write_text(commands_page(), encoding="utf-8")
    (pages / "reference").mkdir()
    for room, names in public_names().items():
        text = reference_page(room, names)
        (pages / "reference" / f"{room}.md").write_text(text, encoding="utf-8")
    settings = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    settings = settings.replace('"ROOT', f'"{ROOT}')
    (folder / "zensical.toml").write_text(settings, encoding="utf-8")


def main(site: Path) -> None:
    """Build the site into a folder."""
    work = ROOT / "build" / "docs"
    assemble(work)
    called = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(
        [*called, "-f", str(work / "zensical.toml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # Of docstrings that do not fit their function only griffe speaks, and fails nothing.
    wrong = [line for line in done.stdout.splitlines() if line.startswith("griffe: ")]
    if done.returncode or wrong:
        raise SystemExit(re.sub(r"\x1b\[[0-9;]*m", "", done.stdout))
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(work / "site", site)
    print(f"The site is in {site}; open {site / 'index.html'}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site")
