"""A vector with parts does what its pieces do that are given one by one, each at its own length."""

from __future__ import annotations

import json
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from saesteer.models import Site, encode_statements, plain_model
from saesteer.steering import (
    Ablate,
    DivergenceMeter,
    SteeringVector,
    export_gguf,
    generate,
    load_vector,
    steer,
)
from saesteer.steering.bake import bake, compare_with_hook
from saesteer.steering.vllm_vectors import export_live
from saesteer.utils.errors import SteeringError

LAST = "blocks.2.hook_resid_post"


@pytest.fixture
def pieces(make_vector):
    """Two vectors, the second of which is the shorter."""
    return make_vector(0), make_vector(1, LAST).scaled(0.6)


@pytest.fixture
def whole(pieces) -> SteeringVector:
    own, part = pieces
    return replace(own, parts=(part,))


def raw(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return plain_model(model)(input_ids=ids).logits


@pytest.mark.parametrize("unit", ["norm", "raw", "max_act"])
def test_it_steers_as_its_pieces_at_one_multiple_of_their_lengths(
    llama, pieces, whole, random_ids, unit
):
    ids, (own, part) = random_ids(2, 9), pieces
    length = 0.3 * {"norm": own.residual_norm, "raw": 1.0, "max_act": own.max_act}[unit]
    with steer(llama, whole, [0.3, -0.6], unit):
        together = raw(llama, ids)
    with (
        steer(llama, own, [length, -2 * length], "raw"),
        steer(llama, part, [x * part.norm / own.norm for x in (length, -2 * length)], "raw"),
    ):
        apart = raw(llama, ids)
    torch.testing.assert_close(together, apart)
    with steer(llama, own, [0.3, -0.6], unit):
        assert not torch.allclose(together, raw(llama, ids), atol=1e-2)


@pytest.mark.parametrize("engine", ["transformers", "paged"])
def test_what_is_written_is_what_its_pieces_write(llama, pieces, whole, engine, paged):
    own = pieces[0]
    how = {"max_new_tokens": 8, "engine": paged(llama) if engine == "paged" else None}
    asked = ["i like the house", "go"]
    found = generate(llama, asked, whole, [0.0, 0.8], **how)
    # Of one length, so that a strength in its unit is the same multiple of both.
    alike = [replace(one, residual_norm=one.norm * 10.0 / own.norm) for one in pieces]
    apart = generate(llama, asked, alike, [0.0, 0.8], **how)
    assert found.to_dicts() == apart.to_dicts()
    assert found.texts(0.8) != generate(llama, asked, own, 0.8, **how).texts(0.8)


@pytest.mark.parametrize("prepared", [None, Site(1), (Site(1), Site(2)), Site(2)])
def test_its_cost_is_its_pieces_whatever_the_meter_was_prepared_for(llama, pieces, whole, prepared):
    texts = [f"the little house number {i} stands on the hill" for i in range(14)]
    rows = encode_statements(llama.tokenizer, texts, "tell me about the house")
    meter = DivergenceMeter(llama, rows, site=prepared)
    logits = []
    for vectors in ([], [whole]):
        own = []
        for row in rows:
            first = row.kept.index(True) - 1
            with steer(llama, vectors or whole, 0.4 if vectors else 0.0, prompt_length=first + 1):
                own.append(raw(llama, torch.tensor([row.ids]))[0, first:-1])
        logits.append(torch.log_softmax(torch.cat(own), -1))
    plain, steered = logits
    by_hand = float((steered.exp() * (steered - plain)).sum(-1).mean())
    assert meter(whole, 0.4) == pytest.approx(by_hand, rel=1e-4)
    # A meter that was steered below keeps nothing of it.
    assert meter(replace(whole, parts=()), 0.4) != pytest.approx(by_hand, rel=1e-2)
    assert meter(whole, 0.4) == pytest.approx(by_hand, rel=1e-4)


def test_a_baked_model_has_a_bias_for_each(llama, pieces, whole, tmp_path):
    folder = bake(llama, whole, 0.3, tmp_path / "baked")
    own, part = pieces
    state = plain_model(llama).__class__.from_pretrained(folder).state_dict()
    for layer, piece in ((1, own), (2, part)):
        wanted = piece.raw * 0.3 * own.residual_norm / own.norm
        torch.testing.assert_close(state[f"model.layers.{layer}.mlp.down_proj.bias"], wanted)
    assert "| block 1 and block 2 |" in (folder / "README.md").read_text()
    found = compare_with_hook(folder, ["i like the little house on the hill"])
    assert found["vectors"][0]["site"] == whole.place and found["same_choice"] == 1.0


def test_it_is_saved_in_one_file_and_scales_and_adds_with_its_parts(make_vector, whole, tmp_path):
    loaded = load_vector(whole.save(tmp_path / "whole.safetensors"))
    for piece, again in zip(whole.pieces, loaded.pieces, strict=True):
        assert torch.equal(piece.direction, again.direction)
        for name in ("site", "norm", "sae_features", "positions", "residual_norm", "name"):
            assert getattr(piece, name) == getattr(again, name)
    assert str(whole.site) in repr(loaded) and LAST in repr(loaded)

    other = make_vector(2, parts=(make_vector(3, "blocks.0.hook_resid_post"),))
    added = whole + other - 2 * whole
    assert [str(p.site) for p in added.parts] == [LAST, "blocks.0.hook_resid_post"]
    for piece, wanted in zip(
        added.pieces, (other.raw - whole.raw, -whole.parts[0].raw, other.parts[0].raw), strict=True
    ):
        torch.testing.assert_close(piece.raw, wanted, atol=1e-5, rtol=1e-4)
    # What cancels out is no part.
    assert [str(p.site) for p in (2 * other + whole - replace(other, parts=whole.parts)).parts] == [
        "blocks.0.hook_resid_post"
    ]
    assert replace(whole, positions="all").parts[0].positions == "all"


def test_engines_that_take_a_vector_for_each_layer_get_all(whole, tmp_path):
    file = export_gguf(whole, tmp_path / "v.gguf", strength=0.3)
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(file).tensors}
    scale = 0.3 * whole.residual_norm / whole.norm
    assert tensors.keys() == {"direction.1", "direction.2"}
    for layer, piece in ((1, whole), (2, whole.parts[0])):
        np.testing.assert_allclose(tensors[f"direction.{layer}"], piece.raw * scale, rtol=1e-5)

    lens = export_live(whole, tmp_path / "lens", "vllm-lens", 0.3)
    body = json.loads((lens / "requests.json").read_text())[0]["body"]
    asked = json.loads(body["vllm_xargs"]["apply_steering_vectors"])
    assert [one["layer_indices"] for one in asked] == [[1], [2]]
    lengths = [scale * piece.norm for piece in whole.pieces]
    assert [one["scale"] for one in asked] == pytest.approx(lengths)
    alone = json.loads((lens / "v0.vector.json").read_text())
    assert (alone["layer_indices"], alone["activations"]["shape"]) == ([1, 2], [2, 32])

    named = replace(whole, parts=(replace(whole.parts[0], name="v0"),))
    live = export_live(named, tmp_path / "hot", "hotwire", 0.3)
    body = json.loads((live / "requests.json").read_text())[0]["body"]
    asked = json.loads(body["vllm_xargs"]["hotwire"])
    assert [one["layer"] for one in asked] == [1, 2]
    for one, piece in zip(asked, named.pieces, strict=True):
        torch.testing.assert_close(torch.load(live / f"{one['id']}.pt"), piece.direction)


def test_what_cannot_be_a_part_and_what_takes_none_is_said(make_vector, whole):
    with pytest.raises(SteeringError, match="there is another"):
        make_vector(0, parts=(make_vector(1),))
    with pytest.raises(SteeringError, match="has parts of its own"):
        make_vector(0, "blocks.0.hook_resid_post", parts=(whole,))
    with pytest.raises(SteeringError, match="belongs to model other"):
        stranger = make_vector(1, LAST, model="other", model_fingerprint=None)
        make_vector(0, parts=(stranger,))
    with pytest.raises(SteeringError, match="an edit changes one site"):
        Ablate(whole)
