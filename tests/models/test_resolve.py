"""What a model's name points to, before anything is loaded."""

from __future__ import annotations

import pytest

from saesteer.models import load_model, resolve_model
from saesteer.models import resolve as resolve_module
from saesteer.utils.errors import ModelError


@pytest.mark.parametrize(
    "name",
    ["gpt2", "google/gemma-2-2b", "HuggingFaceTB/SmolLM2-135M-Instruct", "a_b/c.d-1", " gpt2 "],
)
def test_a_hub_id_is_taken_as_one(name):
    source = resolve_model(name)
    assert (source.kind, source.location) == ("hub", name.strip())


def test_a_folder_is_known_by_its_config(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (folder, str(folder), "model", "./model", "~/model"):
        source = resolve_model(name)
        assert (source.kind, source.location) == ("folder", str(folder.resolve()))


def test_a_folder_without_a_config_is_a_sentence(tmp_path):
    with pytest.raises(ModelError, match=r"holds no config\.json; give a folder written by save_"):
        load_model(tmp_path)


def test_a_missing_gguf_file_is_a_sentence(tmp_path):
    for name in ("missing.gguf", tmp_path / "missing.gguf", tmp_path / "missing" / "x.gguf"):
        with pytest.raises(ModelError, match=r"missing.* is not there; give the path of an exist"):
            load_model(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nonsense name!",
        "/no/such/folder",
        "~no-such-user/model",
        "a/b/c",
        "x" * 5000,
        "a\0b",
        "zwei Wörter",
    ],
)
def test_a_name_that_can_be_nothing_is_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(name)
    text = str(caught.value)
    assert "config.json" in text or "neither an existing folder or .gguf file nor a Hub id" in text
    assert "\n" not in text
    assert len(text) < 500


def test_the_bundled_model_comes_from_the_wheel_with_its_digest(bundled_gguf):
    source = resolve_model("smollm2")
    assert source.kind == "gguf"
    assert source.location == str(bundled_gguf)
    assert source.sha256 is not None
    assert len(source.sha256) == 64


def test_the_bundled_model_comes_from_the_hub_where_there_is_no_wheel(monkeypatch):
    monkeypatch.setattr(resolve_module.importlib.util, "find_spec", lambda name: None)
    source = resolve_model("smollm2")
    assert (source.kind, source.location) == ("hub", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert source.name == "smollm2"
