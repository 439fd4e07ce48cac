"""Many features in few calls, each cached on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saesteer.saes.neuronpedia.asking import CachedAsking
from saesteer.saes.neuronpedia.links import SourceId
from saesteer.saes.neuronpedia.replies import Feature, read_reply
from saesteer.utils.errors import NetworkError

PATH = "/features"
AT_ONCE = 50
N_TEXTS = 3


def many_features(
    asking: CachedAsking,
    of: SourceId,
    indices: Sequence[int],
    *,
    n_texts: int = N_TEXTS,
    ask: bool = True,
) -> dict[int, Any]:
    """Return the JSON of many features, in the order asked.

    Args:
        asking: Asks the cache, then the service.
        of: The SAE.
        indices: The features' numbers; repeated ones count once.
        n_texts: The most activating texts of each.
        ask: Whether to ask the service for what is not cached.

    Returns:
        By number; None for features that the service lacks. What is not cached and is not asked for
        is left out.

    Raises:
        NetworkError: The service cannot be asked, or its answer cannot be read.
    """
    wanted = list(dict.fromkeys(indices))
    # The service takes 0 for "all of them".
    texts = max(1, n_texts)
    keys = {i: asking.key("POST", PATH, [str(of), i, texts]) for i in wanted}
    kept = asking.kept(list(keys.values()))
    found = {i: kept[key] for i, key in keys.items() if key in kept}
    lacking = [i for i in wanted if i not in found] if ask else []
    for first in range(0, len(lacking), AT_ONCE):
        some = lacking[first : first + AT_ONCE]
        try:
            answers = _asked(asking, of, some, texts)
        except NetworkError:
            answers = {i: asking.imported(of, i) for i in some}
            if None in answers.values():
                raise
        else:
            asking.keep({keys[i]: value for i, value in answers.items()})
        found |= answers
    return {i: found[i] for i in wanted if i in found}


def _asked(asking: CachedAsking, of: SourceId, some: Sequence[int], texts: int) -> dict[int, Any]:
    body = [
        {"modelId": of.model, "layer": of.source, "index": i, "maxActsToReturn": texts}
        for i in some
    ]
    answer = asking.transport.json("POST", PATH, body)
    if not isinstance(answer, list):
        raise NetworkError(
            f"Neuronpedia's answer to {PATH} is no list; its API may have changed, so look for a "
            "newer saesteer."
        )
    # The answer leaves out what is not there, and its order is its own.
    by_index: dict[int, Any] = dict.fromkeys(some)
    for one in answer:
        found = read_reply(Feature, one, PATH)
        if (found.model, found.source) == (of.model, of.source) and found.index in by_index:
            by_index[found.index] = one
    return by_index
