"""Files of settings, one finished tiny run, and an SAE with labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.experiments import conftest as fixtures
from tests.sweeps import conftest as sweeps

small_data, small_in = fixtures.small_data, fixtures.small_in
base_file, sweep_file, made_up = sweeps.base_file, sweeps.sweep_file, sweeps.made_up


@pytest.fixture(scope="session")
def settings_file(small_in, tmp_path_factory) -> Callable[..., Path]:
    """Return a function that writes a kind's small settings, changed; JSON is YAML."""

    def write(kind: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        file = folder / f"{kind}.yaml"
        file.write_text(json.dumps({**small_in(kind, folder / "runs"), **changes}))
        return file

    return write


@pytest.fixture(scope="session")
def probe_texts(tmp_path_factory) -> Path:
    """Sixty texts whose last words tell their class."""
    path = tmp_path_factory.mktemp("probe") / "texts.csv"
    words = {"negative": "bad grim", "positive": "nice glad"}
    lines = [f"the cat {n} is {said},{label}" for n in range(30) for label, said in words.items()]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


@pytest.fixture(scope="session")
def probe_config(probe_texts, settings_file) -> Path:
    """A file of settings for probes on every layer of a tiny model."""
    return settings_file(
        "probe",
        data={"source": str(probe_texts), "test": 0.3, "judge": 0, "near_duplicate": None},
        fit={"c": [0.01, 0.1], "resamples": 20},
        checks=str(probe_texts),
    )


@pytest.fixture(scope="session")
def probe_run(probe_config) -> Path:
    """The folder of a finished probe run."""
    from saesteer.experiments.probe.config import ProbeConfig
    from saesteer.experiments.registry import run_experiment
    from saesteer.utils.settings import load_config

    return run_experiment(load_config(probe_config, kind=ProbeConfig)).folder.path


@pytest.fixture
def saesteer(run_cli) -> Callable[..., Any]:
    """The command, by its name."""
    return run_cli


@pytest.fixture(scope="session")
def config(tiny_settings, tmp_path_factory) -> Path:
    """A file of settings for a tiny run; JSON is YAML."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(json.dumps(tiny_settings("llama")), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def finished(config) -> Path:
    """The folder of a finished tiny run."""
    from saesteer.experiments.registry import run_experiment
    from saesteer.experiments.steer.config import RunConfig
    from saesteer.utils.settings import load_config

    return run_experiment(load_config(config, kind=RunConfig)).folder.path


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Make every connection fail the test."""

    def refuse(*args: object, **kwargs: object):
        raise AssertionError("nothing may be asked of the network")

    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("requests.Session.request", refuse)


@pytest.fixture
def known_sae(mirror_sae, tmp_path) -> Path:
    """A tiny SAE that says where on Neuronpedia it is."""
    folder = tmp_path / "known-sae"
    shutil.copytree(mirror_sae(), folder)
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"]["neuronpedia_id"] = "gpt2-small/6-res-jb"
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def labelled(monkeypatch, tmp_path, known_sae, no_network) -> Path:
    """An SAE with a place on Neuronpedia, all of its labels imported; asking fails the test."""
    from saesteer.saes.labels import label_cache
    from saesteer.saes.neuronpedia import Cache, SourceId, import_from_files

    place = {"modelId": "gpt2-small", "layer": "6-res-jb"}
    lines = [
        json.dumps({**place, "index": str(n), "description": f"[label] {n}"}) for n in range(64)
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    import_from_files(
        Cache(label_cache()), SourceId("gpt2-small", "6-res-jb"), [tmp_path / "labels.jsonl"]
    )
    return known_sae


@pytest.fixture
def agent_file(tiny_model_folder, tmp_path) -> Any:
    """A file of settings around a tiny model on the disk, as YAML reads it."""
    settings = {
        "name": "tiny",
        "goal": "Which of the layers costs most?",
        "experiments": {
            "corrupt": {
                "model": {"name": str(tiny_model_folder("llama"))},
                "tasks": {"source": ["copying"], "shots": 1, "max_questions": 2},
                "completions": None,
            }
        },
        "search": {
            "kind": "corrupt",
            "parameters": {"programs": "skip {layer}"},
            "batch": "programs",
            "metric": ["programs", "{candidate}", "loss"],
            "question": "the layer that costs most",
        },
        "folder": str(tmp_path / "runs"),
    }
    file = tmp_path / "agent.yaml"
    file.write_text(json.dumps(settings))
    return file
