from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from saesteer.models.tokens import TokenRow
from saesteer.saes.describe import build_feature_table
from saesteer.saes.loading import load_sae
from saesteer.saes.table import (
    LOCAL,
    FeatureContext,
    load_feature_table,
    save_feature_table,
)
from saesteer.utils.errors import DataError, MismatchError, OutputError, SaeError

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


def test_density_and_activations_equal_numpy_by_hand(table, codes):
    every = np.concatenate(codes)
    fires = every != 0
    np.testing.assert_allclose(table["density"], fires.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(table["max_activation"], every.max(axis=0), rtol=1e-4)
    means = every.sum(axis=0) / np.maximum(fires.sum(axis=0), 1)
    np.testing.assert_allclose(table["mean_activation"], means, rtol=1e-4, atol=1e-6)
    assert 0.05 < table["density"].mean() < 0.2


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
            assert context["token"].strip() in context["text"].split()


def test_reading_in_blocks_changes_nothing(model, sae, rows, monkeypatch):
    whole = build_feature_table(model, sae, rows)
    monkeypatch.setattr(MODULE, "ROWS_AT_ONCE", 5)
    blocks = build_feature_table(model, sae, rows)
    for name in ("density", "max_activation", "mean_activation"):
        np.testing.assert_allclose(blocks[name], whole[name], rtol=1e-4, atol=1e-6)
    assert blocks["description"].tolist() == whole["description"].tolist()
    for one, other in zip(blocks["contexts"], whole["contexts"], strict=True):
        assert [c["text"] for c in one] == [c["text"] for c in other]


def test_a_description_quotes_firing_and_promoted_tokens(table):
    for _, row in table.iterrows():
        firing = list(dict.fromkeys(c["token"].strip() for c in row["contexts"]))[:3]
        quoted = ", ".join(f'"{token}"' for token in firing)
        head = f"fires on {quoted}" if firing else "never fired on the table's text"
        promoted = ", ".join(f'"{token}"' for token in row["top_tokens"][:3])
        assert row["description"] == f"{head}; promotes {promoted}"
        assert "\n" not in row["description"]
        assert len(row["top_tokens"]) == 8
        assert len(row["bottom_tokens"]) == 5


def test_a_dead_feature_is_called_so(model, make_sae, rows):
    def kill(sae) -> None:
        sae.W_enc[:, 7] = 0
        sae.b_enc[7] = -1

    table = build_feature_table(model, load_sae(make_sae(change=kill)), rows)
    dead = table.iloc[7]
    assert dead["density"] == dead["max_activation"] == dead["mean_activation"] == 0
    assert dead["contexts"] == []
    assert dead["description"].startswith("never fired on the table's text; promotes ")


def test_features_that_fire_negatively_count_by_size(model, make_sae, rows, read_by_hand):
    sae = load_sae(make_sae("abstopk"))
    table = build_feature_table(model, sae, rows)
    every = np.concatenate([sae.encode(read_by_hand(row)).numpy() for row in rows])
    assert (every < 0).any()
    np.testing.assert_allclose(table["density"], (every != 0).mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(table["max_activation"], np.abs(every).max(axis=0), rtol=1e-4)
    strongest = [contexts[0]["activation"] for contexts in table["contexts"] if contexts]
    assert min(strongest) < 0


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
    assert row.top_tokens == tuple(source["top_tokens"])
    assert row.bottom_tokens == tuple(source["bottom_tokens"])
    assert row.description == loaded.describe(5) == source["description"]
    assert row.contexts == tuple(
        FeatureContext(c["text"], c["token"], pytest.approx(c["activation"]))  # type: ignore[arg-type]
        for c in source["contexts"]
    )
    assert (row.by, row.url) == (LOCAL, None)
    assert os.listdir(path.parent) == ["features.parquet"]


@pytest.mark.parametrize("index", [-1, 64])
def test_a_feature_that_is_not_there_is_refused_with_the_range(table, tmp_path, index):
    save_feature_table(table, tmp_path / "features.parquet")
    loaded = load_feature_table(tmp_path / "features.parquet")
    for method in (loaded.describe, loaded.row):
        with pytest.raises(SaeError, match=rf"feature {index} is not in .*0 to 63"):
            method(index)


@pytest.mark.parametrize("keep", [0, -100])
def test_a_damaged_table_is_one_sentence(table, tmp_path, keep):
    path = tmp_path / "features.parquet"
    save_feature_table(table, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SaeError, match=r"features\.parquet cannot be read .*again") as caught:
        load_feature_table(path)
    assert "\n" not in str(caught.value)


def test_a_table_of_something_else_is_refused(table, tmp_path):
    path = tmp_path / "features.parquet"
    table.drop(columns=["density"]).to_parquet(path)
    with pytest.raises(SaeError, match="has no column density"):
        load_feature_table(path)
    table.iloc[::-1].to_parquet(path)
    with pytest.raises(SaeError, match="does not list every feature in order"):
        load_feature_table(path)


def test_a_table_that_cannot_be_written_leaves_nothing(table, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be written"):
        save_feature_table(table, tmp_path / "file" / "features.parquet")
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot be written .*free some space"):
            save_feature_table(table, tmp_path / "features.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [name for name in os.listdir(tmp_path) if "features" in name]
