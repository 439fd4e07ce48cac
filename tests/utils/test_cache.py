"""What is kept by content: computed once, whole or not there, and made again where damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saesteer.utils.cache import (
    Cache,
    build_once,
    cache_folder,
    content_digest,
    content_key,
)
from saesteer.utils.errors import ModelError, OutputError


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "deep" / "cache")


class Counted:
    """Makes arrays and counts how often."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays or {"gain": np.arange(6.0).reshape(2, 3)}
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return self.arrays


def write(text):
    return lambda draft: (draft / "weights").write_text(text)


def test_a_json_value_is_the_same_whether_made_or_found(cache):
    made = []
    for _ in range(2):
        found = cache.record("r", 1, compute=lambda: made.append(1) or {1: (0.1, None)})
        assert found == {"1": [0.1, None]}
    (file,) = cache.folder.iterdir()
    file.write_text("{")
    assert Cache(cache.folder).record("r", 1, compute=lambda: 3) == json.loads(file.read_text())
    assert made == [1]


def test_equal_inputs_are_computed_once_whoever_asks_and_again_where_damaged(cache):
    made = Counted()
    first = cache.once("gradients", "model", 0.3, [1, 2], compute=made)
    again = Cache(cache.folder).once("gradients", "model", 0.3, (1, 2), compute=made)
    assert made.calls == 1
    np.testing.assert_array_equal(first["gain"], made.arrays["gain"])
    np.testing.assert_array_equal(again["gain"], first["gain"])
    (file,) = cache.folder.iterdir()
    assert file.name.startswith("gradients-")
    for n, content in enumerate((b"", b"{", b"\xff" * 200, file.read_bytes()[:-5])):
        file.write_bytes(content)
        for _ in range(2):
            found = cache.once("gradients", "model", 0.3, [1, 2], compute=made)
            np.testing.assert_array_equal(found["gain"], made.arrays["gain"])
        assert made.calls == n + 2
    # What comes back is bit for bit what was made.
    rng = np.random.default_rng(0)
    arrays = {"turned": rng.normal(size=(3, 4)).T, "single": rng.normal(size=5).astype(np.float32)}
    arrays |= {"odd": np.array([np.nan, np.inf, -0.0]), "empty": np.zeros((0, 3))}
    for _ in range(2):
        found = cache.once("x", compute=Counted(**arrays))
        assert set(found) == set(arrays)
        for name, value in arrays.items():
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
            np.testing.assert_array_equal(found[name], value)


def test_different_inputs_have_different_keys_and_equal_ones_the_same():
    row = np.arange(4.0)
    scalars = [(), ((),), ("",), (0,), (0.0,), (False,), (None,), ("0",)]
    arrays = [row.astype(np.float32), row.reshape(2, 2), row.reshape(4, 1), row + 1e-12]
    arrays += [row, row.view(np.int64), row.tolist()]
    words = [("a", "b"), ("ab",), (["a", "b"],), (["a"], ["b"]), (["a", ["b"]],), ("a'; str 'b",)]
    keys = [content_key(*parts) for parts in [*scalars, *words, *((one,) for one in arrays)]]
    assert len(set(keys)) == len(keys)
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
    assert list(cache.folder.iterdir()) == []
    (cache.folder.parent / "taken").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written"):
        Cache(cache.folder.parent / "taken").once("x", compute=Counted())


def test_any_byte_of_a_small_file_counts_and_not_where_it_lies(tmp_path, tmp_path_factory):
    (tmp_path / "cfg.json").write_text("{}")
    path = tmp_path / "sae_weights.safetensors"
    whole = bytes(range(256)) * 40
    path.write_bytes(whole)
    other = tmp_path_factory.mktemp("other") / "sae"
    shutil.copytree(tmp_path, other)
    digests = {content_digest(tmp_path), content_digest(other)}
    for place in (0, 5000, 10_239):
        content = bytearray(whole)
        content[place] ^= 1
        path.write_bytes(content)
        digests.add(content_digest(tmp_path))
    assert len(digests) == 4


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [ModelError("it is broken."), KeyboardInterrupt(), FULL])
def test_a_folder_is_built_once_and_a_build_that_fails_leaves_nothing(tmp_path, error):
    def build(draft):
        write("half")(draft)
        raise error

    with pytest.raises(OutputError if error is FULL else type(error)):
        build_once(tmp_path / "model", build)
    assert os.listdir(tmp_path) == []
    for text in ("whole", "second"):
        build_once(tmp_path / "model", write(text))
        assert (tmp_path / "model" / "weights").read_text() == "whole"
    # A file in the way stops also root, whom permissions do not.
    (tmp_path / "cache").write_text("a file")
    told = r"cannot be written \(.+\); free some space or set SAESTEER_CACHE to"
    with pytest.raises(OutputError, match=told):
        build_once(tmp_path / "cache" / "models" / "model", write("never"))


def test_another_process_that_was_faster_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path))
    folder = cache_folder() / "model"

    def build(draft):
        write("mine")(draft)
        folder.mkdir()
        write("theirs")(folder)

    assert build_once(folder, build) == folder
    assert (folder / "weights").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["model"]
    monkeypatch.setenv("SAESTEER_CACHE", "~/models")
    assert cache_folder() == Path.home() / "models"
    monkeypatch.delenv("SAESTEER_CACHE")
    assert cache_folder().name == "saesteer"
