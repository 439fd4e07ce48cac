"""Neuronpedia's features as cards, and features found by words without asking anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saesteer.saes.neuronpedia.links import SITE, dashboard_url
from saesteer.saes.neuronpedia.replies import Activation, Feature
from saesteer.saes.table import FeatureCard, FeatureContext, FeatureTable

TOKENS_BEFORE = 8
TOKENS_AFTER = 4
_MARKS = (("\u0120", " "), ("\u2581", " "), ("\u010a", "\n"))


@dataclass(frozen=True)
class FeatureHit:
    """A feature found by words.

    Attributes:
        feature: Its number.
        description: What it stands for.
        similarity: How close to the words, 0 to 1; None if not said.
        url: Its dashboard, if it has one.
    """

    feature: int
    description: str
    similarity: float | None
    url: str | None


def feature_card(feature: Feature, *, n_contexts: int = 5, site: str = SITE) -> FeatureCard:
    """Return Neuronpedia's answer as a card."""
    best = next((e for e in feature.explanations if e.description.strip()), None)
    return FeatureCard(
        feature.index,
        feature.description,
        (best.explainer or best.kind or "Neuronpedia") if best else "Neuronpedia",
        dashboard_url(f"{feature.model}/{feature.source}", feature.index, site=site),
        feature.max_activation,
        feature.density,
        feature.top_tokens,
        feature.bottom_tokens,
        tuple(_context(one) for one in feature.activations[:n_contexts] if one.tokens),
    )


def search_table(table: FeatureTable, query: str, limit: int) -> tuple[FeatureHit, ...]:
    """Return at most `limit` features of a table closest to some words, closest first.

    Each feature is the text of the tokens that it fires on and promotes, and of its contexts, by
    their words' and word parts' TF-IDF; similarity is the cosine to the query. No meaning is known:
    "dog" does not find "puppy". Features that share nothing with the words are left out.
    """
    frame = table.frame
    firing, around = [], []
    for contexts, top in zip(frame["contexts"], frame["top_tokens"], strict=True):
        tokens = [str(context["token"]).strip() for context in contexts]
        firing.append(" ".join([*tokens, *(str(token).strip() for token in top)]))
        around.append(" ".join(str(context["text"]) for context in contexts))
    scores = _closeness([firing, around], query)
    described = [str(text) for text in frame["description"]]
    return _hits(scores, range(len(described)), described, limit, None, SITE)


def search_labels(
    labels: Mapping[int, str], query: str, limit: int, *, source: str, site: str = SITE
) -> tuple[FeatureHit, ...]:
    """Return the features whose imported labels are closest to some words, as `search_table`.

    `source` (model and source) and `site` are for the links.
    """
    if not labels:
        return ()
    texts = list(labels.values())
    return _hits(_closeness([texts, texts], query), list(labels), texts, limit, source, site)


def _closeness(fields: list[list[str]], query: str) -> Any:
    """Return the cosine to the query: word parts in the first field, whole words in the second."""
    import numpy as np
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

    words = [word for word in query.split() if word.lower() not in ENGLISH_STOP_WORDS]
    asked = " ".join(words) or query
    total = np.zeros(len(fields[0]))
    kinds: tuple[dict[str, Any], ...] = (
        {"analyzer": "char_wb", "ngram_range": (3, 4)},
        {"analyzer": "word", "token_pattern": r"(?u)\b\w+\b"},
    )
    for texts, kind in zip(fields, kinds, strict=True):
        vectorizer = TfidfVectorizer(**kind, sublinear_tf=True)
        try:
            matrix: Any = vectorizer.fit_transform(texts)
        except ValueError:
            # No text holds a single such part.
            continue
        wanted: Any = vectorizer.transform([asked])
        total += (matrix @ wanted.T).toarray().ravel()
    return total / len(kinds)


def _hits(
    scores: Any,
    features: Sequence[int],
    texts: Sequence[str],
    limit: int,
    source: str | None,
    site: str,
) -> tuple[FeatureHit, ...]:
    import numpy as np

    order = np.argsort(-scores, kind="stable")[: max(0, limit)]
    return tuple(
        FeatureHit(
            features[at],
            texts[at],
            float(scores[at]),
            dashboard_url(source, features[at], site=site) if source else None,
        )
        for at in map(int, order)
        if scores[at] > 0
    )


def _context(one: Activation) -> FeatureContext:
    at = one.at if one.at is not None and 0 <= one.at < len(one.tokens) else _peak(one)
    first = max(0, at - TOKENS_BEFORE)
    around = "".join(map(_plain, one.tokens[first : at + 1 + TOKENS_AFTER]))
    value = one.largest if one.largest is not None else max(one.values, default=0.0)
    return FeatureContext(around, _plain(one.tokens[at]), value)


def _peak(one: Activation) -> int:
    values = one.values[: len(one.tokens)]
    return max(range(len(values)), key=values.__getitem__) if values else 0


def _plain(token: str) -> str:
    # Tokens come as the tokenizer spells them: spaces and line breaks as marks.
    for mark, text in _MARKS:
        token = token.replace(mark, text)
    return token
