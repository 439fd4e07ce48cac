"""Every kind of experiment is checked as its file is, and bounded by the user's settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import BaseModel

from saesteer.agent import run_agent
from saesteer.agent.experiments import Experiments
from saesteer.agent.results import headline, metrics_of, number_at
from saesteer.agent.seeded import SeededPlanner
from saesteer.agent.settings import DEFAULT, AgentConfig
from saesteer.agent.state import Experiment, State
from saesteer.agent.tools import read_arguments
from saesteer.corruption import load_tasks
from saesteer.corruption.tasks import task_rows
from saesteer.experiments.registry import experiment_named
from saesteer.models.loading import plain_model
from saesteer.tracking import list_runs
from saesteer.utils.errors import ConfigError
from saesteer.utils.progress import Progress
from saesteer.utils.settings import load_config

BASES = {
    "corrupt": {"programs": ["skip 1"]},
    "run": {"pairs": {"source": "agreeableness"}},
    "compare": {
        "personas": ["agreeableness"],
        "methods": ["attributed_sae", "difference_in_means"],
    },
    "probe": {},
    "patch": {"pairs": {"ioi": {"n": 4}}},
}
SETTINGS = {
    "corrupt": {"tasks.shots": 2},
    "run": {"selection.n_features": 8},
    "compare": {"seeds": [1]},
    "probe": {"fit.folds": 2},
    "patch": {"memory_gb": 1.0},
}


def agent(**changes) -> AgentConfig:
    made = {"goal": "Why?", "planner": {"model": "tiny"}, "experiments": BASES, **changes}
    return AgentConfig(**made)


@pytest.mark.parametrize("kind", list(BASES))
def test_every_kind_takes_its_own_settings_and_no_locked_one(kind, tmp_path):
    config = agent(folder=str(tmp_path))
    experiments = Experiments(config, Progress())
    checked = experiments.check(kind, SETTINGS[kind])
    assert checked.folder == str(tmp_path)  # type: ignore[attr-defined]
    assert checked.tracking.group == f"agent-{config.digest()}"  # type: ignore[attr-defined]
    (name,) = SETTINGS[kind]
    place = checked.model_dump()
    for part in name.split("."):
        place = place[part]
    assert place == SETTINGS[kind][name]
    for locked in ("folder", "model.name", "name"):
        with pytest.raises(ConfigError, match="out of bounds"):
            experiments.check(kind, {locked: "elsewhere"})
    # Names that only look like settings are unknown.
    for names in ({"m\u043edel": {"name": "x"}}, {" folder": "x"}, {"..": 1}):
        with pytest.raises(ConfigError):
            experiments.check(kind, names)


def test_places_that_the_users_settings_name_and_words_that_are_called_so_are_taken(
    tmp_path, monkeypatch
):
    pairs, base = tmp_path / "mine.jsonl", tmp_path / "base.yaml"
    pairs.write_text("")
    base.write_text("name: base\nprograms: [keep 1]\n")
    bases = {**BASES, "run": {"pairs": {"source": str(pairs)}}, "corrupt": str(base)}
    experiments = Experiments(agent(experiments=bases), Progress())
    checked = experiments.check("corrupt", {"seed": 4})
    assert checked.programs == ["keep 1"] and checked.seed == 4  # type: ignore[attr-defined]
    assert experiments.check("run", {"pairs": {"source": str(pairs)}})
    with pytest.raises(ConfigError, match=r"setting pairs\.source names a file or an address"):
        experiments.check("run", {"pairs": {"source": f"{pairs}.gz"}})
    # A word is no place because a file is called so.
    monkeypatch.chdir(tmp_path)
    for word in ("last", "mean", "pca", "mean_difference", "smollm2", "runs", "prose"):
        (tmp_path / word).mkdir()
    for kind, settings in (
        ("run", {"reading.positions": "last", "selection.criterion": "mean_difference"}),
        ("run", {"pairs.source": "optimism"}),
        ("probe", {"reading.positions": "mean"}),
        ("compare", {"methods": ["attributed_sae", "difference_in_means", "pca"]}),
        ("corrupt", {"completions.prompts": ["last", "1/2 + 1/2 ="]}),
    ):
        assert experiments.check(kind, settings)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("probe", {"reading": {"sae": "release:id"}}),
        ("compare", {"llm_judge": {"model": "m", "base_url": "http://127.0.0.1:1"}}),
        ("compare", {"methods": [{"name": "pca", "settings": {"sae": "release:id"}}]}),
        ("run", {"model": {"name": "gpt2"}}),
        ("corrupt", {"tasks": {"source": ["bundled", "../elsewhere.json"]}}),
        ("compare", {"side_effects.prose": "https://example.org/a"}),
        ("probe", {"checks": "..\\secrets.txt"}),
    ],
)
def test_nothing_else_is_loaded_or_talked_to_however_it_is_written(
    kind, settings, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secrets.txt").write_text("a secret")
    with pytest.raises(ConfigError, match="out of bounds"):
        Experiments(agent(folder=str(tmp_path)), Progress()).check(kind, settings)


def test_experiments_share_one_model_in_memory(tmp_path, tiny_model_folder, monkeypatch):
    from saesteer.experiments import context

    loaded = []
    load = context.load_model
    monkeypatch.setattr(
        context, "load_model", lambda name, **how: loaded.append(name) or load(name, **how)
    )
    model = {"name": str(tiny_model_folder("llama")), "dtype": "float32", "device": "cpu"}
    corrupt = {"tasks": {"source": ["capitals"], "max_questions": 1}, "completions": None}
    config = agent(
        folder=str(tmp_path),
        experiments={
            "corrupt": {"model": model, **corrupt},
            "probe": {
                "model": model,
                "data": {"max_texts": 60},
                "fit": {"resamples": 0, "control": False},
            },
        },
    )
    experiments = Experiments(config, Progress())
    assert experiments.n_layers("corrupt", {"programs": ["skip 0"]}) == 3
    for program in ("skip 0", "skip 1"):
        folder = experiments.run(experiments.check("corrupt", {"programs": [program]}), 60.0)
    done = Experiment("E1", "corrupt", {}, status="finished", folder=str(folder))
    # What is told first is what was found, and a claim can name it.
    assert headline(metrics_of(done))["recorded.worst_programs"] == "skip 1"
    assert number_at(metrics_of(done), ["recorded", "loss"]) > 0
    experiments.run(experiments.check("probe", {}), 60.0)
    assert len(loaded) == 1


# Every setting that takes any text is a `Source`, and so looked at, or stands here.
NO_PLACES = {
    *("name", "site", "device", "project", "entity", "group", "tags", "format", "headline"),
    *("positive_key", "negative_key", "text_key", "label_key", "group_key", "classes", "roles"),
    *("request", "requests", "system", "before", "after", "prompts", "description", "opposite"),
    *(
        "criterion",
        "method",
        "methods",
        "baseline",
        "repeated",
        "at_prompt",
        "hook",
        "heads",
        "receivers",
    ),
    *("programs", "model", "served_model", "key_variable", "device_map", "families"),
    # Those of methods, none of which reads a file.
    *("settings", "grid"),
}


def free_texts(kind: type[BaseModel]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        for inner in models_in(field.annotation):
            yield from free_texts(inner)
        if "str" in str(field.annotation) and "place" not in str((field.annotation, field)):
            yield name


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


@pytest.mark.parametrize("kind", list(BASES))
def test_every_setting_that_takes_any_text_is_known_to_name_a_place_or_not(kind):
    assert set(free_texts(experiment_named(kind).Config)) <= NO_PLACES


CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "agent"


def test_the_built_in_settings_are_complete():
    config = load_config(DEFAULT, kind=AgentConfig)
    assert config.planner.chosen == "seeded"
    Experiments(config, Progress()).check("corrupt", {"programs": ["skip 3"]})


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_settings_fit_every_kind_they_name(file):
    config = load_config(file, kind=AgentConfig)
    experiments = Experiments(config, Progress())
    for kind in config.experiments:
        experiments.check(kind, {})
    if config.planner.chosen == "seeded":
        answer = SeededPlanner(config).next(State())
        assert answer is not None
        wanted = read_arguments(answer.tool, answer.arguments)
        experiments.check(wanted.kind, wanted.settings)  # type: ignore[attr-defined]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("one_smollm2")
def test_the_planted_layer_is_found_within_the_budget(smollm2, tmp_path):
    overrides = [
        "experiments.corrupt.tasks.source=[capitals]",
        "search.rungs=[2, 4]",
        "budget.experiments=4",
        f"folder={tmp_path}",
    ]
    result = run_agent(load_config(DEFAULT, overrides, kind=AgentConfig))
    assert result.metrics["spent"]["experiments"] <= 4
    claim = result.metrics["claims"][0]
    assert claim["verdict"] == "supported"
    worst = _costliest_layer(smollm2)
    assert claim["claim"].startswith(f"the layer program that costs most is skip {worst}:")
    kinds = sorted(run.kind for run in list_runs(tmp_path))
    assert kinds == ["agent", "corrupt", "corrupt"]


def _costliest_layer(bridge) -> int:
    """Take every block out of the Hugging Face model's own list in turn."""
    model = plain_model(bridge)
    (task,) = load_tasks(["capitals"])
    rows = task_rows(bridge.tokenizer, task, shots=4, max_questions=4, seed=0).rows
    blocks = model.model.layers
    costs = []
    for left_out in range(len(blocks)):
        kept = [block for place, block in enumerate(blocks) if place != left_out]
        model.model.layers = torch.nn.ModuleList(kept)
        model.config.num_hidden_layers = len(kept)
        try:
            costs.append(sum(_loss(model, row) for row in rows))
        finally:
            model.model.layers = blocks
            model.config.num_hidden_layers = len(blocks)
    return max(range(len(costs)), key=costs.__getitem__)


def _loss(model, row) -> float:
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    scored = torch.tensor(row.kept[1:])
    return torch.nn.functional.cross_entropy(logits[scored], ids[0, 1:][scored]).item()
