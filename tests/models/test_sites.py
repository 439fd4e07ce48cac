"""Where the residual stream is read and written."""

from __future__ import annotations

import pytest
import torch

from saesteer.models import HookTarget, Site, check_site, encode_texts, resolve_target
from saesteer.models.tokens import pad_rows, padding_id
from saesteer.utils.errors import SiteError
from tests.by_hand import count_hooks

TEXTS = ["I like helping people, and I always listen.", "The cat sat"]
STREAM = ["hook_resid_pre", "hook_resid_post"]
BRIDGED = ["hook_mlp_out", "hook_attn_out", "hook_resid_mid", "attn.hook_z", "mlp.hook_post"]


def inputs_for(model):
    rows = encode_texts(model.tokenizer, TEXTS)
    return pad_rows(rows, padding_id(model), side="right")


def seen_at(model, site, batch, *, bridged=False):
    target = resolve_target(model, site, bridged=bridged)
    caught = []
    handle = target.hook(lambda hidden: caught.append(hidden.detach().clone()))
    try:
        with torch.no_grad():
            target.model(**batch.inputs)
    finally:
        handle.remove()
    assert len(caught) == 1
    return caught[0]


def test_a_site_is_read_back_as_it_is_written_and_other_text_is_a_sentence():
    for text in ("blocks.10.hook_resid_post", " blocks.0.attn.hook_z "):
        site = Site.parse(text)
        assert str(site) == text.strip()
        assert Site.parse(site) is site
    for text in ("", "hook_resid_post", "blocks.-1.hook_resid_post"):
        with pytest.raises(SiteError, match=r"is not of the form 'blocks\.10\.hook_resid_post'"):
            Site.parse(text)


def test_the_residual_stream_is_what_hugging_face_calls_hidden_states(arch, tiny_model, hf_model):
    model, reference = tiny_model(arch), hf_model(arch)
    batch = inputs_for(model)
    real = batch.attention_mask.bool()
    with torch.no_grad():
        states = reference(**batch.inputs, output_hidden_states=True).hidden_states
    for layer in range(3):
        before = seen_at(model, Site(layer, "hook_resid_pre"), batch)
        assert torch.equal(before[real], states[layer][real])
        if layer < 2:
            after = seen_at(model, Site(layer, "hook_resid_post"), batch)
            assert torch.equal(after[real], states[layer + 1][real])

    # Hugging Face's last hidden state is after the norm, so it cannot be the reference itself.
    norm = reference.transformer.ln_f if arch == "gpt2" else reference.model.norm
    with torch.no_grad():
        last = seen_at(model, Site(2, "hook_resid_post"), batch)
        torch.testing.assert_close(norm(last)[real], states[3][real])
    assert not torch.allclose(last[real], states[3][real], atol=0.1)


def test_every_site_holds_what_the_bridge_caches_there(arch, tiny_model):
    model = tiny_model(arch)
    batch = inputs_for(model)
    real = batch.attention_mask.bool()
    _, cache = model.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask)
    for site in (Site(n, hook) for n in range(3) for hook in (*STREAM, *BRIDGED)):
        wanted = cache[str(site)]
        wanted = (wanted.flatten(2) if wanted.ndim == 4 else wanted)[real]
        for bridged in (False, True):
            seen = seen_at(model, site, batch, bridged=bridged)[real]
            torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-5)


def shifted(hidden):
    return hidden + torch.linspace(-1, 2, hidden.shape[-1])


def test_what_is_written_has_the_effect_of_the_bridges_own_hook(arch, tiny_model):
    model = tiny_model(arch)
    batch = inputs_for(model)
    real = batch.attention_mask.bool()
    for hook in (*STREAM, "hook_mlp_out", "hook_attn_out", "mlp.hook_post"):
        site = Site(1, hook)
        target = resolve_target(model, site)
        with torch.no_grad():
            clean = target.model(**batch.inputs).logits[real]
            handle = target.hook(shifted)
            written = target.model(**batch.inputs).logits[real]
            handle.remove()
            wanted = model.run_with_hooks(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                fwd_hooks=[(str(site), lambda value, hook: shifted(value))],
            )[real]
            after = target.model(**batch.inputs).logits[real]
        torch.testing.assert_close(written, wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(written, clean, atol=1e-2)
        assert torch.equal(after, clean)


def test_what_is_written_in_the_middle_of_a_block_reaches_the_residual_stream(arch, tiny_model):
    # The bridge's own hook changes the MLP's input alone. The middle is the block's input plus
    # the attention's output, so the same sum must come from writing at the latter.
    model = tiny_model(arch)
    batch = inputs_for(model)
    real = batch.attention_mask.bool()
    heard: dict[str, torch.Tensor] = {}

    def logits_with(hook):
        target = resolve_target(model, Site(1, hook))
        after = resolve_target(model, Site(1, "hook_resid_post"), bridged=True)
        # Whoever listens behind the block hears the change, also if they came first.
        listening = after.hook(lambda hidden: heard.update(after=hidden[real].clone()))
        handle = target.hook(shifted)
        try:
            with torch.no_grad():
                return target.model(**batch.inputs).logits[real], heard["after"]
        finally:
            handle.remove()
            listening.remove()

    clean = count_hooks(model)
    for got, wanted in zip(
        logits_with("hook_resid_mid"), logits_with("hook_attn_out"), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert count_hooks(model) == clean


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_module_with_an_axis_of_heads_is_seen_flat_and_gets_its_axes_back(side):
    module = torch.nn.Identity()
    hidden = torch.arange(24.0).reshape(1, 2, 3, 4)
    target = HookTarget(module, module, side, Site(0, "attn.hook_z"))
    seen = []
    handle = target.hook(lambda flat: seen.append(flat) or flat * torch.arange(12))
    out = module(hidden)
    handle.remove()
    assert torch.equal(seen[0], torch.arange(24.0).reshape(1, 2, 12))
    assert torch.equal(out, hidden * torch.arange(12.0).reshape(3, 4))
    assert torch.equal(module(hidden), hidden)


@pytest.mark.parametrize(
    ("site", "says"),
    [
        (Site(-1), r"has blocks 0 to 2; choose one of them\.$"),
        (Site(3), r"has blocks 0 to 2; choose one of them\.$"),
        (Site(1, "hook_resid_posst"), "no hook 'hook_resid_posst'.* or one of attn.hook"),
        (Site(1, "attn"), "no hook 'attn'.* use hook_resid_post or one of attn.hook"),
        (Site(1, "attn.hook_pattern"), "holds no vector for each token; use hook_resid_post"),
        (Site(1, "attn.hook_rot_q"), "holds no vector for each token; use hook_resid_post"),
    ],
)
def test_a_site_that_is_not_there_or_holds_no_vector_is_a_sentence(tiny_llama, site, says):
    with pytest.raises(SiteError, match=says):
        resolve_target(tiny_llama, site)
    if "blocks" in says:
        with pytest.raises(SiteError, match=says):
            check_site(tiny_llama, site)
