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
    assert saesteer("compare", file, "--only", "kindly", "--measure-only").out == ""
    dry = saesteer("compare", file, "--dry-run").out
    done = {line.split()[0]: line.split()[-1] for line in dry.splitlines() if line.strip()}
    assert (done["kindly"], done["boldly"]) == ("yes", "no")
    swapped = saesteer("compare", file, "--dry-run", "--persona", compare_data["calmly"])
    assert any(line.startswith("calmly") for line in swapped.out.splitlines())
    assert "kindly" not in [line.split()[0] for line in swapped.out.splitlines() if line.strip()]


PAIR = ["attributed_sae", "difference_in_means"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"personas": []}, "personas: list should have at least 1 item"),
        ({"personas": ["a.jsonl", "b/a.csv"]}, "personas: a stands there twice"),
        ({"personas": [{"source": "a", "name": "x/y"}]}, "personas.0.name"),
        ({"personas": ["kindlyness"]}, "persona kindlyness: "),
        ({"methods": [PAIR[1], PAIR[1]]}, "difference_in_means stands there twice"),
        ({"methods": [PAIR[0]]}, "baseline 'difference_in_means' is not one of the"),
        ({"methods": [*PAIR, "pcaa"]}, "method 'pcaa' is unknown (did you mean 'pca'?)"),
        (
            {"methods": [PAIR[1], {"name": PAIR[0], "grid": [{"x": 1}]}]},
            "method attributed_sae: x is not a known setting",
        ),
        ({"methods": [*PAIR, "system_prompt"], "headline": "system_prompt"}, "has no strength to"),
        ({"methods": [*PAIR, "system_prompt"], "baseline": "system_prompt"}, "has no strength to"),
        ({"writing": {"methods": ["pca"]}}, "writing.methods 'pca' is not one of"),
        ({"writing": {"kl_targets": [0.2], "n_questions": 1}}, "kl_targets 0.2 is not one of"),
        ({"writing": {"kl_targets": [], "n_questions": 1}}, "writing.kl_targets is empty"),
        ({"evaluation": {"headline_kl_target": 0.2}}, "headline_kl_target 0.2 is not one of the"),
        ({"evaluation": {"kl_targets": [0.3, 0.3]}}, "are not different KL targets above 0"),
        ({"evaluation": {"multiples": [1, 1]}}, "names a multiple twice; name each once"),
        ({"evaluation": {"neutral_answers": 16}}, "none is left to train with"),
        ({"writing": {"n_questions": 4}, "objective": {"own_words": 1}}, "left for self-generated"),
        ({"side_effects": {"prose": "nowhere.jsonl"}}, "nowhere.jsonl"),
        ({"splits": {"judge": 10, "train": 400}}, "60 pairs leave 1 for validation"),
        ({"seeds": [1, 1]}, "are not different numbers from 0"),
        ({"sede": [1]}, "sede is not a known setting (did you mean 'seeds'?)"),
        ({"random": {"directions": -1}}, "random.directions"),
        ({"site": "here"}, "site 'here' is not of the form"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_one_sentence_before_anything_is_loaded(
    changes, text, refused, tiny_compare, few, write, no_loading
):
    settings = (tiny_compare if "own_words" in str(changes) else few)(**changes)
    told = refused("compare", write(settings))
    assert text in told
    assert not [place for place in Path(settings["folder"]).iterdir() if place.is_dir()]


def test_bad_input_is_one_sentence_before_anything_is_loaded(
    refused, few, write, no_loading, compare_data, tmp_path
):
    file = write(few())
    assert "nowhere.yaml cannot be read" in refused("compare", "nowhere.yaml")
    twice = ("--persona", "a/x.csv", "--persona", "b/x.csv")
    assert "x stands there twice" in refused("compare", file, *twice)
    assert "persona nowhere: " in refused("compare", file, "--persona", "nowhere.csv")
    told = refused("compare", file, "--only", "kindlyness")
    assert "--only 'kindlyness' is no persona here" in told
    for lines, text in (
        ('{"positive": "a"}', "kindly.jsonl:1"),
        ('{"positive": "a b c d", "negative": "b c d e"}', "kindly.jsonl: its 1 pairs are fewer"),
    ):
        bad = tmp_path / "kindly.jsonl"
        bad.write_text(lines)
        told = refused("compare", write(few(personas=[compare_data["boldly"], str(bad)])))
        assert told.startswith("persona kindly: ") and text in told


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
