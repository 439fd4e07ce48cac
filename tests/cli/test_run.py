"""`saesteer run` and `saesteer features`."""

from __future__ import annotations

import json

import pytest


def long_lines(text: str, but: str) -> list[str]:
    """Lines over 100 columns, without those that hold what is for copying."""
    return [line for line in text.splitlines() if len(line) > 100 and but not in line]


def test_a_run_prints_features_completions_shift_and_the_next_step(
    saesteer, config, finished, no_loading
):
    answer = saesteer("run", config)
    assert answer.code == 0
    assert answer.err == ""
    for text in (
        "features at blocks.1.hook_resid_post",
        "weights: R2",
        "“Why?”",
        "“Who are you?”",
        "strength 0",
        "held-out pairs, every vector at KL 0.05 per token",
        "2 random directions at the same KL",
        "Margin by strength",
        f"saesteer generate --vector {finished}",
    ):
        assert text in answer.out, text
    assert long_lines(answer.out, str(finished)) == []
    assert "nan" not in answer.out.lower().split()


def test_the_shift_is_a_table_with_one_line_for_each_vector(saesteer, config, finished):
    lines = saesteer("run", config).out.splitlines()
    head = next(i for i, line in enumerate(lines) if "effect E (95% over pairs)" in line)
    rows = [line.split("  ")[0].strip() for line in lines[head + 2 : head + 5]]
    labels = ["SAE features, delta regression", "difference in means", "2 random directions"]
    assert rows == labels
    assert " to " in lines[head + 2]
    assert "|E| <=" in lines[head + 4]
    assert lines[head + 5].startswith("E: ")


def test_a_run_shows_its_stages_on_standard_error_alone(saesteer, tiny_settings, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(tiny_settings("llama")), encoding="utf-8")
    answer = saesteer("run", file, "--json", "--set", "completions.n_questions=1")
    assert answer.code == 0
    metrics = json.loads(answer.out, parse_constant=lambda word: pytest.fail(word))
    assert metrics["vector"]["method"] == "clustered_sae"
    for text in ("Loading model", "Loading SAE", "Reading", "Fitting", "Scoring", "Generating"):
        assert text in answer.err, text


def test_the_same_command_again_prints_the_same(saesteer, config, finished):
    assert saesteer("run", config).out == saesteer("run", config).out
    assert saesteer("run", config, "--dry-run").out.count("(done)") == 4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["{config}", "--set", "seed"], "is not of the form a.b=c"),
        (["{config}", "--set", "pairs.source=nowhere.csv"], "nowhere.csv"),
        (["{config}", "--set", "model.name=./nowhere"], "neither an existing folder"),
        (["{config}", "--set", "sae=./nowhere"], "neither an existing folder"),
        (["{config}", "--set", "site=here"], "site 'here' is not of the form"),
        (["{config}", "--set", "folder={config}"], "is a file; choose another"),
        (["{config}", "--set", "regression.method=rige"], "did you mean 'ridge'"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_loaded(
    arguments, text, refused, config, no_loading
):
    told = refused("run", *(part.replace("{config}", str(config)) for part in arguments))
    assert text in told


def test_an_sae_of_another_model_is_one_sentence(refused, config, mirror_sae):
    told = refused("run", config, "--set", f"sae={mirror_sae(d_in=48)}")
    assert "is 48 wide at" in told


def test_the_features_of_a_run_strongest_first(saesteer, finished, no_loading):
    answer = saesteer("features", finished, "--top", "3")
    assert (answer.code, answer.err) == (0, "")
    stored = json.loads((finished / "features.json").read_text(encoding="utf-8"))
    rows = answer.out.splitlines()[2:5]
    assert [int(row.split()[0]) for row in rows] == [row["feature"] for row in stored[:3]]
    assert "more in features.parquet" in answer.out
    assert len(saesteer("features", finished, "--top", "0").out.splitlines()) <= 4


def test_features_of_no_run_or_a_damaged_one_are_refused(refused, tmp_path):
    assert "holds no features.json" in refused("features", tmp_path)
    assert "holds no features.json" in refused("features", tmp_path / "nowhere")
    (tmp_path / "features.json").write_text("[{")
    assert "features.json is damaged" in refused("features", tmp_path)
    (tmp_path / "features.json").write_text('[{"weight": 1}]')
    assert "features.json" in refused("features", tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "features.json"]
