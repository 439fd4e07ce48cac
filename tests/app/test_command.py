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


@pytest.mark.usefixtures("no_loading")
def test_it_refuses_before_loading(refused, bench, tiny_model_folder, tmp_path):
    file = bench.vector.save(tmp_path)
    assert "no such steering vector" in refused("app", tmp_path / "nothing")
    with listen(0) as taken:
        port, model = taken.getsockname()[1], tiny_model_folder("llama")
        assert "--port 0" in refused("app", file.parent, "--model", model, "--port", port)
