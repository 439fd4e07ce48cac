from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from saesteer.saes.loading import check_planned, load_sae, resolve_sae
from saesteer.utils.errors import MismatchError, NetworkError, SaeError


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """What HF_HUB_OFFLINE=1 with an empty cache sets; the variable itself is read at import."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_known_releases_are_found_without_network_and_fetched_with_it(offline):
    known = "gpt2-small-res-jb:blocks.6.hook_resid_pre"
    assert resolve_sae(known) == tuple(known.split(":"))
    for name in (known, "somebody/her-sae:layer_1"):
        with pytest.raises(NetworkError, match=r"not in the local cache.*connect once.*local fold"):
            load_sae(name)


def test_a_connection_that_breaks_off_inside_the_hub_library_needs_the_network(monkeypatch):
    from huggingface_hub import errors
    from sae_lens import SAE

    # Named as httpx names it.
    TransportError = type("TransportError", (Exception,), {})

    def refuse(*args: Any, **kwargs: Any):
        try:
            raise TransportError("[Errno -2] Name or service not known")
        except TransportError as error:
            raise errors.FileMetadataError("no metadata") from error

    monkeypatch.setattr(SAE, "from_pretrained", refuse)
    with pytest.raises(NetworkError, match="connect once"):
        load_sae("somebody/her-sae:layer_1")


def test_folder_is_found_as_path_and_as_text(make_sae, tmp_path, monkeypatch):
    folder = make_sae()
    assert resolve_sae(folder) == resolve_sae(f" {folder} ") == folder
    monkeypatch.chdir(tmp_path)
    assert resolve_sae(folder.name).resolve() == folder  # type: ignore[union-attr]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_sae(f"~/{folder.name}") == folder


def test_what_is_neither_folder_nor_release_is_refused_with_both_forms(monkeypatch, tmp_path):
    names = ["runs/sae/none", "/none/such:1", "~nobody-of-this-name/sae", " ", ":", "x" * 5000]
    for name in [*names, "gpt2-small-res-jb:", ":blocks.6.hook_resid_pre", "nul\0byte"]:
        with pytest.raises(SaeError, match=r"neither an existing folder nor .*release:id"):
            resolve_sae(name)
    # An unknown release gets the nearest names.
    with pytest.raises(SaeError, match=r"no release 'gpt2-smal-res-jb'.*gpt2-small-res-jb"):
        resolve_sae("gpt2-smal-res-jb:blocks.6.hook_resid_pre")
    with pytest.raises(SaeError, match="list of releases"):
        resolve_sae("qqqqqqqqqqqqqq:x")
    bundled = {"blocks.10.hook_resid_post": tmp_path / "none"}
    monkeypatch.setattr("saesteer.saes.loading.BUNDLED_SAES", bundled)
    with pytest.raises(SaeError, match=r"smollm2.*install saesteer again"):
        load_sae("smollm2")
    with pytest.raises(SaeError, match=r"'blocks.11.hook_resid_post' is bundled.*sae train"):
        load_sae("smollm2:blocks.11.hook_resid_post")


def test_a_damaged_folder_is_refused_by_name(make_sae):
    whole = make_sae()
    config = json.loads((whole / "cfg.json").read_text(encoding="utf-8"))
    weights = (whole / "sae_weights.safetensors").read_bytes()
    written = [json.dumps(config | change) for change in ({"architecture": "x"}, {"d_in": 16})]
    for text, kept in (
        (json.dumps(config), weights[:200]),
        (json.dumps(config), None),
        *((text, weights) for text in ("{", "{}", *written)),
    ):
        folder = make_sae()
        (folder / "cfg.json").write_text(text)
        (folder / "sae_weights.safetensors").write_bytes(kept or b"")
        if kept is None:
            (folder / "sae_weights.safetensors").unlink()
        with pytest.raises(SaeError, match=r"write it again, whole\.$") as caught:
            load_sae(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    # Metadata that sae_lens would not read.
    version = config["metadata"].pop("sae_lens_version")
    (whole / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(SaeError, match=r"cfg\.json has metadata and no metadata\.sae_lens_version"):
        load_sae(whole)
    (whole / "cfg.json").write_text(json.dumps(config | {"sae_lens_version": version}))
    assert str(load_sae(whole).site) == "blocks.1.hook_resid_post"

    def spoil(sae) -> None:
        sae.W_dec[5] = sae.W_dec[9, 0] = sae.b_enc[3] = float("nan")

    folder = make_sae(change=spoil)
    told = r"NaN or infinity .*W_dec: 2 of 64 rows.*; fetch it again"
    with pytest.raises(SaeError, match=told) as caught:
        load_sae(folder)
    assert "b_enc: 1 of 64 entries" in str(caught.value) and str(folder) in str(caught.value)


def test_scaling_and_whitening_beside_a_training_checkpoint_are_folded_in(make_sae):
    from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening

    generator = torch.Generator().manual_seed(0)
    mean, matrix = torch.randn(32, generator=generator), torch.randn(32, 32, generator=generator)
    inverse = torch.linalg.inv(matrix).contiguous()
    x = torch.randn(5, 32, generator=generator)
    plain = load_sae(make_sae())

    def load(kind, scaler):
        folder = make_sae(normalize_activations=kind)
        with pytest.raises(SaeError, match=rf"{kind}.*activation_scaler\.json"):
            load_sae(folder)
        scaler.save(str(folder / "activation_scaler.json"))
        return load_sae(folder)

    scaled = load("expected_average_only_in", ActivationScaler(scaling_factor=0.5))
    torch.testing.assert_close(scaled.encode(x), plain.encode(x * 0.5))
    torch.testing.assert_close(scaled.reconstruct(x), plain.reconstruct(x * 0.5) / 0.5)
    whitening = ActivationWhitening(mean, matrix, inverse)
    white = load("covariance_whitening", ActivationScaler(whitening=whitening))
    wanted = plain.reconstruct((x - mean) @ matrix) @ inverse + mean
    torch.testing.assert_close(white.reconstruct(x), wanted, atol=1e-2, rtol=1e-3)


def test_a_sae_on_the_hub_is_refused_by_its_configuration_alone(model_folder, monkeypatch):
    from sae_lens.loading import pretrained_sae_loaders

    from saesteer.models.resolve import resolve_model

    def fetched(release: str, sae_id: str) -> dict[str, object]:
        return {"d_in": 48, "metadata": {"hook_name": "blocks.1.hook_resid_post"}}

    monkeypatch.setattr(pretrained_sae_loaders, "load_sae_config_from_huggingface", fetched)
    where = ("somebody/her-sae", "layer_1")
    with pytest.raises(MismatchError, match="48"):
        check_planned(resolve_model(str(model_folder)), where, "her-sae")
