from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from saesteer.models.reading import read_rows
from saesteer.models.sites import Site
from saesteer.models.tokens import TokenRow
from saesteer.saes.harvest import Harvest, harvest, harvest_key
from saesteer.utils import files
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


def test_shards_hold_every_kept_token_at_every_site(model, rows, whole):
    assert whole.shards == (0, 1, 2, 3)
    for site in SITES:
        stored = torch.cat([whole.load(shard, site) for shard in whole.shards])
        read = read_rows(model, rows, [Site.parse(site)])[Site.parse(site)].values
        torch.testing.assert_close(stored, read, atol=1e-3, rtol=1e-3)
        assert stored.dtype == torch.float32


def test_a_harvest_whose_last_shard_is_gone_is_completed_identically(model, rows, whole, tmp_path):
    import shutil

    before = contents(whole.folder)
    shutil.rmtree(whole.folder / "00003")
    again = harvest(model, rows, SITES, whole.folder)
    assert again == whole
    assert contents(whole.folder) == before


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


def test_a_break_while_writing_leaves_nothing_half_written(model, rows, tmp_path, monkeypatch):
    import safetensors.torch

    def breaking(tensors, path, *args):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", breaking)
    with pytest.raises(KeyboardInterrupt):
        harvest(model, rows, SITES, tmp_path / "again")
    assert not os.listdir(tmp_path / "again")


def test_what_a_killed_run_left_is_cleared_and_a_living_ones_is_not(
    model, rows, tmp_path, monkeypatch
):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = tmp_path / "again"
    left = []
    for number, pid in enumerate((dead.pid, os.getppid())):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "getpid", lambda pid=pid: pid)
            left.append(files.draft_of(folder / f"0000{number}"))
        files.leave(left[-1])
        left[-1].mkdir(parents=True)
        (left[-1] / "half.safetensors").write_bytes(b"half")
    harvest(model, rows, SITES, folder)
    assert [draft.exists() for draft in left] == [False, True]


def test_max_tokens_stops_after_the_shard_that_reaches_it(model, rows, tmp_path):
    first = sum(sum(row.kept) for row in rows[:7])
    assert harvest(model, rows, SITES, tmp_path / "a", max_tokens=first).shards == (0,)
    assert harvest(model, rows, SITES, tmp_path / "b", max_tokens=first + 1).shards == (0, 1)


@pytest.mark.parametrize("limit", [3000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(model, rows, tmp_path, limit):
    resource = pytest.importorskip("resource")

    folder = tmp_path / "again"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system refuses to let a file grow past this, in the words it uses for a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot be written to .*again.*free some space"):
            harvest(model, rows, SITES, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not os.listdir(folder)


def test_too_little_room_is_told_before_the_model_runs(model, rows, tmp_path, monkeypatch):
    import shutil

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
