"""A model's depth and width are read, and held against what is to be used with it, before it is."""

from __future__ import annotations

import os
from typing import Any

import pytest

from saesteer.models import Site, resolve_model
from saesteer.models.resolve import check_shape, model_shape
from saesteer.saes.loading import check_planned
from saesteer.utils.errors import MismatchError, SiteError


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


def test_a_model_that_is_not_here_yet_passes():
    check_shape(resolve_model("nobody/nothing-here"), Site(99), 7, "SAE x")


def test_an_sae_of_another_width_is_refused_by_its_folder(source, mirror_sae):
    check_planned(source, mirror_sae(), "right")
    with pytest.raises(MismatchError, match="SAE wide is 48 wide"):
        check_planned(source, mirror_sae(d_in=48), "wide")
    with pytest.raises(SiteError, match=r"SAE deep, blocks\.7\.hook_resid_post"):
        check_planned(source, mirror_sae(site="blocks.7.hook_resid_post"), "deep")
