from __future__ import annotations

import warnings
from typing import Any

import pytest
import sae_lens  # noqa: F401  registers the architectures
import torch
from sae_lens.registry import SAE_CLASS_REGISTRY

from saesteer.models.reading import read_rows
from saesteer.saes.adapter import Sae, check_compatible
from saesteer.saes.loading import load_sae
from saesteer.utils.errors import MismatchError, SaeError, SiteError


def by_hand(folder) -> Any:
    from sae_lens import SAE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SAE.load_from_disk(folder)


@pytest.fixture
def x():
    return torch.randn(9, 32, generator=torch.Generator().manual_seed(5)) * 2 + 0.5


# Every architecture that sae_lens offers.
ARCHITECTURES = sorted(SAE_CLASS_REGISTRY)
# Of these one unit of a feature adds its decoder row.
PLAIN = {"standard", "gated", "jumprelu", "topk", "abstopk", "transcoder", "matching_pursuit"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_computes_what_sae_lens_computes(make_sae, x, architecture):
    folder = make_sae(architecture)
    sae, hand = load_sae(folder), by_hand(folder)
    whole = x[None] if architecture == "temporal" else x
    codes = sae.encode(x)
    assert isinstance(sae, Sae)
    assert codes.shape == (9, 64)
    assert (codes != 0).any()
    torch.testing.assert_close(codes, hand.encode(whole).reshape(9, 64).detach())
    torch.testing.assert_close(sae.reconstruct(x), hand(whole).reshape(9, 32).detach())
    torch.testing.assert_close(sae.decoder, hand.W_dec.detach())
    assert (sae.d_in, sae.d_sae, sae.architecture) == (32, 64, architecture)
    assert load_sae(folder).fingerprint == sae.fingerprint
    assert load_sae(make_sae(architecture, seed=2)).fingerprint != sae.fingerprint
    if architecture in PLAIN:
        torch.testing.assert_close(codes @ sae.decoder + hand.b_dec.detach(), sae.reconstruct(x))
    if "topk" in architecture:
        folder = make_sae(architecture, rescale_acts_by_decoder_norm=True)
        sae, bias = load_sae(folder), by_hand(folder).b_dec.detach()
        torch.testing.assert_close(sae.encode(x) @ sae.decoder + bias, sae.reconstruct(x))


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_normalised_sae_computes_what_sae_lens_computes(make_sae, x, normalisation):
    folder = make_sae("jumprelu", normalize_activations=normalisation)
    sae, hand = load_sae(folder), by_hand(folder)
    sae.encode(x * 3 - 1)  # what was encoded before must not leak into the next reconstruction
    torch.testing.assert_close(sae.reconstruct(x), hand(x).detach())
    torch.testing.assert_close(sae.encode(x), hand.encode(x).detach())


def test_temporal_sae_sees_the_tokens_of_a_text_in_their_order(make_sae, x):
    sae = load_sae(make_sae("temporal"))
    whole = sae.reconstruct(x)
    torch.testing.assert_close(sae.reconstruct(x[:4]), whole[:4])
    assert not torch.allclose(sae.reconstruct(x.flip(0)).flip(0), whole, atol=1e-3)


CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}


def test_sae_of_a_centred_model_sees_the_centred_and_gives_back_the_raw_activation(make_sae, x):
    folder = make_sae("standard", metadata=CENTRED)
    sae, hand = load_sae(folder), by_hand(folder)
    mean = x.mean(dim=1, keepdim=True)
    assert sae.centred
    torch.testing.assert_close(sae.encode(x), hand.encode(x - mean).detach())
    torch.testing.assert_close(sae.reconstruct(x), hand(x - mean).detach() + mean)
    torch.testing.assert_close(sae.encode(x + 7), sae.encode(x), atol=1e-4, rtol=1e-4)
    # A transcoder does not add its input's mean to another site.
    folder = make_sae("transcoder", metadata=CENTRED)
    sae, hand = load_sae(folder), by_hand(folder)
    assert (str(sae.site), str(sae.write_site)) == ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    torch.testing.assert_close(sae.reconstruct(x), hand(x - mean).detach())


def test_hook_z_sae_takes_heads_side_by_side(make_sae, model, rows):
    folder = make_sae(
        "standard", metadata={"hook_name": "blocks.1.attn.hook_z"}, reshape_activations="hook_z"
    )
    sae, hand = load_sae(folder), by_hand(folder)
    check_compatible(model, sae)
    flat = read_rows(model, rows[:3], [sae.site])[sae.site].text(1)
    assert flat.shape[1] == sae.d_in == 32
    heads = flat.reshape(-1, 4, 8)
    torch.testing.assert_close(sae.encode(flat), hand.encode(heads).detach())
    torch.testing.assert_close(sae.reconstruct(flat), hand(heads).detach().flatten(1))


def test_half_precision_sae_computes_in_float32(make_sae, x):
    def round_off(sae):
        for parameter in sae.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))

    full = make_sae("topk", change=round_off)
    half = make_sae("topk", change=lambda sae: (round_off(sae), sae.to(dtype=torch.bfloat16)))
    assert next(iter(by_hand(half).parameters())).dtype == torch.bfloat16
    stored, same = load_sae(half), load_sae(full)
    assert stored.encode(x).dtype == stored.decoder.dtype == torch.float32
    torch.testing.assert_close(stored.encode(x), same.encode(x))
    torch.testing.assert_close(stored.reconstruct(x), same.reconstruct(x))


def test_what_does_not_fit_is_refused(make_sae, model):
    with pytest.raises(SaeError, match=r"does not say at which site.*hook_name"):
        load_sae(make_sae(metadata={"hook_name": None}))
    sae = load_sae(make_sae())
    for shape in ((5, 31), (2, 5, 32)):
        for compute in (sae.encode, sae.reconstruct):
            with pytest.raises(MismatchError, match="width 32"):
                compute(torch.zeros(shape))
    with pytest.raises(MismatchError, match=r"takes 48 dimensions and .* has 32"):
        check_compatible(model, load_sae(make_sae(d_in=48)))
    far = load_sae(make_sae(metadata={"hook_name": "blocks.3.hook_resid_post"}))
    with pytest.raises(SiteError, match="blocks 0 to 2"):
        check_compatible(model, far)
