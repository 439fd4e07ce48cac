"""The public names: written once, loaded on first use, each with an example that runs."""

from __future__ import annotations

import doctest
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import saesteer as ss

NAMES = sorted(ss.__all__)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, saesteer; print(len(saesteer.__all__), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, heavy = done.stdout.split()
    assert heavy == "False"
    # About sixty: what a researcher uses, and no more.
    assert 45 <= int(count) <= 70


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'AttributedSae'"):
        _ = ss.AttributedSae  # type: ignore[attr-defined]
    assert set(NAMES) <= set(dir(ss))


@pytest.fixture(scope="module")
def names(tiny_settings, roomy_model, roomy_folder, tmp_path_factory) -> dict[str, Any]:
    """What examples may use: a tiny model with its SAE, pairs, a vector, and where these lie."""
    settings = tiny_settings("llama")
    settings["model"]["name"] = str(roomy_folder)
    model, sae = roomy_model, ss.load_sae(settings["sae"])
    train, test = ss.load_pairs(settings["pairs"]["source"]).split(test=0.3, seed=0)
    read = ss.read_pair_activations(model, train, [sae.site])[sae.site]
    return {
        "ss": ss,
        "np": np,
        "torch": torch,
        "model": model,
        "sae": sae,
        "train": train,
        "test": test,
        "codes": ss.encode_pairs(sae, read),
        "vector": ss.DifferenceInMeans().fit(model, train, sae=sae).vector_,
        "texts": [*train.positives, *train.negatives],
        "labels": ["glad"] * len(train) + ["grim"] * len(train),
        "inputs": model.tokenizer("I like the garden", return_tensors="pt"),
        "settings": settings,
        "model_folder": settings["model"]["name"],
        "sae_folder": settings["sae"],
        "folder": tmp_path_factory.mktemp("examples"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_each_name_has_a_docstring_whose_example_runs(name, names):
    thing = getattr(ss, name)
    finder = doctest.DocTestFinder(recurse=False)
    (found,) = finder.find(thing, f"saesteer.{name}", globs=dict(names))
    assert found.examples, f"{name} has no example"
    skipped = [e for e in found.examples if e.options.get(doctest.SKIP)]
    assert not skipped, f"{name}: an example is skipped"
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    # numpy 2 shows its numbers as np.True_, numpy 1 as True.
    with np.printoptions(legacy="1.21"):
        runner.run(found, out=report.append)
    assert not runner.failures, "".join(report)
