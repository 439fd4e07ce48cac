"""The shipped settings of agents are checked as the command checks them."""

from __future__ import annotations

from pathlib import Path

import pytest

from saesteer.agent.experiments import Experiments
from saesteer.agent.seeded import SeededPlanner
from saesteer.agent.settings import AgentConfig
from saesteer.agent.state import State
from saesteer.agent.tools import read_arguments
from saesteer.utils.progress import Progress
from saesteer.utils.settings import load_config

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "agent"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
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
