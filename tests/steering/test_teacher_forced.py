"""Passes that start at the steered site say what whole passes say, bit for bit or nearly."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.models import Site, encode_statements, plain_model
from saesteer.models.compat import cached_length
from saesteer.models.loading import model_info
from saesteer.models.tokens import TokenRow
from saesteer.steering import SteeringVector, TeacherForced
from saesteer.utils.errors import DataError, MismatchError
from tests.by_hand import added, count_hooks
from tests.hybrids import hybrid

LAYERS = 3
HYBRIDS = ("mamba", "mamba2", "lfm2", "qwen35", "falconh1", "jamba")
# Without a place for positions, with a bias by distance, with windows.
OTHER_PLACES = ("bloom", "falcon-alibi", "gemma2", "gemma4")
REQUEST = "tell me about the house on the hill by the water please"
OTHERS = ("where is it", "how is the dog on the little hill", "cat and dog, tell me about bread")
ANSWERS = (
    "i like the little house",
    "go away",
    "the water is good and so is the bread",
    "no",
)
SITES = [
    Site(layer, hook) for layer in (0, LAYERS - 1) for hook in ("hook_resid_pre", "hook_resid_post")
]


def rows_of(model, *, shared: bool = True) -> list[TokenRow]:
    """Rows behind one request, or behind three of other beginnings and lengths."""
    if shared:
        return encode_statements(model.tokenizer, ANSWERS, REQUEST)
    questions = [OTHERS[place] for place in (0, 1, 2, 0)]
    rows = encode_statements(model.tokenizer, ANSWERS, questions, chat=False, prepend_bos=False)
    assert len({row.ids[0] for row in rows}) == len({row.kept.index(True) for row in rows}) == 3
    return rows


def vector_at(model, site: Site, seed: int = 0) -> SteeringVector:
    raw = torch.randn(int(model.cfg.d_model), generator=torch.Generator().manual_seed(seed))
    return SteeringVector.from_raw(raw, site=site, model="tiny", residual_norm=1.0)


def blocks_of(model) -> Any:
    return plain_model(model).get_submodule(model.adapter.component_mapping["blocks"].name)


def reference(model, rows, vector=None, strength: float = 0.0) -> list[torch.Tensor]:
    """Logits at the scored positions of each row, one row at a time, no cache and no padding."""
    said = []
    vector = vector or vector_at(model, Site(0))
    block = blocks_of(model)[vector.site.layer]
    module = block.mlp if vector.site.hook == "hook_mlp_out" else block
    side = "input" if vector.site.hook == "hook_resid_pre" else "output"
    for row in rows:
        first = row.kept.index(True) - 1
        # The unit "norm" of these vectors is 1.
        change = strength * vector.direction
        with torch.no_grad(), added(module, change, slice(first, None), side):
            logits = plain_model(model)(torch.tensor([row.ids]), use_cache=False).logits[0]
        said.append(logits[first:-1])
    return said


def said_by(rows: TeacherForced, vector=None, strength: float = 0.0) -> list[torch.Tensor]:
    """The same from `passes`, in the caller's order."""
    return in_order(rows, rows.passes(vector, strength))


def said_open(rows: TeacherForced, vector=None, strength: float = 0.0) -> list[torch.Tensor]:
    return in_order(rows, (part for part, _ in rows.open_passes(vector, strength)))


def in_order(rows: TeacherForced, passes) -> list[torch.Tensor]:
    out: dict[int, torch.Tensor] = {}
    for part in passes:
        assert len(part.logits) == len(part.after) == len(part.row)
        out |= {place: part.logits[part.row == i].detach() for i, place in enumerate(part.index)}
    return [out[place] for place in range(rows.n_rows)]


def assert_same(got, wanted, tolerance: float = 1e-5) -> None:
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def distance(got, wanted) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(got, wanted, strict=True))


@contextmanager
def counted(model):
    """How often each block's attention really runs."""
    counts = [0] * LAYERS
    handles = []
    for layer, block in enumerate(blocks_of(model)):
        attention = block.attn if hasattr(block, "attn") else block.self_attn

        def count(*_, layer=layer):
            counts[layer] += 1

        handles.append(attention.register_forward_hook(count))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("shared", [True, False], ids=["one prompt", "several prompts"])
