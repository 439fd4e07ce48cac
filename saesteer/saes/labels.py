"""What is known offline of an SAE's features: labels, pages, and features found by words."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.saes.neuronpedia import Cache, SourceId, dashboard_url
from saesteer.saes.neuronpedia.cache import BulkLine, label_cache
from saesteer.saes.neuronpedia.replies import Feature, read_reply
from saesteer.saes.table import FeatureCard, FeatureHit, FeatureTable, load_feature_table
from saesteer.utils.cache import content_digest
from saesteer.utils.errors import OutputError, SaeError

if TYPE_CHECKING:
    from saesteer.saes.adapter import LensSae, Sae
    from saesteer.utils.progress import Progress

FEATURE_TABLE = "features.parquet"
# What a run's record and a vector's provenance call an SAE's place on Neuronpedia.
PLACE_KEY = "neuronpedia_id"


def own_table(where: Path | tuple[str, str], *, explained: bool = True) -> FeatureTable | None:
    """Return the feature table of an SAE that `resolve_sae` found; None where there is none.

    Labels that a language model wrote (`saesteer sae label`) stand in it in place of its own,
    unless not `explained`.
    """
    if not isinstance(where, Path) or not (where / FEATURE_TABLE).is_file():
        return None
    table = load_feature_table(where / FEATURE_TABLE)
    if explained:
        # A damaged cache costs these and no result.
        with suppress(OutputError):
            table = table.explained(explanations_of(where))
    return table


def explanations_of(where: Path) -> dict[int, tuple[str, str]]:
    """Return the labels that language models wrote for an SAE's folder, and which, by feature.

    Raises:
        OutputError: The cache cannot be read.
    """
    return Cache(label_cache()).explanations(str(_explained_place(where)))


def _explained_place(where: Path) -> SourceId:
    """Return what the explanations of an SAE's folder are kept under: a name for its weights."""
    weights = where / "sae_weights.safetensors"
    return SourceId("local", content_digest(weights if weights.is_file() else where)[:16])


def keep_explanation(where: Path, feature: int, phrase: str, by: str) -> None:
    """Keep what a feature stands for in somebody's words, in place of earlier such words.

    Raises:
        OutputError: The cache cannot be written.
    """
    line = BulkLine(1, feature, (phrase, by, None))
    place = str(_explained_place(where))
    Cache(label_cache()).store_file(place, f"explained/{feature}", "", [line])


def known_descriptions(
    sae: Sae, table: FeatureTable | None, progress: Progress | None = None
) -> Mapping[int, str]:
    """Return what an SAE's features stand for by number, without asking the network.

    Imported labels of Neuronpedia, else the own table's descriptions; empty where neither is there.
    That the labels cannot be read is said to `progress`, since it costs no result; raised if None.
    """
    known = {} if table is None else {i: table.describe(i) for i in range(len(table))}
    place = SourceId.known(sae.neuronpedia_id)
    if place is None:
        return known
    try:
        return {**known, **Cache(label_cache()).labels(str(place))}
    except OutputError as error:
        if progress is None:
            raise
        progress.say(f"warning: no imported labels: {error}")
        return known


def feature_card_of(sae: LensSae, index: int) -> FeatureCard:
    """Return what is known offline of one feature: the SAE's own table, and imported labels.

    Raises:
        SaeError: The SAE has no such feature.
        OutputError: The imported labels cannot be read.
    """
    if not 0 <= index < sae.d_sae:
        raise SaeError(f"SAE {sae.name} has features 0 to {sae.d_sae - 1}; {index} is none.")
    table = None if sae.folder is None else own_table(sae.folder)
    card = FeatureCard(int(index)) if table is None else table.row(index)
    place = SourceId.known(sae.neuronpedia_id)
    if place is None:
        return card
    imported = Cache(label_cache()).feature(str(place), index)
    if imported is not None:
        told = read_reply(Feature, imported, str(place)).card()
        known = {name: value for name, value in vars(told).items() if value not in (None, (), "")}
        card = replace(card, **known)
    return replace(card, url=dashboard_url(place, index))


def feature_url(neuronpedia_id: str | None, feature: int) -> str | None:
    """Return the address of a feature's dashboard; None where Neuronpedia does not have its SAE."""
    place = SourceId.known(neuronpedia_id)
    return None if place is None else dashboard_url(place, feature)


def noted_place(provenance: Mapping[str, Any]) -> str | None:
    """Return the place on Neuronpedia of a vector's SAE; a sum's is that of its parts."""
    own = provenance.get(PLACE_KEY)
    if isinstance(own, str):
        return own
    # Vectors of different SAEs cannot be summed, so any part tells.
    places = (noted_place(part["provenance"]) for part in provenance.get("sum_of") or ())
    return next((place for place in places if place is not None), None)


def search_table(table: FeatureTable, query: str, limit: int) -> list[FeatureHit]:
    """Return at most `limit` features of a table closest to some words, closest first.

    Each feature is the text of the tokens that it fires on and promotes, and of its contexts, by
    their words' and word parts' TF-IDF; similarity is the cosine to the query. No meaning is known:
    "dog" does not find "puppy". Features that share nothing with the words are left out.
    """
    firing, around = [], []
    for contexts, top in zip(table.frame["contexts"], table.frame["top_tokens"], strict=True):
        tokens = (str(token).strip() for token in (*(c["token"] for c in contexts), *top))
        firing.append(" ".join(tokens))
        around.append(" ".join(str(context["text"]) for context in contexts))
    described = {i: str(text) for i, text in enumerate(table.frame["description"])}
    return _closest(described, firing, around, query, limit)


def search_labels(
    labels: Mapping[int, str], query: str, limit: int, *, place: SourceId, site: str
) -> list[FeatureHit]:
    """Return the features whose imported labels are closest to some words, as `search_table`.

    `place` and `site` are for the links.
    """
    texts = list(labels.values())
    hits = _closest(labels, texts, texts, query, limit)
    return [replace(hit, url=dashboard_url(place, hit.feature, site=site)) for hit in hits]


def _closest(
    labels: Mapping[int, str], parts: list[str], words: list[str], query: str, limit: int
) -> list[FeatureHit]:
    """Find features by word parts in one text of each, and by whole words in another."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

    asked = " ".join(w for w in query.split() if w.lower() not in ENGLISH_STOP_WORDS) or query
    scores = np.zeros(len(labels))
    kinds: tuple[tuple[list[str], dict[str, Any]], ...] = (
        (parts, {"analyzer": "char_wb", "ngram_range": (3, 4)}),
        (words, {"analyzer": "word", "token_pattern": r"(?u)\b\w+\b"}),
    )
    for texts, kind in kinds:
        vectorizer = TfidfVectorizer(**kind, sublinear_tf=True)
        # Of texts none of which holds such a part it says that the vocabulary is empty.
        with suppress(ValueError):
            matrix: Any = vectorizer.fit_transform(texts)
            wanted: Any = vectorizer.transform([asked])
            scores += (matrix @ wanted.T).toarray().ravel() / len(kinds)
    features = list(labels)
    best = [int(at) for at in np.argsort(-scores, kind="stable")[:limit] if scores[at] > 0]
    return [FeatureHit(features[at], labels[features[at]], float(scores[at])) for at in best]
