"""The two benchmarks that say whether results agree, in small."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers"


def run(script: str, *options: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.real
@pytest.mark.slow
def test_peers_fit_the_same_vector_and_write_the_same_tokens(bundled_gguf, tmp_path):
    if not all((PEERS / name / "bin").is_dir() for name in ("steering-vectors", "repeng")):
        pytest.skip("the peers' environments are not here: make .venv-peers/.ready")
    out = tmp_path / "peers.md"
    said = run("peers/run.py", "--quick", "--out", str(out))
    # Two batches and the strengths; run.py fails where rows differ.
    assert said.count("rows have the expected tokens") == 2 * 4 + 3
    rows = [line for line in out.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    assert len({row.count("|") for row in rows}) == 1
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        "saesteer",
        "transformers 5, unsteered",
        "transformers 5, by hand",
        "transformers 4, unsteered",
        "steering-vectors 0.12.2",
        "repeng 0.4.0",
    ]


@pytest.mark.real
@pytest.mark.slow
def test_the_script_for_a_gpu_runs_without_one(smollm2_float32, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr("saesteer.models.load_model", lambda *_, **__: smollm2_float32)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--cpu", "--layer", "26"])
    runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert said.count("wanted at most 1e-03") == 5
    assert "to write down: cpu, torch" in said
