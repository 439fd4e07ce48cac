"""The tutorials run, say what they are made of, and stand on the site as they ran."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "tutorials").glob("*.py"))
PAGES = ROOT / "docs" / "tutorials"
MEGABYTE = 1_000_000


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tutorials = script("tutorials")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_there_are_five_with_a_page_each() -> None:
    assert len(SCRIPTS) == 5
    assert [path.stem for path in SCRIPTS] == [path.stem for path in sorted(PAGES.glob("*.md"))]
    settings = text(ROOT / "docs" / "zensical.toml")
    for path in SCRIPTS:
        assert f'"tutorials/{path.stem}.md"' in settings, "it stands in no menu"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_page_is_of_the_script_as_it_stands(path) -> None:
    page = text(PAGES / f"{path.stem}.md")
    assert tutorials.digest(text(path)) in page.splitlines()[0], (
        f"run scripts/tutorials.py {path.stem}"
    )
    pictures = re.findall(r"\]\((images/.+?)\)", page)
    assert pictures and all((PAGES / picture).is_file() for picture in pictures)


def test_the_pages_are_small() -> None:
    assert sum(path.stat().st_size for path in PAGES.rglob("*") if path.is_file()) < MEGABYTE


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_takes_public_names_alone_and_ends_in_something_to_change(path) -> None:
    made = tutorials.cells(text(path))
    assert made[0].kind == "markdown" and made[0].source.startswith("# ")
    assert "## Something to change" in made[-1].source
    for cell in made:
        for node in ast.walk(ast.parse(cell.source if cell.kind == "python" else "")):
            if isinstance(node, ast.ImportFrom):
                assert str(node.module).split(".")[0] != "saesteer", ast.unparse(node)


def test_cells_are_read_as_jupytext_writes_them() -> None:
    made = tutorials.cells(
        "# ---\n# jupyter: {}\n# ---\n\n# %% [markdown]\n# # Title\n#\n# Words\n\n# %%\nx = 1\n\n\n"
        '# %% language="bash"\n# ls \\\n#     -l\n'
    )
    assert [(cell.kind, cell.source) for cell in made] == [
        ("markdown", "# Title\n\nWords"),
        ("python", "x = 1"),
        ("bash", "ls \\\n    -l"),
    ]


def test_what_a_cell_shows_is_caught_and_markup_stays_text(tmp_path) -> None:
    (cell,) = tutorials.run(
        "# %%\nimport pandas as pd\nprint('said')\npd.DataFrame({'a': ['<b>&']})\n", tmp_path
    )
    assert cell.outputs[0] == ("text", "said\n")
    kind, table = cell.outputs[1]
    assert kind == "html" and "&lt;b&gt;&amp;" in table
    (cell,) = tutorials.run("# %%\nimport matplotlib.pyplot as plt\nplt.title('T')\n", tmp_path)
    assert [kind for kind, _ in cell.outputs] == ["image"]
    (cell,) = tutorials.run('# %% language="bash"\n# pwd\n', tmp_path)
    assert cell.outputs == [("text", f"{tmp_path}\n")]
    with pytest.raises(RuntimeError, match="ended with 3"):
        tutorials.run('# %% language="bash"\n# exit 3\n', tmp_path)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("bundled_gguf")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs_and_draws(path, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("SAESTEER_RUNS", raising=False)
    monkeypatch.delenv("PROMPT_PAIRS", raising=False)
    made = tutorials.run(text(path), tmp_path)
    assert any(kind == "image" for cell in made for kind, _ in cell.outputs)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("bundled_gguf")
def test_patching_runs_on_a_file_of_the_readers_own(shared_data, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PROMPT_PAIRS", str(shared_data / "temporal" / "clean_corrupted_pairs.json"))
    made = tutorials.run(text(ROOT / "tutorials" / "patching.py"), tmp_path)
    assert "Prime Minister" in str([cell.outputs for cell in made])
