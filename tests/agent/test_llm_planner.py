"""The planner at an endpoint: a local server plays it, well and badly."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from saesteer.agent import run_agent
from saesteer.evaluation.llm_client import ChatClient
from saesteer.utils.errors import ConfigError, NetworkError
from saesteer.utils.progress import terminal_progress

KEY = "sk-very-secret"
FINISH = {"answer": "Layer 7.", "would_refute": "Another layer.", "claims": []}


def call(tool: str, arguments: Any, **usage: int) -> dict[str, Any]:
    words = arguments if isinstance(arguments, str) else json.dumps(arguments)
    message = {"content": None, "tool_calls": [{"function": {"name": tool, "arguments": words}}]}
    return said(message, **usage)


def said(message: Any, **usage: int) -> dict[str, Any]:
    made: dict[str, Any] = {"choices": [{"message": message}]}
    return {**made, "usage": {"prompt_tokens": 100, "completion_tokens": 10, **usage}}


def experiment(layer: int) -> dict[str, Any]:
    return call("run_experiment", {"kind": "corrupt", "settings": {"layers": [layer]}})


class Player:
    """Answers one scripted answer after the other, and keeps what it was asked."""

    def __init__(self, start: Any, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.signed: list[str | None] = []
        self.url = f"{start(self.respond).url}/v1"

    def respond(self, asked: Any) -> Any:
        self.asked.append(asked.json())
        self.signed.append(asked.headers.get("Authorization"))
        found = self.answers.pop(0) if self.answers else call("finish", FINISH)
        found = found(self.asked[-1]) if callable(found) else found
        return found if isinstance(found, tuple | None) else (200, found)


def silence(body: dict[str, Any]) -> None:
    """Let the planner wait for an answer that never comes."""


@pytest.fixture
def play(monkeypatch, http_server) -> Any:
    monkeypatch.setenv("TEST_PLANNER_KEY", KEY)
    return lambda *answers: Player(http_server, *answers)


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
    note = {"observation": "seen", "hypothesis": "so", "evidence": ["E1"]}
    claims = [{"claim": "7 it is", "experiments": ["E2"], "path": ["rows", "0", "loss"]}]
    claims[0]["value"] = 5.001  # type: ignore[assignment]
    finish = call("finish", {**FINISH, "claims": claims})
    player = play(experiment(3), call("write_note", note), experiment(7), finish)
    result = run_agent(asked(player))
    assert [config.layers for config in runs] == [[3], [7]]
    assert result.metrics["claims"][0]["verdict"] == "supported"
    assert result.metrics["spent"]["tokens"] == 440
    names = {tool["function"]["name"] for tool in player.asked[0]["tools"]}
    assert names == {"run_experiment", "read_results", "aggregate", "write_note", "finish"}
    told = json.loads(player.asked[3]["messages"][1]["content"])
    assert told["notes"] == [note]
    assert [e["name"] for e in told["experiments"]] == ["E2", "E1"]
    assert told["left"]["experiments"] == 18
    assert "effort" in told["kinds"]["corrupt"]["settings"]
    assert player.signed == [f"Bearer {KEY}"] * 4
    for file in result.folder.path.rglob("*.*"):
        assert KEY.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("bad", "said_back"),
    [
        ((200, b"not json at all"), "no answer to read"),
        ((200, {"choices": []}), "neither a tool call nor words"),
        (call("run_experiment", "{broken"), "are no JSON"),
        (call("launch", {}), "there is no tool 'launch'"),
        (call("run_experiment", {"kind": "corrupt", "settings": {"folder": "/"}}), "out of bounds"),
        (said({"content": "Let me think about it."}), "no JSON object"),
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
    # Words in parts are read, and an object that names no tool is passed over.
    parts = [{"type": "text", "text": text} for text in ('{"thought": {"x": 1}} then ', words)]
    busy = [(429, {}), (500, b"oops"), (503, {})]
    player = play(no_tools, said({"content": parts}), *busy, said({"content": finish}))
    result = run_agent(asked(player))
    assert len(runs) == 1 and result.ended_by == "it has concluded"
    assert "tools" not in player.asked[1]
    assert "run_experiment" in player.asked[1]["messages"][0]["content"]


def test_a_server_that_stays_away_ends_it_with_what_was_found(plant, play, asked, runs):
    away = [(500, b"")] * 99
    player = play(experiment(4), *away)
    result = run_agent(asked(player, attempts=1))
    assert result.ended_by == "6 answers in a row were refused"
    assert len(runs) == 1 and result.metrics["answer"] is None
    player.answers.clear()
    assert run_agent(asked(player, attempts=1)).ended_by == "it has concluded"


def test_no_answer_is_asked_for_that_could_overrun_tokens_or_money(plant, play, asked):
    player = play(*[experiment(layer) for layer in range(9)])
    result = run_agent(asked(player, budget={"tokens": 3000}, max_tokens=1000))
    assert result.metrics["spent"]["tokens"] <= 3000
    assert "could overrun" in result.ended_by
    huge = dict.fromkeys(("prompt_tokens", "completion_tokens"), int("9" * 400))
    prices = {"price_in": 1.0, "price_out": 1.0}
    player = play({**experiment(1), "usage": huge})
    result = run_agent(asked(player, budget={"money": 1.0}, **prices))
    assert result.ended_by == "its budget of tokens is spent"
    player = play(*[experiment(layer) for layer in range(9)])
    costly = {"price_in": 1.0, "price_out": 10.0, "max_tokens": 100}
    result = run_agent(asked(player, budget={"money": 0.004}, **costly))
    assert result.metrics["spent"]["money"] <= 0.004
    assert "could overrun" in result.ended_by


def test_of_several_calls_at_once_the_first_is_acted_on_and_the_endpoint_is_told(
    plant, play, asked, runs
):
    many = experiment(3)
    calls = many["choices"][0]["message"]["tool_calls"]
    calls += experiment(4)["choices"][0]["message"]["tool_calls"]
    player = play(many, experiment(5))
    run_agent(asked(player))
    assert [config.layers for config in runs] == [[3], [5]]
    told = [json.loads(body["messages"][1]["content"]) for body in player.asked]
    assert told[1]["unread"].startswith("1 more tool call") and "unread" not in told[2]


def test_a_reasoning_model_is_asked_without_what_it_refuses(plant, play, asked, runs):
    def picky(body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            use = "'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
            return 400, {"error": {"message": f"Unsupported parameter: {use}"}}
        if "temperature" in body:
            return 400, {"error": {"message": "'temperature' does not support 0 with this model."}}
        return 200, experiment(4)

    player = play(picky, picky, picky)
    result = run_agent(asked(player, max_tokens=77))
    assert len(runs) == 1 and result.metrics["spent"]["turns"] == 2
    assert player.asked[2]["max_completion_tokens"] == 77 and "tools" in player.asked[2]
    # It is remembered.
    assert len(player.asked) == 4


@pytest.mark.parametrize("count", [-5, True, "many", "hidden"])
def test_a_count_that_can_be_none_is_replaced_by_the_most_it_can_be(plant, play, asked, count):
    answer = call("finish", FINISH, prompt_tokens=count, completion_tokens=count)
    if count == "hidden":
        del answer["usage"]
    result = run_agent(asked(play(answer), max_tokens=500))
    assert result.state.tokens_in > 1000 and result.state.tokens_out == 500


def test_a_key_that_is_wrong_or_misplaced_is_one_sentence_without_the_key(
    plant, play, asked, tmp_path
):
    for wrong in ({"base_url": "localhost"}, {"key_variable": KEY}):
        with pytest.raises(ConfigError, match="the planner's") as caught:
            run_agent(asked(play(), **wrong))
        assert KEY not in str(caught.value)
        assert not (tmp_path / "runs").exists()
    player = play((401, {"error": {"message": f"bad key {KEY}"}}), (401, {}))
    with pytest.raises(NetworkError) as refused:
        run_agent(asked(player))
    assert "TEST_PLANNER_KEY" in str(refused.value) and KEY not in str(refused.value)


def test_a_key_that_an_endpoint_echoes_stands_nowhere_after_a_whole_run(
    plant, play, asked, monkeypatch, capfd
):
    monkeypatch.setenv("TEST_OTHER_KEY", "another-of-mine")
    said_back = f"I saw Bearer {KEY} and another-of-mine"
    note = {"observation": said_back, "hypothesis": KEY, "evidence": ["E1"]}
    player = play(
        said({"content": said_back}),
        experiment(3),
        call(KEY, {}),
        call("write_note", note),
        call("finish", {**FINISH, "answer": said_back}),
    )
    result = run_agent(asked(player), terminal_progress())
    assert result.state.turns == 5 and len(result.state.notes) == 1
    shown = capfd.readouterr()
    texts = [file.read_text() for file in result.folder.path.rglob("*.*")] + [*shown]
    assert len(texts) > 5
    for text in texts:
        assert KEY not in text and "another-of-mine" not in text


def test_answers_that_never_arrived_are_counted_and_fit_the_budget(plant, play, asked):
    player = play(silence, silence, experiment(1))
    start = time.monotonic()
    result = run_agent(asked(player, timeout=0.2, attempts=2, max_tokens=500))
    # A question that was not answered costs as much as it can have cost.
    assert result.state.tokens_out == 2 * 500 + 20
    player = play(*[silence] * 9)
    budget = {"tokens": 12_000}
    result = run_agent(asked(player, budget=budget, timeout=0.2, attempts=9, max_tokens=501))
    assert result.metrics["spent"]["tokens"] <= 12_000 and "could overrun" in result.ended_by
    assert len(player.asked) < 9
    result = run_agent(asked(play(silence), budget={"seconds": 0.5}, timeout=60.0))
    assert result.ended_by == "its budget of seconds is spent"
    assert result.metrics["spent"]["tokens"] > 1000
    assert time.monotonic() - start < 9


def test_a_kill_while_waiting_loses_no_count(plant, play, asked, monkeypatch):
    player = play(call("finish", FINISH))
    config = asked(player, max_tokens=500, attempts=1)
    with monkeypatch.context() as patch:
        patch.setattr(ChatClient, "ask", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_agent(config)
    result = run_agent(config)
    assert result.state.tokens_out == 500 + 10 and result.state.tokens_in > 1000


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
