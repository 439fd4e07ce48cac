from __future__ import annotations

import os
import shutil
import sys

import pytest
import torch

from saesteer.models.reading import read_rows
from saesteer.models.sites import Site
from saesteer.models.tokens import TokenRow
from saesteer.saes.harvest import Harvest, harvest, harvest_key
from saesteer.utils.errors import OutputError

SITES = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_pre"]
MODULE = sys.modules["saesteer.saes.harvest"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(MODULE, "ROWS_PER_SHARD", 7)


def contents(folder) -> dict[str, bytes]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture
def whole(model, rows, tmp_path) -> Harvest:
    return harvest(model, rows, SITES, tmp_path / "whole")


def test_shards_hold_every_kept_token_at_every_site(model, rows, whole, tmp_path):
    assert whole.shards == (0, 1, 2, 3)
    for site in SITES:
        stored = torch.cat([whole.load(shard, site) for shard in whole.shards])
        read = read_rows(model, rows, [Site.parse(site)])[Site.parse(site)].values
        torch.testing.assert_close(stored, read, atol=1e-3, rtol=1e-3)
        assert stored.dtype == torch.float32
    # `max_tokens` stops after the shard that reaches it.
    first = sum(sum(row.kept) for row in rows[:7])
    assert harvest(model, rows, SITES, tmp_path / "a", max_tokens=first).shards == (0,)
    assert harvest(model, rows, SITES, tmp_path / "b", max_tokens=first + 1).shards == (0, 1)


def test_a_harvest_that_breaks_off_goes_on_where_it_stopped(
    model, rows, whole, tmp_path, monkeypatch
):
    calls = []

    def breaking(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read_rows(*args, **kwargs)

    monkeypatch.setattr(MODULE, "read_rows", breaking)
    folder = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        harvest(model, rows, SITES, folder)
    assert sorted(os.listdir(folder)) == ["00000", "00001"]
    harvest(model, rows, SITES, folder)
    assert len(calls) == 3 + 2
    assert contents(folder) == contents(whole.folder)
    shutil.rmtree(folder / "00003")
    assert harvest(model, rows, SITES, folder).shards == whole.shards
    assert contents(folder) == contents(whole.folder)


def test_too_little_room_is_told_before_the_model_runs(model, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "read_rows", None)
    tokens = sum(sum(row.kept) for row in rows)
    needed = tokens * 32 * 4 * len(SITES)
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, needed - 1))
    with pytest.raises(OutputError, match=r"needs .* GB for activations.*set tokens lower"):
        harvest(model, rows, SITES, tmp_path / "again")


def test_the_key_changes_with_all_that_the_activations_depend_on(rows):
    base = harvest_key("model", rows, SITES, torch.float32)
    assert harvest_key("model", list(rows), SITES[::-1], torch.float32) == base
    other = [TokenRow((*rows[0].ids, 9), (*rows[0].kept, True)), *rows[1:]]
    keys = {
        base,
        harvest_key("other", rows, SITES, torch.float32),
        harvest_key("model", other, SITES, torch.float32),
        harvest_key("model", rows[::-1], SITES, torch.float32),
        harvest_key("model", rows, SITES[:1], torch.float32),
        harvest_key("model", rows, SITES, torch.bfloat16),
    }
    assert len(keys) == 6
