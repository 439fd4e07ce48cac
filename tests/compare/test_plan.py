"""Settings and plan of a comparison: what is refused, shared and kept, and where it goes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saesteer.data import PairSet, read_pairs
from saesteer.experiments.compare import plan
from saesteer.experiments.compare.config import CompareConfig, SplitSettings
from saesteer.experiments.compare.plan import plan_compare, split_persona
from saesteer.methods.registry import METHODS, build_method
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.settings import parse_config


def planned(settings: dict[str, Any]):
    return plan_compare(CompareConfig(**settings))


def folders(settings: dict[str, Any]) -> dict[str, str]:
    return {persona.name: persona.folder.name for persona in planned(settings).personas}


def test_planning_reads_everything_and_writes_nothing(tiny_compare, no_loading, compare_data):
    settings = tiny_compare(writing={"n_questions": 2}, objective={"own_words": 0.5})
    found = planned(settings)
    assert [persona.name for persona in found.personas] == ["kindly", "boldly"]
    assert [p.pairs.name for p in found.personas] == ["kindly", "boldly"]
    assert not any(persona.own or persona.done for persona in found.personas)
    assert (len(found.answers), len(found.training_answers)) == (6, 8)
    assert not set(found.answers) & set(found.training_answers)
    assert found.questions == ("Why?", "Who are you?")
    assert found.training_questions == ("What now?", "How so?")
    assert len(found.prose) == 4
    assert not list(Path(settings["folder"]).iterdir())


def test_a_persona_keeps_its_folder_whoever_else_is_compared(tiny_compare, compare_data):
    both = folders(tiny_compare())
    alone = tiny_compare(personas=[compare_data["boldly"]])
    three = tiny_compare(personas=[compare_data[n] for n in ("calmly", "boldly", "kindly")])
    assert folders(alone)["boldly"] == both["boldly"]
    assert {name: folders(three)[name] for name in both} == both
    names = [planned(s).folder.name for s in (tiny_compare(), alone, three)]
    assert len(set(names)) == 3


def test_another_division_of_the_same_pairs_gives_another_folder(tiny_compare, monkeypatch):
    settings = tiny_compare()
    before = folders(settings)
    divide = plan.split_pairs

    def other(pairs: PairSet, *, seed: int, **how: Any) -> Any:
        return divide(pairs, seed=seed + 100, **how)

    monkeypatch.setattr(plan, "split_pairs", other)
    assert not set(folders(settings).values()) & set(before.values())


def test_other_weights_under_the_same_path_are_another_comparison(tiny_compare, mirror_sae):
    sae = mirror_sae()
    settings = tiny_compare(sae=str(sae))
    before = folders(settings)
    record = json.loads((sae / "cfg.json").read_text(encoding="utf-8"))
    (sae / "cfg.json").write_text(json.dumps({**record, "apply_b_dec_to_input": False}))
    assert not set(folders(settings).values()) & set(before.values())


def test_a_part_of_a_comparison_does_not_pass_for_the_whole(tiny_compare):
    whole = planned(tiny_compare())
    part = whole.only(["boldly", "boldly"])
    assert [persona.name for persona in part.personas] == ["boldly"]
    assert part.personas[0].folder == whole.personas[1].folder
    assert part.folder != whole.folder
    assert whole.only(["kindly", "boldly"]).folder == whole.folder
    with pytest.raises(ConfigError, match=r"--only 'bodly' is no persona here; choose from kindly"):
        whole.only(["bodly"])


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_loaded(
    tiny_compare, no_loading, monkeypatch
):
    settings, allowed = tiny_compare(), os.access
    for place in ("personas", "compare-cache"):
        locked = Path(settings["folder"]) / place
        locked.mkdir()

        def access(path, mode, locked=locked, **rest):
            return Path(path) != locked and allowed(path, mode, **rest)

        with monkeypatch.context() as patch:
            patch.setattr("os.access", access)
            with pytest.raises(ConfigError, match=rf"folder .*{place}.* cannot be written; choose"):
                planned(settings)


PARTS = ("train", "validation", "test", "judge")
SIZES = SplitSettings(train=16, validation=6, test=8, judge=12)


@pytest.fixture
def pairs(compare_data) -> PairSet:
    return read_pairs(compare_data["kindly"])


def texts(part: PairSet) -> list[str]:
    return [*part.positives, *part.negatives]


def test_the_parts_are_as_large_as_asked_and_only_the_judges_are_the_same_under_every_seed(pairs):
    splits = [split_persona(pairs, SIZES, seed) for seed in range(5)]
    judge = splits[0].judge.positives
    for split in splits:
        assert [len(getattr(split, part)) for part in PARTS] == [16, 6, 8, 12]
        shown = [text for part in PARTS for text in texts(getattr(split, part))]
        assert len(set(shown)) == len(shown)
        assert split.judge.positives == judge
    assert len({split.train.positives for split in splits}) == 5
    assert len({split.test.positives for split in splits}) == 5


def test_a_smaller_set_is_shared_out_in_the_same_proportions(pairs):
    wide = SplitSettings(train=160, validation=60, test=80, judge=120)
    split = split_persona(pairs, wide, seed=0)
    sizes = [len(getattr(split, part)) for part in PARTS]
    assert sum(sizes) == 60
    np.testing.assert_allclose(sizes, np.array([160, 60, 80, 120]) / 420 * 60, atol=1.0)


def test_a_set_that_is_too_small_is_refused_with_its_file_and_the_way_out(pairs):
    few = pairs.subset(range(30))
    with pytest.raises(DataError) as error:
        split_persona(few, SIZES, seed=0)
    told = str(error.value)
    assert told.startswith(pairs.source)
    assert "30 pairs" in told
    assert "give more pairs" in told
    assert "\n" not in told


PLAIN: dict[str, Any] = {
    "name": "plain",
    "personas": ["agreeableness", "optimism"],
    "methods": ["attributed_sae", "difference_in_means", "system_prompt"],
}


def parse(**changes: Any) -> CompareConfig:
    return parse_config({**PLAIN, **changes}, kind=CompareConfig, place="x.yaml")


def test_names_alone_are_personas_and_methods():
    config = parse()
    assert [persona.label for persona in config.personas] == ["agreeableness", "optimism"]
    assert [method.settings for method in config.methods] == [{}, {}, {}]
    assert config.pair == ("attributed_sae", "difference_in_means")
    assert config.seeds_of("system_prompt") == [0]
    assert config.seeds_of("attributed_sae") == [0, 1, 2]
    assert [m.name for m in config.methods_under(1)] == ["attributed_sae", "difference_in_means"]


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("clusterd_sae", {}, "method 'clusterd_sae' is unknown (did you mean 'clustered_sae'?)"),
        (
            "pca",
            {"varient": "x"},
            "method pca: varient is not a known setting (did you mean 'variant'?)",
        ),
        ("attributed_tied", {"signs": "free"}, "signs is not a known setting"),
        ("attributed_sae", {"n_features": 2.5}, "method attributed_sae: n_features: "),
        (
            "attributed_sae",
            {"n_features": 0},
            "n_features: input should be greater than or equal to 1",
        ),
        ("pca", {"n": 3}, "method pca: n is not a known setting"),
        ("natural_gradient", {"ridge": float("nan")}, "ridge: input should be a finite number"),
        (
            "attributed_sae",
            {"selection": {"n_featurs": 3}},
            "method attributed_sae: selection: n_featurs is not a known setting (did you mean",
        ),
        ("clustered_sae", {"clustering": {"method": "kmeans"}}, "clustering: method: 'kmeans'"),
        ("clustered_sae", {"regression": {"method": "rige"}}, "did you mean 'ridge'"),
    ],
    ids=str,
)
def test_a_method_or_setting_that_is_not_known_is_one_sentence(name, settings, text):
    with pytest.raises(ConfigError) as error:
        build_method(name, settings)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_every_method_is_made_without_settings_and_keeps_those_it_is_given():
    for name in METHODS:
        assert build_method(name, {}) is not None
    settings = {"n_features": 3, "selection": {"max_firing": 1.0}}
    made: Any = build_method("attributed_tied", settings)
    assert (made.n_features, made.signs, made.selection) == (3, "tied", {"max_firing": 1.0})


FIXED = {
    "repeated": ["attributed_sae", "difference_in_means"],
    "writing": {"methods": ["attributed_sae", "difference_in_means"]},
    "side_effects": {"methods": ["attributed_sae", "difference_in_means"]},
}


# What changes nothing for a persona: who else is compared, who is the headline, where it is kept.
SAME: list[dict[str, Any]] = [
    {"personas": ["optimism", "agreeableness", "risk-taking"]},
    {"name": "other", "folder": "elsewhere", "model": {"threads": 1}},
    {"headline": "difference_in_means", "baseline": "attributed_sae"},
    {"writing": {**FIXED["writing"], "shown": 1}, "llm_judge": {"model": "judge"}},
]
OTHER: list[dict[str, Any]] = [
    {"seeds": [0, 1]},
    {"sae": "elsewhere"},
    {"model": {"dtype": "float32"}},
    {"splits": {"train": 100}},
    {"objective": {"own_words": 0.0}},
    {"methods": [{"name": "attributed_sae", "settings": {"rounds": 2}}, "difference_in_means"]},
    {"headline": "difference_in_means", "baseline": "difference_in_means"},
    {"writing": {"n_samples": 2}},
    {"reading": {"positions": "last"}},
]


def test_a_personas_hash_knows_what_its_numbers_depend_on_and_nothing_else():
    persona = parse().personas[0]
    digest = parse().persona_digest(persona, pairs="p")
    for changes in SAME:
        # Headline and baseline alone say which are repeated, where nothing else does.
        assert parse(**{**FIXED, **changes}).persona_digest(persona, pairs="p") == digest, changes
    for changes in OTHER:
        assert parse(**changes).persona_digest(persona, pairs="p") != digest, changes
    assert parse().persona_digest(persona, pairs="q") != digest
    described = persona.model_copy(update={"description": "a kind person"})
    assert parse().persona_digest(described, pairs="p") != digest
