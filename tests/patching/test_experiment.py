"""A patching run from settings to report, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from saesteer.experiments.patch.experiment import plan_patch
from saesteer.experiments.patch.results import PatchResults
from saesteer.experiments.patch.settings import PatchConfig
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.results import REPORT
from saesteer.models import Site
from saesteer.patching import PatchResult
from saesteer.steering import SteeredFeature, SteeringVector
from saesteer.utils.errors import ConfigError, DataError, MismatchError
from saesteer.utils.settings import parse_config
from tests.hybrids import random_model


def parsed(**settings) -> PatchConfig:
    data = {"name": "t", "pairs": {"source": "x.json"}, **settings}
    return parse_config(data, kind=PatchConfig, place="a.yaml")


def test_where_and_how_fast_it_runs_changes_no_digest():
    first = parsed()
    assert parsed(folder="elsewhere", memory_gb=9.0, tracking={"tags": ["a"]}).digest() == (
        first.digest()
    )
    assert parsed(seed=1).digest() != first.digest() != parsed(metric="kl").digest()


def test_a_plan_reads_pairs_and_loads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("saesteer.experiments.context.load_model", None)
    config = parsed(pairs={"source": "capitals", "max_pairs": 5}, folder=str(tmp_path))
    plan = plan_patch(config)
    assert plan.pairs is not None and len(plan.pairs) == 5
    assert plan == plan_patch(config)
    other = plan_patch(config.model_copy(update={"seed": 1}))
    assert other.pairs != plan.pairs and other.folder != plan.folder
    assert list(tmp_path.iterdir()) == []


PAIRS = [
    ("The cat sat on the", "The dog ran on the", " m", " h"),
    ("I like the cat and the", "I like the dog and the", " m", " h"),
    ("What do you think about the weather", "What do you say about it", " m", " h"),
    ("The user asks and the", "The assistant answers and the", " m", " h"),
]


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory) -> Path:
    """Four pairs, of equal and of unequal lengths, whose answers the tiny tokenizer knows."""
    records = [
        {
            "clean": {"question": clean, "answer": right},
            "corrupted": {"question": corrupted, "answer": wrong},
        }
        for clean, corrupted, right, wrong in PAIRS
    ]
    path = tmp_path_factory.mktemp("pairs") / "pairs.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture(scope="session")
def settings(pairs_file, tiny_model_folder, tmp_path_factory) -> Callable[..., dict[str, Any]]:
    """Return a function that gives a run's settings, with others on top."""

    def make(arch: str = "llama", **more: Any) -> dict[str, Any]:
        return {
            "name": "tiny",
            "model": {"name": str(tiny_model_folder(arch)), "device": "cpu"},
            "pairs": {"source": str(pairs_file)},
            "folder": str(tmp_path_factory.mktemp("runs")),
            **more,
        }

    return make


def patched(settings: dict[str, Any]) -> PatchResults:
    return run_experiment(parse_config(settings, kind=PatchConfig, place="test"))


@pytest.fixture(scope="session")
def everything(settings, mirror_sae) -> PatchResults:
    """A run with every part of it."""
    return patched(
        settings(
            sae=str(mirror_sae()),
            modes=["denoising", "noising"],
            components=["resid_pre", "attn_out", "z", "pattern"],
            by_position=["z"],
            patch_by_position=True,
            attribution={"methods": ["attribution", "integrated_gradients"], "steps": 2},
            path={"senders": ["z", "mlp_out"], "receivers": ["final", ["2.1.q"]]},
            circuit={"random_sets": 1},
            lens={"every_position": True},
            features={"n_features": 3},
            resamples=50,
        )
    )


