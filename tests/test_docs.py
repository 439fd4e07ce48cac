"""What README and docs name is there, and their Python runs."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    ROOT / "benchmarks/README.md",
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PLACES = re.compile(
    r"(?:configs|datasets|docs|scripts|benchmarks|tests|saesteer|constraints)/[\w./-]*\w"
)


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str) -> list[str]:
    """Every `saesteer ...` of a page: a line of a block, or words between backticks."""
    whole = text(page).replace("\\\n", " ")
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", whole, flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    lines += [line.strip() for line in re.findall(r"^ {4}(saesteer .*)$", whole, re.MULTILINE)]
    lines += re.findall(r"`(saesteer [^`]*)`", " ".join(whole.split()))
    return [line for line in lines if line.startswith("saesteer ")]


def test_every_command_has_its_options() -> None:
    from saesteer.cli.experiment import DefaultGroup
    from saesteer.cli.main import app

    wrong = []
    for page, line in [(name, line) for name in NAMES for line in commands(name)]:
        words = shlex.split(line, comments=True)[1:]
        command: Any = get_command(app)
        while groups := getattr(command, "commands", {}):
            if words and words[0] in groups:
                command = groups[words.pop(0)]
            elif isinstance(command, DefaultGroup) and words:
                command = next(iter(groups.values()))
            else:
                break
        if groups:
            # "..." and names in capitals stand for any command.
            if words and re.fullmatch(r"[a-z-]+", words[0]):
                wrong.append(f"{page}: {line}: no command {words[0]!r}")
            continue
        known = {option for given in command.params for option in given.opts} | {"--help"}
        for word in words:
            option = word.split("=")[0]
            if re.match(r"--?[a-z]", option) and option not in known:
                wrong.append(f"{page}: {line}: no option {option}")
    assert not wrong, "\n".join(wrong)


def snippets(page: str) -> list[str]:
    whole = text(page)
    fenced = re.findall(r"```python\n(.*?)```", whole, flags=re.DOTALL)
    indented = re.findall(r"(?:^ {4}.*\n)+", whole, flags=re.MULTILINE)
    code = [re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in indented]
    return fenced + [c for c in code if re.match(r"(from|import) |\w+ = ss\.", c)]


def test_every_snippet_is_python_whose_names_exist() -> None:
    import saesteer as ss

    missing = []
    for page, code in [(name, code) for name in NAMES for code in snippets(name)]:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = import_module(str(node.module))
                names = [name.name for name in node.names if not hasattr(module, name.name)]
                missing += [f"{page}: {node.module} has no {name}" for name in names]
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ss":
                missing += [f"{page}: no ss.{node.attr}"] * (not hasattr(ss, node.attr))
    for page in NAMES:
        named = re.findall(r"`ss\.(\w+)", text(page))
        missing += [f"{page}: no ss.{name}" for name in named if not hasattr(ss, name)]
        for name in re.findall(r"`(saesteer(?:\.\w+)+)`", text(page)):
            module, _, attribute = name.rpartition(".")
            try:
                import_module(name)
            except ModuleNotFoundError:
                there = hasattr(import_module(module), attribute)
                missing += [f"{page}: there is no {name}"] * (not there)
    assert not missing, "\n".join(missing)


def test_every_file_and_link_is_there() -> None:
    missing = []
    for page in [*NAMES, "CHANGELOG.md", "Makefile"]:
        whole, folder = text(page), (ROOT / page).parent
        links = re.findall(r"\]\((?!https?:)([^)#]+)", whole)
        places = [folder / link for link in links] + [ROOT / p for p in PLACES.findall(whole)]
        missing += [f"{page} names {place}" for place in places if not place.exists()]
    assert not missing, "\n".join(missing)


def to_run(page: Path) -> str:
    """The Python of a page, but for blocks marked as not executed, with a reason."""
    block = re.compile(r"(<!-- not executed: .+ -->\n)?```python\n(.*?)```", re.DOTALL)
    whole = page.read_text(encoding="utf-8")
    return "\n".join(code for marked, code in block.findall(whole) if not marked)


RUN = [page for page in sorted((ROOT / "docs").glob("*.md")) if to_run(page)]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("one_smollm2")
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page, smollm2, monkeypatch, tmp_path) -> None:
    import saesteer as ss
    from saesteer.patching.pairs import load_prompt_pairs

    # A few pairs in place of all.
    pairs = ss.load_pairs("agreeableness", max_pairs=40)
    for place in ("saesteer.patching", "saesteer.patching.patcher"):
        monkeypatch.setattr(
            f"{place}.load_prompt_pairs", lambda given: load_prompt_pairs(given)[:2]
        )
    monkeypatch.chdir(tmp_path)
    table = pairs.table[["positive", "negative"]]
    table.to_csv("my_pairs.csv", index=False)
    table.set_axis(["kind", "unkind"], axis=1).to_csv("my_columns.csv", index=False)
    names = {
        "ss": ss,
        "model": smollm2,
        "train": replace(pairs, pairs=pairs.pairs[:12]),
        "texts": [*pairs.positives, *pairs.negatives],
        "labels": ["kind"] * len(pairs) + ["unkind"] * len(pairs),
    }
    exec(compile(to_run(page), f"<{page.name}>", "exec"), names)
