"""Settings of a patching run that fit, and the sentences for those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saesteer.experiments.patch.cells import Job, jobs
from saesteer.experiments.patch.plan import plan_patch
from saesteer.experiments.patch.settings import PatchConfig
from saesteer.models import Site
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError, DataError, SaeError, SaesteerError
from saesteer.utils.settings import load_config, parse_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "patching"


def parsed(**settings) -> PatchConfig:
    data = {"name": "t", "pairs": {"source": "x.json"}, **settings}
    return parse_config(data, kind=PatchConfig, place="a.yaml")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_bundled_settings_fit(path):
    assert load_config(path, kind=PatchConfig).name == path.stem


def test_patching_is_in_float32_unless_said_otherwise():
    assert parsed(model={"name": "gpt2"}).model.dtype == "float32"
    assert parsed(model={"dtype": "bfloat16"}).model.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": {}}, "give either source"),
        ({"pairs": {"source": "a", "ioi": {}}}, "give either source"),
        ({"components": ["resid_prae"]}, "components"),
        ({"components": []}, "components"),
        ({"components": ["z", "z"]}, "'z' is named twice"),
        ({"by_position": ["z"], "components": ["resid_pre"]}, "no head component of components"),
        ({"by_position": ["resid_pre"]}, "no head component of components"),
        ({"modes": ["nosing"]}, "modes"),
        ({"metric": "logit_diff"}, "metric"),
        ({"path": {"receivers": ["9.9"]}}, "'9.9' is no receiver"),
        ({"path": {"receivers": [["final", "9.9.q"]]}}, "heads' inputs alone"),
        ({"path": {"receivers": [[]]}}, "heads' inputs alone"),
        ({"path": {"mlps": "melted"}}, "path.mlps"),
        ({"attention": {"heads": ["nine"]}}, "'nine' is no head"),
        ({"attention": {"heads": []}}, "there is no head in the list"),
        # A bare 9.10 in YAML is the number 9.1.
        ({"circuit": {"heads": [9.1]}}, "9.1 is no head; write its layer and number in quotes"),
        ({"circuit": {"heads": ["9.1@"]}}, "'9.1@' is no head"),
        ({"circuit": {"heads": ["9.1", "9.1"]}}, "'9.1' is named twice"),
        ({"attribution": {"methods": []}}, "attribution.methods"),
        ({"attribution": {"steps": 0}}, "attribution.steps"),
        ({"features": {"vector": "v.safetensors"}}, "name it as sae"),
        ({"circuit": {"faithfulness": 1}}, "circuit.faithfulness"),
        ({"memory_gb": float("nan")}, "memory_gb"),
        ({"memory_gb": 0}, "memory_gb"),
        ({"metrik": "kl"}, "did you mean 'metric'"),
        ({"name": "../x"}, "name"),
    ],
)
def test_what_does_not_fit_is_one_sentence(settings, message):
    with pytest.raises(ConfigError) as error:
        parsed(**settings)
    assert message in str(error.value)
    assert str(error.value).startswith("a.yaml: ") and "\n" not in str(error.value)


def test_where_and_how_fast_it_runs_changes_no_digest():
    first = parsed()
    assert parsed(folder="elsewhere", memory_gb=9.0, tracking={"tags": ["a"]}).digest() == (
        first.digest()
    )
    assert parsed(seed=1).digest() != first.digest() != parsed(metric="kl").digest()


def test_a_run_makes_every_result_once():
    config = parsed(
        components=["resid_pre", "z"],
        by_position=["z"],
        modes=["denoising", "noising"],
        path={"senders": ["z", "mlp_out"], "receivers": ["final", ["9.9.q", "9.6.q"]]},
    )
    found = list(jobs(config))
    assert len(set(found)) == len(found) == len({job.file for job in found})
    assert Job("path", "mlp_out-to-9.9.q+9.6.q", "noising") in found
    # By position heads are attributed, and patched only where that is asked for.
    assert Job("attribution", "z", "denoising", True) in found
    assert Job("activation", "z", "denoising", True) not in found
    more = list(jobs(config.model_copy(update={"patch_by_position": True})))
    assert set(more) - set(found) == {
        Job("activation", "z", mode, True) for mode in ("denoising", "noising")
    }


def test_a_plan_reads_pairs_and_loads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("saesteer.experiments.context.load_model", None)
    config = parsed(pairs={"source": "capitals", "max_pairs": 5}, folder=str(tmp_path))
    plan = plan_patch(config)
    assert plan.pairs is not None and len(plan.pairs) == 5
    assert plan == plan_patch(config)
    other = plan_patch(config.model_copy(update={"seed": 1}))
    assert other.pairs != plan.pairs and other.folder != plan.folder
    assert list(tmp_path.iterdir()) == []


def test_another_vector_under_the_same_name_is_another_run(tmp_path):
    folders = []
    for index in (0, 1):
        vector = SteeringVector(torch.eye(576)[index], Site(10), norm=1.0, model="tiny")
        vector.save(tmp_path / "v.safetensors")
        features = {"vector": str(tmp_path / "v.safetensors")}
        config = parsed(pairs={"source": "capitals"}, sae="smollm2", features=features)
        folders.append(plan_patch(config).folder)
    assert folders[0] != folders[1]


def test_a_plan_refuses_what_is_not_there(tmp_path):
    absent = {"pairs": {"source": "capitals"}, "features": {"vector": "./nothing.safetensors"}}
    with pytest.raises(SaesteerError, match="nothing"):
        plan_patch(parsed(**absent, sae="smollm2"))
    with pytest.raises(DataError, match=r"x\.json"):
        plan_patch(parsed(folder=str(tmp_path)))
    with pytest.raises(DataError, match="no bundled set"):
        plan_patch(parsed(pairs={"source": "capitols"}))
    with pytest.raises(SaeError, match="nowhere"):
        plan_patch(parsed(pairs={"ioi": {}}, sae="./nowhere"))
    with pytest.raises(ConfigError, match=r"cannot be used|cannot be written|is a file"):
        plan_patch(parsed(pairs={"ioi": {}}, folder="/proc/version/x"))
