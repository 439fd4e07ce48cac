"""Vectors to and from Neuronpedia: from words, steered there and here, uploaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.utils.errors import MismatchError, SteeringError

if TYPE_CHECKING:
    from saesteer.cli.feature_source import FeatureSource
    from saesteer.saes.neuronpedia import SteerSettings
    from saesteer.saes.neuronpedia.replies import UploadedVector
    from saesteer.steering import SteeringVector

MOST_UPLOADED_STRENGTH = 100.0
# Below this cosine the features alone are another vector than the one that is given.
SAME_DIRECTION = 0.99


@dataclass(frozen=True)
class SteeredTwice:
    """Completions by where they come from, and what is to be said of them."""

    completions: Mapping[str, list[dict[str, Any]]]  # As `GenerationResult.to_dicts` gives them.
    notes: tuple[str, ...]  # Sentences.


def vector_of_words(
    where: FeatureSource, chosen: list[int], words: str, model: str | None
) -> SteeringVector:
    """Return the vector of some features, each at its largest activation on text."""
    from saesteer.cli.feature_source import neuronpedia_client
    from saesteer.methods.features import vector_of_features
    from saesteer.saes.labels import PLACE_KEY
    from saesteer.saes.loading import load_sae
    from saesteer.saes.neuronpedia import feature_card
    from saesteer.utils.progress import terminal_progress

    sae = load_sae(where.sae)
    if where.source is None:
        table = where.table()
        cards = {i: table.row(i) for i in chosen}
    else:
        found = neuronpedia_client(terminal_progress()).features(where.source, chosen, n_texts=1)
        cards = {i: feature_card(one) for i, one in found.items()}
    peaks = {i: card.max_activation for i, card in cards.items() if card.max_activation}
    # Without its largest activation a feature has no size of its own; then all have the same.
    known = len(peaks) == len(set(chosen))
    return vector_of_features(
        sae,
        {i: peaks[i] if known else 1.0 for i in chosen},
        model=model or sae.sae.cfg.metadata.model_name or "unknown",
        name=words,
        max_activation=peaks if known else None,
        residual_norm=_measured_norm(where.sae),
        descriptions={i: card.description for i, card in cards.items() if card.description},
        provenance={
            "words": words,
            PLACE_KEY: None if where.source is None else str(where.source),
        },
    )


def steer_there_and_here(
    path: Path,
    prompt: str,
    amount: tuple[str, str],
    settings: SteerSettings,
    *,
    source: str | None = None,
    chat: bool = False,
    model: str | None = None,
    local: bool = True,
) -> SteeredTwice:
    """Steer with a vector's features on Neuronpedia, and with the vector here unless not `local`.

    `amount` is strength and unit; model and source are the vector's own if None.
    """
    from saesteer.cli.feature_source import feature_source, neuronpedia_client, say_what_is_left
    from saesteer.saes.labels import noted_place
    from saesteer.steering import SteeringVector, parse, to_raw
    from saesteer.steering.strength import check_unit
    from saesteer.utils.progress import terminal_progress

    vector = SteeringVector.load(path)
    value, unit = parse(amount[0]), check_unit(amount[1])
    raw = to_raw(value, unit, vector)
    if not vector.sae_features or vector.sae is None:
        raise SteeringError(
            f"vector {vector.name!r} is not made of an SAE's features, with which alone "
            "Neuronpedia steers; upload it first (saesteer neuronpedia upload)."
        )
    place = feature_source(vector.sae, source or noted_place(vector.provenance)).source
    if place is None:
        raise MismatchError(
            f"SAE {vector.sae} is not on Neuronpedia, so it cannot steer there; name its place "
            "with --source MODEL/SOURCE if it is, or use saesteer generate."
        )
    strengths, notes = _strengths(vector, raw)
    progress = terminal_progress()
    client = neuronpedia_client(progress)
    if chat:
        answer = client.steer_chat(
            place, [{"role": "user", "content": prompt}], strengths, settings
        )
        texts = (answer.default.text, answer.steered.text)
    else:
        answer = client.steer(place, prompt, strengths, settings)
        # The service gives the prompt back in front of what it wrote.
        texts = (_after(prompt, answer.default), _after(prompt, answer.steered))
    say_what_is_left(client, progress)
    records = [
        {"prompt": prompt, "strength": at, "unit": unit, "sample": 0, "text": text}
        for at, text in zip((0.0, value), texts, strict=True)
    ]
    completions = {f"Neuronpedia ({place})": records}
    if local:
        progress.say(f"Loading model {model or vector.model} ...")
        completions["Here"] = _here(vector, prompt, (value, unit), settings, chat, model)
    shared = [f"The page of both: {answer.share_url}"] if answer.share_url else []
    return SteeredTwice(completions, tuple(shared + notes))


def upload(
    path: Path, amount: tuple[str, str], label: str | None, model_id: str | None
) -> UploadedVector:
    """Upload a vector of the residual stream; `amount` is the strength offered there."""
    from saesteer.cli.feature_source import known_source, neuronpedia_client
    from saesteer.saes.labels import noted_place
    from saesteer.saes.neuronpedia import SourceId
    from saesteer.steering import SteeringVector, parse, to_raw
    from saesteer.steering.strength import check_unit
    from saesteer.utils.progress import terminal_progress

    vector = SteeringVector.load(path)
    raw = to_raw(parse(amount[0]), check_unit(amount[1]), vector)
    # What a block writes is what the next one reads.
    later = {"hook_resid_pre": 0, "hook_resid_post": 1}.get(vector.site.hook)
    if later is None or vector.site.layer is None:
        raise MismatchError(
            f"vector {vector.name!r} lives at {vector.site} and Neuronpedia takes vectors of the "
            "residual stream between blocks alone; use one of hook_resid_pre or hook_resid_post."
        )
    place = known_source(vector.sae, None, SourceId.known(noted_place(vector.provenance)))
    model = model_id or (None if place is None else place.model)
    if model is None:
        raise MismatchError(
            f"what Neuronpedia calls the model {vector.model} is unknown; say it with --model-id, "
            "such as gpt2-small."
        )
    # Strengths there end at 100: what is more goes into the vector.
    scale = max(1.0, abs(raw) / MOST_UPLOADED_STRENGTH)
    values = [float(value) * scale for value in vector.direction]
    client = neuronpedia_client(terminal_progress())
    return client.upload_vector(
        model, vector.site.layer + later, values, label or vector.name, strength=raw / scale
    )


def _strengths(vector: SteeringVector, raw: float) -> tuple[dict[int, float], list[str]]:
    import numpy as np

    from saesteer.saes.loading import load_sae
    from saesteer.saes.neuronpedia import feature_strengths

    assert vector.sae is not None
    sae = load_sae(vector.sae)
    if vector.sae_fingerprint and sae.fingerprint != vector.sae_fingerprint:
        raise MismatchError(
            f"SAE {vector.sae} is not the one that vector {vector.name!r} was made with; give the "
            "vector's own SAE its old name, or make the vector again."
        )
    indices = [feature.index for feature in vector.sae_features]
    rows = sae.decoder[indices].numpy().astype(np.float64)
    weights = np.array([feature.weight for feature in vector.sae_features])
    norms = dict(zip(indices, np.linalg.norm(rows, axis=1).tolist(), strict=True))
    made = weights @ rows
    cosine = float(made @ vector.direction.numpy() / (np.linalg.norm(made) or 1.0))
    notes = [
        "Neuronpedia adds at every position, special tokens of a plain prompt included; here "
        "special tokens are left out."
    ]
    if cosine < SAME_DIRECTION:
        notes.append(
            f"The features alone point {cosine:.2f} (cosine) the vector's way: Neuronpedia steers "
            "with them, this machine with the vector."
        )
    pairs = [(feature.index, feature.weight) for feature in vector.sae_features]
    length = float(np.linalg.norm(made))
    if not (math.isfinite(length) and length > 0):
        raise SteeringError(
            f"the features of vector {vector.name!r} cancel out; make the vector again."
        )
    return feature_strengths(pairs, norms, norm=length, raw=raw), notes


def _here(
    vector: SteeringVector,
    prompt: str,
    amount: tuple[float, Any],
    settings: SteerSettings,
    chat: bool,
    model: str | None,
) -> list[dict[str, Any]]:
    from saesteer.models import load_model
    from saesteer.steering import generate

    result = generate(
        load_model(model or vector.model),
        prompt,
        vector,
        [0.0, amount[0]],
        amount[1],
        max_new_tokens=settings.n_tokens,
        chat=chat,
        temperature=settings.temperature,
        seed=settings.seed,
        # As there.
        positions="all",
    )
    return result.to_dicts()


def _after(prompt: str, text: str) -> str:
    return text.removeprefix(prompt)


def _measured_norm(sae: str) -> float | None:
    """Return the mean residual norm that is noted beside a trained SAE, if any."""
    from saesteer.saes.loading import resolve_sae

    where = resolve_sae(sae)
    if not isinstance(where, Path):
        return None
    try:
        found = json.loads((where / "metrics.json").read_text(encoding="utf-8"))["residual_norm"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    usable = isinstance(found, int | float) and math.isfinite(found) and found > 0
    return float(found) if usable else None