def test_a_metric_with_a_gap_suggests_a_site(settings):
    chosen = settings(metric="kl", components=["resid_pre"], attention=None, lens=None)
    metrics = patched(chosen).metrics
    # The clean run does not differ from itself, and any other run does.
    assert metrics["clean"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["corrupted"]["value"] > 0 and metrics["scale"] == "share"
    assert metrics["suggestion"]["sentences"]


def test_everything_asked_for_is_in_the_folder(everything):
    path = everything.folder.path
    for file in ("metrics.json", "config.json", "pairs.json", "task.json", "circuit.json"):
        json.loads((path / file).read_text(), parse_constant=pytest.fail)
    names = {file.stem for file in (path / "tables").glob("*.parquet")}
    jobs_done = {file.stem for file in (path / "cells").glob("*.safetensors")}
    assert jobs_done | {"answers", "lens", "direct"} == names
    # Four components and heads by position, by three methods; features by two; four paths.
    assert len(jobs_done) == 2 * (5 * 3 + 2 + 4)
    assert (path / "attention.html").is_file()
    assert len(list((path / "figures").glob("*.png"))) > 20

    table = pd.read_parquet(path / "tables" / "activation-resid_pre-denoising.parquet")
    assert {"pair", "layer", "position", "token", "value", "normalised"} == set(table.columns)
    result = PatchResult.load(path / "cells" / "activation-resid_pre-denoising.safetensors")
    assert len(table) == np.isfinite(result.values).sum()
    one = table.iloc[-1]
    at = result.pairs.index(one["pair"]), int(one["layer"]), int(one["position"])
    assert one["value"] == pytest.approx(result.values[at])
    assert one["token"] == result.tokens[at[0]][at[2]]
    # A model that does not solve the task is told first.
    assert everything.metrics["verdict"] == "not"
    page = (path / "report.html").read_text()
    lead = page[page.index('class="lead"') :][:600]
    assert "does not solve the task" in lead and "Steer at" not in lead


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"attention": {"heads": ["7.0"]}}, r"head 7\.0: .* has layers 0 to 2"),
        ({"path": {"receivers": ["2.3.k"]}}, r"receiver 2\.3\.k: .* of k, heads 0 to 1"),
        ({"circuit": {"heads": "published"}}, r"head 9\.9: .* has layers 0 to 2"),
        ({"circuit": {"roles": ["S2"]}}, "pair 1 has no position 'S2'"),
        ({"circuit": {}, "pairs": {"max_pairs": 2}}, "there are 2; give at least 4"),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_anything_is_written(settings, more, message):
    chosen = settings()
    pairs = {**chosen["pairs"], **more.get("pairs", {})}
    with pytest.raises((ConfigError, DataError), match=message):
        patched({**chosen, **more, "pairs": pairs})
    assert not list(Path(chosen["folder"]).glob("*/config.json"))


def test_a_vector_of_another_sae_is_refused_before_anything_is_written(settings, mirror_sae):
    chosen = settings(sae=str(mirror_sae()))
    path = Path(chosen["folder"]) / "vector.safetensors"
    for index, fingerprint, message in (
        (64, None, "features.vector: 64 is not in SAE .* 0 to 63"),
        (3, "another", "is made of features of SAE other, and sae is"),
    ):
        made: dict[str, Any] = {"sae": "other", "sae_fingerprint": fingerprint}
        made["sae_features"] = (SteeredFeature(index, 1.0),)
        SteeringVector(torch.eye(32)[0], Site(1), norm=1.0, model="tiny", **made).save(path)
        with pytest.raises((ConfigError, MismatchError), match=message):
            patched({**chosen, "features": {"vector": str(path)}})
    assert not list(Path(chosen["folder"]).glob("*/config.json"))


def test_what_an_architecture_cannot_give_is_left_out_and_said_in_the_report(
    settings, tiny_tokenizer, tmp_path
):
    # OPT's MLP sees the tokens of all prompts end to end.
    random_model("opt").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    chosen = settings(components=["resid_pre", "mlp_out", "z"], path={}, resamples=0)
    run = patched({**chosen, "model": {"name": str(tmp_path), "device": "cpu"}})
    said = " ".join(run.metrics["left_out"])
    for part in ("patching of mlp_out", "logit lens", "direct logit attribution", "path patching"):
        assert f"{part} " in said
    assert "hook_mlp_out holds no vector for each token" in said
    done = {file.stem for file in (run.folder.path / "cells").glob("*.safetensors")}
    assert done == {
        f"{method}-{component}-denoising"
        for method in ("activation", "attribution")
        for component in ("resid_pre", "z")
    }
    assert "Activation patching of mlp_out left out" in (run.folder.path / REPORT).read_text()


def test_only_pairs_that_the_model_solves_are_kept(everything, settings, pairs_file, tmp_path):
    table = pd.read_parquet(everything.folder.path / "tables" / "answers.parquet")
    least: Any = table.groupby("pair", sort=False)["logit_difference"].min()
    solved = (least > 0).tolist()
    records = json.loads(pairs_file.read_text())
    failed = [one for one, well in zip(records, solved, strict=True) if not well]
    assert failed
    path = tmp_path / "failed.json"
    path.write_text(json.dumps(failed))
    with pytest.raises(DataError, match=f"solves none of the {len(failed)} pairs"):
        patched(settings(pairs={"source": str(path), "solved_only": True}, components=["z"]))


def test_another_vector_under_the_same_name_is_another_run(tmp_path):
    folders = []
    for index in (0, 1):
        vector = SteeringVector(torch.eye(576)[index], Site(10), norm=1.0, model="tiny")
        vector.save(tmp_path / "v.safetensors")
        features = {"vector": str(tmp_path / "v.safetensors")}
        config = parsed(pairs={"source": "capitals"}, sae="smollm2", features=features)
        folders.append(plan_patch(config).folder)
    assert folders[0] != folders[1]
