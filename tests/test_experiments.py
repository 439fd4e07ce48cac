"""What every kind of experiment owes its caller: its threads, its record, one model in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from saesteer.experiments import context
from saesteer.experiments.context import Context, cpu_threads
from saesteer.experiments.registry import load_experiment, run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.tracking import list_runs
from saesteer.utils.cache import Cache
from saesteer.utils.errors import ConfigError
from saesteer.utils.progress import Progress
from saesteer.utils.settings import parse_config

TEXTS = ("glad words of joy", "grim words of woe")


def patch(config: dict[str, Any], **more: Any) -> Any:
    from saesteer.experiments.patch.settings import PatchConfig
    from saesteer.experiments.registry import run_experiment

    return run_experiment(parse_config(config, kind=PatchConfig, place="test"), **more)


def corrupt(config: dict[str, Any], **more: Any) -> Any:
    from saesteer.experiments.corrupt.config import CorruptConfig

    return run_experiment(parse_config(config, kind=CorruptConfig, place="test"), **more)


def probe(config: dict[str, Any], **more: Any) -> Any:
    from saesteer.experiments.probe.config import ProbeConfig
    from saesteer.experiments.registry import run_experiment

    return run_experiment(parse_config(config, kind=ProbeConfig, place="test"), **more)


def compare(config: dict[str, Any], **more: Any) -> Any:
    from saesteer.experiments.compare.config import CompareConfig
    from saesteer.experiments.registry import run_experiment

    return run_experiment(parse_config(config, kind=CompareConfig, place="test"), **more)


def steer(config: dict[str, Any], **more: Any) -> Any:
    return run_experiment(parse_config(config, kind=RunConfig, place="test"), **more)


DO: dict[str, Callable[..., Any]] = {
    "run": steer,
    "probe-train": probe,
    "patch": patch,
    "corrupt": corrupt,
    "compare": compare,
}


@pytest.fixture
def small(tiny_settings, tmp_path) -> Callable[[str], dict[str, Any]]:
    """Return a function that gives small settings of a kind of experiment."""
    base = tiny_settings("llama")
    texts = tmp_path / "texts.jsonl"
    rows = [{"text": f"{TEXTS[i % 2]} {i}", "label": "ab"[i % 2]} for i in range(40)]
    texts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    prompts = tmp_path / "prompts.json"
    sides = {"clean": ("The cat sat on the", " m"), "corrupted": ("The dog ran on the", " h")}
    pair = {side: {"question": q, "answer": a} for side, (q, a) in sides.items()}
    prompts.write_text(json.dumps([pair]), encoding="utf-8")
    shared = {"name": "tiny", "model": base["model"], "folder": str(tmp_path / "runs")}
    own: dict[str, dict[str, Any]] = {
        "run": {
            **base,
            **shared,
            "completions": {**base["completions"], "n_questions": 0},
        },
        "probe-train": {
            **shared,
            "data": {"source": str(texts), "judge": 0.0, "near_duplicate": None},
            "fit": {"c": [0.1], "resamples": 0, "control": False},
        },
        "patch": {**shared, "pairs": {"source": str(prompts)}},
        "corrupt": {
            **shared,
            "tasks": {"source": ["capitals"], "max_questions": 1},
            "programs": ["skip 0"],
            "completions": None,
        },
        "compare": {
            **shared,
            "sae": base["sae"],
            "personas": [base["pairs"]["source"]],
            "splits": {"train": 8, "validation": 2, "test": 4, "judge": 10},
            "methods": ["difference_in_means", "pca"],
            "headline": "pca",
        },
    }
    return lambda kind: json.loads(json.dumps(own[kind]))


class Stopped(Exception):
    """Ends an experiment from within."""


@pytest.mark.parametrize("kind", DO)
def test_every_kind_computes_on_its_threads_and_leaves_them_as_they_were(kind, small, monkeypatch):
    seen = []

    def load(*args: Any, **how: Any):
        seen.append(torch.get_num_threads())
        raise Stopped

    before = torch.get_num_threads()
    monkeypatch.setattr(context, "load_model", load)
    settings = small(kind)
    settings["model"]["threads"] = before + 1
    with pytest.raises(Stopped):
        DO[kind](settings)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_a_run_that_ends_well_leaves_the_threads_as_they_were(small):
    before = torch.get_num_threads()
    settings = small("corrupt")
    settings["model"]["threads"] = before + 1
    corrupt(settings)
    assert torch.get_num_threads() == before
    with cpu_threads(None):
        torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("kind", [kind for kind in DO if kind != "compare"])
def test_a_call_from_python_is_recorded(kind, small):
    settings = small(kind)
    DO[kind](settings)
    (found,) = list_runs(Path(settings["folder"]))
    assert (found.kind, found.name, found.status) == (kind, "tiny", "finished")
    record = json.loads((found.folder / "run.json").read_text(encoding="utf-8"))
    assert record["metrics"] and record["seconds"] and record["config"]["name"] == "tiny"
    DO[kind](settings)
    assert [run.id for run in list_runs(Path(settings["folder"]))] == [found.id]


def test_a_run_that_fails_is_recorded_as_such(small, monkeypatch):
    from saesteer.methods import fit_context

    def fail(*args: Any, **how: Any):
        raise Stopped("no more")

    monkeypatch.setattr(fit_context, "encode_pairs", fail)
    with pytest.raises(Stopped):
        steer(small("run"))
    (found,) = list_runs(Path(small("run")["folder"]))
    assert (found.status, found.error) == ("failed", "Stopped: no more")


@pytest.fixture
def loads(monkeypatch) -> list[torch.dtype]:
    """The dtypes of the models that were loaded, in order."""
    found: list[torch.dtype] = []
    load = context.load_model

    def listed(*args: Any, **how: Any) -> Any:
        found.append(how["dtype"])
        return load(*args, **how)

    monkeypatch.setattr(context, "load_model", listed)
    return found


@pytest.mark.parametrize(
    ("auto", "memory", "wanted"),
    [
        (torch.float32, 0, [torch.float32]),
        (torch.bfloat16, 2**40, [torch.bfloat16, torch.float32]),
        (torch.bfloat16, 2**10, [torch.bfloat16, torch.float32] * 2),
    ],
    ids=["one dtype", "room for both", "room for one"],
)
def test_kinds_that_take_turns_load_a_model_as_often_as_memory_asks(
    auto, memory, wanted, small, loads, monkeypatch
):
    context._chosen_dtype.cache_clear()
    monkeypatch.setattr(
        context, "choose_dtype", lambda dtype, _: {"auto": auto}.get(dtype) or torch.float32
    )
    monkeypatch.setattr(context, "memory_of", lambda device: memory)
    cache = Cache()
    asked = {"corrupt": small("corrupt"), "patch": small("patch")}
    asked["corrupt"]["model"]["dtype"] = "auto"
    for program in ("skip 0", "skip 1"):
        corrupt({**asked["corrupt"], "programs": [program]}, cache=cache)
        patch({**asked["patch"], "name": program.replace(" ", "-")}, cache=cache)
    context._chosen_dtype.cache_clear()
    assert loads == wanted


def test_what_ran_before_changes_no_number(small, loads, tmp_path, monkeypatch):
    context._chosen_dtype.cache_clear()
    chosen = {"auto": torch.bfloat16, "float32": torch.float32}
    monkeypatch.setattr(context, "choose_dtype", lambda dtype, _: chosen[dtype])
    settings = small("corrupt")
    settings["model"]["dtype"] = "auto"
    cache = Cache()
    patch(small("patch"), cache=cache)
    after = corrupt(settings, cache=cache)
    alone = corrupt({**settings, "folder": str(tmp_path / "alone")})
    context._chosen_dtype.cache_clear()
    assert after.metrics["dtype"] == "bfloat16"
    assert after.metrics["tasks"] == alone.metrics["tasks"]


def test_auto_is_measured_once_in_a_process(small, monkeypatch):
    context._chosen_dtype.cache_clear()
    answers = iter([torch.bfloat16, torch.float32])
    monkeypatch.setattr(context, "choose_dtype", lambda dtype, _: next(answers))
    plan = SimpleNamespace(config=RunConfig(**small("run")))
    plan.config.model.dtype = "auto"
    dtypes = [Context(plan, Progress())._dtype for _ in range(2)]
    context._chosen_dtype.cache_clear()
    assert dtypes == [torch.bfloat16, torch.bfloat16]


def test_a_model_that_has_to_go_takes_what_was_measured_on_it_along():
    import gc
    import weakref

    class Model:
        pass

    cache = Cache()
    first = weakref.ref(cache.keep("model", 1, Model))
    cache.keep("comparison", 1, lambda: [first()])
    cache.keep("model", 2, Model)
    gc.collect()
    assert first() is None


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("agreeableness.yaml", "run"),
        ("compare/personas.yaml", "compare"),
        ("corruption/depth.yaml", "corrupt"),
        ("patching/ioi.yaml", "patch"),
        ("patching/capitals.yaml", "patch"),
        ("probes/sentiment.yaml", "probe-train"),
        ("probes/codes.yaml", "probe-train"),
    ],
)
def test_a_settings_file_says_what_kind_of_experiment_it_is(file, kind):
    path = Path(__file__).parents[1] / "configs" / file
    assert load_experiment(path).kind == kind
    with pytest.raises(ConfigError, match="experiment 'fry' is unknown"):
        load_experiment(path, ["kind=fry"])


def test_settings_that_change_no_number_make_no_other_run(small):
    config = parse_config(small("run"), kind=RunConfig, place="test")
    more = {"folder": "elsewhere", "tracking": {"tags": ["a"]}, "objective": {"kl_target": 0.2}}
    same = parse_config({**small("run"), **more}, kind=RunConfig, place="test")
    assert same.digest() == config.digest()
    other = parse_config({**small("run"), "seed": 1}, kind=RunConfig, place="test")
    assert other.digest() != config.digest()
