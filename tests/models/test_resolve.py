"""What a model's name points to, and its depth and width, before anything is loaded."""

from __future__ import annotations

import os
from typing import Any

import pytest

from saesteer.models import Site, load_model, resolve_model
from saesteer.models import resolve as resolve_module
from saesteer.models.resolve import check_shape, model_shape
from saesteer.saes.loading import check_planned
from saesteer.utils.errors import MismatchError, ModelError, SiteError


def test_a_hub_id_is_taken_as_one_and_a_folder_is_known_by_its_config(tmp_path, monkeypatch):
    for name in ("gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "a_b/c.d-1", " gpt2 "):
        source = resolve_model(name)
        assert (source.kind, source.location) == ("hub", name.strip())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (folder, str(folder), "model", "./model", "~/model"):
        source = resolve_model(name)
        assert (source.kind, source.location) == ("folder", str(folder.resolve()))


def test_a_folder_without_a_config_and_a_missing_gguf_file_are_sentences(tmp_path):
    with pytest.raises(ModelError, match=r"holds no config\.json; give a folder written by save_"):
        load_model(tmp_path)

    for name in ("missing.gguf", tmp_path / "missing.gguf", tmp_path / "missing" / "x.gguf"):
        with pytest.raises(ModelError, match=r"missing.* is not there; give the path of an exist"):
            load_model(name)


@pytest.mark.parametrize(
    "name", ["", "nonsense name!", "/no/such/folder", "~no-such-user/model", "x" * 5000, "a\0b"]
)
def test_a_name_that_can_be_nothing_is_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(name)
    text = str(caught.value)
    assert "config.json" in text or "neither an existing folder or .gguf file nor a Hub id" in text
    assert "\n" not in text
    assert len(text) < 500


def test_the_bundled_model_comes_from_the_wheel_or_where_there_is_none_the_hub(
    bundled_gguf, monkeypatch
):
    source = resolve_model("smollm2")
    assert source.kind == "gguf"
    assert source.location == str(bundled_gguf)
    assert source.sha256 is not None
    assert len(source.sha256) == 64

    monkeypatch.setattr(resolve_module.importlib.util, "find_spec", lambda name: None)
    source = resolve_model("smollm2")
    assert (source.kind, source.location) == ("hub", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert source.name == "smollm2"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["folder", "gguf", "hub"])
def source(request, tiny_model_folder, tiny_gguf, tmp_path, monkeypatch):
    """A tiny Llama, three blocks of width 32, in each of the places that a model comes from."""
    if request.param == "folder":
        return resolve_model(tiny_model_folder("llama"))
    if request.param == "gguf":
        return resolve_model(tiny_gguf)
    home = tmp_path / "hub" / "models--tiny--model"
    (home / "snapshots").mkdir(parents=True)
    os.symlink(tiny_model_folder("llama"), home / "snapshots" / "0123abcd")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123abcd")
    import huggingface_hub.constants
    import transformers.utils.hub

    hub: Any = transformers.utils.hub
    for module in (huggingface_hub.constants, hub.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return resolve_model("tiny/model")


def test_what_is_as_wide_as_the_model_passes_and_nothing_else(source, cache):
    assert model_shape(source) == (3, 32, 4)
    check_shape(source, Site(2), 32, "SAE x")
    # How wide a head's or a neuron's site is the configuration does not say.
    check_shape(source, Site(2, "mlp.hook_post"), 64, "SAE x")
    with pytest.raises(MismatchError, match=r"SAE x is 48 wide at blocks.2.hook_resid_post and"):
        check_shape(source, Site(2), 48, "SAE x")
    with pytest.raises(SiteError, match=r"SAE x, blocks.3.hook_resid_post: .* blocks 0 to 2"):
        check_shape(source, Site(3), 32, "SAE x")
    # Nothing was converted for it.
    assert not cache.exists()


def test_an_sae_of_another_width_is_refused_by_its_folder(source, mirror_sae):
    # A model that is not here yet passes.
    check_shape(resolve_model("nobody/nothing-here"), Site(99), 7, "SAE x")
    check_planned(source, mirror_sae(), "right")
    with pytest.raises(MismatchError, match="SAE wide is 48 wide"):
        check_planned(source, mirror_sae(d_in=48), "wide")
    with pytest.raises(SiteError, match=r"SAE deep, blocks\.7\.hook_resid_post"):
        check_planned(source, mirror_sae(site="blocks.7.hook_resid_post"), "deep")
