from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from saesteer.models.loading import model_info
from saesteer.models.tokens import TokenRow
from saesteer.saes.doctor import check_fit, doctor, rows_for
from saesteer.saes.loading import load_sae
from saesteer.utils.errors import DataError, MismatchError


def mirror(sae, forgotten=()) -> None:
    eye = torch.eye(32)
    sae.W_enc.copy_(torch.cat([eye, -eye]).T)
    eye[list(forgotten)] = 0
    sae.W_dec.copy_(torch.cat([eye, -eye]))
    sae.b_enc.zero_()
    sae.b_dec.zero_()


@pytest.fixture
def lossy(make_sae, read_by_hand, rows):
    """A mirror SAE that forgets the four coordinates of least variance."""
    least = torch.cat([read_by_hand(row) for row in rows]).var(dim=0).argsort()[:4].tolist()
    return load_sae(make_sae("standard", change=lambda sae: mirror(sae, least)))


def loss_by_hand(plain, rows, change) -> float:
    """Cross-entropy of kept tokens, one row at a time and without padding."""
    total, count = 0.0, 0
    for row in rows:
        kept = torch.tensor(row.kept)

        def hook(module, inputs, output, kept=kept):
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[0, kept] = change(hidden[0, kept])
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = plain.model.layers[1].register_forward_hook(hook)
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([row.ids])).logits[0]
        handle.remove()
        logs = logits.log_softmax(dim=-1)
        for place in range(1, len(row)):
            if row.kept[place]:
                total -= float(logs[place - 1, row.ids[place]])
                count += 1
    return total / count


def test_a_perfect_sae_has_perfect_figures_and_a_random_one_is_refused(
    model, perfect, make_sae, rows, read_by_hand
):
    sae = load_sae(perfect)
    report = doctor(model, sae, rows)
    assert report.explained_variance == pytest.approx(1, abs=1e-6)
    assert report.ce_score == pytest.approx(1, abs=1e-4)
    assert report.norm_ratio == pytest.approx(1, abs=1e-6)
    assert report.l0 == pytest.approx(32, abs=0.01)
    assert report.dead == 0
    assert report.ce_spliced == pytest.approx(report.ce_clean, abs=1e-5)
    assert report.n_tokens == sum(sum(row.kept) for row in rows)
    assert set(report.as_dict()) >= {"explained_variance", "l0", "ce_score", "norm_ratio"}
    # What is not kept does not count.
    half = [
        TokenRow(row.ids, tuple(kept and place >= 5 for place, kept in enumerate(row.kept)))
        for row in rows
        if len(row) > 8
    ]
    norms = torch.cat([read_by_hand(row) for row in half]).norm(dim=1)
    report = doctor(model, sae, half)
    assert report.n_tokens == len(norms)
    assert report.residual_norm == pytest.approx(float(norms.mean()), rel=1e-5)
    with pytest.raises(DataError, match="at least 64 tokens"):
        doctor(model, sae, rows[:1])
    told = r"explains -?\d+\.\d\d of the variance at blocks\.1\."
    with pytest.raises(MismatchError, match=told):
        doctor(model, load_sae(make_sae("standard")), rows)


