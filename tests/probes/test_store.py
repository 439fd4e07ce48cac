"""The file of activations: whole, resumable, and what any safetensors reader sees."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from saesteer.models import Site
from saesteer.probes.store import StoreWriter, open_store
from saesteer.utils.errors import OutputError

SITES = [Site(0), Site(2), Site(10)]


def values(rows: int, seed: int = 0) -> dict[Site, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {site: torch.randn(rows, 4, generator=generator) for site in SITES}


def test_what_was_written_is_read_back_in_any_order_of_rows(tmp_path):
    writer = StoreWriter(tmp_path / "a.safetensors", SITES, 6, 4, "float16", {"what": "test"})
    first, second = values(4), values(2, 1)
    writer.write(np.array([5, 0, 3, 1]), first, dict.fromkeys(SITES, (12.0, 4)))
    writer.write(np.array([2, 4]), second, dict.fromkeys(SITES, (8.0, 1)))
    store = writer.finish()
    assert store.sites == tuple(SITES)
    assert (store.n_texts, store.metadata["what"]) == (6, "test")
    for site in SITES:
        read = store.site(site)
        assert read.dtype == np.float32
        assert read[[5, 0, 3, 1]] == pytest.approx(first[site].numpy(), abs=2e-3)
        assert read[[2, 4]] == pytest.approx(second[site].numpy(), abs=2e-3)
        assert store.residual_norm(site) == 4.0


@pytest.mark.parametrize(("storage", "code"), [("float16", "F16"), ("bfloat16", "BF16")])
def test_any_safetensors_reader_opens_it(tmp_path, storage, code):
    from safetensors import safe_open

    writer = StoreWriter(tmp_path / "a.safetensors", SITES, 2, 4, storage)
    writer.write(np.array([0, 1]), values(2))
    writer.finish()
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(map(str, SITES))
        assert file.get_slice(str(SITES[0])).get_dtype() == code


def test_a_writer_goes_on_where_another_was_cut_off(tmp_path):
    path = tmp_path / "a.safetensors"
    first = StoreWriter(path, SITES, 40, 4, "float16")
    chunks = [values(2, seed) for seed in range(20)]
    for number in range(17):
        first.write(np.array([2 * number, 2 * number + 1]), chunks[number])
    first.close()
    assert not path.exists()
    second = StoreWriter(path, SITES, 40, 4, "float16")
    assert second.done == 16
    for number in range(second.done, 20):
        second.write(np.array([2 * number, 2 * number + 1]), chunks[number])
    store = second.finish()
    expected = torch.cat([chunk[SITES[1]] for chunk in chunks]).numpy()
    assert store.site(SITES[1]) == pytest.approx(expected, abs=2e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    "other",
    [
        (SITES, 33, 4, "float16", {"dtype": "float32"}),
        ([Site(0), Site(2), Site(9)], 32, 4, "float16", {"dtype": "float32"}),
        (SITES, 32, 4, "bfloat16", {"dtype": "float32"}),
        (SITES, 32, 4, "float16", {"dtype": "bfloat16"}),
    ],
    ids=["texts", "sites", "storage", "the model's dtype"],
)
def test_a_draft_of_something_else_is_begun_anew(tmp_path, other):
    path = tmp_path / "a.safetensors"
    first = StoreWriter(path, SITES, 32, 4, "float16", {"dtype": "float32"})
    for number in range(16):
        first.write(np.array([number]), values(1))
    first.close()
    assert StoreWriter(path, *other).done == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_two_writers_in_one_process_do_not_meet_and_the_first_whole_one_stays(tmp_path):
    path = tmp_path / "a.safetensors"
    ones = {site: torch.ones(2, 4) for site in SITES}
    twos = {site: 2 * torch.ones(2, 4) for site in SITES}
    first = StoreWriter(path, SITES, 4, 4, "float16")
    first.write(np.array([0, 1]), ones)
    second = StoreWriter(path, SITES, 4, 4, "float16")
    assert second.done == 0
    second.write(np.array([0, 1]), twos)
    first.write(np.array([2, 3]), ones)
    assert (first.finish().site(SITES[0]) == 1).all()
    second.write(np.array([2, 3]), twos)
    assert (second.finish().site(SITES[0]) == 1).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_draft_under_way_is_not_taken_over_by_another(tmp_path):
    path = tmp_path / "a.safetensors"
    first = StoreWriter(path, SITES, 32, 4, "float16")
    for number in range(16):
        first.write(np.array([number]), values(1))
    assert StoreWriter(path, SITES, 32, 4, "float16").done == 0


def test_the_room_is_taken_before_anything_is_written(tmp_path):
    writer = StoreWriter(tmp_path / "a.safetensors", SITES, 50_000, 64, "float16")
    (draft,) = tmp_path.iterdir()
    assert draft.stat().st_blocks * 512 >= 2 * 3 * 50_000 * 64
    writer.discard()


def test_a_disk_without_the_room_is_a_sentence_and_nothing_is_left(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"a\.safetensors cannot be written \(.*; free some"):
            StoreWriter(tmp_path / "a.safetensors", SITES, 50_000, 64, "float16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_room_is_taken_where_the_system_cannot_reserve_it(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(95, "Operation not supported")

    for way in (
        lambda: monkeypatch.setattr("os.posix_fallocate", unsupported),
        lambda: monkeypatch.delattr("os.posix_fallocate"),
    ):
        way()
        writer = StoreWriter(tmp_path / "a.safetensors", SITES, 50_000, 64, "float16")
        (draft,) = tmp_path.iterdir()
        assert draft.stat().st_blocks * 512 >= 2 * 3 * 50_000 * 64
        writer.discard()


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np, torch
from saesteer.models import Site
from saesteer.probes.store import StoreWriter
sites = [Site(0), Site(2), Site(10)]
writer = StoreWriter(Path(sys.argv[1]), sites, 40, 4, "float16")
for number in range(20):
    writer.write(np.array([2 * number, 2 * number + 1]), {s: torch.ones(2, 4) for s in sites})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_gone_on_with(tmp_path):
    path = tmp_path / "a.safetensors"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    writer = StoreWriter(path, SITES, 40, 4, "float16")
    assert writer.done == 16
    for number in range(16, 20):
        writer.write(
            np.array([2 * number, 2 * number + 1]), {site: torch.ones(2, 4) for site in SITES}
        )
    assert (writer.finish().site(SITES[2]) == 1).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_value_too_large_for_float16_says_what_to_do(tmp_path):
    huge = {site: torch.full((1, 4), 1e5) for site in SITES}
    with pytest.raises(OutputError, match=r"do not fit float16; set reading\.storage: bfloat16"):
        StoreWriter(tmp_path / "a.safetensors", SITES, 1, 4, "float16").write(np.array([0]), huge)
    StoreWriter(tmp_path / "b.safetensors", SITES, 1, 4, "bfloat16").write(np.array([0]), huge)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\0" * 100])
def test_a_damaged_store_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(OutputError, match="holds no activations"):
        open_store(path)


def test_a_missing_store_is_refused(tmp_path):
    with pytest.raises(OutputError, match="delete it and run the same command again"):
        open_store(tmp_path / "none.safetensors")
