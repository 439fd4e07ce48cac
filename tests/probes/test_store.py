"""The file of activations: whole, resumable, and what any safetensors reader sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.errors import OutputError
from saesteer.models import Site
from saesteer.probes.store import StoreWriter, open_store

SITES = [Site(0), Site(2), Site(10)]


def values(rows: int, seed: int = 0) -> dict[Site, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {site: torch.randn(rows, 4, generator=generator) for site in SITES}


def test_what_was_written_is_read_back_in_any_order_of_rows(tmp_path):
    writer = StoreWriter(tmp_path / "a.safetensors", SITES, 6, 4, "float16")
    first, second = values(4), values(2, 1)
    writer.write(np.array([5, 0, 3, 1]), first, dict.fromkeys(SITES, (12.0, 4)))
    writer.write(np.array([2, 4]), second, dict.fromkeys(SITES, (8.0, 1)))
    store = writer.finish({"what": "test"})
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
    writer.finish({})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(map(str, SITES))
        assert file.get_slice(str(SITES[0])).get_dtype() == code


def test_a_writer_goes_on_where_another_was_cut_off(tmp_path):
    path = tmp_path / "a.safetensors"
    first = StoreWriter(path, SITES, 40, 4, "float16")
    chunks = [values(2, seed) for seed in range(20)]
    for number in range(17):
        first.write(np.array([2 * number, 2 * number + 1]), chunks[number])
    del first
    assert not path.exists()
    second = StoreWriter(path, SITES, 40, 4, "float16")
    assert second.done == 16
    for number in range(second.done, 20):
        second.write(np.array([2 * number, 2 * number + 1]), chunks[number])
    store = second.finish({})
    expected = torch.cat([chunk[SITES[1]] for chunk in chunks]).numpy()
    assert store.site(SITES[1]) == pytest.approx(expected, abs=2e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_draft_of_another_shape_is_begun_anew(tmp_path):
    path = tmp_path / "a.safetensors"
    first = StoreWriter(path, SITES, 32, 4, "float16")
    for number in range(16):
        first.write(np.array([number]), values(1))
    del first
    assert StoreWriter(path, SITES, 33, 4, "float16").done == 0


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
