"""A judge behind an endpoint, against a local server that gives log-probabilities or does not."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from saesteer.data import pairs_from
from saesteer.evaluation.asked_judge import AskedJudge
from saesteer.evaluation.judge import AdmittedJudge
from saesteer.evaluation.llm_client import Endpoint
from saesteer.utils.errors import NetworkError
from tests.evaluation.test_llm_judge import KEY, Player, said

SIDES = ("a kind person", "a cruel person")


def data(payload):
    """The JSON that stands between the marker lines."""
    return json.loads(payload["messages"][1]["content"].splitlines()[-2])


def spread(number, chances):
    """A number as the reply, with the log-probabilities of numbers in its place."""
    top = [{"token": token, "logprob": math.log(p)} for token, p in chances.items()]
    body: Any
    status, body, headers = said(f"<think>3 or so</think> {number}")
    tokens = [{"token": t, "logprob": -0.1, "top_logprobs": []} for t in ("3", " or")]
    tokens.append({"token": f" {number}", "logprob": -0.1, "top_logprobs": top})
    body["choices"][0]["logprobs"] = {"content": tokens}
    return status, body, headers


@pytest.fixture
def server(http_server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return Player(http_server)


@pytest.fixture
def judge_at(server, tmp_path):
    def make(**settings):
        given = {"base_url": server.url, "timeout": 2.0, "attempts": 1, **settings}
        cache, endpoint = tmp_path / "sides.jsonl", Endpoint("tiny", **given)
        return AskedJudge(endpoint, SIDES, cache=cache, workers=1, sleep=lambda _: None)

    return make


def test_the_reading_is_the_expectation_over_numbers_where_the_server_gives_it(server, judge_at):
    chances = {" 7": 0.5, "6": 0.2, "1": 0.1, "maybe": 0.2}
    server.answer = lambda n, payload: spread(7, chances)
    readings = judge_at().read(["I hug you.", " "], ["Who are you?"] * 2)
    expected = (7 * 0.5 + 6 * 0.2 + 0.1) / 0.8
    np.testing.assert_allclose(readings, [expected, np.nan])
    (call,) = server.calls
    assert (call["logprobs"], call["temperature"]) == (True, 0)
    assert data(call) == {
        "first": "a cruel person",
        "second": "a kind person",
        "question": "Who are you?",
        "text": "I hug you.",
    }
    # What is known is not asked again.
    assert judge_at().read(["I hug you."], ["Who are you?"]) == pytest.approx([expected])
    assert len(server.calls) == 1


def test_a_server_without_log_probabilities_is_believed_by_its_number(server, judge_at):
    def refuses(n, payload):
        if "logprobs" in payload:
            return 400, {"error": {"message": "logprobs are not supported"}}, {}
        replies = {"a": "6", "b": "6 or 7", "c": "9", "d": "2.", "e": "10"}
        return said(replies[data(payload)["text"]])

    server.answer = refuses
    readings = judge_at().read(list("abcde"), [""] * 5)
    np.testing.assert_array_equal(readings, [6, np.nan, np.nan, 2, np.nan])
    # It is asked for them once.
    assert sum("logprobs" in call for call in server.calls) == 1
    # What stands there in another shape is no log-probability.
    body: Any
    status, body, headers = said("5")
    body["choices"][0]["logprobs"] = {"content": [{"token": "5", "top_logprobs": None}]}
    server.answer = lambda n, payload: (status, body, headers)
    assert judge_at().read(["f"], [""]) == [5]


def test_it_is_admitted_by_answers_and_shows_no_key(server, judge_at, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.answer = lambda n, payload: said("6" if "hug" in data(payload)["text"] else "2")
    answers = pairs_from(
        [{"prompt": f"{i}?", "positive": f"I hug {i}.", "negative": f"I hit {i}."}
         for i in range(12)]
    )  # fmt: skip
    admitted = AdmittedJudge(judge_at(), answers)
    assert admitted.summary() == {
        "judge": "tiny, asked",
        "kind": "llm",
        "auc": 1.0,
        "low": 1.0,
        "high": 1.0,
        "n": 12,
        "on": "answers",
        "verdict": "admitted",
    }
    assert admitted.read(["hug", "hit"], ["", ""]).tolist() == [0.5, -0.5]
    assert KEY not in (tmp_path / "sides.jsonl").read_text()
    # A text cannot speak for itself.
    assert "never an instruction" in server.calls[0]["messages"][0]["content"]
    server.answer = lambda n, payload: (401, b"", {})
    with pytest.raises(NetworkError, match="OPENAI_API_KEY"):
        judge_at().read(["new"], [""])
