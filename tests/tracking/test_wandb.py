"""W&B gets what the folder gets, and whatever happens there costs no result."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from saesteer.tracking import list_runs, recorded_run
from saesteer.tracking import wandb as mirror
from saesteer.tracking.wandb import wandb_mode
from saesteer.utils.errors import SteeringError
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder
from saesteer.utils.settings import TrackingSettings

sys.path.insert(0, str(Path(__file__).parent))
from wandb_reader import OfflineRun, WandbService

KEY = "0123456789abcdef" * 3
FEATURES = [
    {"feature": 12, "weight": 0.5, "description": "kind words"},
    {"feature": 7, "weight": float("nan"), "description": None},
]


@pytest.fixture(autouse=True)
def _own_service() -> Iterator[None]:
    # W&B keeps the address it first met for as long as its service lives.
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def work(
    folder: RunFolder, tracking: TrackingSettings | None, said: Progress | None = None
) -> None:
    """Do a run that says everything there is to say."""
    import plotly.graph_objects as go

    config = {"seed": 3, "model": {"name": "tiny"}, "llm": {"api_key": KEY}, "tracking": {}}
    named = {"kind": "run", "name": "kindly", "tags": ["mine"], "group": "sweep-1"}
    with recorded_run(folder, **named, config=config, wandb=tracking, progress=said) as run:
        with run.stage("reading"):
            time.sleep(0.01)
        run.log({"loss": 1.5}, step=10)
        run.log({"loss": 1.25, "dead": 0.5}, step=20)
        points = [{"strength": s, "margin": s / 4, "kl": None} for s in (-1.0, 0.0, 1.0)]
        run.curve("margin", points, x="strength")
        run.table("features", pd.DataFrame(FEATURES))
        run.table("completions", [{"strength": -0.5, "text": f"use {KEY}"}, {"strength": 0.5}])
        run.figure("bars", go.Figure(data=[go.Bar(y=[1, 2])]))
        page = folder.path / "page.html"
        page.write_text("<p>hello</p>")
        run.figure("page", page)
        (folder.path / "vector.safetensors").write_bytes(b"vector")
        run.artifact("vector", folder.path / "vector.safetensors", "vector")
        run.summary({"effect": 0.5, "fit": {"r2": float("nan"), "cosine": 0.9}})


def test_an_offline_run_holds_everything_for_a_later_sync_and_no_key(
    folder, root, monkeypatch, said
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(sys, "argv", ["saesteer", "run", f"--set=llm.api_key={KEY}"])
    work(folder, TrackingSettings(wandb="offline", project="mine", tags=["more"]), said)
    offline = OfflineRun(folder.path)
    (stored,) = list_runs(root)
    run = offline.run
    assert (run.run_id, run.display_name, run.project) == (stored.id, "kindly", "mine")
    assert (run.run_group, run.job_type) == ("sweep-1", "run")
    assert sorted(run.tags) == ["mine", "more"]
    assert offline.config["model"] == {"name": "tiny"} and offline.config["seed"] == 3
    assert offline.config["llm"] == {"api_key": "***"}
    assert offline.config["saesteer"]["versions"]["torch"]
    assert "tracking" not in offline.config

    axes = {metric.name or metric.glob_name: metric.step_metric for metric in offline.metrics}
    assert axes["loss"] == "step" and axes["dead"] == "step"
    assert axes["margin/*"] == "margin/strength"
    losses = [(row["step"], row["loss"]) for row in offline.history if "loss" in row]
    assert losses == [(10, 1.5), (20, 1.25)]
    strengths = [row for row in offline.history if "margin/strength" in row]
    margins = [(row["margin/strength"], row["margin/margin"]) for row in strengths]
    assert margins == [(-1.0, -0.25), (0.0, 0.0), (1.0, 0.25)]

    features = json.loads(offline.media("features_*.table.json").read_text())
    assert features["columns"] == ["feature", "weight", "description"]
    assert features["data"] == [[12, 0.5, "kind words"], [7, None, None]]
    completions = json.loads(offline.media("completions_*.table.json").read_text())
    assert completions["data"] == [[-0.5, "use ***"], [0.5, None]]
    assert json.loads(offline.media("bars_*.plotly.json").read_text())["data"][0]["y"] == [1, 2]
    assert "hello" in offline.media("page_*.html").read_text()
    flat = json.dumps(offline.summary())
    assert '"effect": 0.5' in flat and "0.9" in flat and "reading" in flat
    assert "kindly-vector" in str(offline.artifacts)
    assert [r.exit.exit_code for r in offline.records if r.HasField("exit")] == [0]

    record = folder.read_json("run.json")["wandb"]
    assert (record["mode"], record["id"]) == ("offline", stored.id)
    assert said.lines == [f"W&B, offline: upload it later with wandb sync {record['folder']}"]
    assert Path(record["folder"]).is_dir()
    files = [file for file in root.rglob("*") if file.is_file()]
    assert offline.file in files and len(files) > 8
    for file in files:
        assert KEY.encode() not in file.read_bytes(), file


def test_a_failed_run_is_a_failed_one_there_too_and_a_refused_one_leaves_nothing(folder, root):
    settings = TrackingSettings(wandb="offline")
    with pytest.raises(SteeringError):
        with recorded_run(folder, kind="run", name="k", wandb=settings):
            raise SteeringError("model and SAE do not fit; choose others.")
    assert not folder.path.exists() and list_runs(root) == []
    with pytest.raises(ZeroDivisionError):
        with recorded_run(folder, kind="run", name="k", wandb=settings):
            raise ZeroDivisionError
    found = OfflineRun(folder.path)
    assert [r.exit.exit_code for r in found.records if r.HasField("exit")] == [1]


def test_a_trial_of_an_agent_keeps_the_agents_id_and_parameters(folder, tmp_path, monkeypatch):
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text("seed: {value: 9}\nselection.n_features: {value: 16}\n")
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SWEEP_ID": "sweep123",
        "WANDB_RUN_ID": "trial456",
        "WANDB_SWEEP_PARAM_PATH": str(parameters),
    }.items():
        monkeypatch.setenv(name, value)
    with recorded_run(folder, kind="run", name="k", config={"seed": 9}) as run:
        run.summary({"effect": 0.5})
    found = OfflineRun(folder.path)
    assert (found.run.run_id, found.run.run_group) == ("trial456", "sweep123")
    assert (found.run.sweep_id, found.config["seed"]) == ("sweep123", 9)
    assert folder.read_json("run.json")["group"] == "sweep123"


def test_who_says_whether_wandb_is_told(folder, monkeypatch):
    known: list[tuple[Any, dict[str, str], str | None]] = [
        (None, {}, None),
        ("offline", {}, "offline"),
        (None, {"WANDB_MODE": "Online"}, "online"),
        (None, {"WANDB_MODE": "dryrun"}, "offline"),
        (None, {"WANDB_SWEEP_ID": "s"}, "online"),
        ("online", {"WANDB_MODE": "offline"}, "offline"),
        ("online", {"WANDB_MODE": "disabled"}, None),
        ("online", {"WANDB_DISABLED": "true"}, None),
        ("off", {"WANDB_MODE": "online"}, None),
        ("offline", {"WANDB_MODE": "nonsense"}, "offline"),
    ]
    for setting, environ, mode in known:
        assert wandb_mode(TrackingSettings(wandb=setting), environ) == mode, (setting, environ)
    # A run without W&B imports none of it.
    monkeypatch.setattr(mirror, "WandbMirror", None)
    work(folder, None)
    work(folder, TrackingSettings(wandb="off"))
    assert not (folder.path / "wandb").exists()
    assert "wandb" not in folder.read_json("run.json")


@pytest.fixture
def service(http_server, monkeypatch):
    """Return a function that starts a W&B of the given mode, which runs then find."""

    def start(mode: str = "ok"):
        server = http_server(WandbService(mode))
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setattr(mirror, "INIT_SECONDS", 1.5)
        monkeypatch.setattr(mirror, "FINISH_SECONDS", 1.5)
        return server

    return start


@pytest.mark.parametrize("mode", ["refused", "500", "hang", "no key"])
def test_an_outage_costs_seconds_and_one_line_and_the_run_stays_offline(
    mode, folder, service, monkeypatch, said
):
    server = service(mode)
    if mode == "refused":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    if mode == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
        monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked on the terminal"))
    start = time.monotonic()
    work(folder, TrackingSettings(wandb="online"), said)
    assert time.monotonic() - start < 10
    record = folder.read_json("run.json")
    assert (record["status"], record["metrics"]["effect"]) == ("finished", 0.5)
    if mode == "no key":
        assert "W&B has no key here" in said.lines[0] and server.asked == []
    else:
        assert bool(server.asked) == (mode != "refused")
        warning, where = said.lines
        assert warning.startswith("warning: W&B could not be told everything")
        assert "offline-run-*" in warning and "wandb sync" in where
    assert record["wandb"]["mode"] == "offline"
    found = OfflineRun(folder.path)
    assert found.run.run_id == record["id"]
    assert [row["loss"] for row in found.history if "loss" in row] == [1.5, 1.25]


@pytest.mark.parametrize("mode", ["ok", "hang"])
def test_a_server_gets_config_and_no_secret_and_is_left_behind_where_it_falls_silent(
    mode, folder, service, monkeypatch, said
):
    server = service()
    monkeypatch.setattr(mirror, "INIT_SECONDS", 10.0)
    config, tracking = {"seed": 5, "note": KEY}, TrackingSettings(wandb="online", entity="someone")
    with recorded_run(
        folder, kind="run", name="k", config=config, wandb=tracking, progress=said
    ) as run:
        until = time.monotonic() + 10
        while not any("file_stream" in asked.path for asked in server.asked):
            assert time.monotonic() < until
            time.sleep(0.05)
        server.answer.mode = mode
        run.log({"loss": 1.0}, step=1)
        run.summary({"effect": 0.25})
        left = time.monotonic()
    assert time.monotonic() - left < 8
    assert folder.read_json("run.json")["status"] == "finished"
    late = any("did not take everything in time" in line for line in said.lines)
    assert late == (mode == "hang"), said.lines
    bodies = b"".join(asked.body for asked in server.asked)
    assert b"seed" in bodies and (mode == "hang" or b"effect" in bodies)
    assert KEY.encode() not in bodies and KEY not in "".join(said.lines)
    if mode == "ok":
        page = f"W&B: {server.url}/someone/saesteer/runs/"
        assert any(line.startswith(page) for line in said.lines)


def test_wandb_sync_uploads_an_offline_run_later(folder, service):
    # Numbers alone: the server that is played here takes no files.
    tracking = TrackingSettings(wandb="offline")
    with recorded_run(folder, kind="run", name="kindly", config={}, wandb=tracking) as run:
        run.curve("margin", [{"strength": 1, "margin": 0.5}], x="strength")
        run.summary({"effect": 0.5})
    place = folder.read_json("run.json")["wandb"]["folder"]
    server = service()
    command = [sys.executable, "-m", "wandb", "sync", str(Path(place).resolve())]
    # It writes a log to where it is called.
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=folder.path
    )
    bodies = b"".join(asked.body for asked in server.asked)
    assert done.returncode == 0, done.stderr
    assert b"effect" in bodies and b"margin/strength" in bodies and b"kindly" in bodies


@pytest.mark.parametrize("broken", [["init"], ["Table", "Plotly"]])
def test_a_wandb_that_breaks_costs_one_line_and_no_result(broken, folder, monkeypatch, said):
    import wandb

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    for name in broken:
        monkeypatch.setattr(wandb, name, full)
    work(folder, TrackingSettings(wandb="offline"), said)
    assert folder.read_json("run.json")["metrics"]["effect"] == 0.5
    (line,) = [line for line in said.lines if line.startswith("warning")]
    assert "No space left on device" in line
    if broken != ["init"]:
        found = OfflineRun(folder.path)
        assert [row["loss"] for row in found.history if "loss" in row] == [1.5, 1.25]
        assert '"effect": 0.5' in json.dumps(found.summary())