def test_figures_equal_numpy_by_hand(model, plain, lossy, rows, read_by_hand):
    report = doctor(model, lossy, rows)
    x = np.concatenate([read_by_hand(row).numpy() for row in rows]).astype(np.float64)
    weights = {name: t.numpy().astype(np.float64) for name, t in lossy.sae.state_dict().items()}
    codes = np.maximum(x @ weights["W_enc"] + weights["b_enc"], 0)
    rebuilt = codes @ weights["W_dec"] + weights["b_dec"]
    explained = 1 - ((x - rebuilt) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
    norms = np.linalg.norm(x, axis=1)
    assert 0.5 < explained < 0.999
    assert report.explained_variance == pytest.approx(explained, abs=1e-5)
    assert report.l0 == pytest.approx((codes > 0).sum(axis=1).mean(), abs=0.01)
    assert report.residual_norm == pytest.approx(norms.mean(), rel=1e-5)
    ratio = (np.linalg.norm(rebuilt, axis=1) / norms).mean()
    assert report.norm_ratio == pytest.approx(ratio, rel=1e-5)
    # Losses are those of a loop over the Hugging Face model.
    clean = loss_by_hand(plain, rows, lambda hidden: hidden)
    spliced = loss_by_hand(plain, rows, lossy.reconstruct)
    ablated = loss_by_hand(plain, rows, torch.zeros_like)
    assert abs(spliced - clean) > 0.01
    assert report.ce_clean == pytest.approx(clean, abs=1e-4)
    assert report.ce_spliced == pytest.approx(spliced, abs=1e-4)
    assert report.ce_ablated == pytest.approx(ablated, abs=1e-4)
    assert report.ce_score == pytest.approx((ablated - spliced) / (ablated - clean), abs=1e-3)


def trained_at(place, kept):
    """Return what makes an SAE that gives back the largest parts of what stands at a place."""

    def change(sae) -> None:
        x = torch.cat(place).double()
        mean = x.mean(dim=0)
        parts = torch.linalg.svd(x - mean).Vh[:kept].float()
        for weights in (sae.W_enc, sae.W_dec):
            weights.zero_()
        sae.b_dec.copy_(mean)
        sae.W_enc[:, : 2 * kept] = torch.cat([parts, -parts]).T
        sae.W_dec[: 2 * kept] = torch.cat([parts, -parts])
        sae.b_enc.copy_(-sae.b_dec @ sae.W_enc)

    return change


def explained(sae, states) -> float:
    x = torch.cat(states).double()
    error = (x - sae.reconstruct(x.float()).double()).pow(2).sum()
    return float(1 - error / (x - x.mean(dim=0)).pow(2).sum())


def test_one_block_off_the_right_site_is_named(model, plain, make_sae, rows):
    # The kept tokens' states after each block, by Hugging Face alone, one row at a time.
    layer_states = [[], []]
    for row in rows:
        with torch.no_grad():
            out = plain.model(input_ids=torch.tensor([row.ids]), output_hidden_states=True)
        for layer, states in enumerate(layer_states):
            states.append(out.hidden_states[layer + 1][0][torch.tensor(row.kept)])
    change = trained_at(layer_states[0], 26)
    right = load_sae(make_sae(change=change, metadata={"hook_name": "blocks.0.hook_resid_post"}))
    off = load_sae(make_sae(change=change, metadata={"hook_name": "blocks.1.hook_resid_post"}))
    here, there = explained(off, layer_states[1]), explained(off, layer_states[0])
    assert 0.2 < here < there - 0.05
    assert doctor(model, right, rows).remark == ""
    remark = doctor(model, off, rows).remark
    said = rf"{here:.2f} of the variance at blocks\.1\.hook_resid_post of \S+ and {there:.2f} at "
    assert re.search(said + r"blocks\.0\.hook_resid_post, so it was not trained at this", remark)
    assert check_fit(model, off, rows) == remark


def test_a_sae_of_other_weights_is_refused_by_what_it_records(model, make_sae, rows, perfect):
    own = model_info(model).fingerprint
    facts = {"model_name": "its/model", "model_fingerprint": "0" * 64}
    told = r"other weights \(model its/model, fingerprint 000000000000\) .*; load that model, or"
    for measure in (doctor, check_fit):
        with pytest.raises(MismatchError, match=told):
            measure(model, load_sae(make_sae(metadata=facts)), rows)
    same = make_sae(metadata=facts | {"model_fingerprint": own}, change=mirror)
    assert doctor(model, load_sae(same), rows).explained_variance == pytest.approx(1, abs=1e-6)


def test_a_transcoder_is_measured_at_the_site_it_writes_to_and_heads_too(model, make_sae, rows):
    def change(sae) -> None:
        for parameter in sae.parameters():
            parameter.zero_()
        sae.W_skip.copy_(torch.eye(32))

    # What block 1 gives out is what block 2 takes in.
    sites = {"hook_name": "blocks.1.hook_resid_post", "hook_name_out": "blocks.2.hook_resid_pre"}
    exact = load_sae(make_sae("skip_transcoder", metadata=sites, change=change))
    report = doctor(model, exact, rows)
    assert report.explained_variance == pytest.approx(1, abs=1e-6)
    assert report.ce_score == pytest.approx(1, abs=1e-4)
    assert report.dead == 1
    # Heads side by side are spliced as well.
    facts = {"hook_name": "blocks.1.attn.hook_z"}
    folder = make_sae(metadata=facts, change=mirror, reshape_activations="hook_z")
    report = doctor(model, load_sae(folder), rows)
    assert report.explained_variance == pytest.approx(1, abs=1e-6)
    assert report.ce_spliced == pytest.approx(report.ce_clean, abs=1e-4)
    assert abs(report.ce_ablated - report.ce_clean) > 2e-4


@pytest.mark.parametrize(("wanted", "first"), [(True, 0), (False, 9)])
def test_texts_are_tokenised_as_the_sae_was_trained(model, make_sae, wanted, first):
    sae = load_sae(make_sae(metadata={"prepend_bos": wanted}))
    texts = ["w1 w2 w3 w4 w5 w6", "", "</s> </s>", "w7"]
    rows = rows_for(model, sae, texts, context=4)
    assert [row.ids[0] for row in rows] == [first, 0 if first == 0 else 15]
    assert [len(row) for row in rows] == [4, 2 if first == 0 else 1]
    assert rows[0].kept == ((False, True, True, True) if first == 0 else (True,) * 4)
    longest = rows_for(model, sae, [" ".join(["w1"] * 500)], context=10**6)
    assert len(longest[0]) == 96
