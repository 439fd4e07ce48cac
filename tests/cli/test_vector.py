"""`saesteer vector`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saesteer.steering import SteeringVector


@pytest.fixture(autouse=True)
def _nothing_is_loaded(no_loading) -> None:
    pass


@pytest.fixture
def vector(finished) -> SteeringVector:
    return SteeringVector.load(finished)


def test_show_says_where_it_belongs_and_what_it_is_made_of(saesteer, finished, vector):
    answer = saesteer("vector", "show", finished, "--top", "10")
    assert (answer.code, answer.err) == (0, "")
    for text in (
        "tiny (clustered_sae)",
        "blocks.1.hook_resid_post",
        "32 wide",
        f"{vector.norm:.4g}",
        f"{vector.residual_norm:.4g}",
        "statement tokens, mean",
        "from_last_prompt_token",
    ):
        assert text in answer.out, text
    assert f"... and {len(vector.features) - 10} more" in answer.out
    assert max(map(len, answer.out.splitlines())) <= 100
    assert "... and" not in saesteer("vector", "show", finished, "--top", "999").out


def test_export_and_import_give_the_vector_back(saesteer, finished, vector, tmp_path):
    file = tmp_path / "new folder" / "vector.gguf"
    exported = saesteer("vector", "export", finished, file)
    assert exported.code == 0
    assert str(file) in exported.out
    imported = saesteer("vector", "import", file, "tiny", tmp_path / "back")
    assert imported.code == 0
    back = SteeringVector.load(tmp_path / "back" / "blocks.1.hook_resid_post.safetensors")
    torch.testing.assert_close(back.raw, vector.raw)
    assert back.site == vector.site
    assert back.model == "tiny"
    # A strength is baked in.
    saesteer("vector", "export", finished, file, "--strength", "-0.5")
    saesteer("vector", "import", file, "tiny", tmp_path)
    back = SteeringVector.load(tmp_path / "blocks.1.hook_resid_post.safetensors")
    torch.testing.assert_close(back.raw, vector.direction * -0.5 * vector.residual_norm)


def test_combine_adds_scaled_vectors(saesteer, finished, vector, tmp_path):
    target = tmp_path / "sum.safetensors"
    answer = saesteer("vector", "combine", target, f"{finished}*0.5", f"{finished}*-2", finished)
    assert answer == (0, f"wrote {target}\n", "")
    torch.testing.assert_close(SteeringVector.load(target).raw, vector.raw * -0.5)


def test_vectors_of_different_sites_are_not_added(refused, vector, finished, tmp_path):
    from saesteer.models import Site

    other = replace(vector, site=Site(0)).save(tmp_path / "other.safetensors")
    told = refused("vector", "combine", tmp_path / "sum.safetensors", finished, other)
    assert "different sites" in told


def test_export_for_vllm_says_where_requests_are(
    saesteer, refused, finished, tmp_path, monkeypatch
):
    folder, strengths = tmp_path / "live", ["--strength", "-0.2", "--strength", "0.2"]
    answer = saesteer("vector", "export", finished, folder, "--format", "hotwire", *strengths)
    assert answer.code == 0
    assert f"HOTWIRE_VECTORS={folder} vllm serve " in answer.out
    assert sorted(file.suffix for file in folder.iterdir()) == [".json", ".pt"]
    monkeypatch.setattr("saesteer.cli.vector.costing", lambda *_: 0.3)
    at_kl = tmp_path / "at_kl"
    assert (
        saesteer("vector", "export", finished, at_kl, "--format", "hotwire", "--kl", "0.5").code
        == 0
    )
    # A KL is measured with the prompt steered too.
    assert "decode_only" in (folder / "requests.json").read_text()
    assert "decode_only" not in (at_kl / "requests.json").read_text()
    told = refused("vector", "export", finished, tmp_path / "a.gguf", *strengths)
    assert "holds one strength" in told
    told = refused("vector", "export", finished, tmp_path / "b", "--format", "sglang")
    assert "use one of gguf, vllm-lens, hotwire" in told
