"""Public layouts are read as published, and what does not fit is one sentence."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest

from saesteer.data.benches import read_axbench, read_persona_prompts, read_steering_bench
from saesteer.utils.errors import DataError
from tests.benches import bench_samples, write_axbench, write_bench


def test_a_checkout_of_steering_bench_gives_its_letter_questions_and_prompts(tmp_path):
    found = read_steering_bench(write_bench(tmp_path / "bench"))
    assert [one.name for one in found.sets] == ["boldly", "kindly"]
    (left_out,) = found.left_out.items()
    assert left_out[0].endswith("refusal/refusal_train.json") and "different prompts" in left_out[1]
    for pair, sample in zip(found.sets[1], bench_samples(16), strict=True):
        assert pair.prompt == sample["positive"]["prompt"]
        # The letter comes last, however the file writes it.
        assert f"{pair.positive})" == sample["positive"]["response"].strip()
        assert {pair.positive, pair.negative} == {"(A", "(B"}
    # Its Python file is read; run, it would fail the test.
    prompts = {"kindly": ("You are kind.", "You are not kind.")}
    assert read_persona_prompts(tmp_path) == prompts
    (file,) = tmp_path.rglob("persona_prompts.py")
    assert read_persona_prompts(file) == prompts
    assert read_persona_prompts(file.parents[1] / "assets") == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"positive": {"prompt": "a", "response": "(A)"}}]', r"'negative' is missing"),
        ('[{"positive": "(A)", "negative": "(B)"}]', r"'positive' is '\(A\)'; write it as"),
        ('{"a": 1}', r"'positive' is missing"),
        ("[]", r"the file holds no records"),
        ("[", r"other\.json"),
    ],
)
def test_another_layout_is_refused_alone_and_in_a_folder(text, told, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(DataError, match=told):
        read_steering_bench(tmp_path / "other.json")
    with pytest.raises(DataError, match=r"there is no dataset of steering-bench in it \(such as"):
        read_steering_bench(tmp_path)


def test_prompts_that_are_none_are_one_sentence(tmp_path):
    for text, told in (("def (", "no Python file"), ("x = {1: 2}", "no pairs of prompts")):
        (tmp_path / "persona_prompts.py").write_text(text)
        with pytest.raises(DataError, match=told):
            read_persona_prompts(tmp_path)


def test_two_datasets_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.json").write_text(json.dumps(bench_samples(2)))
    with pytest.raises(DataError, match=r"two files are called same\.json"):
        read_steering_bench(tmp_path)


def test_concepts_of_axbench_are_held_against_texts_of_their_genre(tmp_path):
    folder = write_axbench(tmp_path)
    train = pd.read_parquet(folder / "generate/train_data.parquet")
    evaluated = pd.read_parquet(folder / "inference/latent_eval_data.parquet")

    def texts(rows: Any) -> tuple[str, ...]:
        return tuple(rows["input"] + "\n" + rows["output"])

    concepts = read_axbench(folder)
    assert [one.name for one in concepts] == ["concept 0", "concept 1"]
    for at, (concept, genre) in enumerate(zip(concepts, ("text", "code"), strict=True)):
        without = train[(train["category"] == "negative") & (train["concept_genre"] == genre)]
        assert concept.pairs.positives == texts(train[train["concept_id"] == at])
        assert concept.pairs.negatives == texts(without)
        own = evaluated[evaluated["concept_id"] == at]
        assert (concept.texts, concept.categories) == (texts(own), tuple(own["category"]))
    train[train["category"] == "positive"].to_parquet(folder / "generate/train_data.parquet")
    with pytest.raises(DataError, match=r"not both texts with it and texts without; fetch"):
        read_axbench(folder)
    train.drop(columns="output").to_parquet(folder / "generate/train_data.parquet", index=False)
    with pytest.raises(DataError, match=r"there is no column 'output'"):
        read_axbench(folder)
    with pytest.raises(DataError, match=r"this is a file; give the folder"):
        read_axbench(folder / "generate/train_data.parquet")
