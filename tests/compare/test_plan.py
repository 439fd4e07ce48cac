"""What a comparison says before anything is loaded, and where its results go."""

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
from saesteer.utils.errors import ConfigError, DataError


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
