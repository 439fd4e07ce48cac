"""Arrays kept by what they depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saesteer.utils.array_cache import ArrayCache, content_key
from saesteer.utils.errors import OutputError


@pytest.fixture
def cache(tmp_path) -> ArrayCache:
    return ArrayCache(tmp_path / "deep" / "cache")


class Counted:
    """Makes arrays and counts how often."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays or {"gain": np.arange(6.0).reshape(2, 3)}
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return self.arrays


def files(cache: ArrayCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


def test_equal_inputs_are_computed_once_whoever_asks(cache):
    made = Counted()
    first = cache.once("gradients", "model", 0.3, [1, 2], compute=made)
    again = ArrayCache(cache.folder).once("gradients", "model", 0.3, (1, 2), compute=made)
    assert made.calls == 1
    np.testing.assert_array_equal(first["gain"], made.arrays["gain"])
    np.testing.assert_array_equal(again["gain"], first["gain"])
    assert [file.name.split("-")[0] for file in files(cache)] == ["gradients"]


def test_what_comes_back_is_bit_for_bit_what_was_made(cache):
    rng = np.random.default_rng(0)
    arrays = {
        "double": rng.normal(size=(4, 3)),
        "single": rng.normal(size=5).astype(np.float32),
        "turned": rng.normal(size=(3, 4)).T,
        "whole": np.array([3, -1]),
        "odd": np.array([np.nan, np.inf, -0.0]),
        "empty": np.zeros((0, 3)),
    }
    first = cache.once("x", compute=Counted(**arrays))
    again = cache.once("x", compute=Counted())
    assert set(again) == set(arrays)
    for name, value in arrays.items():
        for found in (first[name], again[name]):
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 200, None], ids=repr)
def test_a_damaged_file_is_made_again(cache, content):
    made = Counted()
    cache.once("x", 1, compute=made)
    (file,) = files(cache)
    file.write_bytes(file.read_bytes()[:-5] if content is None else content)
    found = cache.once("x", 1, compute=made)
    np.testing.assert_array_equal(found["gain"], made.arrays["gain"])
    assert made.calls == 2
    cache.once("x", 1, compute=made)
    assert made.calls == 2


def test_another_kind_or_part_is_another_file(cache):
    made = Counted()
    for kind, parts in (("a", (1,)), ("b", (1,)), ("a", (2,)), ("a", (1, 1)), ("a", ())):
        cache.once(kind, *parts, compute=made)
    assert made.calls == 5 == len(files(cache))


ROW = np.arange(4.0)
DIFFERENT: list[tuple[Any, ...]] = [
    (),
    ((),),
    ("",),
    (0,),
    (0.0,),
    (False,),
    (None,),
    ("0",),
    (ROW,),
    (ROW.astype(np.float32),),
    (ROW.reshape(2, 2),),
    (ROW.reshape(4, 1),),
    (ROW + 1e-12,),
    (ROW.view(np.int64),),
    (ROW.tolist(),),
    ("a", "b"),
    ("ab",),
    (["a", "b"],),
    (["a"], ["b"]),
    (["a", ["b"]],),
    ("a'; str 'b",),
]


def test_different_inputs_have_different_keys_and_equal_ones_the_same():
    keys = [content_key(*parts) for parts in DIFFERENT]
    assert len(set(keys)) == len(keys)
    assert keys == [content_key(*parts) for parts in DIFFERENT]
    turned = np.arange(6.0).reshape(2, 3).T
    assert content_key(turned) == content_key(np.ascontiguousarray(turned))
    assert content_key([1, "a"]) == content_key((1, "a"))


def test_a_folder_that_cannot_be_written_is_one_sentence_and_nothing_stays(cache, monkeypatch):
    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OutputError, match=r"cannot be written .*No space left.*; free some"):
            cache.once("x", compute=Counted())
    assert files(cache) == []
    (cache.folder.parent / "taken").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written"):
        ArrayCache(cache.folder.parent / "taken").once("x", compute=Counted())


def test_what_fails_to_be_computed_leaves_nothing(cache):
    def fails() -> dict[str, np.ndarray]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.once("x", compute=fails)
    assert not cache.folder.exists()
