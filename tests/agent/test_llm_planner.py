"""The planner at an endpoint: a local server plays it, well and badly."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from saesteer.agent import run_agent
from saesteer.errors import NetworkError

KEY = "sk-very-secret"
FINISH = {"answer": "Layer 7.", "would_refute": "Another layer.", "claims": []}


class Player:
    """Answers one scripted answer after the other, and keeps what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.signed: list[str | None] = []
        player = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                player.asked.append(body)
                player.signed.append(self.headers.get("Authorization"))
                status, content = player.answer(body)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        if not self.answers:
            return 200, call("finish", FINISH)
        found = self.answers.pop(0)
        found = found(body) if callable(found) else found
        return found if isinstance(found, tuple) else (200, found)


def call(tool: str, arguments: Any, **usage: int) -> dict[str, Any]:
    words = arguments if isinstance(arguments, str) else json.dumps(arguments)
    message = {"content": None, "tool_calls": [{"function": {"name": tool, "arguments": words}}]}
    return said(message, **usage)


def said(message: Any, **usage: int) -> dict[str, Any]:
    made: dict[str, Any] = {"choices": [{"message": message}]}
    return {**made, "usage": {"prompt_tokens": 100, "completion_tokens": 10, **usage}}


def experiment(layer: int) -> dict[str, Any]:
    return call("run_experiment", {"kind": "corrupt", "settings": {"layers": [layer]}})


@pytest.fixture
def play(monkeypatch) -> Iterator[Any]:
    monkeypatch.setenv("TEST_PLANNER_KEY", KEY)
    players: list[Player] = []

    def start(*answers: Any) -> Player:
        players.append(Player(*answers))
        return players[-1]

    yield start
    for player in players:
        player.server.shutdown()
        player.server.server_close()


@pytest.fixture
def asked(settings) -> Any:
    def make(player: Player, budget: dict[str, Any] | None = None, **planner: Any) -> Any:
        endpoint = {
            "model": "tiny",
            "base_url": player.url,
            "key_variable": "TEST_PLANNER_KEY",
            "first_wait": 0.01,
            "timeout": 5.0,
            **planner,
        }
        return settings(planner=endpoint, search=None, budget=budget or {})

    return make


def test_it_runs_what_the_endpoint_calls_for_and_reports(plant, play, asked, runs):
    claims = [{"claim": "7 it is", "experiments": ["E2"], "path": ["rows", "0", "loss"]}]
    claims[0]["value"] = 5.001  # type: ignore[assignment]
    player = play(experiment(3), experiment(7), call("finish", {**FINISH, "claims": claims}))
    result = run_agent(asked(player))
    assert [config.layers for config in runs] == [[3], [7]]
    assert result.metrics["claims"][0]["verdict"] == "supported"
    assert result.metrics["spent"]["tokens"] == 330
    names = {tool["function"]["name"] for tool in player.asked[0]["tools"]}
    assert names == {"run_experiment", "read_results", "aggregate", "write_note", "finish"}
    told = json.loads(player.asked[2]["messages"][1]["content"])
    assert [e["name"] for e in told["experiments"]] == ["E1", "E2"]
    assert told["left"]["experiments"] == 18
    assert player.signed == [f"Bearer {KEY}"] * 3
    for file in result.folder.path.rglob("*.*"):
        assert KEY.encode() not in file.read_bytes()


def test_notes_are_fed_back_as_data(plant, play, asked):
    note = {"observation": "seen", "hypothesis": "so", "evidence": ["E1"]}
    player = play(experiment(3), call("write_note", note))
    run_agent(asked(player))
    assert json.loads(player.asked[2]["messages"][1]["content"])["notes"] == [note]


