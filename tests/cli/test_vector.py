"""`saesteer vector`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saesteer.steering import SteeredFeature, SteeringVector


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


def test_show_prints_descriptions_letter_by_letter_and_a_vector_without_features(
    saesteer, vector, tmp_path
):
    feature = SteeredFeature(3, 0.5, None, 'fires on "[b]", ' * 20)
    path = replace(vector, sae_features=(feature,)).save(tmp_path / "v.safetensors")
    answer = saesteer("vector", "show", path)
    assert 'fires on "[b]"' in answer.out
    assert max(map(len, answer.out.splitlines())) <= 100
    path = replace(vector, sae_features=(), sae=None, residual_norm=None).save(tmp_path / "w")
    answer = saesteer("vector", "show", path)
    assert answer.code == 0 and "unknown" in answer.out


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


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["show", "nowhere"], "nowhere: there is no such steering vector"),
        (["export", "nowhere", "{tmp}/v.gguf"], "nowhere: there is no such steering vector"),
        (["export", "{run}", "{tmp}/v.gguf", "--strength", "nan"], "strength nan is not finite"),
        (["export", "{run}", "{tmp}/v.gguf", "--unit", "inch"], "unit 'inch' is unknown"),
        (
            ["export", "{run}", "{tmp}/v.gguf", "--strength", "1", "--unit", "max_act"],
            "needs max_act",
        ),
        (["export", "{run}", "{tmp}/file/v.gguf"], "cannot be written"),
        (["import", "nowhere.gguf", "m", "{tmp}"], "nowhere.gguf: there is no such control"),
        (["import", "{tmp}/file", "m", "{tmp}"], "no whole GGUF file"),
        (["combine", "{tmp}/v.safetensors", "{run}*x"], "'x' is no finite number; write PATH"),
        (["combine", "{tmp}/v.safetensors", "{run}*nan"], "'nan' is no finite number; write PATH"),
        (["combine", "{tmp}/v.safetensors", "{run}*0"], "a vector times 0 has no direction"),
        (["combine", "{tmp}/v.safetensors", "{run}", "{run}*-1"], "is zero, so it has no"),
        (["combine", "{tmp}/v.safetensors", "nowhere*2"], "nowhere: there is no such steering"),
        (["combine", "{tmp}/file/v.safetensors", "{run}"], "cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_leaves_nothing(arguments, text, refused, finished, tmp_path):
    (tmp_path / "file").write_text("no folder")
    given = [part.format(run=finished, tmp=tmp_path) for part in arguments]
    assert text in refused("vector", *given)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_vectors_of_different_sites_are_not_added(refused, vector, finished, tmp_path):
    from saesteer.models import Site

    other = replace(vector, site=Site(0)).save(tmp_path / "other.safetensors")
    told = refused("vector", "combine", tmp_path / "sum.safetensors", finished, other)
    assert "different sites" in told
