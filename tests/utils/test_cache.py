"""What is kept by content: computed once, whole or not there, and made again where damaged."""

from __future__ import annotations

import errno
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


def files(cache: Cache) -> list[Path]:
    return sorted(cache.folder.iterdir())


def test_equal_inputs_are_computed_once_whoever_asks(cache):
    made = Counted()
    first = cache.once("gradients", "model", 0.3, [1, 2], compute=made)
    again = Cache(cache.folder).once("gradients", "model", 0.3, (1, 2), compute=made)
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
        Cache(cache.folder.parent / "taken").once("x", compute=Counted())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cfg.json").write_text("{}")
    (tmp_path / "sae_weights.safetensors").write_bytes(bytes(range(256)) * 40)
    return tmp_path


def test_the_same_files_elsewhere_have_the_same_digest(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "sae"
    shutil.copytree(folder, other)
    assert content_digest(other) == content_digest(folder)


def test_any_byte_of_a_small_file_counts(folder):
    path = folder / "sae_weights.safetensors"
    whole, digests = path.read_bytes(), {content_digest(folder)}
    for place in (0, 5000, 10_239):
        content = bytearray(whole)
        content[place] ^= 1
        path.write_bytes(content)
        digests.add(content_digest(folder))
    assert len(digests) == 4


def test_a_folder_that_is_not_there_counts_as_empty_and_an_unreadable_file_is_told(
    tmp_path, monkeypatch
):
    assert content_digest(tmp_path / "nowhere") == content_digest(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(OutputError, match=r"cannot be read \(Permission denied\)"):
        content_digest(tmp_path)


def write(text):
    def build(draft):
        (draft / "weights").write_text(text)

    return build


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("SAESTEER_CACHE", "~/models")
    assert cache_folder() == Path.home() / "models"
    monkeypatch.delenv("SAESTEER_CACHE")
    assert cache_folder().name == "saesteer"


def test_a_folder_is_built_once(tmp_path):
    folder = tmp_path / "deep" / "model"
    assert build_once(folder, write("first")) == folder
    assert build_once(folder, write("second")) == folder
    assert (folder / "weights").read_text() == "first"
    assert os.listdir(folder.parent) == ["model"]


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [ModelError("it is broken."), KeyboardInterrupt(), FULL])
def test_a_build_that_fails_leaves_nothing(tmp_path, error):
    def build(draft):
        (draft / "weights").write_text("half")
        raise error

    with pytest.raises(OutputError if error is FULL else type(error)):
        build_once(tmp_path / "model", build)
    assert os.listdir(tmp_path) == []
    build_once(tmp_path / "model", write("whole"))
    assert (tmp_path / "model" / "weights").read_text() == "whole"


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path):
    # A file in the way stops also root, whom permissions do not.
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        OutputError, match=r"cannot be written \(.+\); free some space or set SAESTEER_CACHE to"
    ):
        build_once(tmp_path / "cache" / "models" / "model", write("never"))
    assert os.listdir(tmp_path) == ["cache"]


def test_another_process_that_was_faster_wins(tmp_path):
    folder = tmp_path / "model"

    def build(draft):
        write("mine")(draft)
        folder.mkdir()
        write("theirs")(folder)

    assert build_once(folder, build) == folder
    assert (folder / "weights").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["model"]
