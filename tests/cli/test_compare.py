"""`saesteer compare`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.experiments import conftest as fixtures

compare_data, embeds = fixtures.compare_data, fixtures.embeds
tiny_compare, few = fixtures.tiny_compare, fixtures.few


@pytest.fixture
def write(tmp_path) -> Callable[[dict[str, Any]], Path]:
    """Return a function that writes settings to a file; JSON is YAML."""

    def to_file(settings: dict[str, Any]) -> Path:
        file = tmp_path / "compare.yaml"
        file.write_text(json.dumps(settings), encoding="utf-8")
        return file

    return to_file


def long_lines(text: str) -> list[str]:
    """Lines over 100 columns, without those that hold a path to copy."""
    return [line for line in text.splitlines() if len(line) > 100 and "/" not in line]


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    saesteer, tiny_compare, write, no_loading
):
    settings = tiny_compare()
    answer = saesteer("compare", write(settings), "--dry-run", "--set", "random.directions=7")
    assert (answer.code, answer.err) == (0, "")
    for name in ("kindly", "boldly"):
        row = next(line.split() for line in answer.out.splitlines() if line.startswith(name))
        assert row == [name, "16", "6", "8", "no"]
    assert "attributed_sae, clustered_sae, difference_in_means" in answer.out.replace("\n", " ")
    assert "null of 7 directions and 1 feature sets" in answer.out.replace("\n", " ")
    assert f"{settings['folder']}/tiny-" in answer.out.replace("\n", "")
    assert list(Path(settings["folder"]).iterdir()) == []
    assert long_lines(answer.out) == []


def test_a_comparison_prints_the_table_and_where_everything_is(
    saesteer, few, write, compare_data, monkeypatch
):
    settings = few()
    file = write(settings)
    answer = saesteer("compare", file, "--only", "kindly")
    assert answer.code == 0
    assert long_lines(answer.out) == []
    assert "nan" not in answer.out.lower().split()
    for text in ("difference in means", "Report:", "Numbers:", "--persona my_pairs.csv"):
        assert text in answer.out, text
    for text in ("Loading model", "Loading SAE", "Summing up"):
        assert text in answer.err, text
    (metrics,) = Path(settings["folder"]).glob("tiny-*/metrics.json")
    stored = json.loads(metrics.read_text(encoding="utf-8"))
    assert [row["name"] for row in stored["personas"]] == ["kindly"]
    effect = next(r["effect"] for r in stored["summary"] if r["method"] == "attributed_sae")
    assert f"{abs(effect):.3f}" in answer.out

    # Again: the same words, without the model. And what was measured counts as measured.
    from saesteer.experiments import context, steering

    def refuse(*args: object, **kwargs: object):
        raise AssertionError("nothing may be loaded")

    monkeypatch.setattr(context, "load_model", refuse)
    monkeypatch.setattr(steering, "load_sae", refuse)
    again = saesteer("compare", file, "--only", "kindly")
    assert (again.code, again.out, again.err) == (0, answer.out, "")
    part = saesteer("part", "compare", metrics.parent, "--name", "kindly")
    assert (part.code, part.out, part.err) == (0, "", "")
    dry = saesteer("compare", file, "--dry-run").out
    done = {line.split()[0]: line.split()[-1] for line in dry.splitlines() if line.strip()}
    assert (done["kindly"], done["boldly"]) == ("yes", "no")
    swapped = saesteer("compare", file, "--dry-run", "--persona", compare_data["calmly"])
    assert any(line.startswith("calmly") for line in swapped.out.splitlines())
    assert "kindly" not in [line.split()[0] for line in swapped.out.splitlines() if line.strip()]


def test_a_comparison_names_features_by_imported_labels_and_embeds_their_pages(
    saesteer, few, write, labelled, tmp_path
):
    settings = {**few(), "sae": str(labelled), "folder": str(tmp_path / "runs")}
    answer = saesteer("compare", write(settings), "--only", "kindly")
    assert answer.code == 0, answer
    (metrics,) = (tmp_path / "runs").glob("tiny-*/metrics.json")
    row = json.loads(metrics.read_text())["features"]["kindly"][0]
    assert row["description"] == f"[label] {row['feature']}"
    assert row["url"] == f"https://www.neuronpedia.org/gpt2-small/6-res-jb/{row['feature']}"
    page = (metrics.parent / "report.html").read_text()
    assert f'data-embed="{row["url"]}?embed=true"' in page and row["description"] in page


def test_what_is_shared_out_goes_to_the_launcher_that_was_named(
    saesteer, few, write, no_loading, monkeypatch
):
    from saesteer.experiments import launch
    from saesteer.utils.errors import SaesteerError

    asked: list[Any] = []

    def refuse(experiment: Any, launcher: str, workers: int | None, **how: Any) -> None:
        asked.append((list(experiment.parts()), launcher, workers, how))
        raise SaesteerError("2 of 2 tasks failed; correct that.")

    monkeypatch.setattr(launch, "make_elsewhere", refuse)
    file = write(few())
    slurm = ("--launcher", "slurm", "--slurm", "partition=gpu", "--threads", 3)
    for words in (("--workers", 2), slurm):
        answer = saesteer("compare", file, *words)
        assert (answer.code, "2 of 2 tasks failed" in answer.err) == (2, True)
    names = ["kindly", "boldly"]
    assert asked == [
        (names, "local", 2, {"threads": None, "options": {}}),
        (names, "slurm", None, {"threads": 3, "options": {"partition": "gpu"}}),
    ]
