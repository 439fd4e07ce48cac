"""`saesteer sweep` and `saesteer worker`, and `saesteer run` as a trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saesteer.experiments import context, steering

CONFIGS = Path(__file__).parents[2] / "configs" / "sweeps"


def fields(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("sweeps/*/sweep.json")
    return json.loads(file.read_text(encoding="utf-8"))


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    saesteer, sweep_file, tmp_path, no_loading
):
    answer = saesteer("sweep", sweep_file(), "--dry-run")
    assert answer.code == 0, answer
    for text in ("6 trials of saesteer run", "selection.criterion", "8, 12, 16", "Nothing was"):
        assert text in answer.out + answer.err, text
    assert not (tmp_path / "runs").exists()


def test_a_sweep_loads_and_reads_once_and_ends_with_its_table_and_the_best_settings(
    saesteer, sweep_file, tmp_path, monkeypatch
):
    calls: list[str] = []
    for module, name in ((context, "load_model"), (steering, "read_pair_activations")):
        real = getattr(module, name)

        def counted(*rest: Any, real: Any = real, name: str = name, **more: Any) -> Any:
            calls.append(name)
            return real(*rest, **more)

        monkeypatch.setattr(module, name, counted)
    answer = saesteer("sweep", sweep_file(parameters={"selection.n_features": {"values": [8, 16]}}))
    assert answer.code == 0, answer
    # Training and validation pairs.
    assert sorted(calls) == ["load_model", "read_pair_activations", "read_pair_activations"]
    record = fields(tmp_path / "runs")
    assert record["states"] == {"done": 2}
    best = record["trials"][record["best"]]
    assert f"{best['value']:.4f}" in answer.out + answer.err
    # The best settings run unchanged: the same folder, which is finished.
    (file,) = (tmp_path / "runs").glob("sweeps/*/best.yaml")
    again = saesteer("run", file, "--json")
    assert again.code == 0, again
    assert json.loads(again.out)["vector"]["effect"]["effect"] == best["value"]
    runs = [f for f in (tmp_path / "runs").iterdir() if f.name.startswith("tiny-")]
    assert len(runs) == 2
    # Said again without running anything.
    assert saesteer("sweep", file.parents[3] / "tiny-sweep.yaml").code == 0
    assert len(calls) == 3


def test_a_worker_joins_by_folder_or_url(saesteer, sweep_file, made_up, tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'x.db'}"
    # Nobody is at work yet: the queue is filled by a sweep that is stopped at once.
    monkeypatch.setattr("saesteer.cli.sweep._work_here", lambda *rest: None)
    for place in ([], ["--storage", url]):
        assert saesteer("sweep", sweep_file(), *place).code == 0
    (study,) = (tmp_path / "runs" / "sweeps").iterdir()
    for where in (study, url):
        answer = saesteer("worker", "--study", where, "--trials", 2)
        assert answer.code == 0, answer
        assert "2 trials done, 0 failed" in answer.out + answer.err
    assert len(made_up) == 4


def test_run_takes_an_agents_words_and_its_file(
    saesteer, base_file, tmp_path, monkeypatch, no_loading
):
    file = tmp_path / "config.yaml"
    file.write_text("selection.n_features: {value: 9}\nregression: {value: {method: ridge}}\n")
    words = ["selection={'n_features': 8, 'criterion': 'auroc'}", "--dry-run"]
    assert "8 by auroc" in saesteer("run", base_file, *words).out
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(file))
    told = saesteer("run", base_file, *words, "--set", "selection.n_features=7").out
    assert "9 by auroc" in told
    assert "ridge weights" in told


@pytest.mark.parametrize(
    ("name", "trials"), [("features", 12), ("layers", 3), ("personas", 30), ("front", 12)]
)
def test_the_shipped_sweeps_are_valid(name, trials, bundled_gguf, tmp_path, monkeypatch):
    from saesteer.sweeps.sweep_file import read_sweep

    monkeypatch.chdir(CONFIGS.parents[1])
    sweep = read_sweep(CONFIGS / f"{name}.yaml", overrides=[f"folder={tmp_path}"])
    found = sweep.trials()
    assert len(found) == trials
    sweep.check(found[-1:])
