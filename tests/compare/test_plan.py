"""What a comparison says before anything is loaded, and where its results go."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.plan import only, plan_compare
from saesteer.utils.errors import ConfigError, DataError, SaesteerError


def planned(settings: dict[str, Any]):
    return plan_compare(CompareConfig(**settings))


def folders(settings: dict[str, Any]) -> dict[str, str]:
    return {persona.name: persona.folder.name for persona in planned(settings).personas}


def told(settings: dict[str, Any], kind: type[SaesteerError] = DataError) -> str:
    with pytest.raises(kind) as error:
        planned(settings)
    assert "\n" not in str(error.value)
    assert not list(Path(settings["folder"]).iterdir())
    return str(error.value)


def test_planning_reads_everything_and_writes_nothing(tiny_compare, no_loading, compare_data):
    settings = tiny_compare(writing={"n_questions": 2}, objective={"own_words": 0.5})
    plan = planned(settings)
    assert [persona.name for persona in plan.personas] == ["kindly", "boldly"]
    assert [p.pairs.name for p in plan.personas] == ["kindly", "boldly"]
    assert not any(persona.own or persona.done for persona in plan.personas)
    assert (len(plan.answers), len(plan.training_answers)) == (6, 8)
    assert not set(plan.answers) & set(plan.training_answers)
    assert plan.questions == ("Why?", "Who are you?")
    assert plan.training_questions == ("What now?", "How so?")
    assert len(plan.prose) == 4
    assert not list(Path(settings["folder"]).iterdir())


def test_bundled_personas_are_our_own(tiny_compare):
    plan = planned(tiny_compare(personas=["optimism"]))
    assert [persona.own for persona in plan.personas] == [True]


def test_a_persona_keeps_its_folder_whoever_else_is_compared(tiny_compare, compare_data):
    both = folders(tiny_compare())
    alone = tiny_compare(personas=[compare_data["boldly"]])
    three = tiny_compare(personas=[compare_data[n] for n in ("calmly", "boldly", "kindly")])
    assert folders(alone)["boldly"] == both["boldly"]
    assert {name: folders(three)[name] for name in both} == both
    names = [planned(s).folder.name for s in (tiny_compare(), alone, three)]
    assert len(set(names)) == 3


def test_a_changed_setting_or_pair_gives_another_folder(tiny_compare, compare_data, tmp_path):
    before = folders(tiny_compare())
    changed = folders(tiny_compare(evaluation={"kl_targets": [0.01, 0.05]}))
    assert not set(before.values()) & set(changed.values())
    lines = Path(compare_data["kindly"]).read_text(encoding="utf-8").splitlines()
    other = tmp_path / "kindly.jsonl"
    other.write_text("\n".join(lines[1:]), encoding="utf-8")
    again = folders(tiny_compare(personas=[str(other), compare_data["boldly"]]))
    assert again["boldly"] == before["boldly"]
    assert again["kindly"] != before["kindly"]


def test_other_weights_under_the_same_path_are_another_comparison(tiny_compare, mirror_sae):
    sae = mirror_sae()
    settings = tiny_compare(sae=str(sae))
    before = folders(settings)
    record = json.loads((sae / "cfg.json").read_text(encoding="utf-8"))
    (sae / "cfg.json").write_text(json.dumps({**record, "apply_b_dec_to_input": False}))
    assert not set(folders(settings).values()) & set(before.values())


def test_a_part_of_a_comparison_does_not_pass_for_the_whole(tiny_compare):
    plan = planned(tiny_compare())
    part = only(plan, ["boldly", "boldly"])
    assert [persona.name for persona in part.personas] == ["boldly"]
    assert part.personas[0].folder == plan.personas[1].folder
    assert part.folder != plan.folder
    assert only(plan, ["kindly", "boldly"]).folder == plan.folder
    with pytest.raises(ConfigError, match=r"--only 'bodly' is no persona here; choose from kindly"):
        only(plan, ["bodly"])


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([], "kindly.jsonl"),
        (["{"], "kindly.jsonl:1"),
        ([{"positive": "a"}], "kindly.jsonl:1"),
        ([{"positive": "a", "negative": " "}], "kindly.jsonl:1"),
        ([{"statement": "I agree", "label": 1}] * 3, "kindly.jsonl"),
        ([{"positive": "a b c d", "negative": "b c d e"}], "kindly.jsonl: its 1 pairs are fewer"),
        ([{"positive": "the same", "negative": "not that"}] * 40, "kindly.jsonl"),
    ],
    ids=["empty", "no JSON", "one side", "blank", "labelled", "one pair", "repeated"],
)
def test_a_persona_that_cannot_be_used_is_named_with_its_file(
    tiny_compare, compare_data, tmp_path, no_loading, lines, text
):
    file = tmp_path / "kindly.jsonl"
    file.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    answer = told(tiny_compare(personas=[compare_data["boldly"], str(file)]))
    assert answer.startswith("persona kindly: ")
    assert text in answer


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"methods": ["atributed_sae", "difference_in_means"]}, "did you mean 'attributed_sae'?"),
        (
            {"methods": ["difference_in_means", {"name": "attributed_sae", "grid": [{"x": 1}]}]},
            "method attributed_sae has no setting 'x'",
        ),
        ({"headline": "system_prompt"}, "headline 'system_prompt' has no strength to match"),
        ({"baseline": "system_prompt"}, "baseline 'system_prompt' has no strength to match"),
        ({"writing": {"kl_targets": [], "n_questions": 1}}, "writing.kl_targets is empty"),
        ({"model": {"name": "./nowhere"}}, "neither an existing folder"),
        ({"sae": "./nowhere"}, "neither an existing folder"),
        ({"site": "here"}, "site 'here' is not of the form"),
        ({"evaluation": {"neutral_answers": 16}}, "none is left to train with"),
        ({"evaluation": {"neutral": "nowhere.jsonl"}}, "nowhere.jsonl"),
        ({"writing": {"n_questions": 4}, "objective": {"own_words": 1}}, "train own words on"),
        ({"writing": {"questions": "nowhere.txt"}}, "nowhere.txt"),
        ({"side_effects": {"prose": "nowhere.jsonl"}}, "nowhere.jsonl"),
        ({"personas": ["kindlyness"]}, "persona kindlyness: "),
        ({"splits": {"judge": 10, "train": 400}}, "60 pairs leave 1 for validation"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_sentence_and_nothing_is_written(
    tiny_compare, no_loading, changes, text
):
    if "methods" in changes:
        changes = {**changes, "baseline": "difference_in_means"}
        if "atributed_sae" in changes["methods"]:
            changes["headline"] = "difference_in_means"
    assert text in told(tiny_compare(**changes), SaesteerError)


@pytest.mark.parametrize("place", ["personas", "compare-cache"])
def test_a_folder_that_cannot_be_written_is_found_before_anything_is_loaded(
    tiny_compare, no_loading, monkeypatch, place
):
    settings = tiny_compare()
    locked = Path(settings["folder"]) / place
    locked.mkdir()
    allowed = os.access

    def access(path, mode, **rest):
        return Path(path) != locked and allowed(path, mode, **rest)

    monkeypatch.setattr("os.access", access)
    with pytest.raises(ConfigError, match=rf"folder .*{place}.* cannot be written; choose another"):
        planned(settings)


def test_a_folder_that_is_a_file_is_refused(tiny_compare, tmp_path, no_loading):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match=r"taken is a file; choose another"):
        planned(tiny_compare(folder=str(tmp_path / "taken")))


def test_a_persona_is_done_when_all_its_files_are_there(tiny_compare):
    persona = planned(tiny_compare()).personas[0]
    persona.folder.mkdir(parents=True)
    assert not persona.done
    (persona.folder / "prose.json").write_text("[]")
    (persona.folder / "done.json").write_text(json.dumps({"files": ["prose.json"]}))
    assert persona.done
    (persona.folder / "prose.json").unlink()
    assert not persona.done
    (persona.folder / "done.json").write_text(json.dumps({"seconds": {}}))
    assert not persona.done
