"""On the real model the seeded planner finds the layer whose removal costs most."""

from __future__ import annotations

import pytest
import torch

from saesteer.agent import run_agent
from saesteer.agent.settings import DEFAULT, AgentConfig
from saesteer.corruption import load_tasks
from saesteer.corruption.tasks import task_rows
from saesteer.models.loading import plain_model
from saesteer.tracking import list_runs
from saesteer.utils.settings import load_config


@pytest.mark.real
@pytest.mark.slow
def test_the_planted_layer_is_found_within_the_budget(smollm2, tmp_path):
    overrides = [
        "experiments.corrupt.tasks.source=[capitals]",
        "search.rungs=[2, 6]",
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
    rows = task_rows(bridge.tokenizer, task, shots=4, max_questions=6, seed=0).rows
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
