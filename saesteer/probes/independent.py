"""A classifier that knows nothing of the probed model: MiniLM embeddings of texts set aside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from saesteer.data.labelled import LabelledSet
from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.probes.fitting import FitSettings, FittedProbe, Scores, fit_probe, score
from saesteer.probes.readout import measured
from saesteer.utils.errors import DataError
from saesteer.utils.files import write_atomic
from saesteer.utils.text import one_line

FORMAT = "saesteer.text_classifier"


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """Logistic regression on sentence embeddings."""

    classes: tuple[str, ...]
    # On raw embeddings.
    probe: FittedProbe
    # On the probe run's test texts.
    scores: Scores
    # Texts it was trained on; no probe saw any of them.
    n_train: int
    embedder: SentenceEmbedder

    def probabilities(self, texts: Sequence[str]) -> Float[np.ndarray, "text class"]:
        """Return each class's probability for each text."""
        return self.probe.probabilities(self.embedder.embed(texts))

    def lean(self, texts: Sequence[str], towards: str, away: str) -> Float[np.ndarray, " text"]:
        """Return P(towards) - P(away) of each text, from -1 to 1; NaN for a blank text."""
        to, fro = self.classes.index(towards), self.classes.index(away)

        def lean(written: list[str]) -> np.ndarray:
            found = self.probabilities(written)
            return found[:, to] - found[:, fro]

        return measured(texts, lean)

    def save(self, path: Path) -> Path:
        """Write the classifier as JSON, whole or not at all."""
        record = {
            "format": FORMAT,
            "embedding": self.embedder.name,
            "classes": list(self.classes),
            "weight": self.probe.weight.tolist(),
            "bias": self.probe.bias.tolist(),
            "c": self.probe.c,
            "scores": self.scores,
            "n_train": self.n_train,
        }
        return write_atomic(path, json.dumps(record, allow_nan=False).encode())


def train_text_classifier(
    train: LabelledSet,
    test: LabelledSet,
    settings: FitSettings,
    *,
    groups: Sequence[int],
    embedder: SentenceEmbedder | None = None,
    seed: int = 0,
) -> TextClassifier:
    """Train on texts that the probes never see, in their groups, and score on the test part."""
    embedder = embedder or SentenceEmbedder()
    x = embedder.embed([text.text for text in train.texts])
    fitted = fit_probe(x, train.labels, np.asarray(groups), settings, seed=seed)
    held = embedder.embed([text.text for text in test.texts])
    found = score(test.labels, fitted.probabilities(held), resamples=settings.resamples, seed=seed)
    return TextClassifier(train.classes, fitted, found, len(train), embedder)


def load_text_classifier(path: Path, embedder: SentenceEmbedder | None = None) -> TextClassifier:
    """Read what `TextClassifier.save` wrote."""
    embedder = embedder or SentenceEmbedder()
    try:
        stored = json.loads(path.read_bytes())
        if (stored["format"], stored["embedding"]) != (FORMAT, embedder.name):
            raise ValueError(f"it reads embeddings of {stored['embedding']}")
        weight = np.asarray(stored["weight"], dtype=np.float32)
        return TextClassifier(
            tuple(stored["classes"]),
            FittedProbe(weight, np.asarray(stored["bias"]), float(stored.get("c", "nan"))),
            stored["scores"],
            stored["n_train"],
            embedder,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read as a text classifier ({one_line(error, 160)}); delete it and "
            "run saesteer probe train again."
        ) from error
