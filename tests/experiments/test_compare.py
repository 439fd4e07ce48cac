"""A whole comparison on a tiny model: its numbers, what cannot be had, resumption, workers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from saesteer.evaluation.masking import masking
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.experiment import TABLES, Compare
from saesteer.experiments.compare.persona import PersonaRun
from saesteer.experiments.compare.plan import plan_compare
from saesteer.experiments.pairs_run import PairsRun
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.results import Results
from saesteer.steering import SteeringVector
from saesteer.tracking import list_runs
from saesteer.utils.errors import MismatchError, OutputError
from saesteer.utils.files import draft_of, leave
from tests.report.made_up import made_up_metrics

WRITTEN = ("generation", "generation_summary", "generation_judges", "judges", "masked", "at_prompt")
PAIR = ("attributed_sae", "difference_in_means")


def run(settings: dict[str, Any]) -> Results:
    return run_experiment(CompareConfig(**settings))


def check_files(result: Results) -> None:
    text = (result.folder.path / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == result.metrics
    assert (result.folder.path / "report.html").stat().st_size > 10_000


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """What must be the same however often, and wherever, a comparison was started."""
    config = {key: value for key, value in metrics["config"].items() if key != "folder"}
    kept = {k: v for k, v in metrics.items() if k not in ("seconds", "vectors")}
    return {**kept, "config": config}


@pytest.fixture(scope="module")
def settings(tiny_compare) -> dict[str, Any]:
    """The settings of the comparison that `compared` holds."""
    return tiny_compare()


@pytest.fixture(scope="module")
def compared(settings, _fewer_judges) -> Results:
    """A comparison that nobody cut off; do not write there."""
    return run(settings)


@pytest.fixture
def copied(compared, settings, tmp_path) -> tuple[dict[str, Any], Path]:
    """The settings and folder of a finished comparison of one's own, to be damaged."""
    target = tmp_path / "runs"
    shutil.copytree(settings["folder"], target)
    return {**settings, "folder": str(target)}, target


def test_the_metrics_have_the_shape_that_the_report_reads(compared, embeds):
    # The report's own tests read metrics that are made up; real ones hold as much.
    metrics, made_up = compared.metrics, made_up_metrics(2, 2, 2)
    assert made_up.keys() - metrics.keys() <= {"llm_judge"}
    for name, rows in made_up.items():
        if isinstance(rows, list) and isinstance(next(iter(rows), None), dict):
            assert metrics[name] or (name in WRITTEN and not embeds), name
            assert all(row.keys() >= rows[0].keys() for row in metrics[name]), name
    (feature, *_) = made_up["features"]["agreeableness"]
    assert all(row.keys() == feature.keys() for row in metrics["features"]["kindly"])
    check_files(compared)
    sizes = [[row[f"n_{part}"] for part in ("train", "validation", "test", "judge")]
             for row in metrics["personas"]]  # fmt: skip
    assert sizes == [[16, 6, 8, 12]] * 2


def test_features_clusters_and_choices_are_those_of_the_headline(compared, settings):
    metrics = compared.metrics
    for name in ("kindly", "boldly"):
        rows, tree = metrics["features"][name], metrics["linkage"][name]
        vector = SteeringVector.load(metrics["vectors"][name])
        assert [f.index for f in vector.sae_features] == [row["feature"] for row in rows] != []
        assert {row["feature"] for row in rows} <= set(tree["labels"])
        assert len(tree["linkage"]) == len(tree["labels"]) - 1
        assert set(metrics["chosen"][name]) == {"clustered_sae"}
    # A grid takes what moves the validation pairs most.
    for persona in plan_compare(CompareConfig(**settings)).personas:
        file = persona.folder / "seed-0" / "chosen" / "clustered_sae.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        best = max(record["tried"], key=lambda tried: tried["effect"])
        assert record["settings"] == best["settings"]
        assert len({tried["effect"] for tried in record["tried"]}) == 2


