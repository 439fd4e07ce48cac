"""`saesteer neuronpedia` and links in `saesteer features`, against a local player of the API."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from saesteer.data.texts import Answer
from tests.saes import player as play

KEY = "sk-np+secret/key=="


@pytest.fixture
def player(monkeypatch, tmp_path, http_server):
    """The player, online, with a key and an empty cache."""
    made = play.Player(http_server)
    for name in ("SAESTEER_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NEURONPEDIA_BASE_URL", made.api)
    monkeypatch.setenv("NEURONPEDIA_BUCKET_URL", made.bucket)
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return made


@pytest.fixture
def vector(saesteer, player, known_sae, tiny_model_folder, tmp_path) -> Path:
    """A vector of two features, as `search --save` writes it."""
    target = tmp_path / "kind.safetensors"
    model = tiny_model_folder("llama")
    answer = saesteer(
        *("neuronpedia", "search", "kindness", "--sae", known_sae, "--save", target),
        *("--pick", 3, "--pick", 40, "--model", model),
    )
    assert answer.code == 0, answer
    player.calls.clear()
    return target


def test_features_of_the_bundled_sae_come_from_its_own_table(saesteer, refused, no_network):
    answer = saesteer("neuronpedia", "feature", 4774, 12, "--json")
    cards = json.loads(answer.out)
    assert [card["feature"] for card in cards] == [4774, 12]
    assert cards[0]["by"] == "the local table" and cards[0]["url"] is None
    assert cards[0]["contexts"] and cards[0]["top_tokens"] and cards[0]["description"]
    shown = saesteer("neuronpedia", "feature", 4774).out
    assert f"feature 4774: {cards[0]['description'][:40]}" in shown and "promotes" in shown
    # What needs Neuronpedia says so.
    assert "is not on Neuronpedia" in refused("neuronpedia", "text", "be kind")
    assert "is not on Neuronpedia" in refused("neuronpedia", "similar", 3)
    assert "not in" in refused("neuronpedia", "feature", 10**6)


def test_words_find_features_of_the_bundled_sae_and_make_a_vector(saesteer, no_network, tmp_path):
    from saesteer.saes.loading import load_sae
    from saesteer.steering import SteeringVector

    target = tmp_path / "kind.safetensors"
    answer = saesteer("neuronpedia", "search", "kind", "--save", target, "--take", 2)
    assert answer.code == 0, answer
    assert "not by meaning" in answer.out and "saesteer generate --vector" in answer.out
    vector = SteeringVector.load(target)
    assert len(vector.sae_features) == 2
    assert (vector.model, str(vector.site), vector.name) == (
        "smollm2",
        "blocks.20.hook_resid_post",
        "kind",
    )
    rows = load_sae("smollm2").decoder
    weights = torch.tensor([f.weight for f in vector.sae_features])
    expected = weights @ rows[[f.index for f in vector.sae_features]]
    assert torch.allclose(vector.raw, expected, atol=1e-3)
    # Each feature is at its largest activation, so the natural vector is one "max_act" long.
    assert vector.max_act == pytest.approx(vector.norm, rel=1e-4)
    assert vector.residual_norm == pytest.approx(243, abs=2)


def test_nothing_in_a_features_words_is_obeyed_by_the_terminal(saesteer, player, known_sae):
    bad = play.feature(3)
    bad["explanations"][0]["description"] = "calm \x1b[31m [bold] \r\nred \ud83d"
    bad["pos_str"] = [" a\x1b[2J", "\x07", "\n", "\u0120\U0001f642"]
    player.faults = [play.as_json(bad)]
    answer = saesteer("neuronpedia", "feature", 3, "--sae", known_sae)
    assert "feature 3: calm [31m [bold] red ?" in answer.out
    assert r'promotes " a\x1b[2J", "\x07", "\n"' in answer.out
    assert "\x1b" not in answer.out and "\x07" not in answer.out
    assert answer.out.encode()


def test_features_of_a_known_sae_are_looked_up_once(saesteer, player, known_sae):
    for _ in range(2):
        answer = saesteer("neuronpedia", "feature", 3, "--sae", known_sae)
        assert "feature 3: words of kindness 3" in answer.out
        assert f"{player.root}/gpt2-small/6-res-jb/3" in answer.out
        assert "described by gpt-4o-mini" in answer.out
    assert player.paths == ["/api/feature/gpt2-small/6-res-jb/3"]


def test_steering_there_and_here_adds_the_same(saesteer, player, vector, monkeypatch):
    from saesteer.steering import SteeringVector

    made = SteeringVector.load(vector)
    assert {f.index: f.weight for f in made.sae_features} == {3: 12.5, 40: 49.5}
    assert made.sae_features[0].description == "words of kindness 40"
    assert made.provenance["words"] == "kindness"
    assert made.max_act == pytest.approx(made.norm)
    answer = saesteer(
        *("neuronpedia", "steer", vector, "--prompt", "I like", "--strength", "6.5"),
        *("--unit", "raw", "--max-new-tokens", 4),
    )
    assert answer.code == 0, answer
    assert "Neuronpedia (gpt2-small/6-res-jb)" in answer.out and "Here" in answer.out
    assert "steered" in answer.out and "plain" in answer.out
    asked = player.calls[-1][2]
    strengths = {one["index"]: one["strength"] for one in asked["features"]}
    # The mirror SAE's rows are unit vectors at right angles.
    length = (12.5**2 + 49.5**2) ** 0.5
    assert strengths == pytest.approx({3: 6.5 * 12.5 / length, 40: 6.5 * 49.5 / length})
    assert asked["n_tokens"] == 4
    again = saesteer(
        *("neuronpedia", "steer", vector, "--prompt", "I like", "--strength", "6.5"),
        *("--unit", "raw", "--max-new-tokens", 4, "--no-local"),
    )
    assert "Here" not in again.out
    assert player.paths == ["/api/steer"]
    # What it is to cost stands for a strength, on answers that fit the tiny model's context.
    player.calls.clear()
    answers = [Answer(f"What {i}?", "I like helping people. " * 8) for i in range(6)]
    monkeypatch.setattr("saesteer.steering.divergence.read_answers", lambda _: answers)
    answer = saesteer(
        *("neuronpedia", "steer", vector, "--prompt", "I like", "--kl", "0.01"),
        *("--unit", "raw", "--max-new-tokens", 4, "--no-local"),
    )
    assert answer.code == 0, answer
    (said,) = re.findall(r"strength \+(\S+) \(raw\) costs KL 0\.01", answer.out + answer.err)
    strengths = {one["index"]: one["strength"] for one in player.calls[-1][2]["features"]}
    assert strengths[3] == pytest.approx(float(said) * 12.5 / length, rel=0.01)
    # A chat is steered as a chat.
    player.calls.clear()
    answer = saesteer(
        *("neuronpedia", "steer", vector, "--prompt", "How are you?", "--strength", "1"),
        *("--unit", "max_act", "--chat", "--no-local"),
    )
    assert "glad" in answer.out and "fine" in answer.out
    assert player.paths == ["/api/steer-chat"]


def test_an_upload_goes_in_front_of_the_next_block(saesteer, player, vector):
    answer = saesteer(
        *("neuronpedia", "upload", vector, "--strength", "250", "--unit", "raw"),
        *("--label", "kind"),
    )
    assert answer.code == 0, answer
    asked = player.calls[-1][2]
    # Read at block 1's output, so at block 2's input; strengths end at 100 there.
    assert (asked["layerNumber"], asked["hookType"], asked["modelId"]) == (2, "resid-pre", MODEL)
    assert asked["vectorDefaultSteerStrength"] == 100
    length = sum(x * x for x in asked["vector"]) ** 0.5
    assert length * 100 == pytest.approx(250, rel=1e-4)


MODEL = "gpt2-small"


def test_a_text_similar_features_and_a_list(saesteer, player, known_sae, vector):
    assert "words of kindness 7" in saesteer("neuronpedia", "text", "a b", "--sae", known_sae).out
    shown = saesteer("neuronpedia", "similar", 3, "--sae", known_sae).out
    assert "words of kindness 9" in shown and "0.50" in shown
    assert "/list/l1" in saesteer("neuronpedia", "list", vector, "--name", "kind").out


def test_imported_labels_answer_with_the_network_off(
    saesteer, refused, player, known_sae, monkeypatch
):
    player.put("batch-0", [play.label_line(n, f"kindness number {n}") for n in range(9)])
    answer = saesteer("neuronpedia", "import", "gpt2-small/6-res-jb")
    assert "9 features of gpt2-small/6-res-jb have a label now" in answer.out
    assert "1 files were in already" in saesteer("neuronpedia", "import", play.PLACE).out
    monkeypatch.setenv("SAESTEER_OFFLINE", "1")
    player.calls.clear()
    assert "kindness number 3" in saesteer("neuronpedia", "feature", 3, "--sae", known_sae).out
    found = saesteer("neuronpedia", "search", "kindness", "--sae", known_sae, "--limit", 2)
    assert "Neuronpedia was not asked" in found.out
    assert "SAESTEER_OFFLINE" in refused("neuronpedia", "feature", 50, "--sae", known_sae)
    assert "SAESTEER_OFFLINE" in refused("neuronpedia", "import", "gpt2-small/7-res-jb")
    assert player.calls == []


def test_features_of_a_run_with_descriptions_and_links(
    saesteer, refused, finished, known_sae, player, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    features = json.loads((finished / "features.json").read_text())
    config = json.loads((finished / "config.json").read_text())
    (run / "features.json").write_text(json.dumps(features))
    (run / "config.json").write_text(json.dumps({**config, "sae": str(known_sae)}))
    top = next(row["feature"] for row in features if row["weight"])
    link = f"{player.root}/gpt2-small/6-res-jb/{top}"
    # The network is asked only when the user says so.
    assert link in saesteer("features", run, "--top", 1).out
    assert player.calls == []
    assert f"words of kindness {top}" in saesteer("features", run, "--top", 1, "--fetch").out
    assert f"words of kindness {top}" in saesteer("features", run, "--top", 1).out
    assert player.paths == ["/api/features"]
    listed = saesteer("features", run, "--quick-list")
    assert listed.out.startswith(f"{player.root}/quick-list/?name=tiny&features=%5B%7B")
    assert len(listed.out.splitlines()) == 1
    # What the run noted of its SAE is enough once the SAE is gone.
    (run / "config.json").write_text(json.dumps({**config, "sae": "/gone"}))
    assert link not in saesteer("features", run, "--top", 1).out
    (run / "run.json").write_text(json.dumps({"neuronpedia_id": "gpt2-small/6-res-jb"}))
    assert link in saesteer("features", run, "--top", 1).out
    assert "is not on Neuronpedia" in refused("features", finished, "--quick-list")


@pytest.mark.parametrize("status", [200, 401, 429, 500])
def test_the_key_shows_nowhere(saesteer, player, known_sae, tmp_path, status):
    echo = play.as_json({**play.feature(3), "message": f"no {KEY}", "creatorId": KEY}, status)
    player.faults = [echo] * 9
    answer = saesteer("neuronpedia", "feature", 3, "--sae", known_sae)
    assert answer.code == (0 if status == 200 else 2)
    assert KEY not in answer.out + answer.err
    assert "Traceback" not in answer.err
    assert player.headers[0]["x-api-key"] == KEY
    for file in (tmp_path / "cache").rglob("*"):
        assert KEY.encode() not in file.read_bytes()


def test_no_network_is_a_sentence(refused, known_sae, player, monkeypatch):
    monkeypatch.setenv("NEURONPEDIA_BASE_URL", "http://127.0.0.1:9/api")
    said = refused("neuronpedia", "feature", 3, "--sae", known_sae)
    assert "gave no usable answer" in said and KEY not in said
