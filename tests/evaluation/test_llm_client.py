"""Settings are checked, and replies and waits read, without a server."""

from __future__ import annotations

import json
import traceback

import pytest

from saesteer.evaluation.llm_client import ChatClient, Endpoint, _words
from saesteer.utils.errors import ConfigError

KEY = "sk-very+secret/key=="


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": " "}, "model is empty"),
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"base_url": "ftp://x/v1"}, "base_url"),
        ({"base_url": f"http://me:{KEY}@host/v1"}, "base_url"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "base_url"),
        ({"base_url": "http://host:99999/v1"}, "base_url"),
        ({"key_variable": KEY}, "never the key itself"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"attempts": 0}, "attempts"),
        ({"first_wait": -1}, "first_wait"),
    ],
)
def test_settings_that_cannot_work_are_refused_without_repeating_a_key(settings, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Endpoint(**{"model": "tiny", **settings})
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_what_is_posted_is_the_question_at_temperature_zero():
    messages = [{"role": "user", "content": "Hm?"}]
    body = ChatClient(Endpoint("tiny", max_tokens=None)).payload(messages)
    assert body == {"model": "tiny", "messages": messages, "temperature": 0}
    assert ChatClient(Endpoint("tiny", max_tokens=7)).payload(messages)["max_tokens"] == 7


def test_the_words_are_the_first_choices():
    choices = [{"message": {"content": "one"}}, {"message": {"content": "two"}}]
    assert _words(json.dumps({"choices": choices}).encode()) == "one"