def test_every_effect_was_measured_at_its_cost_and_lies_on_its_curve(compared):
    metrics = compared.metrics
    seeds: dict[str, set[tuple[int, float]]] = {}
    for row in metrics["effects"]:
        seeds.setdefault(row["method"], set()).add((row["seed"], row["kl_target"]))
    # Headline and baseline are repeated, and the others measured once.
    assert seeds["attributed_sae"] == {(0, 0.02), (0, 0.05), (1, 0.05)}
    assert seeds["difference_in_means"] == seeds["attributed_sae"]
    assert seeds["clustered_sae"] == {(0, 0.02), (0, 0.05)}
    assert seeds["system_prompt"] == {(0, None)}
    vectors = [row for row in metrics["effects"] if row["kl_target"] is not None]
    for row in vectors:
        for side, sign in (("plus", 1), ("minus", -1)):
            assert row[side]["reached"]
            assert row[side]["kl"] == pytest.approx(row["kl_target"], rel=0.031)
            assert row[side]["strength"] * sign > 0
        assert row["low"] <= row["effect"] <= row["high"]
        assert row["n_pairs"] == 8
    unsteered = {row["name"]: row["unsteered_margin"] for row in metrics["personas"]}
    for row in (r for r in vectors if r["seed"] == 0 and r["kl_target"] == 0.05):
        points = {
            p["multiple"]: p["margin"]
            for p in metrics["curves"]
            if (p["persona"], p["method"]) == (row["persona"], row["method"])
        }
        assert sorted(points) == [-1, 0, 1, 1.5]
        assert points[0] == pytest.approx(unsteered[row["persona"]], abs=1e-9)
        assert (points[1] - points[-1]) / 2 == pytest.approx(row["effect"], abs=1e-9)
        assert 0 <= row["anti_steerable"] <= 1


def test_the_tables_hold_the_numbers_of_the_metrics(compared):
    for name in filter(compared.metrics.get, TABLES):
        rows = pd.json_normalize(compared.metrics[name])
        table = pd.read_csv(compared.folder.path / "tables" / f"{name}.csv")
        assert list(table.columns) == list(rows.columns)
        for column in rows.select_dtypes("number"):
            assert table[column].tolist() == pytest.approx(rows[column].tolist(), nan_ok=True)


def test_what_else_moved(compared):
    side = compared.metrics["side_effects"]
    assert [row["method"] for row in side["matrix"]] == list(PAIR)
    own = {
        (row["persona"], row["method"]): row["effect"]
        for row in compared.metrics["effects"]
        if row["seed"] == 0 and row["kl_target"] == 0.05
    }
    for row in side["matrix"]:
        diagonal = [row["values"][i][i] for i in range(2)]
        assert diagonal == [own[(name, row["method"])] for name in row["personas"]]
        assert all(math.isfinite(value) for line in row["values"] for value in line)
    assert len(side["prose"]) == 2 * 2 * 2
    assert {(r["method"], r["kind"]) for r in compared.metrics["choices_margins"]} == {
        (method, kind) for method in PAIR for kind in ("yes_no", "a_b")
    }


def test_what_is_written_is_claimed_where_a_judge_is_admitted(compared, needs_embeddings):
    metrics = compared.metrics
    rows = [(row["persona"], row["kind"], row["on"], row["n"]) for row in metrics["judges"]]
    assert rows == [
        ("kindly", "embedding", "answers", 12),
        ("kindly", "generative", "answers", 12),
        # Nobody has written answers of this one.
        ("boldly", "embedding", "statements", 12),
    ]
    assert [row["verdict"] == "not admitted" for row in metrics["judges"]] == [
        row["on"] == "statements" or row["auc"] < 0.75 for row in metrics["judges"]
    ]
    claimed = {row["persona"] for row in metrics["judges"] if row["headline"]}
    assert claimed == {row["persona"] for row in metrics["generation"] if row["judge"] is not None}
    assert "boldly" not in claimed
    names = {row["judge"] for row in metrics["judges"]}
    assert {row["judge"] for row in metrics["generation_judges"]} == names
    shown = metrics["completions"]["kindly"]
    assert {row["question"] for row in shown} == {"Why?", "Who are you?"}
    assert {row["sign"] for row in shown} == {-1, 0, 1}
    assert all(
        (row["strength"] > 0) - (row["strength"] < 0) == row["sign"]
        for row in shown
        if row["method"] != "system_prompt"
    )