def test_starting_at_the_site_changes_no_logit(tiny_model, arch, shared):
    model = tiny_model(arch)
    rows = rows_of(model, shared=shared)
    for site in SITES:
        vector = vector_at(model, site)
        # Steered first: what is kept for later passes must hold nothing of the steering.
        short, whole = TeacherForced(model, rows, site=site), TeacherForced(model, rows)
        opened = TeacherForced(model, rows, site=site, max_tokens=40)
        assert_same(said_open(opened, vector, 2.0), reference(model, rows, vector, 2.0))
        assert_same(said_by(opened), reference(model, rows))
        for strength in (1.5, 0.0, -1.5):
            wanted = reference(model, rows, vector, strength)
            for got in (said_by(short, vector, strength), said_by(whole, vector, strength)):
                assert_same(got, wanted)
            assert_same(said_open(short, vector, strength), wanted)
        assert distance(wanted, said_by(short)) > 1e-2
        head: Any = plain_model(model).get_output_embeddings()
        with torch.no_grad():
            assert_same([head(states) for states in short.last_states()], reference(model, rows))


@pytest.mark.parametrize("name", [*HYBRIDS, *OTHER_PLACES])
def test_models_that_keep_or_place_otherwise_are_scored_as_in_single_passes(name, tiny_tokenizer):
    model = hybrid(name, tiny_tokenizer)
    rows = rows_of(model, shared=False)
    for site in (Site(0), Site(2), Site(1, "hook_resid_pre"), Site(3)):
        passes, vector = (
            TeacherForced(model, rows, site=site, max_tokens=60),
            vector_at(model, site),
        )
        for strength in (0.0, 2.0):
            assert_same(
                said_by(passes, vector, strength), reference(model, rows, vector, strength), 1e-3
            )


@pytest.mark.parametrize(
    ("prepared", "written"),
    [
        (Site(1), Site(0)),
        (Site(1), Site(2)),
        (Site(1), Site(1, "hook_mlp_out")),
        (Site(0, "hook_mlp_out"), Site(1)),
        (Site(1, "hook_mlp_out"), Site(2, "hook_mlp_out")),
        (None, Site(1, "hook_mlp_out")),
    ],
    ids=str,
)
def test_a_vector_may_stand_at_another_site_than_was_prepared(
    tiny_llama, tiny_model, prepared, written
):
    for model in (tiny_llama, tiny_model("gpt2")):
        rows, vector = rows_of(model, shared=prepared is None), vector_at(model, written)
        passes = TeacherForced(model, rows, site=prepared)
        wanted = reference(model, rows, vector, 3.0)
        assert_same(said_by(passes), reference(model, rows))
        assert_same(said_by(passes, vector, 3.0), wanted)
        assert distance(wanted, said_by(passes)) > 1e-2
        if prepared is not None:
            assert_same(said_open(passes, vector, 3.0), wanted)
        assert_same(said_by(passes), reference(model, rows))


@pytest.mark.parametrize("arch", ["gpt2", "gemma3"])
def test_only_the_blocks_above_the_site_run_again(tiny_model, arch):
    model = tiny_model(arch)
    rows = rows_of(model)
    for site, lower in ((Site(0), 1), (Site(1), 2), (Site(1, "hook_resid_pre"), 1), (Site(2), 3)):
        passes, vector = TeacherForced(model, rows, site=site), vector_at(model, site)
        said_by(passes)
        with counted(model) as counts:
            for strength in (0.5, -1.0, 0.0):
                said_by(passes, vector, strength)
            said_open(passes, vector, 0.5)
        assert counts == [0] * lower + [4] * (LAYERS - lower)
    with counted(model) as counts:
        said_by(TeacherForced(model, rows), vector, 1.0)
    assert counts == [2] * LAYERS


