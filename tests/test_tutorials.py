"""The tutorials run, say what they are made of, and stand on the site as they ran."""

from __future__ import annotations

import ast
import glob
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable
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


# Fewer of everything, for the test: `make tutorials` runs all of it, and the page shows what came.
FEWER = {
    "ioi": {
        '("ioi-eight")[:4]': '("ioi-eight")[:1]',
        "range(1, 30, 2)": "(9, 19)",
        "range(14, 30)": "(22, 23)",
        "pairs.ioi.n=8": "pairs.ioi.n=4",
        "circuit.faithfulness=0.6": "circuit.faithfulness=0.3",
    },
    "layers": {
        "tasks.max_questions=10": "tasks.max_questions=2",
        "tasks.max_questions=6": "tasks.max_questions=2",
        "--budget 5": "--budget 2 --set search.rungs=[1,2]",
    },
    "patching": {"(source)": "(source)[:2]", "range(0, 30, 6)": "(6, 18)"},
    "persona": {
        "max_pairs=120": "max_pairs=32",
        "max_new_tokens=40": "max_new_tokens=8",
        "range(2)": "range(1)",
        "[-0.4, -0.2, 0, 0.2, 0.4]": "[-0.2, 0.2]",
        "(vector, means, chance[0])": "(vector, chance[0])",
        "[vector, means, *chance]": "[vector, means]",
    },
    "probes": {
        "data.max_texts=800": "data.max_texts=120",
        "[0, 3, 6, 9, 11, 12, 13, 14, 15, 18, 21, 24, 27]": "[11, 12, 13, 14]",
        "max_new_tokens=20": "max_new_tokens=4",
        "--max-new-tokens 16": "--max-new-tokens 2",
        "--random 2": "--random 1",
    },
}


@pytest.fixture
def ran(run_cli, tmp_path, monkeypatch) -> Callable[[str], list[Any]]:
    """Return a function that runs a tutorial with fewer of everything, commands in this process."""

    def command(source: str) -> str:
        # What stands behind a pipe only shortens what is shown.
        words = shlex.split(source.replace("\\\n", " ").partition("|")[0])
        assert words[0] == "saesteer"
        answer = run_cli(*(found for word in words[1:] for found in glob.glob(word) or [word]))
        assert answer.code == 0, answer.err
        return answer.out

    monkeypatch.setattr(tutorials, "_bash", command)
    monkeypatch.delenv("SAESTEER_RUNS")
    monkeypatch.delenv("PROMPT_PAIRS", raising=False)

    def run(name: str) -> list[Any]:
        script = text(ROOT / "tutorials" / f"{name}.py")
        for many, few in FEWER[name].items():
            assert many in script, f"{many} is not in tutorials/{name}.py any more"
            script = script.replace(many, few)
        return tutorials.run(script, tmp_path)

    return run


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("one_smollm2")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs_and_draws(path, ran) -> None:
    assert any(kind == "image" for cell in ran(path.stem) for kind, _ in cell.outputs)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("one_smollm2")
def test_patching_runs_on_a_file_of_the_readers_own(shared_data, ran, monkeypatch) -> None:
    monkeypatch.setenv("PROMPT_PAIRS", str(shared_data / "temporal" / "clean_corrupted_pairs.json"))
    assert "Prime Minister" in str([cell.outputs for cell in ran("patching")])
