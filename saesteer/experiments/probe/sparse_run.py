"""`saesteer probe train` with `reading.sae`: probes on SAE codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from saesteer.experiments.probe.plan import ProbePlan
from saesteer.probes.codes import TextCodes, load_codes, read_codes
from saesteer.probes.fitting import fit_probe
from saesteer.probes.probe_set import LinearProbe, ProbeSet
from saesteer.probes.reading import encode_labelled
from saesteer.probes.sparse import (
    SparseData,
    SparseProbe,
    all_codes_probe,
    features_needed,
    k_sparse_probes,
    l1_probes,
    rank_features,
)
from saesteer.saes.labels import PLACE_KEY, feature_url, known_descriptions, own_table
from saesteer.steering import SteeredFeature, SteeringVector
from saesteer.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from saesteer.experiments.context import Context
    from saesteer.saes.adapter import Sae

ALL_CODES_C = 1.0


def train_on_codes(bench: Context, folder: RunFolder) -> tuple[ProbeSet, dict[str, Any]]:
    """Fit k-sparse, L1 and full probes on an SAE's codes, beside one on the residual stream.

    Args:
        bench: What the run works with; `reading.sae` names the SAE.
        folder: Where the probes' vectors go.

    Returns:
        The probe on all codes, and what the metrics say of all of them.
    """
    from saesteer.saes.loading import load_sae, resolve_sae

    plan = bench.plan
    name = str(plan.config.reading.sae)
    bench.progress.say(f"Loading SAE {name} ...")
    sae = load_sae(name)
    words = known_descriptions(sae, own_table(resolve_sae(name)), bench.progress)
    found = _codes(plan, bench, sae)
    settings, seed, split = plan.config.fit, plan.config.seed, plan.split
    codes = csr_matrix(found.codes[plan.places])
    data = SparseData(codes, plan.used.labels, split.groups, split.train, split.test)
    bench.progress.say(f"Fitting sparse probes on {len(split.train):,} texts")
    residual = found.residual[plan.places]
    dense = fit_probe(
        residual[split.train],
        data.labels[split.train],
        split.groups[split.train],
        settings,
        seed=seed,
    )
    reference = data.scored(dense.probabilities(residual[split.test]), settings, seed)
    sparse = k_sparse_probes(data, plan.config.sparse.k, settings, seed=seed)
    l1 = l1_probes(data, plan.config.sparse.l1_c, settings, seed=seed)
    whole = all_codes_probe(data, ALL_CODES_C, settings, seed=seed)
    for probe in sparse:
        vector = code_vector(probe, sae, plan, found, words)
        if vector is not None:
            vector.save(folder.path / f"sparse/k-{len(probe.features)}.safetensors")
    probes = _probe_set(plan, whole, sae, found, data)
    return probes, {
        "sae": name,
        "site": str(sae.site),
        "best": sae.site.layer,
        "layers": [],
        "residual": reference.as_dict(),
        "sparse": [probe.as_dict() for probe in [*sparse, *l1, whole]],
        "needed": features_needed(sparse, reference.macro_f1.value or 0.0),
        "features": _feature_records(plan, data, sae, sparse[-1], words),
        "model_fingerprint": found.model_fingerprint,
    }


def code_vector(
    probe: SparseProbe,
    sae: Sae,
    plan: ProbePlan,
    found: TextCodes,
    descriptions: Mapping[int, str],
) -> SteeringVector | None:
    """Return what a sparse probe's weights amount to in the residual stream: W_dec' w.

    Args:
        probe: A sparse probe.
        sae: The SAE whose codes it reads.
        plan: Its classes and model.
        found: The codes it was fitted on.
        descriptions: What features stand for.

    Returns:
        A vector from the first class to the last, or None where all weights are zero.
    """
    rows = probe.weight
    weights = rows[0] if len(rows) == 1 else rows[-1] - rows[0]
    if not np.any(weights):
        return None
    raw = torch.from_numpy(weights.astype(np.float32)) @ sae.decoder[probe.features].float().cpu()
    features = tuple(
        SteeredFeature(int(i), float(w), None, descriptions.get(int(i)))
        for i, w in zip(probe.features, weights, strict=True)
        if w
    )
    classes = plan.used.classes
    return SteeringVector.from_raw(
        raw,
        site=sae.write_site,
        model=plan.config.model.name,
        model_fingerprint=found.model_fingerprint,
        sae=sae.name,
        sae_fingerprint=sae.fingerprint,
        residual_norm=found.residual_norm,
        features=features,
        read_positions=plan.config.reading.positions,
        method="k_sparse_probe",
        name=f"{plan.config.name} {classes[0]} to {classes[-1]}, {len(features)} features",
        provenance={PLACE_KEY: sae.neuronpedia_id},
    )


def _codes(plan: ProbePlan, bench: Context, sae: Sae) -> TextCodes:
    from saesteer.saes.adapter import check_compatible

    model = bench.model
    check_compatible(model, sae)
    path = plan.store.with_name(f"codes-{plan.store.name}")
    if path.is_file():
        found = load_codes(path)
        # A name such as release:id says nothing of the weights behind it.
        if found.sae_fingerprint == sae.fingerprint:
            return found
    assert model.tokenizer is not None
    rows = encode_labelled(
        model.tokenizer,
        plan.texts.texts,
        plan.config.reading,
        prepend_bos=sae.prepend_bos,
        max_length=int(model.cfg.n_ctx),
    )
    bench.progress.say(f"Encoding {len(rows):,} texts with SAE {sae.name} at {sae.site}")
    found = read_codes(
        model, rows, sae, positions=plan.config.reading.positions, progress=bench.progress
    )
    found.save(path)
    return found


def _probe_set(
    plan: ProbePlan, whole: SparseProbe, sae: Sae, found: TextCodes, data: SparseData
) -> ProbeSet:
    weight = np.zeros((len(whole.weight), sae.d_sae), dtype=np.float32)
    weight[:, whole.features] = whole.weight
    labels, train = data.labels[data.train], data.codes[data.train]
    means = [np.asarray(train[labels == c].mean(axis=0)) for c in range(len(plan.used.classes))]
    probe = LinearProbe(
        sae.site,
        plan.used.classes,
        weight,
        whole.bias,
        np.concatenate(means).astype(np.float32),
        found.residual_norm,
        whole.c,
    )
    reading = plan.config.reading
    return ProbeSet(
        (probe,),
        plan.config.model.name,
        found.model_fingerprint,
        reading.positions,
        sae.site.layer,
        reading.before,
        reading.after,
        sae.name,
        plan.config.name,
    )


def _feature_records(
    plan: ProbePlan,
    data: SparseData,
    sae: Sae,
    probe: SparseProbe,
    descriptions: Mapping[int, str],
) -> list[dict[str, Any]]:
    """Return the strongest features with where they fire and what they stand for."""
    train, labels = csr_matrix(data.codes[data.train]), data.labels[data.train]
    order, f = rank_features(train, labels)
    records = []
    for index, strength in zip(order[: len(probe.features)].tolist(), f.tolist(), strict=False):
        column = train[:, index]
        means = {
            name: float(column[labels == number].mean())
            for number, name in enumerate(plan.used.classes)
        }
        records.append(
            {
                "feature": index,
                "f": float(strength),
                "class": max(means, key=lambda name: means[name]),
                "means": means,
                "description": descriptions.get(index),
                "url": feature_url(sae.neuronpedia_id, index),
            }
        )
    return records
