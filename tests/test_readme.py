"""The README opens with its two commands, and its Python example runs as it stands."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

README = Path(__file__).resolve().parents[1] / "README.md"


def example() -> str:
    text = README.read_text(encoding="utf-8").split("## In Python")[1]
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return block[1]


def run(monkeypatch, tmp_path) -> dict[str, Any]:
    """Run the example in an empty folder; lines that only show something are kept by number."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown: list[Any] = []
    tree = ast.parse(example())
    for statement in tree.body:
        if isinstance(statement, ast.Expr):
            code = compile(ast.Expression(statement.value), "README.md", "eval")
            shown.append(eval(code, names))
        else:
            exec(compile(ast.Module([statement], []), "README.md", "exec"), names)
    return {**names, "shown": shown}


def check(found: dict[str, Any]) -> None:
    vector, shown = found["vector"], found["shown"]
    features, table, completions, _, loaded = shown[:5]
    assert isinstance(features, pd.DataFrame) and 1 <= len(features) <= 32
    assert {"index", "weight", "cluster", "label", "url"} <= set(features.columns)
    assert list(table.columns) == ["method", "strength", "kl", "effect", "low", "high"]
    assert list(table["method"]) == ["attributed_sae", "difference_in_means"]
    assert table.notna().all(axis=None)
    assert completions is not None
    assert torch.equal(loaded.direction, vector.direction)


@pytest.fixture
def tiny(monkeypatch, tmp_path, roomy_model, mirror_sae) -> None:
    """Put a tiny model, an SAE whose features fire on half of the texts, and pairs in place."""
    import saesteer as ss

    things = ("cat", "dog", "sun", "rain", "garden", "house", "sea", "hill", "book", "song", "tree")
    kind = tmp_path / "kind.jsonl"
    pairs = [
        {"positive": f"I like the {thing} {n}", "negative": f"Never {n} any {thing} for me"}
        for n, thing in enumerate(things * 2)
    ]
    kind.write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    given, sae = ss.load_pairs(kind), ss.load_sae(mirror_sae())
    request = ss.ReadingSettings().request
    read = ss.read_pair_activations(roomy_model, given, [sae.site], request=request)[sae.site]
    sides = [read.positive.text(i) for i in range(len(given))]
    sides += [read.negative.text(i) for i in range(len(given))]
    largest = torch.stack([torch.cat([side, -side], dim=1).amax(dim=0) for side in sides])
    with torch.no_grad():
        bias: Any = sae.sae.b_enc
        bias -= largest.median(dim=0).values
    quick = ss.ObjectiveSettings(prompted=0, fisher_samples=2, neutral_answers=8)
    monkeypatch.setattr("saesteer.models.load_model", lambda name: roomy_model)
    monkeypatch.setattr("saesteer.saes.load_sae", lambda name: sae)
    monkeypatch.setattr("saesteer.data.load_pairs", lambda name: given)
    monkeypatch.setattr("saesteer.methods.fit_context.ObjectiveSettings", lambda: quick)


@pytest.mark.usefixtures("tiny")
def test_the_example_runs_on_a_tiny_model(monkeypatch, tmp_path):
    check(run(monkeypatch, tmp_path))


def test_it_opens_with_the_two_commands():
    text = README.read_text(encoding="utf-8")
    first = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == [
        "make demo",
        "make test",
    ]
    assert text.index("make demo") < 500