def test_texts_are_read_masked_too_and_written_at_the_prompts_own_kl(
    compared, settings, needs_embeddings
):
    metrics = compared.metrics
    persona = next(p for p in plan_compare(CompareConfig(**settings)).personas if p.own is False)

    def stored(name: str) -> dict[str, Any]:
        return json.loads((persona.folder / name).read_text(encoding="utf-8"))

    written, masked = (stored(f"{kind}/{PAIR[0]}-0.05.json") for kind in ("written", "masked"))
    signed = [entry for entry in written["records"] if entry["sign"]]
    # Each of two seeds adds its sample of either question, both ways.
    assert {entry["sample"] for entry in signed} == {0, 1}
    assert len(signed) == 2 * 2 * 2
    mask = masking(masked["words"])
    assert [e["text"] for e in masked["records"]] == [mask(e["text"]) for e in signed]
    rows = {(row["method"], row["judge"]): row for row in metrics["masked"]}
    for row in metrics["generation_judges"]:
        beside = rows[row["method"], row["judge"]]
        assert {name: beside[name] for name in row} == row
    assert {method for method, _ in rows} == {*PAIR, "system_prompt"}
    # Each side has the KL of that side's prompt.
    (prompt,) = stored("seed-0/effects/system_prompt.json")["kl_targets"]
    rows = {(row["method"], row["judge"]): row for row in metrics["at_prompt"]}
    assert {method for method, _ in rows} == {*PAIR, "system_prompt"}
    experiment = Compare(CompareConfig(**settings))
    for name in PAIR:
        record = stored(f"at-prompt/{name}.json")
        vector = SteeringVector.load(persona.folder / f"seed-0/vectors/{name}.safetensors")
        for side, sign in (("plus", "1"), ("minus", "-1")):
            if (strength := record["strengths"][sign]) is not None:
                kl = experiment.divergence(vector, strength)
                assert kl == pytest.approx(prompt[side]["kl"], rel=0.031)
    assert any(stored(f"at-prompt/{PAIR[0]}.json")["strengths"].values())


def test_a_comparison_called_from_python_is_recorded_with_its_personas(compared, settings):
    runs = list_runs(Path(settings["folder"]))
    (whole,) = [run for run in runs if run.kind == "compare"]
    assert (whole.folder.resolve(), whole.status) == (compared.folder.path.resolve(), "finished")
    record = json.loads((whole.folder / "run.json").read_text(encoding="utf-8"))
    assert {"personas", "report"} <= set(record["seconds"]) and record["metrics"]["effects"]
    parts = [run for run in runs if run.kind == "persona"]
    assert [run.parent for run in parts] == [whole.id] * len(settings["personas"])


# The last four are not there without embeddings.
LOST = """
seed-0/effects/difference_in_means.json prose.json shifts/* null/random_features-00.json features/*
choices.json seed-0/unsteered.json judges.json written/attributed_sae-0.05.json
masked/attributed_sae-0.05.json at-prompt/attributed_sae.json
"""


@pytest.mark.slow
def test_what_is_lost_damaged_or_cut_off_is_made_again_with_the_same_numbers(
    compared, copied, monkeypatch
):
    settings, folder = copied
    next(folder.rglob("metrics.json")).unlink()
    (kindly,), (boldly,) = (list(folder.glob(f"personas/{n}-*")) for n in ("kindly", "boldly"))
    damaged = kindly / "seed-0/effects/attributed_sae.json"
    damaged.write_text('{"kl_targets": [')
    with pytest.raises(OutputError, match=r"attributed_sae\.json is damaged .*; delete it"):
        run(settings)
    damaged.unlink()
    # Files of a persona that is marked as finished, and of one that is not.
    (boldly / "done.json").unlink()
    for file in (*boldly.rglob("vectors/*"), *boldly.rglob("chosen/*"), *boldly.rglob("effects/*")):
        file.unlink()
    for pattern in LOST.split():
        found = [file for persona in (kindly, boldly) for file in persona.glob(pattern)]
        assert found or pattern in LOST.split()[-4:], pattern
        for file in found:
            file.unlink()
    shutil.rmtree(folder / "compare-cache")

    # Killed twice on the way: first among the null's draws, then before side effects.
    class Killed(BaseException):
        pass

    def killed(*args: Any) -> Any:
        raise Killed

    for place in (PairsRun, "_drawn"), (PersonaRun, "choices"):
        with monkeypatch.context() as patch:
            patch.setattr(*place, killed)
            with pytest.raises(Killed):
                run(settings)
        assert not (boldly / "done.json").exists()
    # What a killed process leaves behind of the file it was writing.
    draft = draft_of(boldly / "prose.json")
    draft.write_text("[{")
    leave(draft)
    assert numbers(run(settings).metrics) == numbers(compared.metrics)
    assert not list(boldly.rglob(".*"))


