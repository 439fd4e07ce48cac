"""Fits at several sites: joint gradients, metric and pursuit, each beside its own definition."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from saesteer.cli.main import app
from saesteer.data import pairs_from
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import MethodChoice, RunConfig
from saesteer.experiments.steer.experiment import plan_run
from saesteer.methods import AttributedSAE, FitContext, NaturalGradient, ObjectiveSettings
from saesteer.methods.objective import FisherMetric, fisher_metric, row_gradients
from saesteer.methods.sites import at_sites, joint
from saesteer.models import Site, plain_model
from saesteer.saes import load_sae
from saesteer.steering import TeacherForced
from saesteer.utils.errors import MismatchError, SaeError, SiteError, SteeringError
from tests.by_hand import added

SITES = (Site(0), Site(2))
TEXTS = ("i like the little house", "go away", "the water is good")
QUICK = ObjectiveSettings(prompted=0, fisher_samples=8, neutral_answers=6, kl_target=0.05)
ANY = {"max_firing": 1.0, "min_firing": 0.0}


def said(model, row, u: torch.Tensor) -> torch.Tensor:
    """The logits before each kept token, half of u added at the output of blocks 0 and 2 each."""
    first = row.kept.index(True) - 1
    plain = plain_model(model)
    with ExitStack() as stack:
        for site, own in zip(SITES, u.split(32), strict=True):
            stack.enter_context(added(plain.model.layers[site.layer], own, slice(first, None)))
        logits = plain(torch.tensor([row.ids]), use_cache=False).logits[0]
    return logits[first:-1]


def test_one_backward_pass_gives_the_gradient_at_every_site(tiny_llama, rows_of):
    rows = rows_of(tiny_llama, TEXTS)
    prepared = TeacherForced(tiny_llama, rows, site=SITES)
    gradients, values = row_gradients(prepared)
    assert gradients.shape == (3, 64)

    def mean_said(row, u) -> float:
        with torch.no_grad():
            told = torch.log_softmax(said(tiny_llama, row, u).double(), -1)
        answer = torch.tensor(row.ids)[torch.tensor(row.kept)]
        return float(told.gather(1, answer[:, None]).mean())

    step, generator = 1e-2, torch.Generator().manual_seed(0)
    for n, row in enumerate(rows):
        assert float(values[n]) == pytest.approx(mean_said(row, torch.zeros(64)), abs=1e-5)
        for half in (slice(0, 32), slice(32, 64)):
            u = torch.zeros(64)
            u[half] = torch.randn(32, generator=generator)
            slope = (mean_said(row, step * u) - mean_said(row, -step * u)) / (2 * step)
            assert float(gradients[n] @ u) == pytest.approx(slope, rel=0.02, abs=2e-4)
    # Each half is what a pass of its own site gives.
    for half, site in zip((slice(0, 32), slice(32, 64)), SITES, strict=True):
        alone = row_gradients(TeacherForced(tiny_llama, rows, site=site))[0]
        torch.testing.assert_close(gradients[:, half], alone, rtol=1e-4, atol=1e-6)


def test_the_metric_holds_what_one_sites_push_costs_beside_anothers(tiny_llama, rows_of):
    rows = rows_of(tiny_llama, TEXTS[:2])
    wanted, count, step = np.zeros((64, 64)), 0, 0.02
    for row in rows:
        with torch.no_grad():
            p = torch.softmax(said(tiny_llama, row, torch.zeros(64)), -1).double().numpy()
            ends = [
                torch.stack([said(tiny_llama, row, sign * step * e) for e in torch.eye(64)])
                for sign in (1, -1)
            ]
        jacobian = ((ends[0] - ends[1]).double() / (2 * step)).numpy()
        for position, share in enumerate(p):
            j = jacobian[:, position]
            wanted += j @ (np.diag(share) - np.outer(share, share)) @ j.T
            count += 1
    wanted /= count
    found = fisher_metric(TeacherForced(tiny_llama, rows, site=SITES), n_samples=1000)
    assert found.n_sites == 2
    for block in ((slice(0, 32), slice(32, 64)), (slice(0, 32), slice(0, 32))):
        off = np.linalg.norm(found.matrix[block] - wanted[block]) / np.linalg.norm(wanted[block])
        assert off < 0.25
    # And it is not nothing.
    sizes = [
        np.linalg.norm(wanted[a, b]) for a, b in ((slice(32), slice(32, 64)), (slice(32),) * 2)
    ]
    assert sizes[0] > 0.1 * sizes[1]


def test_a_fit_does_not_depend_on_the_unit_of_a_site():
    rng = np.random.default_rng(0)
    root, gain = rng.normal(size=(6, 6)), rng.normal(size=6)
    metric = FisherMetric(root @ root.T, 1, 1, n_sites=2)
    # The second site measured in tenths: lengths are ten times as many, and cost a tenth each.
    unit = np.repeat([1.0, 10.0], 3)
    other = FisherMetric(metric.matrix / np.outer(unit, unit), 1, 1, n_sites=2)
    np.testing.assert_allclose(other.solve(gain / unit), unit * metric.solve(gain))
    alone = FisherMetric(metric.matrix[:3, :3], 1, 1)
    np.testing.assert_allclose(metric.damped(0.5)[:3, :3], alone.damped(0.5))


@pytest.fixture(scope="module")
def saes(mirror_sae):
    return [load_sae(mirror_sae(site=f"blocks.{layer}.hook_resid_post")) for layer in (1, 2)]


@pytest.fixture(scope="module")
def given(roomy_model, saes) -> FitContext:
    nouns = ("house", "dog", "water", "bread", "hill", "cat", "garden", "friend")
    sides = [(f"i like the {noun}", f"i hate the {noun}") for noun in nouns]
    return FitContext(roomy_model, pairs_from(sides), sae=saes[0], objective=QUICK)


def test_features_are_picked_from_all_saes_together(given, saes):
    fit = AttributedSAE(6, 0, selection=ANY, also=(saes[1],)).fit_in(given)
    vector = fit.vector_
    assert [str(piece.site) for piece in vector.pieces] == [str(sae.site) for sae in saes]
    assert sum(len(piece.sae_features) for piece in vector.pieces) == 6
    for piece, sae in zip(vector.pieces, saes, strict=True):
        assert piece.sae_fingerprint == sae.fingerprint
        rows = sum(f.weight * sae.decoder[f.index] for f in piece.sae_features)
        torch.testing.assert_close(piece.raw, rows, rtol=1e-4, atol=1e-6)
    # Matching pursuit by hand over the rows of both, zero at the other's site.
    objective = joint(given, (saes[1],)).objective
    metric = objective.metric.damped(1.0)
    target = np.linalg.solve(metric, objective.at_zero.gain)
    zeros = np.zeros((64, 32))
    rows = np.block([[saes[0].decoder.numpy(), zeros], [zeros, saes[1].decoder.numpy()]])
    picked: list[int] = []
    weights = np.zeros(0)
    for _ in range(6):
        residual = target - (weights @ rows[picked] if picked else 0)
        fits = np.abs(rows @ metric @ residual) / np.sqrt(
            np.einsum("jd,de,je->j", rows, metric, rows)
        )
        # A feature and its mirror are one row; one of the two is enough.
        fits[picked] = -1
        picked.append(int(fits.argmax()))
        own = rows[picked]
        weights = np.linalg.lstsq(own @ metric @ own.T, own @ metric @ target, rcond=None)[0]
    np.testing.assert_allclose(
        np.concatenate([piece.raw.numpy() for piece in vector.pieces]),
        weights @ rows[picked],
        rtol=1e-3,
        atol=1e-4 * float(vector.raw.abs().max()),
    )


def test_rounds_linearise_around_the_vector_with_its_parts(given, saes):
    found = AttributedSAE(6, 1, selection=ANY, also=(saes[1],)).fit_in(given)
    assert found.rounds_[0]["statements"] > 0
    alone = AttributedSAE(6, 1, selection=ANY).fit_in(given).vector_
    assert not alone.parts

    dense = NaturalGradient(1, also=("blocks.2.hook_resid_post",)).fit_in(given).vector_
    assert [str(part.site) for part in dense.parts] == ["blocks.2.hook_resid_post"]
    assert dense.norm == pytest.approx(float(np.linalg.norm(given.mean_delta)), rel=1e-5)


def test_what_cannot_be_fitted_together_is_a_sentence(given, saes):
    with pytest.raises(MismatchError, match="name each site once"):
        AttributedSAE(also=(saes[0],)).fit_in(given)
    contexts = joint(given, (saes[1],)).given
    nothing = np.concatenate([np.zeros(32), np.ones(32)])
    with pytest.raises(SteeringError, match=r"nothing was fitted at blocks\.1\."):
        at_sites(contexts, nothing, lambda one, part: one.vector(part, "mine"))


def test_a_run_takes_a_further_sae_by_its_folder(tiny_settings, roomy_folder, mirror_sae):
    settings = tiny_settings("llama")
    del settings["selection"], settings["method"], settings["evaluation"]["neutral"]
    settings["model"]["name"] = str(roomy_folder)
    settings["objective"] = QUICK.model_dump()
    also = str(mirror_sae(site="blocks.2.hook_resid_post"))

    def config(*further: str) -> RunConfig:
        own = {"n_features": 6, "selection": ANY, "also": list(further)}
        return RunConfig(**settings, method=MethodChoice(name="attributed_sae", settings=own))

    results = run_experiment(config(also))
    vector = results.vector
    assert [str(part.site) for part in vector.parts] == ["blocks.2.hook_resid_post"]
    counts = [len(piece.sae_features) for piece in vector.pieces]
    assert all(counts) and results.metrics["fit"]["features"] == sum(counts) == 6
    page = (results.folder.path / "report.html").read_text()
    assert "6 features at blocks.1.hook_resid_post with parts at blocks.2.hook_resid_post" in page
    assert f"{counts[1]} more are of its parts" in page
    assert results.vector.provenance["settings"]["also"] == [also]

    shown = CliRunner().invoke(app, ["vector", "show", str(results.folder.path)]).output
    assert all(f"At {piece.site}, norm {piece.norm:.4g}" in shown for piece in vector.pieces)

    with pytest.raises(SaeError, match="nowhere"):
        plan_run(config("nowhere"))
    with pytest.raises(SiteError, match="blocks 0 to 2"):
        further = {"also": ["blocks.7.hook_resid_post"]}
        method = MethodChoice(name="natural_gradient", settings=further)
        plan_run(RunConfig(**settings, method=method))
