"""Patch results that come back from disk as they went."""

from __future__ import annotations

import numpy as np
import pytest

from saesteer.patching.result_file import load_result, save_result
from saesteer.utils.errors import OutputError
from tests.patching.made_up_results import result


def test_a_result_comes_back_whole(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 3, 2))
    values[0, 1, 1] = np.nan
    made = result(
        values, ("layer", "position"), mode="noising", metric="kl",
        coords={"position": (4, 7)}, tokens=((" a", "\n"), ("", "<b>")),
    )  # fmt: skip
    save_result(made, tmp_path / "r.safetensors")
    back = load_result(tmp_path / "r.safetensors")
    np.testing.assert_array_equal(back.values, made.values)
    for name in ("method", "component", "mode", "metric", "dims", "coords", "pairs", "tokens"):
        assert getattr(back, name) == getattr(made, name), name
    np.testing.assert_array_equal(back.clean, made.clean)


def test_clusters_keep_names_and_numbers_apart(tmp_path):
    made = result(np.zeros((1, 3)), ("cluster",), coords={"cluster": (0, 1, "alone")})
    save_result(made, tmp_path / "r.safetensors")
    assert load_result(tmp_path / "r.safetensors").coords == {"cluster": (0, 1, "alone")}


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "r.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OutputError, match="holds no patch result"):
        load_result(path)
