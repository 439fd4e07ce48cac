from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import coo_matrix, csr_matrix

from saesteer.methods.features import PairCodes
from saesteer.utils.errors import DataError

POSITIVE = np.array([[1.0, 0.0, 2.0], [0.0, -1.0, 4.0]])
NEGATIVE = np.array([[0.5, 3.0, 0.0], [0.0, 0.0, 4.0]])


def test_delta_is_positive_minus_negative_and_stays_sparse():
    codes = PairCodes.from_dense(POSITIVE, NEGATIVE)
    assert isinstance(codes.delta, csr_matrix)
    np.testing.assert_array_equal(codes.delta.toarray(), POSITIVE - NEGATIVE)
    np.testing.assert_allclose(codes.mean_delta, (POSITIVE - NEGATIVE).mean(axis=0))
    assert (codes.n_pairs, codes.d_sae) == (2, 3)


def test_firing_counts_texts_and_not_tokens():
    frequency = csr_matrix(np.array([[0.25, 0.0, 1.0], [0.0, 0.01, 0.5]]))
    codes = PairCodes(csr_matrix(POSITIVE), csr_matrix(NEGATIVE), frequency, frequency * 0)
    np.testing.assert_array_equal(codes.firing_positive, [0.5, 0.5, 1.0])
    np.testing.assert_array_equal(codes.firing_negative, [0, 0, 0])
    np.testing.assert_array_equal(codes.firing, [0.25, 0.25, 0.5])


def test_stacked_puts_positives_first_and_labels_agree():
    codes = PairCodes.from_dense(POSITIVE, NEGATIVE)
    np.testing.assert_array_equal(codes.stacked(), np.vstack([POSITIVE, NEGATIVE]))
    np.testing.assert_array_equal(codes.stacked([2, 0]), np.vstack([POSITIVE, NEGATIVE])[:, [2, 0]])
    np.testing.assert_array_equal(codes.labels, [1, 1, 0, 0])


def test_columns_keep_the_order_asked_for():
    part = PairCodes.from_dense(POSITIVE, NEGATIVE).columns([2, 0])
    assert part.d_sae == 2
    np.testing.assert_array_equal(part.positive.toarray(), POSITIVE[:, [2, 0]])
    np.testing.assert_array_equal(part.negative_frequency.toarray(), [[0, 1], [1, 0]])


def test_repeated_entries_of_a_sparse_matrix_are_added_once_and_zeros_do_not_fire():
    repeated = coo_matrix(([1.0, 2.0, 0.0], ([0, 0, 0], [1, 1, 2])), shape=(1, 3))
    codes = PairCodes(repeated, repeated * 0, repeated / 4, repeated * 0)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(codes.positive.toarray(), [[0, 3, 0]])
    np.testing.assert_array_equal(codes.firing_positive, [0, 1, 0])


def test_sides_of_different_size_are_refused():
    with pytest.raises(DataError, match=r"negative: its shape \(1, 3\) differs from positive's"):
        PairCodes.from_dense(POSITIVE, NEGATIVE[:1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_pair(bad: float):
    broken = NEGATIVE.copy()
    broken[1, 2] = bad
    with pytest.raises(DataError, match=r"negative: the activations of pair 1 "):
        PairCodes.from_dense(POSITIVE, broken)


def test_a_frequency_above_one_is_refused():
    empty = csr_matrix((2, 3))
    with pytest.raises(DataError, match="positive_frequency: values run from 1 to 4"):
        PairCodes(csr_matrix(POSITIVE), empty, csr_matrix(abs(POSITIVE)), empty)


@pytest.mark.parametrize("indices", [[3], [-1], [], [0.5]])
def test_columns_that_do_not_exist_are_refused(indices: list[int]):
    with pytest.raises(DataError, match="indices: "):
        PairCodes.from_dense(POSITIVE, NEGATIVE).columns(indices)
