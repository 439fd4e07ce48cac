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
    # The shift is a table with one line for each vector.
    lines = answer.out.splitlines()
    head = next(i for i, line in enumerate(lines) if "effect E (95% over pairs)" in line)
    rows = [line.split("  ")[0].strip() for line in lines[head + 2 : head + 5]]
    labels = ["SAE features, delta regression", "difference in means", "2 random directions"]
    assert rows == labels
    assert " to " in lines[head + 2]
    assert "|E| <=" in lines[head + 4]
    assert lines[head + 5].startswith("E: ")
    # The same command again prints the same.
    assert saesteer("run", config).out == answer.out
    assert saesteer("run", config, "--dry-run").out.count("(done)") == 4


def test_a_run_shows_its_stages_on_standard_error_alone(saesteer, tiny_settings, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(tiny_settings("llama")), encoding="utf-8")
    answer = saesteer("run", file, "--json", "--set", "completions.n_questions=1")
    assert answer.code == 0
    metrics = json.loads(answer.out, parse_constant=lambda word: pytest.fail(word))
    assert metrics["vector"]["method"] == "clustered_sae"
    for text in ("Loading model", "Loading SAE", "Reading", "Fitting", "Scoring", "Generating"):
        assert text in answer.err, text


FEW = (("Cats sleep.", "Dogs bark."), ("We sing.", "They howl."), ("Yes.", "Never!"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("pairs.source=nowhere.csv", "nowhere.csv"),
        ("pairs.format=xml", "format is 'xml'"),
        ("pairs.source=agreeablenes", "'agreeablenes' (did you mean"),
        ("pairs.source=one.jsonl", "one.jsonl:2: "),
        ("pairs.source=few.jsonl", "leaves 1 training and 1 test pairs; give more"),
        ("pairs={validation: 0.5, test: 0.5, source: few.jsonl}", "leave no pairs to train on"),
        ("model.name=./nowhere", "neither an existing folder"),
        ("model.name=none.gguf", "none.gguf is not there"),
        ("sae=./nowhere", "neither an existing folder"),
        ("sae=gpt2-small-res-jp:x", "no release 'gpt2-small-res-jp'; did you"),
        ("site=here", "site 'here' is not of the form"),
        ("selection.criterion=zzz", "selection.criterion: 'zzz' is not known (known: mean_diff"),
        ("clustering.method=aglomerative", "did you mean 'agglomerative'"),
        ("evaluation.neutral=no.jsonl", "no.jsonl"),
        ("completions.questions=no.txt", "no.txt"),
        ("folder={config}", "is a file; choose another"),
        ("folder=" + "x" * 300, "); choose another"),
        ('folder="a\\0b"', "); choose another"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence_and_nothing_is_loaded_or_written(
    change, text, refused, config, no_loading, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    one = [{"positive": "I like you.", "negative": "I do not."}, {"positive": "Alone."}]
    few = [{"positive": positive, "negative": negative} for positive, negative in FEW]
    for name, lines in {"one.jsonl": one, "few.jsonl": few}.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    told = refused("run", config, "--set", change.replace("{config}", str(config)))
    assert text in told
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_is_not_there_is_one_sentence(refused, no_loading):
    assert "nowhere.yaml cannot be read" in refused("run", "nowhere.yaml")


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
