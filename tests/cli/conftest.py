"""The command line in this process, and one finished tiny run."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest


class Answer(NamedTuple):
    """What a command gave back."""

    code: int
    out: str
    err: str


@pytest.fixture
def saesteer(monkeypatch, capsys, tmp_path_factory) -> Iterator[Callable[..., Answer]]:
    """Return a function that calls the command with arguments, as the installed script does."""
    from saesteer.cli.main import main

    # What the command sets for its process, put back afterwards.
    for name in ("TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    # Commands without a folder of their own keep their records here.
    monkeypatch.setenv("SAESTEER_RUNS", str(tmp_path_factory.mktemp("looks")))
    levels = {
        n: logging.getLogger(n).level for n in ("transformers", "transformer_lens", "sae_lens")
    }

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["saesteer", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        with warnings.catch_warnings():
            try:
                main()
            except SystemExit as error:
                code = int(error.code or 0)
        shown = capsys.readouterr()
        return Answer(code, shown.out, shown.err)

    yield call
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def refused(saesteer) -> Callable[..., str]:
    """Return a function that calls the command and returns the sentence with which it refuses."""

    def call(*arguments: object) -> str:
        answer = saesteer(*arguments)
        assert answer.code == 2, answer
        assert answer.out == ""
        assert "Traceback" not in answer.err
        last = answer.err.splitlines()[-1]
        assert last.startswith("error: ")
        # Before it stand at most the lines that say what is being loaded.
        assert all(" ..." in line for line in answer.err.splitlines()[:-1])
        return last.removeprefix("error: ")

    return call


@pytest.fixture
def no_loading(monkeypatch) -> None:
    """Make loading a model or an SAE fail the test."""

    # Imported first, or it would keep the patched names as its own.
    import_module("saesteer.experiments.context")

    def refuse(*args: object, **kwargs: object):
        raise AssertionError("nothing may be loaded")

    monkeypatch.setattr("saesteer.models.load_model", refuse)
    monkeypatch.setattr("saesteer.saes.loading.load_sae", refuse)
    for name in ("load_model", "load_sae"):
        monkeypatch.setattr(f"saesteer.experiments.context.{name}", refuse)


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
