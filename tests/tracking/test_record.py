"""A recorded run says what it is, how it went and what came of it, and nothing secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from saesteer.tracking import find_run, list_runs, recorded_run, run_id
from saesteer.tracking.liveness import present_status, process_record
from saesteer.utils.errors import OutputError, SteeringError
from saesteer.utils.redaction import redact, redact_command
from saesteer.utils.run_folder import RunFolder
from saesteer.utils.settings import TrackingSettings


def record(folder: RunFolder) -> dict:
    return json.loads((folder.path / "run.json").read_text(encoding="utf-8"))


def test_a_run_is_running_inside_and_finished_after(folder, root):
    # Tracking is no setting of the run.
    config, tracking = {"seed": 3, "tracking": {}}, TrackingSettings(wandb="off", tags=["a"])
    with recorded_run(
        folder, kind="run", name="kind", config=config, tags=["b"], wandb=tracking
    ) as run:
        inside = record(folder)
        assert (inside["status"], inside["pid"], inside["ended"]) == ("running", os.getpid(), None)
        assert find_run(root, run.id).status == "running"
    after = record(folder)
    assert (after["status"], after["kind"], after["name"]) == ("finished", "run", "kind")
    assert (after["config"], after["tags"]) == ({"seed": 3}, ["a", "b"])
    assert after["ended"] >= after["started"] and after["versions"]["torch"]
    assert len(run.id) == 8 and run_id(folder) == run.id
    (stored,) = list_runs(root)
    assert (stored.id, stored.status) == (run.id, "finished")


def test_stages_curves_and_metrics_are_in_the_folder(folder):
    with recorded_run(folder, kind="sae-train", name="sae") as run:
        with run.stage("harvest"):
            time.sleep(0.02)
        with run.stage("harvest"):
            time.sleep(0.02)
        run.log({"loss": np.float32(0.5)}, step=1)
        run.log({"loss": float("nan")}, step=2)
        run.curve("margin", [{"strength": -1, "margin": 0.25}], x="strength")
        run.summary({"effect": np.float64(0.5), "fit": {"r2": float("inf"), "n": np.int64(7)}})
        run.summary({"fit": {"cosine": 0.9}, "rows": [1, 2, 3]})
        (folder.path / "v.txt").write_text("v")
        run.artifact("vector", folder.path / "v.txt")
    found = record(folder)
    assert 0.04 <= found["seconds"]["harvest"] < 1
    assert found["metrics"] == {"effect": 0.5, "fit": {"r2": None, "n": 7, "cosine": 0.9}}
    assert found["artifacts"] == {"vector": "v.txt"}
    lines = (folder.path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
    ]
    curve = folder.read_json("curves/margin.json")
    assert curve == {"x": "strength", "points": [{"strength": -1, "margin": 0.25}]}


def test_how_a_run_ends_is_written_down_and_the_error_goes_on(folder, root):
    # What was refused before it began leaves nothing.
    with pytest.raises(SteeringError):
        with recorded_run(folder, kind="run", name="kind"):
            raise SteeringError("model and SAE do not fit; choose others.")
    assert not folder.path.exists() and list_runs(root) == []
    for error, status, message in (
        (SteeringError("site 'here' is unknown; use blocks.3."), "failed", "site 'here'"),
        (ZeroDivisionError("by\nzero"), "failed", "ZeroDivisionError: by zero"),
        (KeyboardInterrupt(), "stopped", "None"),
        (SystemExit(1), "stopped", "None"),
    ):
        with pytest.raises(type(error)):
            with recorded_run(folder, kind="run", name="kind") as run:
                run.summary({"effect": 1.0})
                raise error
        (stored,) = list_runs(root)
        assert stored.status == status
        assert str(stored.error).startswith(message)
        assert stored.metrics == {"effect": 1.0} and stored.ended is not None


def test_a_run_gone_on_with_is_the_same_run(folder, root):
    with pytest.raises(SteeringError):
        with recorded_run(folder, kind="run", name="kind", group="sweep") as first:
            with first.stage("reading"):
                time.sleep(0.02)
            first.summary({"effect": 0.5})
            raise SteeringError("no")
    begun = record(folder)
    with recorded_run(folder, kind="run", name="kind") as second:
        assert record(folder)["status"] == "running"
        assert record(folder)["error"] is None
        with second.stage("reading"):
            time.sleep(0.02)
    after = record(folder)
    assert second.id == first.id
    assert after["started"] == begun["started"]
    assert after["metrics"] == {"effect": 0.5}
    assert after["seconds"]["reading"] > begun["seconds"]["reading"]
    assert after["wall_seconds"] > begun["wall_seconds"]
    assert after["group"] == "sweep"
    assert len(list_runs(root)) == 1


def test_a_killed_run_is_shown_as_killed(tmp_path):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from saesteer.utils.run_folder import RunFolder\n"
        "from saesteer.tracking import recorded_run\n"
        "with recorded_run(RunFolder(Path(sys.argv[1])), kind='run', name='k') as run:\n"
        "    with run.stage('reading'):\n"
        "        print('in', flush=True)\n"
        "        time.sleep(60)\n"
    )
    folder = tmp_path / "runs" / "k"
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        assert list_runs(tmp_path / "runs")[0].status == "running"
        process.kill()
        process.wait()
    (killed,) = list_runs(tmp_path / "runs")
    assert killed.status == "killed"
    assert killed.record["stage"] == "reading"
    with recorded_run(RunFolder(folder), kind="run", name="k") as run:
        assert run.id == killed.id
    assert list_runs(tmp_path / "runs")[0].status == "finished"


def test_another_process_of_the_same_number_is_not_the_run():
    here, now = {**process_record(), "status": "running"}, time.time()
    assert present_status(here, 0) == "running"
    assert present_status({**here, "process_started": "1"}, now) == "killed"
    assert present_status({**here, "pid": 2**22 + 1}, now) == "killed"
    elsewhere = {**here, "host": "another"}
    assert present_status(elsewhere, now) == "running"
    assert present_status(elsewhere, now - 3600) == "killed"


def test_secrets_are_nowhere(folder, root, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "open-sesame-1")
    monkeypatch.setattr(sys, "argv", ["saesteer", "run", "--set", "llm.api_key=open-sesame-2"])
    config = {
        "llm": {"api_key": "open-sesame-3", "key_variable": "SOME_API_KEY"},
        "note": "use open-sesame-1 here",
        "store": "postgresql://me:open-sesame-4@host/db",
        "positive_key": "kind",
        "max_new_tokens": 5,
    }
    with pytest.raises(SteeringError):
        with recorded_run(folder, kind="run", name="kind", config=config) as run:
            run.note({"observation": "key open-sesame-1 works"})
            run.summary({"url": "https://a:open-sesame-5@b"})
            raise SteeringError("the key open-sesame-1 was refused.")
    for file in [*root.rglob("*.*")]:
        assert b"open-sesame" not in file.read_bytes(), file
    kept = record(folder)["config"]
    assert kept["positive_key"] == "kind" and kept["max_new_tokens"] == 5
    assert kept["llm"] == {"api_key": "***", "key_variable": "SOME_API_KEY"}
    assert record(folder)["error"] == "the key *** was refused."
    command = ["run", "--api-key", "abc", "--seed", "3", "--token=x", "pad_token=y"]
    hidden = ["run", "--api-key", "***", "--seed", "3", "--token=***", "pad_token=y"]
    assert redact_command(command) == hidden
    assert redact("Authorization: Bearer abcdefgh12") == "Authorization: ***"
    secret = dict.fromkeys(("key", "apiKey", "HF_TOKEN", "new_password", "x.secret"), "a")
    assert set(redact(secret).values()) == {"***"}
    plain = {"token": 12, "key": "", "tokens": "a", "text_key": "b", "TOKENIZERS_PARALLELISM": "c"}
    assert redact(plain) == plain


def test_a_folder_or_record_that_cannot_be_used_is_refused_before_any_work(folder, tmp_path):
    def begin(place: RunFolder) -> None:
        with recorded_run(place, kind="run", name="kind"):
            raise AssertionError("no work may be done")

    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another"):
        begin(RunFolder(tmp_path / "file" / "run"))
    folder.create()
    for text in ("{half", "[]", ""):
        (folder.path / "run.json").write_text(text)
        with pytest.raises(OutputError, match=r"run\.json .*delete it"):
            begin(folder)
        assert (folder.path / "run.json").read_text() == text


def test_a_full_disk_costs_lines_and_no_result(folder, monkeypatch, said):
    def full(self, name, write):
        raise OutputError(f"{name} cannot be written (No space left on device); free some.")

    with recorded_run(folder, kind="run", name="kind", progress=said) as run:
        monkeypatch.setattr(RunFolder, "write", full)
        run.summary({"effect": 0.5})
        run.curve("margin", [], x="strength")
        run.note(" ")
    told = "warning: not recorded: {} cannot be written (No space left on device); free some."
    lines = [told.format(name) for name in ("run.json", "curves/margin.json")]
    assert said.lines[:2] == lines and "note is empty" in said.lines[2]
    # Without progress a warning is Python's.
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="note is empty"):
        with recorded_run(folder, kind="run", name="kind") as run:
            run.note(" ")
