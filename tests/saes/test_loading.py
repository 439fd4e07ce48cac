from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from saesteer.saes.loading import check_planned, load_sae, resolve_sae
from saesteer.utils.errors import MismatchError, NetworkError, SaeError

KNOWN = [
    ("gpt2-small-res-jb", "blocks.6.hook_resid_pre"),
    ("gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical"),
]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """What HF_HUB_OFFLINE=1 with an empty cache sets; the variable itself is read at import."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("release", "sae_id"), KNOWN)
def test_known_releases_are_found_without_network(offline, release, sae_id):
    assert resolve_sae(f"{release}:{sae_id}") == (release, sae_id)


@pytest.mark.parametrize(("release", "sae_id"), [KNOWN[0], ("somebody/her-sae", "layer_1")])
def test_a_release_that_is_not_cached_needs_the_network(offline, release, sae_id):
    with pytest.raises(NetworkError, match=r"not in the local cache.*connect once.*local folder"):
        load_sae(f"{release}:{sae_id}")


def test_a_connection_that_breaks_off_inside_the_hub_library_needs_the_network(monkeypatch):
    from huggingface_hub import errors
    from sae_lens import SAE

    class TransportError(Exception):
        """As httpx names it."""

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


@pytest.mark.parametrize(
    "name",
    [
        "runs/sae/none",
        "./none:such",
        "/none/such",
        "/none/such:1",
        "~nobody-of-this-name/sae",
        "",
        " ",
        ":",
        "gpt2-small-res-jb",
        "gpt2-small-res-jb:",
        ":blocks.6.hook_resid_pre",
        "x" * 5000,
        "nul\0byte",
    ],
)
def test_what_is_neither_folder_nor_release_is_refused_with_both_forms(name):
    with pytest.raises(SaeError, match=r"neither an existing folder nor .*release:id"):
        resolve_sae(name)


def test_unknown_release_gets_the_nearest_names():
    with pytest.raises(SaeError, match=r"no release 'gpt2-smal-res-jb'.*gpt2-small-res-jb"):
        resolve_sae("gpt2-smal-res-jb:blocks.6.hook_resid_pre")
    with pytest.raises(SaeError, match="list of releases"):
        resolve_sae("qqqqqqqqqqqqqq:x")


def spoil_weights(folder):
    file = folder / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:200])


def drop_weights(folder):
    (folder / "sae_weights.safetensors").unlink()


def spoil_config(folder):
    (folder / "cfg.json").write_text("{", encoding="utf-8")


def set_config(folder, **fields):
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    (folder / "cfg.json").write_text(json.dumps(config | fields), encoding="utf-8")


def unknown_architecture(folder):
    set_config(folder, architecture="batchtopk")


def other_width(folder):
    set_config(folder, d_in=16)


def empty_config(folder):
    (folder / "cfg.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize(
    "spoil",
    [spoil_weights, drop_weights, spoil_config, unknown_architecture, other_width, empty_config],
)
def test_a_damaged_folder_is_refused_by_name(make_sae, spoil):
    folder = make_sae()
    spoil(folder)
    with pytest.raises(SaeError) as caught:
        load_sae(folder)
    text = str(caught.value)
    assert str(folder) in text
    assert text.endswith("write it again, whole.")
    assert "\n" not in text


@pytest.mark.parametrize("value", [float("nan")])
def test_weights_that_are_no_numbers_are_refused_by_tensor_and_count(make_sae, value):
    def change(sae) -> None:
        sae.W_dec[5] = value
        sae.W_dec[9, 0] = value
        sae.b_enc[3] = value

    folder = make_sae(change=change)
    told = r"NaN or infinity .*W_dec: 2 of 64 rows.*; fetch it again"
    with pytest.raises(SaeError, match=told) as caught:
        load_sae(folder)
    assert "b_enc: 1 of 64 entries" in str(caught.value)
    assert str(folder) in str(caught.value)


def test_metadata_that_sae_lens_would_not_read_is_named(make_sae):
    folder = make_sae()
    config = json.loads((folder / "cfg.json").read_text())
    version = config["metadata"].pop("sae_lens_version")
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(SaeError, match=r"cfg\.json has metadata and no metadata\.sae_lens_version"):
        load_sae(folder)
    (folder / "cfg.json").write_text(json.dumps(config | {"sae_lens_version": version}))
    assert str(load_sae(folder).site) == "blocks.1.hook_resid_post"


def test_missing_bundled_sae_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("saesteer.saes.loading.bundled_sae_folder", lambda: tmp_path / "none")
    with pytest.raises(SaeError, match=r"smollm2.*install saesteer again"):
        load_sae("smollm2")


def test_scaling_beside_a_training_checkpoint_is_folded_in(make_sae):
    from sae_lens.training.activation_scaler import ActivationScaler

    plain, scaled = make_sae(), make_sae(normalize_activations="expected_average_only_in")
    with pytest.raises(SaeError, match=r"expected_average_only_in.*activation_scaler\.json"):
        load_sae(scaled)
    ActivationScaler(scaling_factor=0.5).save(str(scaled / "activation_scaler.json"))
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load_sae(scaled).encode(x), load_sae(plain).encode(x * 0.5))
    torch.testing.assert_close(
        load_sae(scaled).reconstruct(x), load_sae(plain).reconstruct(x * 0.5) / 0.5
    )


def test_whitening_beside_a_training_checkpoint_is_folded_in(make_sae):
    from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening

    plain, white = make_sae(), make_sae(normalize_activations="covariance_whitening")
    with pytest.raises(SaeError, match="covariance_whitening"):
        load_sae(white)
    generator = torch.Generator().manual_seed(0)
    mean, matrix = torch.randn(32, generator=generator), torch.randn(32, 32, generator=generator)
    whitening = ActivationWhitening(mean, matrix, torch.linalg.inv(matrix).contiguous())
    ActivationScaler(whitening=whitening).save(str(white / "activation_scaler.json"))
    x = torch.randn(5, 32, generator=generator)
    inside = load_sae(plain).reconstruct((x - mean) @ matrix)
    torch.testing.assert_close(
        load_sae(white).reconstruct(x),
        inside @ torch.linalg.inv(matrix) + mean,
        atol=1e-2,
        rtol=1e-3,
    )


def test_a_sae_on_the_hub_is_refused_by_its_configuration_alone(model_folder, monkeypatch):
    from sae_lens.loading import pretrained_sae_loaders

    from saesteer.models.resolve import resolve_model

    def fetched(release: str, sae_id: str) -> dict[str, object]:
        return {"d_in": 48, "metadata": {"hook_name": "blocks.1.hook_resid_post"}}

    monkeypatch.setattr(pretrained_sae_loaders, "load_sae_config_from_huggingface", fetched)
    where = ("somebody/her-sae", "layer_1")
    with pytest.raises(MismatchError, match="48"):
        check_planned(resolve_model(str(model_folder)), where, "her-sae")
