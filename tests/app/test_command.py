"""`saesteer app`: what it opens the page with, and what it refuses before anything is loaded."""

from __future__ import annotations

import pytest

from saesteer.app.server import listen
from saesteer.models.loading import model_info


def test_it_opens_the_page_on_a_vector(run_cli, bench, tiny_model_folder, tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr("saesteer.app.server.serve", lambda made, *_: served.append(made))
    file = bench.vector.save(tmp_path / "mixed.safetensors")
    answer = run_cli(
        *("app", "--vector", file, "--model", tiny_model_folder("llama"), "--port", 0),
        *("--dtype", "float32"),
    )
    assert answer.code == 0 and "http://127.0.0.1:" in answer.out
    (made,) = served
    assert made.vector.name == "mixed"
    assert made.sae.fingerprint == bench.sae.fingerprint
    assert model_info(made.model).fingerprint == model_info(bench.model).fingerprint


def test_beyond_this_machine_it_shows_a_new_token_once(
    run_cli, bench, tiny_model_folder, tmp_path, monkeypatch
):
    served = []
    monkeypatch.setattr("saesteer.app.server.serve", lambda *given: served.append(given))
    # So that nothing is listened at that others could reach.
    monkeypatch.setattr("saesteer.app.guard.is_loopback", lambda host: False)
    file = bench.vector.save(tmp_path / "mixed.safetensors")
    how = ("--model", tiny_model_folder("llama"), "--port", 0, "--dtype", "float32")
    said = [run_cli("app", "--vector", file, *how).out for _ in range(2)]
    tokens = [given[-1] for given in served]
    assert len(set(tokens)) == 2 and min(map(len, tokens)) >= 40
    for text, token in zip(said, tokens, strict=True):
        assert text.count(f"/?token={token} ") == 1 == text.count(token)
        assert "ssh -L" in text


@pytest.mark.usefixtures("no_loading")
def test_it_refuses_before_loading(refused, bench, tiny_model_folder, tmp_path):
    file = bench.vector.save(tmp_path)
    assert "no such steering vector" in refused("app", tmp_path / "nothing")
    with listen(0) as taken:
        port, model = taken.getsockname()[1], tiny_model_folder("llama")
        assert "--port 0" in refused("app", file.parent, "--model", model, "--port", port)
