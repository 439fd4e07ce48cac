"""Every kind of experiment is checked as its file is, and bounded by the user's settings."""

from __future__ import annotations

import pytest

from saesteer.agent.experiments import Workshop, kind_named
from saesteer.agent.settings import DEFAULT, AgentConfig
from saesteer.config import load_config
from saesteer.errors import ConfigError
from saesteer.progress import Progress

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
    workshop = Workshop(agent(folder=str(tmp_path)), Progress())
    checked = workshop.check(kind, SETTINGS[kind])
    assert checked.folder == str(tmp_path)  # type: ignore[attr-defined]
    (name,) = SETTINGS[kind]
    place = checked.model_dump()
    for part in name.split("."):
        place = place[part]
    assert place == SETTINGS[kind][name]
    for locked in ("folder", "model.name", "name"):
        with pytest.raises(ConfigError, match="out of bounds"):
            workshop.check(kind, {locked: "elsewhere"})


def test_experiments_are_found_in_the_store_by_the_agents_group():
    config = agent()
    checked = Workshop(config, Progress()).check("corrupt", {})
    assert checked.tracking.group == f"agent-{config.digest()}"  # type: ignore[attr-defined]


def test_base_settings_come_from_a_file_too(tmp_path):
    file = tmp_path / "base.yaml"
    file.write_text("name: base\nprograms: [keep 1]\n")
    workshop = Workshop(agent(experiments={"corrupt": str(file)}), Progress())
    checked = workshop.check("corrupt", {"seed": 4})
    assert checked.programs == ["keep 1"] and checked.seed == 4  # type: ignore[attr-defined]


def test_an_unknown_kind_names_those_there_are():
    with pytest.raises(ConfigError, match="choose from corrupt, run, compare, probe, patch"):
        kind_named("train")


def test_the_built_in_settings_are_complete():
    config = load_config(DEFAULT, kind=AgentConfig)
    assert config.planner.chosen == "seeded"
    Workshop(config, Progress()).check("corrupt", {"programs": ["skip 3"]})
