"""Where the residual stream is read and written: the right place, and hooks that come off."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.models import HookTarget, Site, check_site, encode_texts, plain_model, resolve_target
from saesteer.models.forward import last_logits, last_logits_in_parts
from saesteer.models.hooks import hooked, keeping, standing_in
from saesteer.models.tokens import pad_rows, padding_id
from saesteer.models.unembed import Unembedding
from saesteer.utils.errors import HookError, SiteError
from tests.by_hand import count_hooks

TEXTS = ["I like helping people, and I always listen.", "The cat sat"]
STREAM = ["hook_resid_pre", "hook_resid_post"]
BRIDGED = ["hook_mlp_out", "hook_attn_out", "hook_resid_mid", "attn.hook_z", "mlp.hook_post"]
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def model(tiny_model, arch):
    """A tiny model of each architecture."""
    return tiny_model(arch)


@pytest.fixture
def batch(model):
    """Right-padded rows for it."""
    return pad_rows(encode_texts(model.tokenizer, TEXTS), padding_id(model), side="right")


@pytest.fixture
def real(batch):
    return batch.attention_mask.bool()


def seen_at(model, site, batch, *, bridged=False):
    target = resolve_target(model, site, bridged=bridged)
    with torch.no_grad(), keeping({"it": target}) as kept:
        target.model(**batch.inputs)
    return kept["it"]


def shifted(hidden):
    return hidden + torch.linspace(-1, 2, hidden.shape[-1])


def test_a_site_is_read_back_as_it_is_written_and_other_text_is_a_sentence():
    for text in ("blocks.10.hook_resid_post", " blocks.0.attn.hook_z "):
        site = Site.parse(text)
        assert str(site) == text.strip()
        assert Site.parse(site) is site
    for text in ("", "hook_resid_post", "blocks.-1.hook_resid_post"):
        with pytest.raises(SiteError, match=r"is not of the form 'blocks\.10\.hook_resid_post'"):
            Site.parse(text)


def test_the_residual_stream_is_what_hugging_face_calls_hidden_states(
    model, batch, real, hf_model, arch
):
    reference = hf_model(arch)
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
    last = seen_at(model, Site(2, "hook_resid_post"), batch)
    with torch.no_grad():
        torch.testing.assert_close(norm(last)[real], states[3][real])
    assert not torch.allclose(last[real], states[3][real], atol=0.1)


def test_every_site_holds_what_the_bridge_caches_there(model, batch, real):
    _, cache = model.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask)
    for site in (Site(n, hook) for n in range(3) for hook in (*STREAM, *BRIDGED)):
        wanted = cache[str(site)]
        wanted = (wanted.flatten(2) if wanted.ndim == 4 else wanted)[real]
        for bridged in (False, True):
            seen = seen_at(model, site, batch, bridged=bridged)[real]
            torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-5)


def test_what_is_written_has_the_effect_of_the_bridges_own_hook(model, batch, real):
    before = count_hooks(model)
    for hook in (*STREAM, "hook_mlp_out", "hook_attn_out", "mlp.hook_post"):
        target = resolve_target(model, Site(1, hook))
        with torch.no_grad():
            clean = target.model(**batch.inputs).logits[real]
            with hooked([(target, shifted)]):
                written = target.model(**batch.inputs).logits[real]
            wanted = model.run_with_hooks(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                fwd_hooks=[(f"blocks.1.{hook}", lambda value, hook: shifted(value))],
            )[real]
            after = target.model(**batch.inputs).logits[real]
        torch.testing.assert_close(written, wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(written, clean, atol=1e-2)
        assert torch.equal(after, clean)
    assert count_hooks(model) == before


def test_what_is_written_in_the_middle_of_a_block_reaches_the_residual_stream(model, batch, real):
    # The bridge's own hook changes the MLP's input alone. The middle is the block's input plus
    # the attention's output, so the same sum must come from writing at the latter.
    found = []
    for hook in ("hook_resid_mid", "hook_attn_out"):
        target = resolve_target(model, Site(1, hook))
        after = resolve_target(model, Site(1), bridged=True)
        # Whoever listens behind the block hears the change, also if they came first.
        with torch.no_grad(), keeping({"after": after}) as kept, hooked([(target, shifted)]):
            found.append((target.model(**batch.inputs).logits[real], kept["after"][real]))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_left_padded_rows_have_the_logits_of_each_row_alone(model, hf_model, arch):
    batch = pad_rows(encode_texts(model.tokenizer, TEXTS), padding_id(model))
    ids, mask = batch.input_ids, batch.attention_mask.bool()
    target = resolve_target(model, Site(2))
    got = last_logits_in_parts(plain_model(model), ids, mask, max_tokens=1)
    for row, own, ours in zip(ids, mask, got, strict=True):
        with torch.no_grad():
            wanted = hf_model(arch)(row[own][None]).logits[0, -1]
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)
    # And the last residual stream gives the model's own logits.
    answers = torch.tensor([[3, 8], [40, 2]])
    with torch.no_grad(), keeping({"last": target}) as kept:
        wanted = last_logits(target.model, ids, mask)
        last, unembedding = kept["last"][:, -1], Unembedding(model)
        torch.testing.assert_close(unembedding.logits(last), wanted, atol=1e-5, rtol=0)
        some = unembedding.logits(last, answers)
    torch.testing.assert_close(some, wanted.gather(1, answers), atol=1e-5, rtol=0)


def test_a_pass_may_end_where_everything_is_kept_and_an_unreached_place_is_said(tiny_llama):
    low, high = (resolve_target(tiny_llama, Site(layer)) for layer in (0, 2))
    with keeping({"low": low}, stop=True) as kept:
        with hooked([(high, lambda hidden: pytest.fail("ran on"))], required=False):
            low.model(input_ids=IDS)
    assert kept["low"].shape == (1, 4, 32)
    with pytest.raises(HookError, match=r"nothing passed through blocks\.2\.hook_resid_post"):
        with hooked([(high, lambda hidden: None)]):
            pass


@pytest.mark.parametrize("site", [Site(1), Site(1, "attn.hook_z"), Site(1, "hook_resid_mid")])
def test_hooks_and_stand_ins_come_off_after_an_exception(tiny_llama, site):
    target: Any = resolve_target(tiny_llama, site)
    before = count_hooks(tiny_llama)

    def broken(*args, **kwargs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), hooked([(target, broken)]):
        target.model(input_ids=IDS)
    with pytest.raises(ZeroDivisionError), standing_in({target.module: broken}):
        target.model(input_ids=IDS)
    assert count_hooks(tiny_llama) == before and "forward" not in vars(target.module)


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
