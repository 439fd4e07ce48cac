"""The linear map that stands in for layers, against numpy's lstsq."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.corruption.apply import corrupted
from saesteer.corruption.fitted import Moments, fit_linear_maps, reference_texts, text_rows
from saesteer.corruption.program import LinearSpan, parse_program
from saesteer.models import plain_model
from saesteer.models.compat import cache_argument, find_cache
from saesteer.models.tokens import TokenRow
from saesteer.utils.errors import DataError

SPAN = LinearSpan(1, 2)


def _both_sides(reference, row, span):
    """Return what enters and leaves a stretch of a Hugging Face model, token by token."""
    seen = {}
    layers = reference.model.layers
    handles = [
        layers[span.first].register_forward_pre_hook(lambda _m, args: seen.update(x=args[0][0])),
        layers[span.last].register_forward_hook(lambda _m, _a, output: seen.update(y=output[0])),
    ]
    with torch.no_grad():
        reference(torch.tensor([row.ids]))
    for handle in handles:
        handle.remove()
    return seen["x"].double().numpy(), seen["y"].double().numpy()


def test_the_map_and_its_r2_are_those_of_numpy(tiny_llama, hf_model):
    rows = text_rows(tiny_llama, reference_texts("bundled", limit=60))
    found = fit_linear_maps(tiny_llama, [SPAN], rows, held_out=0.25, seed=4, max_tokens=700)[SPAN]
    order = np.random.default_rng(4).permutation(len(rows))
    reference = hf_model("llama")
    sides = [_both_sides(reference, rows[i], SPAN) for i in order]
    train = sides[15:]
    # Without the first token, which has its own mean.
    x, y = (np.concatenate([side[k][1:] for side in train]) for k in (0, 1))
    ones = np.ones((len(x), 1))
    solution = np.linalg.lstsq(np.hstack([x, ones]), y, rcond=None)[0]
    np.testing.assert_allclose(found.weight.numpy(), solution[:-1], atol=2e-4)
    np.testing.assert_allclose(found.bias.numpy(), solution[-1], atol=2e-4)
    first = np.mean([side[1][0] for side in train], axis=0)
    np.testing.assert_allclose(found.first.numpy(), first, atol=1e-4)
    x, y = (np.concatenate([side[k][1:] for side in sides[:15]]) for k in (0, 1))
    error = ((np.hstack([x, np.ones((len(x), 1))]) @ solution - y) ** 2).sum()
    total = ((y - y.mean(0)) ** 2).sum()
    assert found.r2 == pytest.approx(1 - error / total, abs=1e-4)
    assert found.r2_identity == pytest.approx(1 - ((x - y) ** 2).sum() / total, abs=1e-4)
    assert found.n_held_out == len(y) and found.n_train == len(ones)


def test_too_few_tokens_give_the_least_norm_answer_and_what_is_linear_is_explained_wholly():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 16)), rng.normal(size=(7, 16))
    fit = Moments(16)
    fit.add(x[:3], y[:3])
    fit.add(x[3:], y[3:])
    weight, bias = fit.solve()
    wanted = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=None)[0]
    np.testing.assert_allclose(weight, wanted, atol=1e-8)
    np.testing.assert_allclose(x @ weight + bias, y, atol=1e-8)
    x, truth = rng.normal(size=(200, 8)), rng.normal(size=(8, 8))
    fit = Moments(8)
    fit.add(x, x @ truth + 3)
    weight, bias = fit.solve()
    np.testing.assert_allclose(weight, truth, atol=1e-9)
    np.testing.assert_allclose(bias, 3, atol=1e-9)
    assert fit.explained(weight, bias)[0] == pytest.approx(1)


def test_a_map_runs_in_the_place_of_its_layers(tiny_llama, hf_model, block_loop, some_ids):
    model, ids = tiny_llama, some_ids()
    rows = text_rows(model, reference_texts("bundled", limit=20))
    spans = [LinearSpan(0, 1), LinearSpan(1, 1), LinearSpan(0, 2)]
    maps = fit_linear_maps(model, spans, rows)
    cases = {
        "linear 0-1": [maps[spans[0]], 2],
        "linear 1": [0, maps[spans[1]], 2],
        "linear 0-2": [maps[spans[2]]],
        "linear 0-1 then 0": [maps[spans[0]], 2, 0],
        "keep 2 then linear 0-1": [maps[spans[0]]],
        "keep 2 then linear 1": [0, maps[spans[1]]],
    }
    for text, order in cases.items():
        wanted = block_loop(hf_model("llama"), ids, order)
        with corrupted(model, parse_program(text, 3), maps=maps), torch.no_grad():
            bridged, plain = model(ids), plain_model(model)(ids).logits
            cached = plain_model(model)(ids[:, :12], use_cache=True)
            named = cache_argument(plain_model(model), find_cache(cached))
            rest = plain_model(model)(ids[:, 12:], **named).logits
        torch.testing.assert_close(plain, wanted, atol=5e-5, rtol=1e-3)
        torch.testing.assert_close(bridged, wanted, atol=5e-5, rtol=1e-3)
        torch.testing.assert_close(rest, wanted[:, 12:], atol=5e-5, rtol=1e-3)


def test_nothing_to_fit_on_is_one_sentence_and_without_held_out_texts_there_is_no_r2(tiny_llama):
    with pytest.raises(DataError, match="fitted on 0 texts"):
        fit_linear_maps(tiny_llama, [SPAN], [])
    row = TokenRow((1, 40, 41, 42), (False, True, True, True))
    found = fit_linear_maps(tiny_llama, [SPAN], [row], held_out=0.2)[SPAN]
    assert np.isnan(found.r2) and found.n_held_out == 0 and found.n_train == 3
