"""`saesteer sae label`: labels tested on texts, and written by a language model."""

from __future__ import annotations

import json

import pytest
import torch


@pytest.fixture
def text(tmp_path):
    from saesteer.data import datasets_folder

    lines = (datasets_folder() / "prose.jsonl").read_text(encoding="utf-8").splitlines()
    file = tmp_path / "prose.jsonl"
    file.write_text("\n".join(lines[:12]), encoding="utf-8")
    return file


@pytest.fixture
def sae(tiny_model_folder, tmp_path, text, monkeypatch):
    """A TopK SAE of the tiny Llama with its feature table."""
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    from saesteer.data import read_texts
    from saesteer.models import load_model
    from saesteer.saes.describe import build_feature_table
    from saesteer.saes.doctor import rows_for
    from saesteer.saes.loading import load_sae
    from saesteer.saes.table import save_feature_table

    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path / "cache"))
    facts = {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny", "prepend_bos": None}
    made = TopKSAE(TopKSAEConfig(d_in=32, d_sae=64, k=4, metadata=SAEMetadata(**facts)))
    both = torch.cat([torch.eye(32), -torch.eye(32)])
    with torch.no_grad():
        made.W_enc.copy_(both.T)
        made.W_dec.copy_(both)
    folder = tmp_path / "sae"
    made.save_model(folder)
    model, loaded = load_model(str(tiny_model_folder("llama"))), load_sae(folder)
    rows = rows_for(model, loaded, list(read_texts(text)), context=256)
    save_feature_table(build_feature_table(model, loaded, rows), folder / "features.parquet")
    return folder


def test_labels_are_tested_and_those_of_a_language_model_shown_everywhere(
    saesteer, sae, text, tiny_model_folder, http_server
):
    from saesteer.saes.loading import load_sae

    command = ["sae", "label", sae, "--model", tiny_model_folder("llama"), "--text", text]
    found = json.loads(saesteer(*command, "--number", 5, "--json").out)["the table"]
    assert found["features"] == 5 and 0 <= found["auc"] <= 1 and found["broken"] == 0
    feature = next(iter(found["labels"]))
    assert load_sae(sae).feature(int(feature)).label == found["labels"][feature]

    said = {"choices": [{"message": {"content": '"Things that [the bold] say."\n'}}]}
    server = http_server(lambda asked: (200, said))
    asked = [*command, "--feature", feature, "--llm", "tiny", "--base-url", server.url]
    answer = saesteer(*asked)
    assert answer.code == 0, answer
    assert "Things that [the bold] say" in " ".join(answer.out.split())
    (question,) = server.asked
    shown = question.json()["messages"][1]["content"]
    assert "[[" in shown and load_sae(sae).feature(int(feature)).words[0] in shown
    card = load_sae(sae).feature(int(feature))
    assert (card.label, card.by) == ("Things that [the bold] say", "tiny")
    of_table = saesteer("neuronpedia", "feature", feature, "--sae", sae).out
    assert f"feature {feature}: Things that [the bold] say" in of_table
    # What was paid for is not asked again, and the table's own labels are tested as before.
    again = json.loads(saesteer(*asked, "--json").out)
    assert len(server.asked) == 1
    assert again["the table"]["labels"] == {feature: found["labels"][feature]}


def test_what_cannot_be_labelled_is_refused(refused, sae, text, tiny_model_folder, tmp_path):
    command = ["sae", "label", sae, "--model", tiny_model_folder("llama")]
    (tmp_path / "short.txt").write_text("Too short.")
    assert "no text has 32 tokens" in refused(*command, "--text", tmp_path / "short.txt")
    assert "has 0 to 63" in refused(*command, "--text", text, "--feature", 64)
    (sae / "features.parquet").unlink()
    assert "has no table of features of its own" in refused(*command, "--text", text)
