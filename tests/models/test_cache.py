"""A cache folder is there whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest

from saesteer.utils.cache_folder import build_once
from saesteer.utils.errors import ModelError, OutputError


def write(text):
    def build(draft):
        (draft / "weights").write_text(text)

    return build


def test_a_folder_is_built_once(tmp_path):
    folder = tmp_path / "deep" / "model"
    assert build_once(folder, write("first")) == folder
    assert build_once(folder, write("second")) == folder
    assert (folder / "weights").read_text() == "first"
    assert os.listdir(folder.parent) == ["model"]


@pytest.mark.parametrize("error", [ModelError("it is broken."), KeyboardInterrupt(), ValueError()])
def test_a_build_that_fails_leaves_nothing(tmp_path, error):
    def build(draft):
        (draft / "weights").write_text("half")
        raise error

    with pytest.raises(type(error)):
        build_once(tmp_path / "model", build)
    assert os.listdir(tmp_path) == []
    build_once(tmp_path / "model", write("whole"))
    assert (tmp_path / "model" / "weights").read_text() == "whole"


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path):
    def build(draft):
        (draft / "weights").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"\(No space left on device\); free some space or set"):
        build_once(tmp_path / "model", build)
    assert os.listdir(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path):
    # A file in the way stops also root, whom permissions do not.
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot be written \(.+\); set SAESTEER_CACHE to"):
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
