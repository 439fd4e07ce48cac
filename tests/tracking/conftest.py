"""A folder of runs of its own for every test, and no W&B of the developer's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from saesteer.utils.run_folder import RunFolder
from tests.texts import Said


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, tmp_path_factory) -> None:
    for name in list(os.environ):
        if name.startswith(("WANDB_", "SAESTEER_")):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("wandb-home")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NETRC", str(home / "netrc"))


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder of runs."""
    return tmp_path / "runs"


@pytest.fixture
def folder(root) -> RunFolder:
    """The folder of a run that is yet to be."""
    return RunFolder(root / "kind-0123456789")
