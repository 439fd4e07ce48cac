"""Settings and plan of a comparison: what is refused, shared and kept, and where it goes."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pytest

from saesteer.data import PairSet, read_pairs
from saesteer.experiments.compare import plan
from saesteer.experiments.compare.config import CompareConfig, SplitSettings
from saesteer.experiments.compare.plan import plan_compare, split_persona
from saesteer.experiments.registry import run_experiment
from saesteer.methods.registry import build_method
from saesteer.utils.errors import ConfigError, DataError, ModelError, SaesteerError
from saesteer.utils.settings import parse_config


def planned(settings: dict[str, Any]):
    return plan_compare(CompareConfig(**settings))


def folders(settings: dict[str, Any]) -> dict[str, str]:
    return {persona.name: persona.folder.name for persona in planned(settings).personas}


def test_planning_reads_everything_and_writes_nothing(tiny_compare, no_loading):
    settings = tiny_compare(writing={"n_questions": 2}, objective={"prompted": 0.5})
    found = planned(settings)
    assert [persona.name for persona in found.personas] == ["kindly", "boldly"]
    assert [p.pairs.name for p in found.personas] == ["kindly", "boldly"]
    assert not any(persona.own or persona.done for persona in found.personas)
    assert (len(found.answers), len(found.training_answers), len(found.prose)) == (6, 8, 4)
    assert not set(found.answers) & set(found.training_answers)
    assert found.questions == ("Why?", "Who are you?")
    assert found.training_questions == ("What now?", "How so?")
    assert not list(Path(settings["folder"]).iterdir())


def test_a_persona_keeps_its_folder_whoever_else_is_compared(tiny_compare, compare_data):
    both = folders(tiny_compare())
    alone = tiny_compare(personas=[compare_data["boldly"]])
    kindly, boldly = tiny_compare()["personas"]
    three = tiny_compare(personas=[compare_data["calmly"], boldly, kindly])
    assert folders(alone)["boldly"] == both["boldly"]
    assert {name: folders(three)[name] for name in both} == both
    names = [planned(s).folder.name for s in (tiny_compare(), alone, three)]
    assert len(set(names)) == 3


def test_another_division_or_other_weights_give_another_folder(
    tiny_compare, mirror_sae, monkeypatch
):
    settings, divide = tiny_compare(sae=str(mirror_sae())), plan.split_pairs
    before = set(folders(settings).values())

    def other(pairs: PairSet, *, seed: int, **how: Any) -> Any:
        return divide(pairs, seed=seed + 100, **how)

    with monkeypatch.context() as patch:
        patch.setattr(plan, "split_pairs", other)
        assert not set(folders(settings).values()) & before
    cfg = Path(settings["sae"]) / "cfg.json"
    record = json.loads(cfg.read_text(encoding="utf-8"))
    cfg.write_text(json.dumps({**record, "apply_b_dec_to_input": False}))
    assert not set(folders(settings).values()) & before


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
    settings = tiny_compare()
    for place in ("personas", "compare-cache"):
        locked = Path(settings["folder"]) / place
        locked.mkdir()

        def full(dir: Path, locked: Path = locked) -> Any:
            if dir == locked:
                raise OSError(30, "Read-only file system")
            return TemporaryFile(dir=dir)

        with monkeypatch.context() as patch:
            patch.setattr("saesteer.experiments.config.TemporaryFile", full)
            with pytest.raises(ConfigError, match=rf"folder .*{place}.* cannot be written \(Read"):
                planned(settings)


PARTS = ("train", "validation", "test", "judge")
SIZES = SplitSettings(train=16, validation=6, test=8, judge=12)


@pytest.fixture
def pairs(compare_data) -> PairSet:
    return read_pairs(compare_data["kindly"])


def test_the_parts_are_as_large_as_asked_and_only_the_judges_are_the_same_under_every_seed(pairs):
    splits = [split_persona(pairs, SIZES, seed) for seed in range(5)]
    for split in splits:
        parts = [getattr(split, part) for part in PARTS]
        assert [len(part) for part in parts] == [16, 6, 8, 12]
        shown = [text for part in parts for text in (*part.positives, *part.negatives)]
        assert len(set(shown)) == len(shown)
        assert split.judge.positives == splits[0].judge.positives
    assert len({split.train.positives for split in splits}) == 5
    assert len({split.test.positives for split in splits}) == 5


def test_a_smaller_set_is_shared_out_in_the_same_proportions_or_refused(pairs):
    wide = SplitSettings(train=160, validation=60, test=80, judge=120)
    split = split_persona(pairs, wide, seed=0)
    sizes = [len(getattr(split, part)) for part in PARTS]
    assert sum(sizes) == 60
    np.testing.assert_allclose(sizes, np.array([160, 60, 80, 120]) / 420 * 60, atol=1.0)
    with pytest.raises(DataError, match=r"kindly.jsonl: its 30 pairs .*; give more pairs") as told:
        split_persona(pairs.subset(range(30)), SIZES, seed=0)
    assert "\n" not in str(told.value)


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
    assert (config.seeds_of("system_prompt"), config.seeds_of("attributed_sae")) == ([0], [0, 1, 2])
    assert [m.name for m in config.methods_under(1)] == ["attributed_sae", "difference_in_means"]


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("clusterd_sae", {}, "method 'clusterd_sae' is unknown (did you mean 'clustered_sae'?)"),
        ("pca", {"varient": "x"}, "method pca: varient is not a known setting (did you mean 'vari"),
        ("attributed_tied", {"signs": "free"}, "signs is not a known setting"),
        ("attributed_sae", {"n_features": 0}, "n_features: input should be greater than or equal"),
        ("natural_gradient", {"ridge": float("nan")}, "ridge: input should be a finite number"),
        (
            "attributed_sae",
            {"selection": {"n_featurs": 3}},
            "method attributed_sae: selection: n_featurs is not a known setting (did you mean",
        ),
        ("clustered_sae", {"regression": {"method": "rige"}}, "did you mean 'ridge'"),
    ],
    ids=str,
)
def test_a_method_or_setting_that_is_not_known_is_one_sentence(name, settings, text):
    with pytest.raises(ConfigError) as error:
        build_method(name, settings)
    assert text in str(error.value) and "\n" not in str(error.value)


PAIR = ["attributed_sae", "difference_in_means"]
FIXED = {"repeated": PAIR, "writing": {"methods": PAIR}, "side_effects": {"methods": PAIR}}
# What changes nothing for a persona: who else is compared, who is the headline, where it is kept.
SAME: list[dict[str, Any]] = [
    {"personas": ["optimism", "agreeableness", "risk-taking"]},
    {"name": "other", "folder": "elsewhere", "model": {"threads": 1}},
    {"headline": "difference_in_means", "baseline": "attributed_sae"},
    {"writing": {"methods": PAIR, "shown": 1}, "llm_judge": {"model": "judge"}},
]
OTHER: list[dict[str, Any]] = [
    {"seeds": [0, 1]},
    {"sae": "elsewhere"},
    {"model": {"dtype": "float32"}},
    {"splits": {"train": 100}},
    {"objective": {"prompted": 0.0}},
    {"methods": [{"name": "attributed_sae", "settings": {"rounds": 2}}, "difference_in_means"]},
    {"headline": "difference_in_means", "baseline": "difference_in_means"},
    {"writing": {"n_samples": 2}},
    {"writing": {"embedders": []}},
    {"writing": {"judge_model": "smollm2"}},
    {"writing": {"judge_endpoint": {"model": "judge"}}},
    {"writing": {"at_prompt": []}},
    {"writing": {"engine": "paged"}},
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


@pytest.fixture
def refused(monkeypatch):
    """Return a function that compares and returns the sentence of its refusal."""

    def computed(*args: Any, **kwargs: Any):
        raise AssertionError("nothing may be computed")

    monkeypatch.setattr("saesteer.experiments.compare.persona.PersonaRun.run", computed)

    def call(settings: dict[str, Any], kind: type[SaesteerError]) -> str:
        with pytest.raises(kind) as error:
            run_experiment(CompareConfig(**settings))
        assert "\n" not in str(error.value)
        # Refused before anything is computed; the list of runs may be there.
        assert not [place for place in Path(settings["folder"]).iterdir() if place.is_dir()]
        return str(error.value)

    return call


def test_a_system_prompt_that_no_template_takes_is_refused(few, refused, monkeypatch):
    def with_prompt(settings: dict[str, Any]) -> dict[str, Any]:
        return {**settings, "methods": [*settings["methods"], "system_prompt"]}

    told = refused(with_prompt(few("gpt2", chat=False)), ModelError)
    assert told.startswith("methods: system_prompt needs a chat template")
    assert told.endswith("leave the method out.")
    assert "or reading.chat is false" in refused(
        with_prompt(few(reading={"chat": False})), ModelError
    )

    def refuses(tokenizer: Any, question: str, system: str | None = None) -> str:
        if system:
            raise ModelError("this model's chat template refuses the prompt (no); leave it out.")
        return question

    monkeypatch.setattr("saesteer.experiments.steering.chat_prompt", refuses)
    told = refused(with_prompt(few()), ModelError)
    assert told.startswith("methods: system_prompt: this model's chat")


def test_texts_that_do_not_fit_are_named_with_their_persona_or_setting(
    few, refused, compare_data, tmp_path
):
    file = tmp_path / "kindly.jsonl"

    def with_pair(**pair: str) -> list[str]:
        text = Path(compare_data["kindly"]).read_text(encoding="utf-8")
        file.write_text(f"{text}\n{json.dumps(pair)}", encoding="utf-8")
        return [compare_data["boldly"], str(file)]

    long = with_pair(positive="xyzq " * 60, negative="short one")
    told = refused(few(personas=long), DataError)
    assert told.startswith(f"persona kindly: pair 'kindly-0061' of {file}, positive side, ")
    assert "more than the model's context of 192" in told
    # Each side fits, but not both as the options of one question.
    long = with_pair(positive="xyzq " * 20, negative="qzyx " * 20)
    told = refused(few(personas=long[1:]), DataError)
    assert told.startswith(f"persona kindly: question on pair 'kindly-0061' of {file} ")
    assert told.endswith("shorten its sides.")
    told = refused(few(objective={"neutral_answers": 1}), DataError)
    assert "the 1 answers that train have" in told
    assert "give more with objective.neutral_answers" in told
    prose = tmp_path / "prose.jsonl"
    prose.write_text(json.dumps({"text": "xyzq " * 90}))
    told = refused(few(side_effects={"prose": str(prose)}), DataError)
    assert told.startswith(f"prose text 1 of {prose} ('xyzq xyzq ")
    assert "side_effects.prose" in told


def test_embeddings_that_are_not_installed_are_missed_before_the_model_is_loaded(
    tiny_compare, refused, no_loading, monkeypatch
):
    def gone(*_: str) -> Path:
        raise ModelError("the sentence embeddings need the wheel, which is not installed.")

    monkeypatch.setattr("saesteer.evaluation.embeddings._wheel_folder", gone)
    settings = tiny_compare(writing={"n_questions": 2})
    assert "which is not installed" in refused(settings, ModelError)