@pytest.mark.parametrize(
    ("bad", "said_back"),
    [
        ((200, b"not json at all"), "no answer to read"),
        ((200, b""), "no answer to read"),
        ((200, {"choices": []}), "neither a tool call nor words"),
        (call("run_experiment", "{broken"), "are no JSON"),
        (call("launch", {}), "there is no tool 'launch'"),
        (call("run_experiment", {"kind": "corrupt", "settings": {"folder": "/"}}), "out of bounds"),
        (said({"content": "Let me think about it."}), "no JSON object"),
        (call("run_experiment", "[" * 5000), "are no JSON"),
        (call("write_note", '{"observation": NaN, "hypothesis": "b"}'), "are no JSON"),
    ],
)
def test_a_bad_answer_is_told_to_the_endpoint_within_the_budget(
    plant, play, asked, runs, bad, said_back
):
    player = play(bad, experiment(2))
    result = run_agent(asked(player))
    told = json.loads(player.asked[1]["messages"][1]["content"])
    assert said_back in told["last"]["reason"]
    assert len(runs) == 1 and result.metrics["spent"]["turns"] == 3


def test_an_endpoint_without_tool_calling_answers_in_json(plant, play, asked, runs):
    def no_tools(body: dict[str, Any]) -> Any:
        assert "tools" in body
        return 400, {"error": {"message": "tools are not supported"}}

    words = '```json\n{"tool": "run_experiment", "arguments": {"kind": "corrupt"}}\n```'
    finish = json.dumps({"tool": "finish", "arguments": FINISH})
    player = play(no_tools, said({"content": words}), said({"content": finish}))
    result = run_agent(asked(player))
    assert len(runs) == 1 and result.ended_by == "it has concluded"
    assert "tools" not in player.asked[1]
    assert "run_experiment" in player.asked[1]["messages"][0]["content"]


def test_busy_and_failing_servers_are_asked_again(plant, play, asked, runs):
    player = play((429, {}), (500, b"oops"), (503, {}), experiment(4))
    result = run_agent(asked(player))
    assert len(runs) == 1 and result.ended_by == "it has concluded"


def test_a_server_that_stays_away_ends_it_with_what_was_found(plant, play, asked, runs):
    away = [(500, b"")] * 99
    player = play(experiment(4), *away)
    result = run_agent(asked(player, attempts=1))
    assert result.ended_by == "6 answers in a row were refused"
    assert len(runs) == 1 and result.metrics["answer"] is None


def test_a_slow_server_is_not_waited_for(plant, play, asked):
    def slow(body: dict[str, Any]) -> Any:
        time.sleep(3)
        return experiment(1)

    player = play(slow)
    start = time.monotonic()
    result = run_agent(asked(player, timeout=0.3, attempts=1))
    assert time.monotonic() - start < 3
    assert result.ended_by == "it has concluded"


def test_a_wrong_key_is_one_sentence_without_the_key(plant, play, asked):
    player = play((401, {"error": {"message": f"bad key {KEY}"}}), (401, {}))
    with pytest.raises(NetworkError) as caught:
        run_agent(asked(player))
    assert "TEST_PLANNER_KEY" in str(caught.value) and KEY not in str(caught.value)


def test_no_answer_is_asked_for_that_could_overrun_tokens_or_money(plant, play, asked):
    player = play(*[experiment(layer) for layer in range(9)])
    result = run_agent(asked(player, budget={"tokens": 3000}, max_tokens=1000))
    assert result.metrics["spent"]["tokens"] <= 3000
    assert "could overrun" in result.ended_by
    player = play(*[experiment(layer) for layer in range(9)])
    costly = {"price_in": 1.0, "price_out": 10.0, "max_tokens": 100}
    result = run_agent(asked(player, budget={"money": 0.004}, **costly))
    assert result.metrics["spent"]["money"] <= 0.004
    assert "could overrun" in result.ended_by


def test_an_endpoint_that_hides_its_usage_is_counted_for(plant, play, asked):
    silent = {key: value for key, value in experiment(1).items() if key != "usage"}
    result = run_agent(asked(play(silent)))
    assert result.metrics["spent"]["tokens"] > 300
