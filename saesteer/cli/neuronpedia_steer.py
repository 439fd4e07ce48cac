"""Vectors to and from Neuronpedia: from words, steered there and here, uploaded."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.cli.options import check_strength_or_kl
from saesteer.cli.vector import costing
from saesteer.saes.labels import PLACE_KEY, noted_place
from saesteer.saes.loading import load_sae
from saesteer.saes.neuronpedia import SteerSettings, feature_strengths
from saesteer.saes.neuronpedia.steering import MOST_UPLOADED_STRENGTH
from saesteer.saes.sources import FeatureSource, known_source, patient_client
from saesteer.steering import SteeringVector, generate, parse, to_raw
from saesteer.steering.strength import check_unit
from saesteer.utils.errors import MismatchError, SteeringError

if TYPE_CHECKING:
    from saesteer.saes.neuronpedia.replies import UploadedVector
    from saesteer.steering.strength import Unit

# Below this cosine the features alone are another vector than the one that is given.
SAME_DIRECTION = 0.99


@dataclass(frozen=True)
class Amount:
    """A vector and how much of it is added."""

    vector: SteeringVector
    strength: float
    unit: Unit
    raw: float  # The strength as an L2 length.

    @classmethod
    def read(
        cls, path: Path, strength: str | None, kl: float | None, unit: str, model: str | None = None
    ) -> Amount:
        """Read a vector's file, and a strength as the user writes it or what it is to cost."""
        check_strength_or_kl(strength, kl)
        vector, known = SteeringVector.load(path), check_unit(unit)
        if vector.parts:
            raise MismatchError(
                f"vector {vector.name!r} is at {vector.place} and Neuronpedia steers at one site; "
                "use saesteer generate."
            )
        value = parse(strength or "0.2") if kl is None else costing(vector, kl, known, model)
        return cls(vector, value, known, to_raw(value, known, vector))


def vector_of_words(
    where: FeatureSource, chosen: list[int], words: str, model: str | None
) -> SteeringVector:
    """Return the vector of some features, each at its largest activation on text."""
    from saesteer.methods.features import vector_of_features
    from saesteer.saes.loading import load_sae

    sae = load_sae(where.sae)
    if where.place is None:
        cards = {i: where.table.row(i) for i in chosen}
    else:
        found = where.client.features(where.place, chosen, n_texts=1)
        cards = {i: one.card() for i, one in found.items()}
    peaks = {i: card.max_activation for i, card in cards.items() if card.max_activation}
    # Without its largest activation a feature has no size of its own; then all have the same.
    known = len(peaks) == len(set(chosen))
    return vector_of_features(
        sae,
        {i: peaks[i] if known else 1.0 for i in chosen},
        model=model or sae.model_name or "unknown",
        name=words,
        max_activation=peaks if known else None,
        residual_norm=_measured_norm(sae.folder),
        descriptions={i: card.description for i, card in cards.items() if card.description},
        provenance={
            "words": words,
            PLACE_KEY: None if where.place is None else str(where.place),
        },
    )


def _measured_norm(folder: Path | None) -> float | None:
    """Return the mean residual norm that is noted beside a trained SAE, if any."""
    try:
        text = "" if folder is None else (folder / "metrics.json").read_text(encoding="utf-8")
        return float(json.loads(text)["residual_norm"]) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def steer_there(
    added: Amount, prompt: str, settings: SteerSettings, *, source: str | None, chat: bool
) -> tuple[str, list[dict[str, Any]], list[str]]:
    """Steer on Neuronpedia with a vector's features.

    Returns:
        The SAE's place there, completions as `GenerationResult.to_dicts` gives them, and what is
        to be said of them.
    """
    vector = added.vector
    if not vector.sae_features or vector.sae is None:
        raise SteeringError(
            f"vector {vector.name!r} is not made of an SAE's features, with which alone "
            "Neuronpedia steers; upload it first (saesteer neuronpedia upload)."
        )
    where = FeatureSource(vector.sae, source or noted_place(vector.provenance))
    if where.place is None:
        raise MismatchError(
            f"SAE {vector.sae} is not on Neuronpedia, so it cannot steer there; name its place "
            "with --source MODEL/SOURCE if it is, or use saesteer generate."
        )
    strengths, notes = _strengths(vector, added.raw)
    asked = [{"role": "user", "content": prompt}] if chat else prompt
    answer = where.client.steer(where.place, asked, strengths, settings)
    where.say_what_is_left()
    # The service gives a plain prompt back in front of what it wrote.
    head = "" if chat else prompt
    records = [
        {"prompt": prompt, "strength": at, "unit": added.unit, "sample": 0, "text": text}
        for at, text in (
            (0.0, answer.default.removeprefix(head)),
            (added.strength, answer.steered.removeprefix(head)),
        )
    ]
    page = [f"The page of both: {answer.share_url}"] if answer.share_url else []
    return str(where.place), records, page + notes


