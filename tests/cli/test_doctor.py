"""`saesteer doctor` and `saesteer sae train`."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def text(tmp_path):
    """Prose that the tiny tokenizer can read."""
    from saesteer.data import datasets_folder

    lines = (datasets_folder() / "prose.jsonl").read_text(encoding="utf-8").splitlines()
    file = tmp_path / "prose.jsonl"
    file.write_text("\n".join(lines[:8]), encoding="utf-8")
    return file


@pytest.fixture
def doctor(tiny_model_folder, text):
    """Return a function that makes the arguments for an SAE on the tiny Llama."""

    def arguments(sae, *rest):
        model = tiny_model_folder("llama")
        given = ["--model", model, "--sae", sae, "--text", text, "--dtype", "float32"]
        return ["doctor", *given, "--context", "64", *rest]

    return arguments


def test_a_fit_is_measured_and_a_doubtful_one_said_in_words_and_in_json(
    saesteer, doctor, mirror_sae
):
    answer = saesteer(*doctor(mirror_sae()))
    assert answer.code == 0
    for name in ("explained variance", "L0", "CE recovered", "norm ratio", "never fired"):
        assert name in answer.out
    assert max(len(line) for line in answer.out.splitlines()[2:]) <= 100
    report = json.loads(saesteer(*doctor(mirror_sae(gain=0.9), "--json")).out)
    # A mirror that gives back nine tenths of it about the origin, not about the mean.
    assert 0.9 < report["explained_variance"] < 0.995
    assert report["norm_ratio"] == pytest.approx(0.9, abs=1e-4)
    assert report["l0"] == pytest.approx(32, abs=0.01)
    sae = mirror_sae(gain=0.2)
    words = " ".join(saesteer(*doctor(sae)).out.split())
    assert "says that it was not trained on this model or site" in words
    assert "was not trained" in json.loads(saesteer(*doctor(sae, "--json")).out)["remark"]


def test_an_unfit_sae_and_too_little_text_are_refused(refused, doctor, mirror_sae, tmp_path):
    site = mirror_sae(site="blocks.9.hook_resid_post")
    assert "blocks 0 to 2" in refused(*doctor(site))
    assert "explains" in refused(*doctor(mirror_sae(gain=0.01)))
    told = "so it was not trained on this model or site; choose the SAE"
    assert told in refused(*doctor(mirror_sae(gain=-1.0)))
    (tmp_path / "short.txt").write_text("Too short.")
    assert "at least 64 tokens" in refused(*doctor(mirror_sae(), "--text", tmp_path / "short.txt"))


def test_sae_train_prints_the_doctors_figures_and_where_the_sae_is(
    saesteer, tiny_model_folder, text, tmp_path
):
    settings = {
        "model": str(tiny_model_folder("gpt2", False)),
        "site": "blocks.1.hook_resid_post",
        "corpus": [{"path": str(text)}],
        "held_out": 0.3,
        "context": 64,
        "d_sae": 64,
        "k": 16,
        "batch": 64,
        "epochs": 12,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "autocast": False,
        "folder": str(tmp_path / "sae runs"),
    }
    file = tmp_path / "sae.yaml"
    file.write_text(json.dumps(settings), encoding="utf-8")
    answer = saesteer("sae", "train", file, "--set", "seed=3")
    assert answer.code == 0, answer
    assert "explained variance" in answer.out
    (card,) = (tmp_path / "sae runs").glob("*/sae/README.md")
    assert str(card) in answer.out
    assert f"--sae '{card.parents[1]}'/sae" in answer.out