def summary(result: Results) -> dict[str, dict[str, Any]]:
    headline = result.metrics["headline_kl_target"]
    return {r["method"]: r for r in result.metrics["summary"] if r["kl_target"] == headline}


def test_a_headline_that_finds_no_feature_in_a_model_without_chat_template(few):
    settings = few("gpt2", chat=False, headline="clustered_sae", side_effects={"methods": None})
    # No feature fires on less than one of 32 texts.
    rare = {"name": "clustered_sae", "settings": {"selection": {"max_firing": 0.03}}}
    settings["methods"] = [*settings["methods"], rare, "caa_answers"]
    result = run(settings)
    rows, metrics = summary(result), result.metrics
    for method in (*PAIR, "caa_answers"):
        assert rows[method]["n_personas"] == 2 and rows[method]["effect"] is not None
    missing = rows["clustered_sae"]
    assert missing["n_personas"] == 0
    assert missing["effect"] is missing["ratio"] is missing["p"] is None
    told = [r for r in metrics["effects"] if r["method"] == "clustered_sae"]
    assert [row["persona"] for row in told] == ["kindly", "boldly"]
    assert all(row["effect"] is row["low"] is None for row in told)
    assert not any(row["plus"]["reached"] or row["minus"]["reached"] for row in told)
    assert all("none of the 64 features is left" in row["error"] for row in told)
    assert (metrics["features"], metrics["vectors"]) == ({"kindly": [], "boldly": []}, {})
    assert all(row["p"] is None for row in metrics["null"])
    assert {row["method"] for row in metrics["side_effects"]["prose"]} == {"difference_in_means"}
    matrix = {row["method"]: row["values"] for row in metrics["side_effects"]["matrix"]}
    assert matrix["clustered_sae"] == [[None, None], [None, None]]
    answers = [r for r in metrics["choices_margins"] if r["method"] == "clustered_sae"]
    assert answers and all(r["plus"] is r["minus"] is None for r in answers)
    check_files(result)


def test_one_persona_alone_and_a_headline_kl_target_that_nothing_reaches(
    few, compare_data, needs_embeddings
):
    settings = few(
        personas=[compare_data["kindly"]],
        evaluation={"kl_targets": [0.05, 60.0], "headline_kl_target": 60.0},
        writing={"n_questions": 1, "kl_targets": [60.0]},
    )
    result = run(settings)
    metrics = result.metrics
    for row in summary(result).values():
        assert (row["n_personas"], row["effect"], row["beyond_null"]) == (0, None, None)
    assert all(r["effect"] is not None for r in metrics["effects"] if r["kl_target"] == 0.05)
    assert metrics["curves"] == metrics["side_effects"]["prose"] == []
    assert all(row["plus"] is None for row in metrics["choices_margins"])
    assert all(row["effects"] == [] and row["p"] is None for row in metrics["null"])
    # The unsteered answers alone.
    assert {row["sign"] for row in metrics["generation"]} == {0}
    assert all(row["judge_range"] is None for row in metrics["generation_summary"])
    # One persona has figures, but no interval over personas.
    at = ("attributed_sae", 0.05)
    own = next(r for r in metrics["summary"] if (r["method"], r["kl_target"]) == at)
    assert own["effect"] is not None
    assert own["low"] is own["high"] is own["ratio_low"] is None
    assert metrics["side_effects"]["matrix"] == []
    check_files(result)


def test_weights_that_changed_in_the_middle_of_a_comparison_are_told(copied):
    settings, folder = copied
    kindly = next(folder.glob("personas/kindly-*"))
    (kindly / "done.json").unlink()
    record = json.loads((kindly / "run.json").read_text(encoding="utf-8"))
    weights = ["0" * 64, *record["weights"][1:]]
    (kindly / "run.json").write_text(json.dumps({**record, "weights": weights}))
    next(folder.rglob("metrics.json")).unlink()
    with pytest.raises(MismatchError, match=r"kindly-.* begun with other weights .*; delete"):
        run(settings)
