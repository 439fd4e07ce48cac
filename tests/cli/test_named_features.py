"""Every command that shows features names them by imported labels and links to their pages."""

from __future__ import annotations

import json

PLACE = "gpt2-small/6-res-jb"
PAGE = f"https://www.neuronpedia.org/{PLACE}"


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def test_a_run_its_vector_and_sums_of_it(saesteer, config, labelled, tmp_path):
    answer = saesteer("run", config, "--set", f"sae={labelled}", "--set", f"folder={tmp_path}")
    assert answer.code == 0, answer
    (folder,) = tmp_path.glob("tiny-*")
    rows = json.loads((folder / "features.json").read_text())
    top = next(row["feature"] for row in rows if row["weight"])
    assert all(row["url"] == f"{PAGE}/{row['feature']}" for row in rows)
    assert json.loads((folder / "run.json").read_text())["neuronpedia_id"] == PLACE
    assert saesteer("vector", "combine", tmp_path / "both.safetensors", folder, folder).code == 0
    shown = [
        answer.out,
        saesteer("vector", "show", folder).out,
        saesteer("vector", "show", tmp_path / "both.safetensors").out,
        saesteer("features", folder).out,
    ]
    for text in shown:
        # A link that were broken over two lines could not be followed.
        assert f"{top}: {PAGE}/{top}" in lines_of(text), text
        assert f"[label] {top}" in text
    # What the run noted is enough, once its SAE is gone.
    for file in labelled.iterdir():
        file.unlink()
    assert f"{top}: {PAGE}/{top}" in lines_of(saesteer("features", folder).out)
    assert f"{top}: {PAGE}/{top}" in lines_of(saesteer("vector", "show", folder).out)


def test_a_damaged_cache_costs_no_run(saesteer, config, labelled, tmp_path):
    from saesteer.saes.labels import label_cache

    for file in label_cache().parent.iterdir():
        file.unlink()
    label_cache().write_text("no database at all, for longer than a header is")
    answer = saesteer("run", config, "--set", f"sae={labelled}", "--set", f"folder={tmp_path}")
    assert answer.code == 0, answer
    assert "warning: no imported labels" in answer.err and "[label]" not in answer.out


def test_probes_on_codes(saesteer, probe_config, labelled, tmp_path):
    from saesteer.steering import SteeringVector

    sparse = ("sparse.k=[2]", "sparse.l1_c=[0.1]", "fit.c=[0.1]", "checks=null")
    place = (f"reading.sae={labelled}", f"folder={tmp_path}")
    answer = saesteer("probe", "train", probe_config, *place, *sparse)
    assert answer.code == 0, answer
    (metrics,) = tmp_path.glob("tiny-*/metrics.json")
    top = json.loads(metrics.read_text())["features"][0]
    named = (f"[label] {top['feature']}", f"{PAGE}/{top['feature']}")
    assert (top["description"], top["url"]) == named
    assert f"{top['feature']}: {PAGE}/{top['feature']}" in lines_of(answer.out)
    file = metrics.parent / "sparse" / "k-2.safetensors"
    link = f"{PAGE}/{SteeringVector.load(file).sae_features[0].index}"
    assert link in saesteer("vector", "show", file).out


def test_patched_features(saesteer, settings_file, labelled, tmp_path):
    modes = ["denoising", "noising"]
    file = settings_file("patch", sae=str(labelled), modes=modes, features={"n_features": 3})
    answer = saesteer("patch", "run", file, f"folder={tmp_path}")
    assert answer.code == 0, answer
    (metrics,) = tmp_path.glob("tiny-*/metrics.json")
    page = (metrics.parent / "report.html").read_text()
    strongest = json.loads(metrics.read_text())["strongest"]
    for mode in modes:
        cells = strongest[f"activation-sae-{mode}"]
        assert cells
        for cell in cells:
            assert f'<a href="{PAGE}/{cell["feature"]}"' in page
            assert f"[label] {cell['feature']}" in page