def _strengths(vector: SteeringVector, raw: float) -> tuple[dict[int, float], list[str]]:
    """Return the features' strengths in Neuronpedia's units, and how they differ from here."""
    assert vector.sae is not None
    sae = load_sae(vector.sae)
    if vector.sae_fingerprint and sae.fingerprint != vector.sae_fingerprint:
        raise MismatchError(
            f"SAE {vector.sae} is not the one that vector {vector.name!r} was made with; give the "
            "vector's own SAE its old name, or make the vector again."
        )
    weights = {feature.index: feature.weight for feature in vector.sae_features}
    rows = sae.decoder[list(weights)].numpy().astype(np.float64)
    made = np.array(list(weights.values())) @ rows
    length = float(np.linalg.norm(made))
    if not (math.isfinite(length) and length > 0):
        raise SteeringError(
            f"the features of vector {vector.name!r} cancel out; make the vector again."
        )
    notes = [
        "Neuronpedia adds at every position, special tokens of a plain prompt included; here "
        "special tokens are left out."
    ]
    cosine = float(made @ vector.direction.numpy() / length)
    if cosine < SAME_DIRECTION:
        notes.append(
            f"The features alone point {cosine:.2f} (cosine) the vector's way: Neuronpedia steers "
            "with them, this machine with the vector."
        )
    norms = dict(zip(weights, np.linalg.norm(rows, axis=1).tolist(), strict=True))
    return feature_strengths(weights, norms, norm=length, raw=raw), notes


def steer_here(
    added: Amount, prompt: str, settings: SteerSettings, *, chat: bool, model: str | None
) -> list[dict[str, Any]]:
    """Steer a model of this machine as Neuronpedia does."""
    from saesteer.models import load_model
    from saesteer.utils.progress import terminal_progress

    name = model or added.vector.model
    terminal_progress().say(f"Loading model {name} ...")
    result = generate(
        load_model(name),
        prompt,
        added.vector,
        [0.0, added.strength],
        added.unit,
        max_new_tokens=settings.n_tokens,
        chat=chat,
        temperature=settings.temperature,
        seed=settings.seed,
        # As there.
        positions="all",
    )
    return result.to_dicts()


def upload(added: Amount, label: str | None, model_id: str | None) -> UploadedVector:
    """Upload a vector of the residual stream; the strength is the one offered there."""
    vector = added.vector
    # What a block writes is what the next one reads.
    later = {"hook_resid_pre": 0, "hook_resid_post": 1}.get(vector.site.hook)
    if later is None or vector.site.layer is None:
        raise MismatchError(
            f"vector {vector.name!r} lives at {vector.site} and Neuronpedia takes vectors of the "
            "residual stream between blocks alone; use one of hook_resid_pre or hook_resid_post."
        )
    where = known_source(vector.sae, noted=noted_place(vector.provenance))
    model = model_id or (None if where is None else where.there.model)
    if model is None:
        raise MismatchError(
            f"what Neuronpedia calls the model {vector.model} is unknown; say it with --model-id, "
            "such as gpt2-small."
        )
    # Strengths there end at 100: what is more goes into the vector.
    scale = max(1.0, abs(added.raw) / MOST_UPLOADED_STRENGTH)
    values = [float(value) * scale for value in vector.direction]
    return patient_client().upload_vector(
        model, vector.site.layer + later, values, label or vector.name, strength=added.raw / scale
    )
