"""The page's server: who may ask, what is refused, text while it is written, one at a time."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import httpx2
import pytest
from starlette.testclient import TestClient

from saesteer.app.server import FILES, MOST_BYTES, listen, make_server
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError

PORT = 8123
OWN = f"http://127.0.0.1:{PORT}"
ASK = {"prompt": "Hello there", "columns": [[0, 0], [0, 2.0]], "chat": False, "max_new_tokens": 6}


@pytest.fixture
def client(bench):
    return TestClient(make_server(bench, PORT), base_url=OWN)


def events(reply):
    assert reply.headers["content-type"].startswith("text/event-stream")
    return [json.loads(part.removeprefix("data: ")) for part in reply.text.split("\n\n")[:-1]]


def test_the_page_loads_nothing_but_its_own_files(client):
    page = client.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "*" not in policy
    for path, (file, kind) in FILES.items():
        reply = client.get(path)
        assert reply.text == file.read_text() and reply.headers["content-type"].startswith(kind)
        assert "http:" not in reply.text and "https:" not in reply.text
        assert reply.headers["x-content-type-options"] == "nosniff"
    # Inline scripts and styles, which the policy would not run; and markup made of text.
    assert "<style" not in page.text and "style=" not in page.text and "onclick" not in page.text
    script = "".join(client.get(path).text for path in FILES if path.endswith(".js"))
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way not in script


def test_the_runs_report_is_a_page_of_no_origin(client, bench, make_bench):
    page = client.get("/report")
    assert "What was found" in page.text
    policy = page.headers.get_list("content-security-policy")
    assert len(policy) == 1 and "sandbox" in policy[0] and "same-origin" not in policy[0]
    without = TestClient(make_server(make_bench(), PORT), base_url=OWN)
    assert without.get("/report").status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": f"https://127.0.0.1:{PORT}"},
        {"Host": "evil.example"},
        {"Host": f"evil.example:{PORT}"},
        {"Host": "127.0.0.1"},
        {"Host": f"127.0.0.1:{PORT}.evil.example"},
    ],
)
def test_a_foreign_page_is_refused(client, headers):
    for reply in (
        client.get("/", headers=headers),
        client.get("/api/about", headers=headers),
        client.post("/api/write", json=ASK, headers=headers),
    ):
        assert reply.status_code == 403
        assert reply.json()["error"].endswith(".")
    assert client.post("/api/read", json={"text": "a"}, headers={"Origin": OWN}).status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"{}", "text/plain", 415, "JSON"),
        (b"words=rain", "application/x-www-form-urlencoded", 415, "JSON"),
        (b"{", "application/json", 422, "JSON"),
        (b'{"words": 3}', "application/json", 422, "words"),
        (b'{"words": "a", "more": 1}', "application/json", 422, "more"),
        (b'{"words": "' + b"a" * MOST_BYTES + b'"}', "application/json", 413, "256 KiB"),
    ],
)
def test_what_is_no_small_json_of_the_right_form_is_refused(client, body, kind, status, message):
    reply = client.post("/api/search", content=body, headers={"Content-Type": kind})
    assert reply.status_code == status
    assert message in reply.json()["error"]
    assert client.get("/api/search").status_code == 405


def test_both_columns_stream_from_one_batch_and_end_with_the_whole_answers(client, bench):
    found = events(client.post("/api/write", json=ASK))
    answers = found.pop()["answers"]
    expected = bench.write(
        "Hello there",
        [(0, 0), (0, 2.0)],
        "norm",
        None,
        lambda *_: None,
        chat=False,
        max_new_tokens=6,
    )
    assert answers == expected
    for row, answer in enumerate(answers):
        pieces = [event["text"] for event in found if event["row"] == row]
        assert len(pieces) > 1 and "".join(pieces) == answer["text"]
    # Neither column waits for the other to be written.
    assert {event["row"] for event in found[:4]} == {0, 1}


def test_what_cannot_be_done_is_a_sentence(client):
    (only,) = events(client.post("/api/write", json={**ASK, "prompt": " "}))
    assert "prompt 1 is empty" in only["error"]
    off = {"mix": {"rest": 1, "features": {}}, "strength": 1.0}
    reply = client.post("/api/cost", json=off)
    assert reply.status_code == 400 and "switched off" in reply.json()["error"]
    assert client.post("/api/cost", json={"strength": 1e300}).json()["kl"] is None
    # The model is free again.
    assert client.post("/api/cost", json={"strength": 0.0}).json()["kl"] == 0.0


def test_a_fault_of_ours_is_a_sentence_and_the_terminal_says_which(
    client, bench, monkeypatch, capsys
):
    monkeypatch.setattr(type(bench), "read", lambda *_, **__: 1 / 0)
    for _ in range(2):
        reply = client.post("/api/read", json={"text": "a"})
        assert reply.status_code == 500 and "the terminal says how" in reply.json()["error"]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_feature_is_found_and_the_mix_saved_as_a_vector(client, bench, tmp_path):
    (hit, *_) = client.post("/api/search", json={"words": "rain"}).json()["features"]
    assert hit["index"] == 7 and hit["label"] == "rain <b>and</b> weather"
    mix = {"rest": 1.0, "features": {"7": 2.5, "3": 6.0}}
    file = tmp_path / "mine.safetensors"
    file.write_bytes(client.post("/api/save", json={"mix": mix}).content)
    vector = SteeringVector.load(file)
    assert {f.index: f.weight for f in vector.sae_features} == {7: 2.5, 3: 6.0}
    assert vector.sae_features[1].description == "rain <b>and</b> weather"


def blocking(bench, monkeypatch):
    """Make answers of endless pieces; returns events for begun and ended."""
    begun, ended = threading.Event(), threading.Event()

    def write(*_, on_piece, **__):
        try:
            for _ in range(3000):
                on_piece(0, "x")
                begun.set()
                time.sleep(0.005)
        finally:
            ended.set()
        return []

    monkeypatch.setattr(bench, "write", write)
    return begun, ended


def test_a_closed_tab_frees_the_model_for_a_second_one_that_had_to_wait(bench, monkeypatch):
    monkeypatch.setattr("saesteer.app.server.PATIENCE", 0.2)
    begun, ended = blocking(bench, monkeypatch)
    app = make_server(bench, PORT)
    headers = [(b"host", OWN[7:].encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/api/write", "headers": headers}
    scope |= {"query_string": b"", "asgi": {"spec_version": "2.3"}, "http_version": "1.1"}
    closed, sent = threading.Event(), []

    async def visit():
        body = [{"type": "http.request", "body": json.dumps(ASK).encode(), "more_body": False}]

        async def receive():
            if body:
                return body.pop()
            while not closed.is_set():
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)

    first = threading.Thread(target=lambda: asyncio.run(visit()))
    first.start()
    assert begun.wait(20)
    second = TestClient(app, base_url=OWN)
    for what, body in (("write", ASK), ("cost", {"strength": 1.0}), ("read", {"text": "a"})):
        reply = second.post(f"/api/{what}", json=body)
        assert reply.status_code == 409 and "wait" in reply.json()["error"]
    # What needs no model is answered all the same.
    assert second.post("/api/search", json={"words": "rain"}).status_code == 200
    closed.set()
    assert ended.wait(20)
    first.join(20)
    assert sent[0]["status"] == 200
    assert second.post("/api/read", json={"text": "a"}).status_code == 200


def test_however_many_ask_at_once_everybody_is_answered(bench):
    # More than there are threads to wait for the model in.
    transport = httpx2.ASGITransport(app=make_server(bench, PORT))

    async def ask_all():
        async with httpx2.AsyncClient(transport=transport, base_url=OWN) as browser:
            asked = [browser.post("/api/read", json={"text": f"a {i}"}) for i in range(60)]
            return await asyncio.wait_for(asyncio.gather(*asked), 60)

    assert {reply.status_code for reply in asyncio.run(ask_all())} == {200}


def test_beyond_this_machine_a_token_is_needed(bench):
    host, token = "192.0.2.7", "a-token-for-this-test"
    own = f"http://{host}:{PORT}"
    app = make_server(bench, PORT, host, token)
    stranger = TestClient(app, base_url=own)
    for path in ("/", "/?token=a-token-for-this-tesT", "/app.js?token=" + token, "/api/about"):
        assert stranger.get(path).status_code == 401
    stranger.cookies.set(f"saesteer-{PORT}", "another")
    reply = stranger.post("/api/write", json=ASK)
    assert reply.status_code == 401 and "set-cookie" not in reply.headers

    guest = TestClient(app, base_url=own)
    page = guest.get("/", params={"token": token})
    assert page.status_code == 200
    cookie = page.headers["set-cookie"]
    assert "SameSite=Strict" in cookie and "HttpOnly" in cookie
    # From now on the page's own requests bring the cookie; who may ask is looked at all the same.
    assert guest.post("/api/read", json={"text": "a"}).status_code == 200
    for headers in ({"Origin": "http://evil.example"}, {"Host": f"evil.example:{PORT}"}):
        assert guest.post("/api/read", json={"text": "a"}, headers=headers).status_code == 403

    everywhere = TestClient(make_server(bench, PORT, "0.0.0.0", token), base_url=own)
    assert everywhere.get("/", params={"token": token}).status_code == 200
    rebound = {"Host": f"evil.example:{PORT}"}
    assert everywhere.get("/", params={"token": token}, headers=rebound).status_code == 403


def test_the_app_listens_on_the_loopback_address_alone():
    with listen(0) as found:
        address, port = found.getsockname()
        assert address == "127.0.0.1"
        with pytest.raises(ConfigError, match="--port 0"):
            listen(port)
