"""The client: what Neuronpedia knows of features, and what it does with them; its cache first."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from saesteer.saes.neuronpedia import replies
from saesteer.saes.neuronpedia.cache import Cache, label_cache
from saesteer.saes.neuronpedia.links import SourceId, dashboard_url
from saesteer.saes.neuronpedia.replies import Model, read_reply
from saesteer.saes.neuronpedia.service import KEY_VARIABLE, Service
from saesteer.saes.neuronpedia.steering import (
    MOST_UPLOADED_STRENGTH,
    SteerSettings,
    steer_payload,
)
from saesteer.saes.table import FeatureHit
from saesteer.utils.errors import ConfigError, NetworkError, OutputError, SteeringError

DAY = 86_400.0
SEARCH_PAGE = 20
MOST_BY_TEXT = 100
FEATURES_AT_ONCE = 50
_FEATURES = "/features"
_SHORTEST_QUERY = 3


class Neuronpedia:
    """Asks Neuronpedia, its cache first.

    SAEs are named by model and source, such as "gpt2-small/6-res-jb", features by their numbers.
    Every method raises `NetworkError` where nothing is cached and the service cannot be asked, or
    its answer cannot be read, which is never cached.

    Args:
        service: Where and how; as the environment says if None.
        cache: Where answers are kept; in the user's cache if None.
        max_age: The oldest cached answer to take while the service answers, seconds. Offline, or
            where the service cannot be reached, an older one is taken as well.

    Example:
        >>> Neuronpedia().feature("gpt2-small/6-res-jb", 650).description  # doctest: +SKIP
    """

    def __init__(
        self,
        service: Service | None = None,
        *,
        cache: Cache | None = None,
        max_age: float = 30 * DAY,
    ) -> None:
        self.service = service or Service()
        self.cache = cache or Cache(label_cache())
        self.max_age = max_age

    def feature(self, source: str | SourceId, index: int) -> replies.Feature | None:
        """Return a feature with its explanations, activations and logits; None if there is none.

        Offline, imported bulk files answer where nothing else is cached.
        """
        of = SourceId.parse(source)
        path = f"/feature/{quote(of.model)}/{quote(of.source)}/{_index(index)}"
        try:
            return self._look_up(replies.Feature, "GET", path)
        except NetworkError:
            found = self.cache.feature(str(of), index)
            if found is None:
                raise
            return read_reply(replies.Feature, found, path)

    def features(
        self, source: str | SourceId, indices: Sequence[int], *, n_texts: int = 3
    ) -> dict[int, replies.Feature]:
        """Return many features by number, in few calls, each with its most activating texts.

        In the order asked; those that Neuronpedia lacks are left out.
        """
        found = self._many(SourceId.parse(source), indices, n_texts=n_texts)
        return {
            i: read_reply(replies.Feature, one, _FEATURES)
            for i, one in found.items()
            if one is not None
        }

    def labels(
        self, source: str | SourceId, indices: Sequence[int], *, ask: bool = True
    ) -> dict[int, str]:
        """Return what features stand for, by number; features without a label are left out.

        Imported labels come first, then cached ones, then, with `ask`, those of the service.
        """
        of = SourceId.parse(source)
        known = self.cache.labels(str(of))
        lacking = [i for i in indices if i not in known]
        for i, one in self._many(of, lacking, ask=ask and not self.service.offline).items():
            if one is not None:
                known[i] = read_reply(replies.Feature, one, _FEATURES).description
        return {int(i): known[i] for i in indices if known.get(i)}

    def search(
        self, source: str | SourceId, query: str, *, limit: int = SEARCH_PAGE
    ) -> list[FeatureHit]:
        """Return the features with the explanations closest to some words, closest first.

        20 explanations come with each call; a feature that has several of them comes once.

        Raises:
            ConfigError: The words have fewer than 3 characters.
        """
        of = SourceId.parse(source)
        words = query.strip()
        if len(words) < _SHORTEST_QUERY:
            raise ConfigError(
                f"the search {words!r} is shorter than {_SHORTEST_QUERY} characters; give a word."
            )
        found: list[replies.ExplanationHit] = []
        offset = 0
        while len(found) < limit:
            body = {"modelId": of.model, "layers": [of.source], "query": words, "offset": offset}
            page = self._need(replies.ExplanationPage, "/explanation/search", body, str(of))
            found += page.results
            following = page.next_offset or offset + len(page.results)
            if not (page.more and page.results and following > offset):
                break
            offset = following
        hits: dict[int, FeatureHit] = {}
        for one in found[:limit]:
            hits.setdefault(one.index, self._hit(of, one.index, one.description, one.similarity))
        return list(hits.values())

    def firing_on(
        self, source: str | SourceId, text: str, *, tokens: Sequence[int] = (), limit: int = 50
    ) -> replies.TextSearch:
        """Return the features that fire most on a text.

        Sorted by the activations on some tokens (BOS is token 0), or by the largest on any.

        Raises:
            ConfigError: The text is empty, or the limit above 100.
        """
        of = SourceId.parse(source)
        if not text.strip() or not 1 <= limit <= MOST_BY_TEXT:
            raise ConfigError(
                f"a search by a text needs a text and a limit of 1 to {MOST_BY_TEXT} features; "
                f"these are {text.strip()[:40]!r} and {limit}."
            )
        body = {
            "modelId": of.model,
            "sourceSet": of.source_set,
            "text": text,
            "selectedLayers": [of.source],
            "sortIndexes": sorted(map(int, tokens)),
            "ignoreBos": True,
            "numResults": limit,
        }
        return self._need(replies.TextSearch, "/search-all", body, str(of), slow=True)

    def similar(
        self, source: str | SourceId, index: int, *, among: str | SourceId | None = None
    ) -> list[FeatureHit]:
        """Return the features whose decoder rows are closest to a feature's, closest first.

        `among` is the SAE to look in; the feature's own if None.
        """
        of, target = SourceId.parse(source), SourceId.parse(among or source)
        body = {
            "modelId": of.model,
            "source": of.source,
            "index": _index(index),
            "targetModelId": target.model,
            "targetSourceId": target.source,
        }
        found = self._need(replies.SimilarList, "/cossim", body, f"{of}/{index}", slow=True).similar
        labels = self.labels(target, [one.feature.index for one in found])
        return [
            self._hit(target, one.feature.index, labels.get(one.feature.index, ""), one.cosine)
            for one in found
        ]

    def new_list(
        self,
        source: str | SourceId,
        features: Mapping[int, str],
        name: str,
        *,
        description: str = "",
        text: str | None = None,
    ) -> replies.FeatureList:
        """Make a list of features, each with what to say of it; needs a key.

        `text` is one whose activations the list shows.

        Raises:
            ConfigError: There is no key, no name or no feature.
        """
        of = SourceId.parse(source)
        if not name.strip() or not features:
            raise ConfigError("a list on Neuronpedia needs a name and at least one feature.")
        rows = [
            {**of.place, "index": _index(i), "description": words} for i, words in features.items()
        ]
        body = {"name": name, "description": description, "features": rows}
        body |= {"testText": text} if text else {}
        return self._made(replies.FeatureList, "/list/new-with-features", body, "a list")

    def steer(
        self,
        source: str | SourceId,
        prompt: str | Sequence[Mapping[str, str]],
        strengths: Mapping[int, float],
        settings: SteerSettings | None = None,
    ) -> replies.Steered:
        """Let Neuronpedia complete a text, or answer a chat, with and without steering.

        Args:
            prompt: A text, or a chat's messages with role and content.
            strengths: How much of each feature's unit decoder row is added, by number: L2 length.

        Raises:
            SteeringError: A strength is out of Neuronpedia's range, or the prompt is empty.
        """
        of, chosen = SourceId.parse(source), settings or SteerSettings()
        if isinstance(prompt, str):
            path, texts, body = "/steer", [prompt], {"prompt": prompt}
        else:
            chat = [{"role": m["role"], "content": m["content"]} for m in prompt]
            path, texts = "/steer-chat", [m["content"] for m in chat]
            body = {"defaultChatMessages": chat, "steeredChatMessages": chat}
            body |= {"steer_special_tokens": chosen.special_tokens}
        if not any(text.strip() for text in texts):
            raise SteeringError("there is no text to go on from; give a prompt of a word or more.")
        body |= steer_payload(of, strengths, chosen)
        return self._need(replies.Steered, path, body, str(of), slow=True)

    def upload_vector(
        self, model: str, layer: int, values: Sequence[float], label: str, *, strength: float
    ) -> replies.UploadedVector:
        """Upload a vector of the residual stream before a block; needs a key.

        Args:
            model: Neuronpedia's name of the model.
            layer: The block whose input it is added to, from 0.
            values: The vector, as wide as the model.
            strength: How much of it is added by default, -100 to 100.

        Raises:
            ConfigError: There is no key.
            SteeringError: The strength is out of range, or a value is not finite.
        """
        numbers = [float(value) for value in values]
        usable = bool(numbers) and all(map(math.isfinite, numbers))
        if not (usable and abs(strength) <= MOST_UPLOADED_STRENGTH):
            raise SteeringError(
                f"a vector for Neuronpedia needs finite numbers and a strength of -100 to 100, not "
                f"{strength}; scale the vector."
            )
        body = {
            "modelId": model,
            "layerNumber": int(layer),
            "hookType": "resid-pre",
            "vector": numbers,
            "vectorDefaultSteerStrength": float(strength),
            "vectorLabel": label,
        }
        return self._made(replies.UploadedVector, "/vector/new", body, "a vector")

    def _hit(self, of: SourceId, index: int, label: str, similarity: float | None) -> FeatureHit:
        return FeatureHit(
            index, label, similarity, dashboard_url(of, index, site=self.service.site)
        )

    def _look_up(
        self, kind: type[Model], method: str, path: str, body: Any = None, *, slow: bool = False
    ) -> Model | None:
        """Return a cached or fresh answer; None, cached as well, where there is no such thing."""
        key = self._key(method, path, body)
        kept, fresh = self._kept([key]), {}
        if not kept:
            try:
                fresh = {key: self.service.json(method, path, body, slow=slow)}
            except NetworkError:
                # An old answer is better than none.
                kept = self.cache.get([key])
                if not kept:
                    raise
        answer = (fresh or kept)[key]
        found = None if answer is None else read_reply(kind, answer, path)
        self._keep(fresh)
        return found

    def _need(
        self, kind: type[Model], path: str, body: Any, what: str, *, slow: bool = False
    ) -> Model:
        answer = self._look_up(kind, "POST", path, body, slow=slow)
        if answer is None:
            raise NetworkError(
                f"Neuronpedia knows nothing of {what}, or of one of its features (status 404); "
                "check model, source and numbers."
            )
        return answer

    def _made(self, kind: type[Model], path: str, body: Any, what: str) -> Model:
        """Let the service make something that belongs to an account; nothing is cached."""
        if not os.environ.get(KEY_VARIABLE, "").strip():
            raise ConfigError(
                f"{what} on Neuronpedia belongs to an account; set the environment variable "
                f"{KEY_VARIABLE} to its key."
            )
        return read_reply(kind, self.service.json("POST", path, body), path)

    def _many(
        self, of: SourceId, indices: Sequence[int], *, n_texts: int = 3, ask: bool = True
    ) -> dict[int, Any]:
        """Return the JSON of many features by number, None where there is none.

        Each is cached on its own; what is not cached and is not asked for is left out.
        """
        # The service takes 0 for "all of them".
        texts = max(1, n_texts)
        keys = {i: self._key("POST", _FEATURES, [str(of), i, texts]) for i in map(_index, indices)}
        kept = self._kept(list(keys.values()))
        found = {i: kept[key] for i, key in keys.items() if key in kept}
        lacking = [i for i in keys if i not in found] if ask else []
        for first in range(0, len(lacking), FEATURES_AT_ONCE):
            some = lacking[first : first + FEATURES_AT_ONCE]
            try:
                answers = self._asked(of, some, texts)
            except NetworkError:
                answers = {i: self.cache.feature(str(of), i) for i in some}
                if None in answers.values():
                    raise
            else:
                self._keep({keys[i]: value for i, value in answers.items()})
            found |= answers
        return {i: found[i] for i in keys if i in found}

    def _asked(self, of: SourceId, some: Sequence[int], texts: int) -> dict[int, Any]:
        body = [{**of.place, "index": i, "maxActsToReturn": texts} for i in some]
        answer = self.service.json("POST", _FEATURES, body)
        if not isinstance(answer, list):
            raise NetworkError(
                f"Neuronpedia's answer to {_FEATURES} is no list; its API may have changed, so "
                "look for a newer saesteer."
            )
        # The answer leaves out what is not there, and its order is its own.
        by_index: dict[int, Any] = dict.fromkeys(some)
        for one in answer:
            found = read_reply(replies.Feature, one, _FEATURES)
            if (found.model, found.source) == (of.model, of.source) and found.index in by_index:
                by_index[found.index] = one
        return by_index

    def _key(self, *asked: Any) -> str:
        text = json.dumps([self.service.base_url, *asked], sort_keys=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def _kept(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return the answers that are cached and not too old."""
        return self.cache.get(keys, None if self.service.offline else self.max_age)

    def _keep(self, answers: Mapping[str, Any]) -> None:
        # An answer is worth more than its copy.
        with suppress(OutputError):
            self.cache.put(answers)


def _index(index: int) -> int:
    if int(index) < 0:
        raise ConfigError(f"feature {index} cannot be; a feature's number is 0 or more.")
    return int(index)
