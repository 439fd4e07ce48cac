"""A feature table is what numpy and the lens by hand say, and reads back the same."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from saesteer.models.tokens import TokenRow
from saesteer.saes.describe import build_feature_table
from saesteer.saes.lens import TokenTexts, extreme_words, norm_gain
from saesteer.saes.loading import load_sae
from saesteer.saes.table import (
    LOCAL,
    FeatureContext,
    load_feature_table,
    save_feature_table,
)
from saesteer.utils.errors import DataError, MismatchError, SaeError

MODULE = sys.modules["saesteer.saes.describe"]


@pytest.fixture
def sae(make_sae):
    return load_sae(make_sae("topk"))


@pytest.fixture
def table(model, sae, rows):
    return build_feature_table(model, sae, rows)


@pytest.fixture
def codes(sae, rows, read_by_hand) -> list[np.ndarray]:
    """Feature activations of each row, from the Hugging Face model run row by row."""
    return [sae.encode(read_by_hand(row)).numpy() for row in rows]


@pytest.mark.parametrize("rows_at_once", [5, 1000])
def test_density_and_activations_equal_numpy_by_hand_also_in_blocks(
    model, sae, rows, codes, rows_at_once, monkeypatch
):
    monkeypatch.setattr(MODULE, "ROWS_AT_ONCE", rows_at_once)
    table: Any = build_feature_table(model, sae, rows)
    every = np.concatenate(codes)
    fires = every != 0
    np.testing.assert_allclose(table["density"], fires.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(table["max_activation"], every.max(axis=0), rtol=1e-4)
    means = every.sum(axis=0) / np.maximum(fires.sum(axis=0), 1)
    np.testing.assert_allclose(table["mean_activation"], means, rtol=1e-4, atol=1e-6)
    assert 0.05 < table["density"].mean() < 0.2
    assert {*map(len, table["top_tokens"])} == {8} and {*map(len, table["bottom_tokens"])} == {5}


def test_words_are_those_it_fires_on_in_proportion_to_chance(table, codes, rows, tokenizer):
    said = [tokenizer.decode([i]) for row in rows for i in np.array(row.ids)[list(row.kept)]]
    for feature, row in table.iterrows():
        peaks = [(codes_[:, feature].max(), codes_[:, feature].argmax()) for codes_ in codes]
        tops = sorted(((p, i, at) for i, (p, at) in enumerate(peaks) if p > 0), key=lambda t: -t[0])
        strong = [t for t in tops[:40] if t[0] >= 0.5 * tops[0][0]] if tops else []
        mass: dict[str, float] = {}
        for peak, index, at in strong:
            word = tokenizer.decode([np.array(rows[index].ids)[list(rows[index].kept)][at]])
            mass[word] = mass.get(word, 0) + peak
        total = sum(mass.values())
        gain = {
            w: m / total * np.log(m / total / ((said.count(w) + 0.5) / len(said)))
            for w, m in mass.items()
        }
        best = sorted(gain, key=lambda w: -gain[w])
        wanted = [w for w in best if gain[w] > 0 and (mass[w] / total >= 0.04 or w == best[0])]
        assert row["words"] == wanted[:4]
        assert all(word in row["description"] for word in row["words"])


def test_contexts_are_the_strongest_of_different_rows(table, codes, rows, tokenizer):
    peaks = np.stack([row.max(axis=0) for row in codes])
    for feature, contexts in enumerate(table["contexts"]):
        order = np.argsort(-peaks[:, feature], kind="stable")
        wanted = [index for index in order if peaks[index, feature] > 0][:5]
        assert len(contexts) == len(wanted)
        for context, index in zip(contexts, wanted, strict=True):
            place = np.flatnonzero(rows[index].kept)[codes[index][:, feature].argmax()]
            assert context["activation"] == pytest.approx(peaks[index, feature], rel=1e-4)
            assert context["token"].strip() == tokenizer.decode([rows[index].ids[place]])
            at = context["at"]
            assert context["text"][at:].startswith(context["token"])
            assert context["token"] in context["text"].split()


def test_features_that_fire_negatively_count_by_size_and_dead_ones_are_called_so(
    model, make_sae, rows, read_by_hand
):
    def kill(sae) -> None:
        sae.W_enc[:, 7] = 0
        sae.b_enc[7] = 0

    sae = load_sae(make_sae("abstopk", change=kill))
    table: Any = build_feature_table(model, sae, rows)
    every = np.concatenate([sae.encode(read_by_hand(row)).numpy() for row in rows])
    assert (every < 0).any()
    np.testing.assert_allclose(table["density"], (every != 0).mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(table["max_activation"], np.abs(every).max(axis=0), rtol=1e-4)
    strongest = [contexts[0]["activation"] for contexts in table["contexts"] if contexts]
    assert min(strongest) < 0
    dead = table.iloc[7]
    assert dead["density"] == dead["max_activation"] == dead["mean_activation"] == 0
    assert dead["contexts"] == []
    assert dead["description"] == "never fired on the table's text"


def test_no_text_and_a_foreign_sae_are_refused(model, sae, make_sae, rows):
    with pytest.raises(DataError, match="at least one row"):
        build_feature_table(model, sae, [])
    with pytest.raises(DataError, match="no token to read"):
        build_feature_table(model, sae, [TokenRow((0, 9), (False, False))])
    with pytest.raises(MismatchError, match="48 dimensions"):
        build_feature_table(model, load_sae(make_sae(d_in=48)), rows)


def test_a_saved_table_reads_back_the_same(table, tmp_path):
    path = tmp_path / "deep" / "features.parquet"
    save_feature_table(table, path)
    loaded = load_feature_table(path)
    assert len(loaded) == 64
    assert loaded.density.shape == loaded.max_activation.shape == (64,)
    np.testing.assert_allclose(loaded.density, table["density"])
    np.testing.assert_allclose(loaded.max_activation, table["max_activation"])
    row, source = loaded.row(5), table.iloc[5]
    assert row.feature == 5
    assert row.fires_on == row.words == tuple(source["words"])
    assert row.top_tokens == tuple(source["top_tokens"])
    assert row.bottom_tokens == tuple(source["bottom_tokens"])
    assert row.description == loaded.describe(5) == source["description"]
    assert row.contexts == tuple(
        FeatureContext(c["text"], c["token"], pytest.approx(c["activation"]), c["at"])  # type: ignore[arg-type]
        for c in source["contexts"]
    )
    assert (row.by, row.url) == (LOCAL, None)
    assert os.listdir(path.parent) == ["features.parquet"]
    for index in (-1, 64):
        for method in (loaded.describe, loaded.row):
            with pytest.raises(SaeError, match=rf"feature {index} is not in .*0 to 63"):
                method(index)
    # A damaged table, and one of something else.
    for kept in (b"", path.read_bytes()[:-100]):
        path.write_bytes(kept)
        with pytest.raises(SaeError, match=r"features\.parquet cannot be read .*again") as caught:
            load_feature_table(path)
        assert "\n" not in str(caught.value)
    # One of an earlier version knows less.
    earlier = [{k: v for k, v in c.items() if k != "at"} for c in table["contexts"][5]]
    older = table.drop(columns=["words"])
    older["contexts"] = [earlier] * len(older)
    older.to_parquet(path)
    row = load_feature_table(path).row(5)
    assert (row.words, row.contexts[0].at) == ((), None)
    assert row.fires_on == tuple(dict.fromkeys(c["token"] for c in earlier))
    table.drop(columns=["density"]).to_parquet(path)
    with pytest.raises(SaeError, match="has no column density"):
        load_feature_table(path)
    table.iloc[::-1].to_parquet(path)
    with pytest.raises(SaeError, match="does not list every feature in order"):
        load_feature_table(path)


@pytest.fixture
def gain():
    return torch.rand(32, generator=torch.Generator().manual_seed(0)) * 2 - 0.5


def with_weight(norm: Any, weight: torch.Tensor) -> nn.Module:
    with torch.no_grad():
        norm.weight.copy_(weight)
    return norm


def test_gain_of_every_kind_of_norm(gain):
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    layer_norm = with_weight(nn.LayerNorm(32), gain)
    nn.init.normal_(layer_norm.bias)  # type: ignore[arg-type]
    for norm, centres in (
        (with_weight(LlamaRMSNorm(32), gain), False),
        # Gemma stores its gain less one.
        (with_weight(Gemma3RMSNorm(32), gain - 1), False),
        (layer_norm, True),
        (with_weight(LlamaRMSNorm(32), gain).to(torch.bfloat16), False),
    ):
        found, centred = norm_gain(norm, 32)
        torch.testing.assert_close(found, gain, atol=5e-3, rtol=5e-3)
        assert found.dtype == torch.float32
        assert centred is centres


def test_promoted_words_equal_the_lens_by_hand(model, plain, make_sae):
    sae = load_sae(make_sae())
    logits = (sae.decoder * plain.model.norm.weight) @ plain.lm_head.weight.T
    chance = (logits - logits.mean(dim=0)) / logits.std(dim=0, correction=0)
    # Two tokens of one name count once, and those without a name do not.
    names = {token: f"name {token // 2}" for token in range(8, 40)}
    top, bottom = extreme_words(model, sae, names, n_top=8, n_bottom=5)
    for feature in range(64):
        order = chance[feature].argsort(descending=True).tolist()
        wanted = list(dict.fromkeys(names[token] for token in order if token in names))
        assert top[feature] == wanted[:8]
        order.reverse()
        wanted = list(dict.fromkeys(names[token] for token in order if token in names))
        assert bottom[feature] == wanted[:5]
    # A site beside the residual stream promotes nothing.
    beside = load_sae(make_sae(metadata={"hook_name": "blocks.1.attn.hook_z"}))
    found = extreme_words(model, beside, names, n_top=8, n_bottom=5)
    assert found == ([[]] * 64, [[]] * 64)


@pytest.mark.parametrize(("mark", "words"), [("▁", "WordLevel"), ("Ġ", "ByteLevel")])
def test_a_tokens_leading_space_is_shown_whatever_the_tokenizer(mark, words):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<unk>": 0, f"{mark}thank": 1, "you": 2}
    core: Any = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    if words == "ByteLevel":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    else:
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>"))
    assert (texts.one(1), texts.one(2)) == (" thank", "you")
