"""Experiments from a name or a file of data, with options that mean the same everywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

PAIRS = """positive,negative
I love cats and dogs.,I hate every animal.
You are good to us.,He was bad at all of it.
We sing along tonight.,They shouted her down.
The sun is out today.,Rain ruined everything.
Kind words help a child.,Cruelty does its harm.
Gifts for the whole village.,Taxes went up again.
Hello my dear friend.,Go away now.
Let us mend the fence.,Nobody repaired a thing.
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch, no_loading, bundled_gguf) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def planned(run_cli):
    """Return a function that calls a command with --dry-run and returns its settings."""

    def call(*words: str) -> dict[str, Any]:
        answer = run_cli(*words, "--dry-run", "--json")
        assert (answer.code, answer.err) == (0, ""), answer
        return json.loads(answer.out)["settings"]

    return call


def test_a_name_or_a_file_of_data_is_enough(planned, tmp_path):
    for short, long in (
        ("steer agreeableness", "run steer/agreeableness"),
        ("probe sentiment", "probe train sentiment"),
        ("corrupt depth", "corrupt run depth"),
        ("patch ioi", "patch run ioi"),
        ("patch sentiment", "patch run patch/sentiment"),
    ):
        assert planned(*short.split()) == planned(*long.split())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "my.csv").write_text(PAIRS)
    settings = planned("steer", "my.csv", "pairs.test=0.4", "seed=1")
    assert (settings["name"], settings["seed"]) == ("my", 1)
    assert settings["pairs"]["source"] == "my.csv" and settings["pairs"]["test"] == 0.4


def test_options_stand_for_settings(planned, mirror_sae):
    sae = str(mirror_sae(d_in=576, site="blocks.10.hook_resid_post"))
    steer = planned("steer", "agreeableness", "--kl", "0.1", "--sae", sae, "--model", "smollm2")
    assert steer["evaluation"]["kl_target"] == 0.1
    assert (steer["sae"], steer["model"]["name"]) == (sae, "smollm2")
    compare = planned("compare", "agreeableness", "--kl", "0.2", "--sae", sae)
    assert compare["evaluation"]["kl_targets"] == [0.2] == compare["writing"]["kl_targets"]
    assert compare["evaluation"]["headline_kl_target"] == 0.2 and compare["sae"] == sae
    assert planned("probe", "sentiment", "--sae", sae)["reading"]["sae"] == sae
    assert planned("patch", "capitals", "--sae", sae)["sae"] == sae
    ioi = planned("patch", "ioi", "--n", "4", "--seed", "3", "--eight", "--no-circuit")
    assert ioi["pairs"]["ioi"] == {"n": 4, "seed": None, "eight": True}
    assert (ioi["seed"], ioi["circuit"]) == (3, None)


def test_configurations_are_listed_and_the_full_yaml_runs_as_it_is(run_cli, tmp_path):
    printed = run_cli("corrupt", "depth", "--print-config", "seed=3").out
    (tmp_path / "mine.yaml").write_text(printed)
    assert yaml.safe_load(printed)["seed"] == 3
    plans = [
        json.loads(run_cli("corrupt", *words, "--dry-run", "--json").out)
        for words in (["depth", "seed=3"], ["mine.yaml"])
    ]
    assert plans[0] == plans[1]
    assert run_cli("configs", "depth").out == printed.replace("seed: 3", "seed: 0")
    several = run_cli("corrupt", "depth", "order", "--print-config").out
    assert [part["name"] for part in yaml.safe_load_all(several)] == ["depth", "order"]
    lines = run_cli("configs").out.splitlines()
    kinds = {tuple(line.split()[:2]) for line in lines}
    assert {("agreeableness", "steer"), ("smollm2", "train_sae"), ("features", "sweep")} <= kinds
    assert max(map(len, lines)) <= 100
