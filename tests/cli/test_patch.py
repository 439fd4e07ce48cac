"""`saesteer patch run`, `ioi`, `lens` and `show` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def patch_config(settings_file) -> Path:
    return settings_file("patch", components=["resid_pre", "z"], path=None, attention={})


@pytest.fixture(scope="session")
def patch_run(patch_config) -> Path:
    """The folder of a finished patching run."""
    from saesteer.experiments.patch.settings import PatchConfig
    from saesteer.experiments.registry import run_experiment
    from saesteer.utils.settings import load_config

    return run_experiment(load_config(patch_config, kind=PatchConfig)).folder.path


def test_a_run_prints_the_task_first_and_ends_with_the_next_step(saesteer, patch_config, patch_run):
    answer = saesteer("patch", "run", patch_config)
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert "prefers the right answer on" in next(line for line in lines if line)
    assert f"Report: {patch_run / 'report.html'}" in answer.out
    assert lines[-1] == f"  saesteer patch show {patch_run} --suggest-site"
    assert [x for x in lines if len(x) > 100 and str(patch_run) not in x] == []
    # Several settings run one after the other, and are one list.
    assert saesteer("patch", "run", patch_config, patch_config).out.count("Report: ") == 2
    both = json.loads(saesteer("patch", "run", patch_config, patch_config, "--json").out)
    metrics = json.loads(saesteer("patch", "show", patch_run, "--json").out)
    assert both == [metrics, metrics]


def test_a_site_is_suggested_an_sae_placed_and_the_report_drawn_again(
    saesteer, patch_run, mirror_sae
):
    answer = saesteer("patch", "show", patch_run, "--suggest-site")
    assert answer.code == 0
    metrics = json.loads((patch_run / "metrics.json").read_text())
    for sentence in metrics["suggestion"]["sentences"]:
        assert " ".join(sentence.split()) in " ".join(answer.out.split())
    record = json.loads(saesteer("patch", "show", patch_run, "--suggest-site", "--json").out)
    assert record == metrics["suggestion"]
    record = json.loads(saesteer("patch", "show", patch_run, "--sae", mirror_sae(), "--json").out)
    if metrics["scale"] == "share":
        assert record["sae"]["layer"] == 2
    else:
        assert record["best"] is None
    before = (patch_run / "report.html").read_bytes()
    (patch_run / "report.html").unlink()
    assert saesteer("patch", "show", patch_run, "--redraw").code == 0
    assert (patch_run / "report.html").read_bytes() == before


def test_the_lens_reads_every_layer_and_writes_a_page(saesteer, tiny_model_folder, tmp_path):
    model, page = tiny_model_folder("gpt2"), tmp_path / "out" / "lens.html"
    answer = saesteer("patch", "lens", "The cat sat", "<b>hi", "--model", model, "--html", page)
    assert answer.code == 0
    for point in ("0 resid_pre", "0 resid_post", "1 resid_post", "2 resid_post"):
        assert answer.out.count(point) == 2
    assert "<b>hi" not in page.read_text() and "&lt;b&gt;hi" in page.read_text()


def test_the_lens_ends_in_what_the_model_says(saesteer, tiny_model_folder, hf_model):
    import torch

    model = tiny_model_folder("llama")
    answer = saesteer("patch", "lens", "The cat sat", "--model", model, "--json", "--top", "2")
    (record,) = json.loads(answer.out)
    last = record["points"][-1]
    assert last["rank"] == 0 and last["top"][0] == record["answer"]
    assert len(last["top"]) == 2 and len(record["points"]) == 1 + 2 * 3
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [tokenizer.bos_token_id, *tokenizer("The cat sat", add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        odds = hf_model("llama")(torch.tensor([ids])).logits[0, -1].softmax(-1)
    assert last["probability"] == pytest.approx(float(odds.max()), abs=1e-5)
