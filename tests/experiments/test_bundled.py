"""What a word on the command line stands for, and the configurations that come along."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import saesteer as ss
from saesteer.experiments.registry import (
    KINDS,
    bundled_configs,
    find_settings,
    full_yaml,
    load_experiment,
    load_experiments,
)
from saesteer.utils.errors import ConfigError

EXPERIMENTS = [f"{one.kind}/{one.name}" for kind in KINDS for one in bundled_configs(kind)]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_bundled_configuration_printed_in_full_is_the_same_experiment(tmp_path):
    for name in EXPERIMENTS:
        config = load_experiment(name)
        assert name.startswith(f"{yaml.safe_load(full_yaml(config))['kind']}/")
        file = tmp_path / "mine.yaml"
        file.write_text(full_yaml(config), encoding="utf-8")
        again = load_experiment(file)
        assert type(again) is type(config) and again.digest() == config.digest(), name
    for one in bundled_configs():
        assert 10 < len(one.about) <= 80, one.name
        assert one.path.read_text(encoding="utf-8").startswith(f"# {one.about}\n")


def test_a_word_is_a_configuration_or_data_or_a_file(tmp_path):
    (tmp_path / "my pairs.csv").write_text("positive,negative\n")
    (tmp_path / "mine.yaml").write_text("name: other\npairs: {source: my pairs.csv}\n")
    words = ["agreeableness", "optimism", "my pairs.csv", "mine.yaml"]
    found = [config.name for config in load_experiments(words, kind="steer")]
    assert found == ["agreeableness", "optimism", "my-pairs", "other"]
    (steer,) = load_experiments(["my pairs.csv"], kind="steer")
    assert steer.pairs.source == "my pairs.csv" and steer.sae == "smollm2"
    (probe,) = load_experiments(["sentiment_checks"], kind="probe")
    assert probe.data.source == "sentiment_checks" and probe.checks is None
    (patch,) = load_experiments(["agreement"], kind="patch")
    assert (patch.name, patch.pairs.source, patch.pairs.max_pairs) == ("agreement", "agreement", 16)


def test_several_data_are_one_experiment_where_a_kind_takes_several(tmp_path):
    (tmp_path / "my.csv").write_text("")
    (compare,) = load_experiments(["agreeableness", "my.csv"], kind="compare")
    assert [persona.source for persona in compare.personas] == ["agreeableness", "my.csv"]
    assert compare.name == "agreeableness-my"
    assert compare.methods == load_experiment("compare/personas").methods
    (baselines,) = load_experiments(["baselines", "my.csv"], kind="compare")
    assert [persona.source for persona in baselines.personas] == ["my.csv"]
    assert baselines.methods == load_experiment("baselines").methods
    (corrupt,) = load_experiments(["capitals", "facts"], kind="corrupt")
    assert corrupt.tasks.source == ["capitals", "facts"]
    (sae,) = load_experiments(["smollm2", "my.csv"], kind="train_sae")
    assert [source.path for source in sae.corpus] == ["my.csv"] and sae.d_sae == 6144
    with pytest.raises(
        ConfigError, match=r"could belong to corrupt/depth or to corrupt/order; give one"
    ):
        find_settings(["depth", "order", "facts"], "corrupt")


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        (["agreablness"], "steer", r"'agreablness' is no file .* \(did you mean 'agreeableness'"),
        (["zzz"], "patch", r"'zzz' is no file .*\(known: .*capitals.*\); saesteer configs lists"),
        (["depth"], "steer", r"'depth' is a configuration of kind corrupt and not steer"),
        (["my_pairs.csv"], "steer", r"my_pairs\.csv is not there; give a file"),
        (["none.yaml"], "steer", r"none\.yaml cannot be read"),
        (["configs/depth.yaml"], "corrupt", r"depth\.yaml cannot be read; the bundled .* 'depth'"),
        (["here"], "probe", r"'here' is no file"),
        (["x" * 300], "probe", r"'x+' is no file"),
        (["a\x00b"], "corrupt", r"is no file"),
        ([""], "patch", r"'' is no file"),
        (["agreeableness"], "steer", r"is a bundled configuration and a file; give steer/agree"),
        (["optimism"], "steer", r"'optimism' is bundled data and a file; give \./optimism"),
        (["patch.yaml"], "steer", r"patch\.yaml is of kind patch and not steer; run it as patch"),
    ],
)
def test_what_is_unknown_or_ambiguous_is_one_sentence(words, kind, told, tmp_path):
    also_a_file = words[0] in ("agreeableness", "optimism")
    if also_a_file:
        (tmp_path / words[0]).write_text("")
    (tmp_path / "patch.yaml").write_text("kind: patch\nname: p\npairs: {source: capitals}\n")
    with pytest.raises(ConfigError, match=told) as error:
        load_experiments(words, kind=kind)
    assert "\n" not in str(error.value)
    if also_a_file:
        assert find_settings([f"./{words[0]}"], kind)


def test_python_takes_a_name_too(tmp_path):
    with pytest.raises(ConfigError, match=r"'sentiment' is the name of several .* probe/sentiment"):
        ss.run("sentiment")
    assert load_experiment("depth", ["seed=3"]).seed == 3
    (tmp_path / "depth").write_text("name: own\ntasks: {source: [facts]}\n")
    assert load_experiment("depth").name == "own"
    assert load_experiment(Path("depth")).name == "own"
