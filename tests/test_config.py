"""A wrong setting is told by its name before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from saesteer.agent.settings import AgentConfig
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.corrupt.config import CorruptConfig
from saesteer.experiments.patch.settings import PatchConfig
from saesteer.experiments.probe.config import ProbeConfig
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.train_sae import TrainSaeConfig
from saesteer.methods.registry import build_method
from saesteer.sweeps.parameters import Parameter
from saesteer.sweeps.sweep_file import Metric
from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import Settings, load_config, load_yaml

BASE = "name: mine\npairs: {source: agreeableness}\n"


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a text as a file of settings."""

    def make(text: str, *overrides: str, kind=RunConfig):
        file = tmp_path / "run.yaml"
        file.write_text(text, encoding="utf-8")
        return load_config(file, overrides, kind=kind)

    return make


def test_what_a_file_leaves_out_has_its_default(load):
    config = load(BASE)
    assert config == RunConfig.model_validate(
        {"name": "mine", "pairs": {"source": "agreeableness"}}
    )
    assert config.model.name == "smollm2"
    assert config.method.name == "attributed_sae"
    assert config.evaluation.random_directions == 5


def test_overrides_win_over_the_file_and_the_last_one_wins(load):
    config = load(
        BASE + "selection: {n_features: 5}\n",
        "selection.n_features=32",
        "seed=3",
        "seed=4",
        "evaluation.multiples=[-1, 0, 1]",
        "pairs.max_pairs=null",
        "completions.chat=false",
        'reading.request="Say: a = b"',
        "regression.ridge_alpha=1e-3",
    )
    assert config.selection.n_features == 32
    # As in files from when this method was the default.
    assert config.method.name == "clustered_sae"
    assert config.seed == 4
    assert config.evaluation.multiples == [-1.0, 0.0, 1.0]
    assert config.pairs.max_pairs is None
    assert config.completions.chat is False
    assert config.reading.request == "Say: a = b"
    assert config.regression.ridge_alpha == 0.001
    # A section that the file leaves out.
    assert load("name: mine\n", "pairs.source=optimism").pairs.source == "optimism"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BASE + "modle: {name: gpt2}\n", r"run\.yaml: modle .*did you mean 'model'\?"),
        (BASE + "evaluation: {kl_targt: 1}\n", r"evaluation\.kl_targt .*did you mean 'kl_target'"),
        (BASE + "quite_another: 1\n", r"quite_another is not a known setting \(known: name, model"),
        # A misspelt field is told rather than that it is missing.
        ("name: mine\npairs: {sorce: x}\n", r"pairs\.sorce .*'source'.*\(and 1 more\)\.$"),
        ("", "holds no settings"),
        ("name: [", "is not YAML"),
        ("name: !!python/object:os.system x", "is not YAML"),
        ("name: mine\n", r"pairs: field required"),
    ],
)
def test_a_file_whose_settings_do_not_fit_is_told(text, told, load):
    with pytest.raises(ConfigError, match=told) as found:
        load(text)
    assert "\n" not in str(found.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError, match=rf"{path.name} cannot be read"):
            load_config(path, kind=RunConfig)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ConfigError, match=r"binary\.yaml is not YAML"):
        load_config(tmp_path / "binary.yaml", kind=RunConfig)


def test_the_digest_depends_on_what_the_numbers_depend_on():
    def digest(data: str = "a", **changes: Any) -> str:
        settings = {"name": "mine", "pairs": {"source": "x"}} | changes
        return RunConfig.model_validate(settings).digest(pairs=data)

    base = digest()
    assert base == digest()
    assert len(base) == 10
    assert digest("b") != base
    different: list[dict[str, Any]] = [
        {"seed": 1},
        {"name": "other"},
        {"evaluation": {"kl_target": 0.2}},
        {"model": {"dtype": "float32"}},
        {"pairs": {"source": "y"}},
    ]
    for changes in different:
        assert digest(**changes) != base, changes
    nothing = {"tracking": {"tags": ["a"]}, "folder": "elsewhere", "model": {"threads": 2}}
    assert digest(**nothing) == base
    # The objective of a method that has none.
    clustered = {"method": "clustered_sae", "objective": {"kl_target": 0.2}}
    assert digest(**clustered) == digest(method="clustered_sae") != base


def settings_classes(base: type[Settings] = Settings) -> list[type[Settings]]:
    """Every settings class of the package."""
    found = list(base.__subclasses__())
    return found + [inner for kind in found for inner in settings_classes(kind)]


def test_yes_is_no_number_however_deep_it_stands():
    takes = ("bool", "Any", "JsonValue")
    covered = set()
    for kind in settings_classes():
        for name, field in kind.model_fields.items():
            if any(word in str(field.annotation) for word in takes) or name == "wandb":
                continue
            covered.add(kind)
            for value in (True, [[1, False]], {"a": True}, {True: 1}, [1, {"a": [True]}]):
                with pytest.raises(ValidationError) as error:
                    kind.model_validate({name: value})
                assert name in {problem["loc"][0] for problem in error.value.errors()}
    assert covered >= {RunConfig, CompareConfig, ProbeConfig, PatchConfig, CorruptConfig}
    assert covered >= {AgentConfig, Parameter, Metric, TrainSaeConfig}


def test_yes_is_no_number_in_a_methods_settings():
    told = "method attributed_sae: n_features: true is a yes or no"
    with pytest.raises(ConfigError, match=told):
        build_method("attributed_sae", {"n_features": True})


def test_a_power_of_ten_is_a_number_wherever_it_stands(load):
    for word in ("1e-3", "1.0e-3", "'1e-3'"):
        text = BASE + f"evaluation: {{kl_target: {word}, multiples: [{word}, 1e0]}}"
        config = load(text, f"selection.min_abs_score={word}")
        assert config.evaluation.kl_target == 0.001
        assert config.evaluation.multiples == [0.001, 1.0]
        assert config.selection.min_abs_score == 0.001
    assert load_yaml("values: [1e-3, 5e2, -1.5E+3, .5e1]") == {"values": [0.001, 500, -1500, 5]}
    assert load_yaml("[e3, 1e, 12e4f, '1e3']") == ["e3", "1e", "12e4f", "1e3"]


def test_old_words_are_read_with_a_note(tmp_path, caplog):
    file = tmp_path / "old.yaml"
    file.write_text(BASE + "evaluation: {budget: 0.2}\nobjective: {budget: 0.1}\n")
    config = load_config(file, kind=RunConfig)
    assert (config.evaluation.kl_target, config.objective.kl_target) == (0.2, 0.1)
    assert all("kl_target now" in record.getMessage() for record in caplog.records)
    with pytest.raises(ConfigError, match="budget is called kl_target now, and both are given"):
        load_config(file, ["evaluation.kl_target=0.3"], kind=RunConfig)
