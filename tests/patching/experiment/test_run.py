"""A patching run from prompts to report, on tiny models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.experiments.patch.results import PatchResults
from saesteer.experiments.patch.settings import PatchConfig
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.results import REPORT, Results
from saesteer.models import Site
from saesteer.patching.result_file import load_result
from saesteer.patching.summary import effects
from saesteer.steering import SteeredFeature, SteeringVector
from saesteer.utils.errors import ConfigError, DataError, MismatchError, OutputError
from saesteer.utils.settings import parse_config

HOSTILE = "<script>alert(1)</script>"

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


def test_the_record_says_that_the_run_is_finished(everything):
    record = everything.folder.read_json("run.json")
    assert record["status"] == "finished" and record["kind"] == "patch"
    assert record["metrics"]["accuracy"] == everything.metrics["task"]["accuracy"]
    assert {"answers", "activation", "circuit", "report"} <= set(record["seconds"])
    assert record["artifacts"]["report"] == "report.html"


def test_tables_are_labelled_and_hold_what_the_results_hold(everything):
    import pandas as pd

    path = everything.folder.path
    table = pd.read_parquet(path / "tables" / "activation-resid_pre-denoising.parquet")
    assert {"pair", "layer", "position", "token", "value", "normalised"} == set(table.columns)
    result = load_result(path / "cells" / "activation-resid_pre-denoising.safetensors")
    assert len(table) == np.isfinite(result.values).sum()
    one = table.iloc[-1]
    at = result.pairs.index(one["pair"]), int(one["layer"]), int(one["position"])
    assert one["value"] == pytest.approx(result.values[at])
    assert one["token"] == result.tokens[at[0]][at[2]]


def test_the_metrics_agree_with_the_results(everything):
    metrics, folder = everything.metrics, everything.folder
    result = load_result(folder.path / "cells" / "activation-z-denoising.safetensors")
    scale = metrics["scale"]
    found = effects(result, scale, resamples=0).value
    first = metrics["strongest"]["activation-z-denoising"][0]
    assert first["effect"] == pytest.approx(found[first["layer"], first["head"]])
    assert abs(first["effect"]) == pytest.approx(np.abs(found).max())
    assert metrics["clean"]["value"] == pytest.approx(result.clean.mean())


def test_a_finished_run_loads_nothing_again(everything, monkeypatch):
    monkeypatch.setattr("saesteer.experiments.context.load_model", None)
    again = run_experiment(PatchResults(everything.folder).config)
    assert again.metrics == everything.metrics


def test_a_run_that_was_cut_off_does_only_what_is_missing(settings, monkeypatch):
    import saesteer.patching.activation as engine

    chosen = settings(components=["resid_pre", "z"], attention=None, lens=None)
    whole, done = engine.activation_patching, []

    def cut(model, batch, component, *args, **kwargs):
        if component == "z" and not done:
            raise KeyboardInterrupt
        done.append(component)
        return whole(model, batch, component, *args, **kwargs)

    monkeypatch.setattr(engine, "activation_patching", cut)
    with pytest.raises(KeyboardInterrupt):
        patched({**chosen, "components": ["z", "resid_pre"]})
    (folder,) = Path(chosen["folder"]).glob("tiny-*")
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    assert not (folder / "metrics.json").exists()
    done.append("ready")
    run = patched({**chosen, "components": ["z", "resid_pre"]})
    assert done == ["ready", "z", "resid_pre"] and run.folder.path == folder
    assert run.folder.read_json("run.json")["status"] == "finished"


def test_a_run_that_was_cut_off_inside_a_component_goes_on_there(settings, monkeypatch):
    from saesteer.patching.engine.fast import FastEngine

    more = {"components": ["resid_pre"], "lens": None, "attention": None, "attribution": None}
    cut_off, whole = settings(**more), patched(settings(**more))
    once, allowed, done = FastEngine.__call__, [2], []

    def counted(self, rows):
        if len(done) == allowed[0]:
            raise KeyboardInterrupt
        done.append(rows)
        return once(self, rows)

    monkeypatch.setattr(FastEngine, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        patched(cut_off)
    (folder,) = Path(cut_off["folder"]).glob("tiny-*")
    assert len(list((folder / "cells" / "parts").glob("*.safetensors"))) == 2
    allowed[0] = 10_000
    run = patched(cut_off)
    cells = {int(cell) for rows in done for cell in rows.cell}
    assert len(cells) == sum(map(len, done))
    file = "cells/activation-resid_pre-denoising.safetensors"
    mine, other = (load_result(one.folder.path / file).values for one in (run, whole))
    np.testing.assert_array_equal(mine, other)
    # Nothing is left of the chunks.
    assert not (folder / "cells" / "parts").exists()


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "qwen3"])
def test_every_architecture_gives_a_report(settings, name):
    run = patched(settings(name, components=["resid_pre", "z"], resamples=20))
    assert (run.folder.path / "report.html").stat().st_size > 1e6
    assert run.metrics["agreement"]["attribution-z-denoising"]["cells"] == 12


@pytest.mark.parametrize("metric", ["answer_log_probability", "kl"])
def test_every_metric_gives_a_run(settings, metric):
    more = {"components": ["resid_pre"], "modes": ["denoising", "noising"], "lens": None}
    run = patched(settings(metric=metric, attention=None, **more))
    clean, corrupted = run.metrics["clean"]["value"], run.metrics["corrupted"]["value"]
    if metric == "kl":
        # The clean run does not differ from itself, and any other run does.
        assert clean == pytest.approx(0.0, abs=1e-6) and corrupted > 0
        assert run.metrics["scale"] == "share"
    else:
        assert clean < 0 and corrupted < 0


def test_pairs_are_used_both_ways(settings, pairs_file):
    pairs = {"source": str(pairs_file), "both_ways": True}
    run = patched(settings(pairs=pairs, components=["resid_pre"], lens=None, attention=None))
    assert run.metrics["pairs"] == 2 * len(PAIRS)
    rows = run.folder.read_json("pairs.json")
    assert (rows[1]["clean"], rows[1]["answer"]) == (rows[0]["corrupted"], rows[0]["wrong"])


def test_a_model_that_does_not_solve_the_task_is_told_first(everything):
    assert everything.metrics["verdict"] == "not"
    page = (everything.folder.path / "report.html").read_text()
    lead = page[page.index('class="lead"') :][:600]
    assert "does not solve the task" in lead and "Steer at" not in lead


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"attention": {"heads": ["7.0"]}}, r"head 7\.0: .* has layers 0 to 2"),
        ({"path": {"receivers": ["2.3.k"]}}, r"receiver 2\.3\.k: .* of k, heads 0 to 1"),
        ({"circuit": {"heads": "published"}}, r"head 9\.9: .* has layers 0 to 2"),
        ({"circuit": {"heads": ["1.0@S2"]}}, "pair 1 has no position 'S2'"),
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


@pytest.mark.parametrize(
    ("index", "fingerprint", "message"),
    [
        (64, None, "features.vector: 64 is not in SAE .* 0 to 63"),
        (3, "another", "is made of features of SAE other, and sae is"),
    ],
)
def test_a_vector_of_another_sae_is_refused_before_anything_is_written(
    settings, mirror_sae, index, fingerprint, message
):
    chosen = settings(sae=str(mirror_sae()))
    path = Path(chosen["folder"]) / "vector.safetensors"
    SteeringVector(
        direction=torch.eye(32)[0],
        site=Site(1),
        norm=1.0,
        model="tiny",
        features=(SteeredFeature(index, 1.0),),
        sae="other",
        sae_fingerprint=fingerprint,
    ).save(path)
    with pytest.raises((ConfigError, MismatchError), match=message):
        patched({**chosen, "features": {"vector": str(path)}})
    assert not list(Path(chosen["folder"]).glob("*/config.json"))


def test_what_an_architecture_cannot_give_is_left_out_and_said_in_the_report(
    settings, tiny_tokenizer, tmp_path
):
    from transformers import OPTConfig, OPTForCausalLM

    # OPT's MLP sees the tokens of all prompts end to end.
    tokenizer = tiny_tokenizer()
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    )
    OPTForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
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
    import pandas as pd

    table = pd.read_parquet(everything.folder.path / "tables" / "answers.parquet")
    least: Any = table.groupby("pair", sort=False)["logit_difference"].min()
    solved = (least > 0).tolist()
    records = json.loads(pairs_file.read_text())
    chosen = {"components": ["resid_pre"], "lens": None, "attention": None}
    for wanted in (False, True):
        kept = [one for one, well in zip(records, solved, strict=True) if well == wanted]
        path = tmp_path / f"{wanted}.json"
        path.write_text(json.dumps(kept + kept[:1] if wanted else kept))
        pairs = {"source": str(path), "solved_only": True}
        if not kept:
            continue
        if wanted:
            run = patched(settings(pairs=pairs, **chosen))
            assert run.metrics["task"]["accuracy"] == 1.0
        else:
            with pytest.raises(DataError, match=f"solves none of the {len(kept)} pairs"):
                patched(settings(pairs=pairs, **chosen))
    assert not all(solved)


def test_a_folder_without_a_run_is_one_sentence(tmp_path):
    with pytest.raises(OutputError, match="no finished experiment"):
        Results.open(tmp_path)


def test_the_page_opens_offline_and_no_prompt_breaks_it(settings, tmp_path):
    records = [
        {
            "clean": {"question": f"{HOSTILE} the cat {n}", "answer": " m"},
            "corrupted": {"question": f"{HOSTILE} the dog {n}", "answer": " h"},
            "name": f"{HOSTILE} {n}",
        }
        for n in range(2)
    ]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(records))
    run = patched(settings(pairs={"source": str(path)}, components=["resid_pre", "z"]))
    for name in ("report.html", "attention.html"):
        page = (run.folder.path / name).read_text()
        assert HOSTILE not in page
        outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
        assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", outside)
