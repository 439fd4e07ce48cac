"""What experiments share in a process: threads, one model in memory, one measured dtype."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from saesteer.experiments import context
from saesteer.experiments.context import Context, cpu_threads
from saesteer.experiments.registry import KINDS, experiment_named, run_experiment
from saesteer.utils.cache import Cache
from saesteer.utils.progress import Progress
from saesteer.utils.settings import parse_config

# What "auto" is made to choose here, and a dtype that was asked for.
DTYPES = {"auto": torch.bfloat16, "float32": torch.float32}
# Nothing but activation patching.
NO_MORE = {"lens": None, "attribution": None, "path": None}


def run(kind: str, settings: dict[str, Any], **more: Any) -> Any:
    config = parse_config(settings, kind=experiment_named(kind).Config, place="test")
    return run_experiment(config, **more)


class Stopped(Exception):
    """Ends an experiment from within."""


@pytest.mark.parametrize("kind", KINDS)
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
        run(kind, settings)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    with cpu_threads(None):
        torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_loads_its_model_in_the_dtype_and_where_the_settings_say(
    kind, small, monkeypatch
):
    seen = []

    def load(name: str, **how: Any):
        seen.append((how["dtype"], how["device"], how["device_map"]))
        raise Stopped

    monkeypatch.setattr(context, "load_model", load)
    settings = small(kind)
    settings["model"] |= {"dtype": "bfloat16", "device": "auto", "device_map": "auto"}
    with pytest.raises(Stopped):
        run(kind, settings)
    assert seen == [(torch.bfloat16, None, "auto")]


@pytest.fixture
def loads(monkeypatch) -> Iterator[list[torch.dtype]]:
    """The dtypes of the models that were loaded, in order; "auto" stands for bfloat16."""
    found: list[torch.dtype] = []
    load = context.load_model

    def listed(*args: Any, **how: Any) -> Any:
        found.append(how["dtype"])
        return load(*args, **how)

    context._chosen_dtype.cache_clear()
    monkeypatch.setattr(context, "load_model", listed)
    monkeypatch.setattr(context, "choose_dtype", lambda dtype, _: DTYPES[dtype])
    yield found
    context._chosen_dtype.cache_clear()


@pytest.mark.parametrize(
    ("memory", "times"),
    [(2**40, 1), (2**10, 2)],
    ids=["room for both", "room for one"],
)
def test_kinds_that_take_turns_load_a_model_as_often_as_memory_asks(
    memory, times, small, loads, tmp_path, monkeypatch
):
    monkeypatch.setattr(context, "memory_of", lambda device: memory)
    cache = Cache()
    corrupt, patch = small("corrupt"), {**small("patch"), **NO_MORE}
    corrupt["model"]["dtype"] = "auto"
    for program in ("skip 0", "skip 1"):
        after = run("corrupt", {**corrupt, "programs": [program]}, cache=cache)
        run("patch", {**patch, "name": program.replace(" ", "-")}, cache=cache)
    assert loads == [torch.bfloat16, torch.float32] * times
    # What ran before changes no number.
    elsewhere = {**corrupt, "programs": ["skip 1"], "folder": str(tmp_path / "alone")}
    alone = run("corrupt", elsewhere)
    assert after.metrics["dtype"] == "bfloat16"
    assert after.metrics["tasks"] == alone.metrics["tasks"]


def test_auto_is_measured_once_in_a_process(small, loads, monkeypatch):
    answers = iter([torch.bfloat16, torch.float32])
    monkeypatch.setattr(context, "choose_dtype", lambda dtype, _: next(answers))
    config = parse_config(small("steer"), kind=experiment_named("steer").Config, place="test")
    config.model.dtype = "auto"
    plan = SimpleNamespace(config=config)
    dtypes = [Context(plan, Progress()).dtype for _ in range(2)]
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
