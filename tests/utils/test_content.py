"""Other weights are told from the same ones without reading them all."""

from __future__ import annotations

import pytest

from saesteer.utils.content import BLOCK, BLOCKS, content_digest
from saesteer.utils.errors import OutputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cfg.json").write_text("{}")
    (tmp_path / "sae_weights.safetensors").write_bytes(bytes(range(256)) * 40)
    return tmp_path


def test_the_same_files_elsewhere_have_the_same_digest(folder, tmp_path_factory):
    import shutil

    other = tmp_path_factory.mktemp("other") / "sae"
    shutil.copytree(folder, other)
    assert content_digest(other) == content_digest(folder)


@pytest.mark.parametrize("place", [0, 5000, 10_239])
def test_any_byte_of_a_small_file_counts(place, folder):
    before = content_digest(folder)
    path = folder / "sae_weights.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert content_digest(folder) != before


def test_names_sizes_and_new_files_count_and_notes_and_drafts_do_not(folder):
    before = content_digest(folder)
    (folder / "README.md").write_text("a note")
    (folder / "checkpoints").mkdir()
    assert content_digest(folder) == before
    (folder / "features.parquet").write_bytes(b"")
    after = content_digest(folder)
    assert after != before
    (folder / "features.parquet").rename(folder / "other.parquet")
    assert content_digest(folder) not in (before, after)


def test_a_large_file_is_sampled_to_its_end(tmp_path):
    path = tmp_path / "model.gguf"
    size = 3 * BLOCK * BLOCKS

    def written(end: bytes) -> str:
        with path.open("wb") as file:
            file.truncate(size)
            file.seek(size - len(end))
            file.write(end)
        return content_digest(path)

    assert written(b"a") == written(b"a")
    assert written(b"a") != written(b"b")


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