def test_a_long_prefix_behind_a_short_sliding_window_is_kept_whole(tiny_model):
    model = tiny_model("gemma3")
    window = plain_model(model).config.sliding_window
    long = [*ANSWERS, "the dog and the cat stand on the hill and listen to the water all day long"]
    rows = encode_statements(model.tokenizer, long, REQUEST)
    assert len(rows[-1]) - rows[-1].kept.index(True) > 2 * window
    for site in SITES[1:]:
        passes, vector = TeacherForced(model, rows, site=site), vector_at(model, site)
        assert (cached_length(passes._cache) or 0) > 2 * window
        for strength in (1.0, 0.0):
            assert_same(said_by(passes, vector, strength), reference(model, rows, vector, strength))


def test_of_a_prompt_its_last_token_alone_runs_again(tiny_model, arch):
    model = tiny_model(arch)
    rows = rows_of(model, shared=False)
    passes, vector = TeacherForced(model, rows, site=Site(1)), vector_at(model, Site(1))
    said_by(passes)
    widths: list[int] = []
    handle = blocks_of(model)[-1].register_forward_hook(
        lambda _m, inputs, _o: widths.append(inputs[0].shape[1])
    )
    said_by(passes, vector, 1.0)
    handle.remove()
    assert widths == [1 + max(sum(row.kept) for row in rows)]


@pytest.mark.parametrize("times", [1, 4])
def test_a_single_pass_keeps_prompts_where_several_rows_share_each(tiny_llama, times):
    rows = times * rows_of(tiny_llama, shared=False)
    widths: list[int] = []
    handle = blocks_of(tiny_llama)[-1].register_forward_hook(
        lambda _m, inputs, _o: widths.append(inputs[0].shape[1])
    )
    said = said_by(TeacherForced(tiny_llama, rows))
    handle.remove()
    answers = 1 + max(sum(row.kept) for row in rows)
    assert widths[-1] == (answers if times > 1 else max(map(len, rows)))
    assert_same(said, reference(tiny_llama, rows))


@pytest.mark.parametrize("opened", [False, True])
def test_an_exception_under_steering_leaves_the_model_as_it_was(tiny_llama, opened):
    model = tiny_llama
    rows, vector = rows_of(model), vector_at(model, Site(1))
    passes = TeacherForced(model, rows, site=Site(1))
    wanted, hooks = said_by(passes), count_hooks(model)
    say = said_open if opened else said_by

    def fail(*_):
        raise KeyboardInterrupt

    handle = blocks_of(model)[2].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        say(passes, vector, 1.0)
    handle.remove()
    assert count_hooks(model) == hooks
    assert all("forward" not in vars(block) for block in blocks_of(model))
    assert_same(said_by(passes), wanted)
    assert_same(say(passes, vector, 1.0), reference(model, rows, vector, 1.0))


def test_a_forward_that_others_put_on_a_block_stays_on_it(tiny_llama):
    block = blocks_of(tiny_llama)[0]
    rows = rows_of(tiny_llama)
    own = block.forward
    block.forward = wrapper = lambda *args, **kwargs: own(*args, **kwargs)
    try:
        passes = TeacherForced(tiny_llama, rows, site=Site(1))
        assert_same(said_by(passes), reference(tiny_llama, rows))
        assert vars(block)["forward"] is wrapper
    finally:
        del block.forward


def test_what_was_kept_in_inference_mode_serves_gradients_later(tiny_llama):
    model = tiny_llama
    with torch.inference_mode():
        passes = TeacherForced(model, rows_of(model), site=Site(0))
        said_by(passes)
    for part, offset in passes.open_passes():
        assert offset.shape == (len(part.index), int(model.cfg.d_model))
        assert not offset.any()
        (gradient,) = torch.autograd.grad(part.logits.logsumexp(-1).sum(), offset)
        assert torch.isfinite(gradient).all()
        assert (gradient.norm(dim=1) > 1e-4).all()


