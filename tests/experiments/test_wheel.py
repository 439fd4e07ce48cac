"""The wheel, without the checkout: bundled configurations and data are found by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that holds the package as its wheel installs it, and nothing else."""
    pytest.importorskip("hatchling")
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    steps = (
        ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", place, ROOT],
        ["install", "--no-deps", "--no-index", "--no-compile", "--target", place / "site"],
    )
    for step in steps:
        wheels = list(place.glob("*.whl")) if step[0] == "install" else []
        subprocess.run([*pip, *map(str, [*step, *wheels])], check=True)
    return place / "site"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_what_it_reads_alone(installed):
    own = installed / "saesteer"
    names = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    # pip writes the command beside it.
    assert names <= {"saesteer", "bin", "Scripts"}
    inside = [file.relative_to(own) for file in own.rglob("*") if file.is_file()]
    read = {"_configs", "_datasets", "assets", "app", "report"}
    others = {str(file) for file in inside if file.suffix != ".py" and file.parts[0] not in read}
    assert others == {"__init__.pyi", "agent/default.yaml", "corruption/rule_words.json"}
    assert sum(file.stat().st_size for file in own.rglob("*") if file.is_file()) < 62_000_000


@pytest.mark.slow
def test_the_wheel_does_the_main_job_in_an_empty_folder(
    installed, tiny_model_folder, mirror_sae, tmp_path
):
    model = shutil.copytree(tiny_model_folder("llama"), tmp_path / "model")
    # The bundled texts are longer than the tiny model's context, which rotary positions may pass.
    shape = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(shape | {"max_position_embeddings": 1024}))
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}

    def python(*words: str) -> str:
        command = [sys.executable, *words]
        how: Any = {"cwd": empty, "env": environment, "capture_output": True, "text": True}
        found = subprocess.run(command, check=False, **how)
        assert found.returncode == 0, found.stderr
        return found.stdout

    def saesteer(*words: str) -> str:
        return python("-m", "saesteer.cli.main", *words)

    listed = saesteer("configs")
    assert "agreeableness" in listed and "depth" in listed
    small = ["pairs.max_pairs=40", "completions.n_questions=1"]
    small += ["method.settings={selection: {max_firing: 1.0}}"]
    small += ["evaluation.random_directions=2", "evaluation.neutral_answers=2"]
    given = ["--model", str(model), "--sae", str(mirror_sae()), "model.dtype=float32"]
    metrics = json.loads(saesteer("steer", "agreeableness", "--json", *given, *small))
    assert metrics["vector"]["plus"]["reached"]
    (folder,) = (empty / "runs").glob("agreeableness-*")
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert {path.name for path in empty.iterdir()} == {"runs"}
    where = python("-c", "import saesteer; print(saesteer.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
