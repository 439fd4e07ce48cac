"""A recorded run says what it is, how it went and what came of it, and nothing secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from saesteer.tracking.liveness import Heartbeat, present_status, process_record
from saesteer.tracking.recording import recorded_run, run_id
from saesteer.tracking.redaction import names_a_secret, redact, redact_command
from saesteer.tracking.store import RunStore
from saesteer.utils.errors import OutputError, SteeringError
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder


class Said(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def record(folder: RunFolder) -> dict:
    return json.loads((folder.path / "run.json").read_text(encoding="utf-8"))


def test_a_run_is_running_inside_and_finished_after(folder, root):
    with recorded_run(folder, kind="run", name="kind", config={"seed": 3}, tags=["b", "a"]) as run:
        inside = record(folder)
        assert inside["status"] == "running"
        assert (inside["pid"], inside["ended"]) == (os.getpid(), None)
        assert RunStore(root).find(run.id).status == "running"
    after = record(folder)
    assert (after["status"], after["kind"], after["name"]) == ("finished", "run", "kind")
    assert after["config"] == {"seed": 3}
    assert after["tags"] == ["a", "b"]
    assert after["ended"] >= after["started"]
    assert after["versions"]["torch"]
    assert len(run.id) == 8 and run_id(folder) == run.id
    (stored,) = RunStore(root).runs()
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


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (SteeringError("site 'here' is unknown; use blocks.3."), "failed", "site 'here'"),
        (ZeroDivisionError("by\nzero"), "failed", "ZeroDivisionError: by zero"),
        (KeyboardInterrupt(), "stopped", None),
        (SystemExit(1), "stopped", None),
    ],
)
def test_how_a_run_ends_is_written_down_and_the_error_goes_on(error, status, message, folder, root):
    with pytest.raises(type(error)):
        with recorded_run(folder, kind="run", name="kind") as run:
            run.summary({"effect": 1.0})
            raise error
    (stored,) = RunStore(root).runs()
    assert stored.status == status
    assert (stored.error is None) if message is None else str(stored.error).startswith(message)
    assert stored.metrics == {"effect": 1.0}
    assert stored.ended is not None


def test_what_was_refused_before_it_began_leaves_nothing(folder, root):
    with pytest.raises(SteeringError):
        with recorded_run(folder, kind="run", name="kind"):
            raise SteeringError("model and SAE do not fit; choose others.")
    assert not folder.path.exists()
    assert RunStore(root).runs() == []


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
    assert len(RunStore(root).runs()) == 1


def test_a_killed_run_is_shown_as_killed(tmp_path):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from saesteer.utils.run_folder import RunFolder\n"
        "from saesteer.tracking.recording import recorded_run\n"
        "with recorded_run(RunFolder(Path(sys.argv[1])), kind='run', name='k') as run:\n"
        "    with run.stage('reading'):\n"
        "        print('in', flush=True)\n"
        "        time.sleep(60)\n"
    )
    folder = tmp_path / "runs" / "k"
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        store = RunStore(tmp_path / "runs")
        assert store.runs()[0].status == "running"
        process.kill()
        process.wait()
    (killed,) = store.runs()
    assert killed.status == "killed"
    assert killed.record["stage"] == "reading"
    with recorded_run(RunFolder(folder), kind="run", name="k") as run:
        assert run.id == killed.id
    assert store.runs()[0].status == "finished"


def test_another_process_of_the_same_number_is_not_the_run():
    here = {**process_record(), "status": "running"}
    assert present_status(here, 0) == "running"
    assert present_status({**here, "process_started": "1"}, time.time()) == "killed"
    assert present_status({**here, "pid": 2**22 + 1}, time.time()) == "killed"
    elsewhere = {**here, "host": "another"}
    assert present_status(elsewhere, time.time()) == "running"
    assert present_status(elsewhere, time.time() - 3600) == "killed"
    assert present_status({"status": "finished"}, 0) == "finished"


def test_a_heartbeat_touches_the_file_until_it_ends(tmp_path):
    file = tmp_path / "run.json"
    file.write_text("{}")
    os.utime(file, (0, 0))
    with Heartbeat(file, 0.01):
        time.sleep(0.2)
    assert time.time() - file.stat().st_mtime < 10


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


def test_what_looks_like_a_secret_by_name_and_what_does_not():
    for name in ("key", "api_key", "apiKey", "HF_TOKEN", "new_password", "x.secret", "--api-key"):
        assert names_a_secret(name), name
    for name in ("text_key", "pad_token", "max_new_tokens", "keyword", "TOKENIZERS_PARALLELISM"):
        assert not names_a_secret(name), name
    plain = {"token": 12, "key": "", "tokens": "a"}
    assert redact(plain, {}) == plain
    told = redact_command(["run", "--api-key", "abc", "--seed", "3", "--token=x"], {})
    assert told == ["run", "--api-key", "***", "--seed", "3", "--token=***"]
    assert redact("Authorization: Bearer abcdefgh12", {}) == "Authorization: ***"


def test_a_store_that_cannot_be_written_costs_one_line_and_no_result(folder, monkeypatch, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no database, and long enough to be none " * 10)
    said = Said()
    monkeypatch.setenv("SAESTEER_STORE", str(in_the_way))
    with recorded_run(folder, kind="run", name="kind", progress=said) as run:
        run.summary({"effect": 0.5})
    assert record(folder)["status"] == "finished"
    assert record(folder)["metrics"] == {"effect": 0.5}
    (line,) = said.lines
    assert line.startswith("warning: ") and str(in_the_way) in line
    assert in_the_way.read_text().startswith("no database")


def test_a_full_disk_costs_lines_and_no_result(folder, monkeypatch):
    said = Said()
    with recorded_run(folder, kind="run", name="kind", progress=said) as run:

        def full(self, name, write):
            raise OutputError(f"{name} cannot be written (No space left on device); free some.")

        monkeypatch.setattr(RunFolder, "write", full)
        run.summary({"effect": 0.5})
        with run.stage("reading"):
            pass
        run.curve("margin", [], x="strength")
        result = 1 + 1
    assert result == 2
    assert said.lines == ["warning: " + line for line in (
        "not recorded: run.json cannot be written (No space left on device); free some.",
        "not recorded: curves/margin.json cannot be written (No space left on device); free some.",
    )]  # fmt: skip


def test_without_progress_a_warning_is_pythons(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("SAESTEER_STORE", str(tmp_path))
    with pytest.warns(UserWarning, match="the run's folder has everything"):
        with recorded_run(folder, kind="run", name="kind"):
            pass


def test_a_new_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another"):
        with recorded_run(RunFolder(tmp_path / "file" / "run"), kind="run", name="k"):
            raise AssertionError("no work may be done")


@pytest.mark.parametrize("text", ["{half", "[]", ""])
def test_a_damaged_record_is_one_sentence_and_left_as_it_is(text, folder):
    folder.create()
    (folder.path / "run.json").write_text(text)
    with pytest.raises(OutputError, match=r"run\.json .*delete it"):
        with recorded_run(folder, kind="run", name="kind"):
            raise AssertionError("no work may be done")
    assert (folder.path / "run.json").read_text() == text


def test_tracking_is_no_setting_of_the_run(folder):
    from saesteer.experiments.steer.config import RunConfig
    from saesteer.utils.settings import TrackingSettings

    plain = RunConfig(name="k", pairs={"source": "x"})  # type: ignore[arg-type]
    told = plain.model_copy(update={"tracking": TrackingSettings(wandb="offline", tags=["t"])})
    assert plain.digest() == told.digest()
    config = told.model_dump(mode="json")
    off = TrackingSettings(wandb="off", tags=["t"], group="g")
    with recorded_run(folder, kind="run", name="kind", config=config, wandb=off):
        pass
    assert "tracking" not in record(folder)["config"]
    assert (record(folder)["tags"], record(folder)["group"]) == (["t"], "g")


def test_digests_of_every_configuration_leave_tracking_out(tmp_path):
    from saesteer.experiments.compare.config import CompareConfig
    from saesteer.experiments.probe.config import ProbeConfig
    from saesteer.experiments.train_sae import TrainSaeConfig
    from saesteer.utils.settings import TrackingSettings, parse_config

    tracked = {"tracking": {"wandb": False, "project": "p", "tags": ["t"]}}
    probes = [ProbeConfig.model_validate({"name": "a", **more}) for more in ({}, tracked)]
    assert probes[0].digest() == probes[1].digest()
    assert probes[1].tracking.wandb == "off"
    base = {"name": "a", "personas": ["x"], "methods": ["attributed_sae", "difference_in_means"]}
    compares = [
        parse_config({**base, **more}, kind=CompareConfig, place="x") for more in ({}, tracked)
    ]
    assert len({c.persona_digest(c.personas[0]) for c in compares}) == 1
    sae: dict[str, Any] = {"site": "blocks.1.hook_resid_post", "corpus": [{"path": "x.txt"}]}
    trainings = [TrainSaeConfig.model_validate({**sae, **more}) for more in ({}, tracked)]
    assert trainings[0].digest() == trainings[1].digest()
    assert TrackingSettings().wandb is None