def test_rows_of_many_batches_come_back_in_order_with_the_answers_tokens(tiny_llama):
    many = [*rows_of(tiny_llama), *rows_of(tiny_llama)[::-1]]
    passes = TeacherForced(tiny_llama, many, site=Site(1), max_tokens=1)
    assert len(list(passes.passes())) == len(many) == passes.n_rows
    assert_same(said_by(passes), reference(tiny_llama, many))
    rows = rows_of(tiny_llama)
    for part in TeacherForced(tiny_llama, rows).passes():
        for i, place in enumerate(part.index):
            said = [t for t, kept in zip(rows[place].ids, rows[place].kept, strict=True) if kept]
            assert part.after[part.row == i].tolist() == said


def test_a_subset_says_of_its_rows_what_all_rows_say(tiny_llama):
    rows = 2 * rows_of(tiny_llama, shared=False)
    passes, vector = TeacherForced(tiny_llama, rows, site=Site(1)), vector_at(tiny_llama, Site(1))
    wanted = said_by(passes, vector, 1.5)
    for places in ([6, 1, 3], [5]):
        part = passes.subset(places)
        assert (part.n_rows, part.n_scored) == (len(places), sum(part.scored))
        for say in (said_by, said_open):
            assert_same(say(part, vector, 1.5), [wanted[place] for place in places])


def test_the_unembedding_takes_the_scored_tokens_alone_and_few_at_a_time(tiny_llama, monkeypatch):
    model = tiny_llama
    rows, vector = rows_of(model), vector_at(model, Site(1))
    most = max(sum(row.kept) for row in rows)
    monkeypatch.setattr(
        "saesteer.steering.teacher_forced.MOST_LOGITS", most * int(model.cfg.d_vocab)
    )
    passes = TeacherForced(model, rows, site=Site(1))
    widths: list[int] = []
    head: Any = plain_model(model).get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _i, out: widths.append(out.shape[:-1].numel()))
    got, opened = said_by(passes, vector, 1.5), said_open(passes, vector, 1.5)
    handle.remove()
    assert sum(widths) == 2 * sum(sum(row.kept) for row in rows)
    assert max(widths) <= most
    assert_same(got, reference(model, rows, vector, 1.5))
    assert_same(opened, reference(model, rows, vector, 1.5))


@pytest.mark.parametrize("found", [True, False], ids=["module", "no module"])
def test_unsteered_logits_stand_beside_steered_ones(tiny_llama, found, monkeypatch):
    model = tiny_llama
    rows, vector = rows_of(model), vector_at(model, Site(1))
    passes = TeacherForced(model, rows, site=Site(1), max_tokens=40)
    if not found:
        monkeypatch.setattr(plain_model(model), "get_output_embeddings", lambda: None)
    states = passes.last_states()
    beside = [p._replace(logits=p.beside) for p in passes.passes(vector, 1.5, beside=states)]
    assert all(part.logits is not None for part in beside)
    assert_same(in_order(passes, beside), reference(model, rows))
    assert_same(said_by(passes, vector, 1.5), reference(model, rows, vector, 1.5))
    if found:
        assert all(state.shape[1] == int(model.cfg.d_model) for state in states)


def test_what_cannot_be_scored_is_a_sentence_and_the_next_one_works(tiny_llama):
    with pytest.raises(DataError, match=r"there are no texts to run; give at least one"):
        TeacherForced(tiny_llama, [])
    good = rows_of(tiny_llama)[0]
    for bad in (TokenRow((5,), (True,)), TokenRow((5, 6), (True, False)), TokenRow((), ())):
        with pytest.raises(DataError, match=r"text 2 has no token that follows another one"):
            TeacherForced(tiny_llama, [good, bad])

    rows = rows_of(tiny_llama)
    passes = TeacherForced(tiny_llama, rows, site=Site(1))
    vector = vector_at(tiny_llama, Site(1))
    wide = SteeringVector.from_raw(torch.ones(40), site=Site(1), model="wide", residual_norm=1.0)
    with pytest.raises(MismatchError, match=r"40 wide"):
        said_by(passes, wide, 1.0)
    assert_same(said_by(passes, vector, 1.0), reference(tiny_llama, rows, vector, 1.0))
    assert vector.model_fingerprint != model_info(tiny_llama).fingerprint
    assert all(np.isfinite(part.numpy()).all() for part in said_by(passes, vector, 1e6))
