"""Whether a label tells the texts on which its feature fires from others: embedding scoring.

After the embedding score of EleutherAI's automated interpretability (arXiv 2410.13928): label and
texts are embedded, and the texts ranked by their similarity to the label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from saesteer.models.reading import read_rows
from saesteer.models.tokens import TokenRow
from saesteer.saes.adapter import Sae, check_compatible
from saesteer.saes.lens import TokenTexts
from saesteer.saes.words import is_text
from saesteer.utils.errors import DataError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROWS_AT_ONCE = 64
TEXT_TOKENS = 32
N_EACH = 5
# A text counts as one that fires a feature strongly from this share of its largest activation on.
STRONGLY = 0.5


class LabelTest(NamedTuple):
    """A feature with texts on which it fires and texts on which it does not."""

    feature: int
    firing: list[str]
    silent: list[str]


class FeaturePeaks(NamedTuple):
    """Texts, and how large each feature gets on each of them."""

    texts: list[str]
    peaks: Float[np.ndarray, "text d_sae"]

    @classmethod
    def read(
        cls,
        model: TransformerBridge,
        sae: Sae,
        rows: Sequence[TokenRow],
        progress: Progress | None = None,
    ) -> FeaturePeaks:
        """Cut rows into texts of 32 kept tokens, what is left of a row out, and read them.

        Raises:
            MismatchError: The SAE's width is not the model's.
            DataError: No row is so long.
        """
        check_compatible(model, sae)
        shown, texts, peaks = TokenTexts(model.tokenizer), [], []
        with (progress or Progress()).task("reading texts", len(rows), "rows") as task:
            for start in range(0, len(rows), ROWS_AT_ONCE):
                block = rows[start : start + ROWS_AT_ONCE]
                read = read_rows(model, block, [sae.site])[sae.site]
                for index, row in enumerate(block):
                    ids = [i for i, kept in zip(row.ids, row.kept, strict=True) if kept]
                    n = len(ids) // TEXT_TOKENS
                    size = sae.encode(read.text(index)).abs()[: n * TEXT_TOKENS]
                    # Half the memory, and nobody asks for a fourth digit.
                    most = size.reshape(n, TEXT_TOKENS, sae.d_sae).amax(dim=1).to(torch.float16)
                    peaks.append(most.cpu().numpy())
                    for at in range(0, n * TEXT_TOKENS, TEXT_TOKENS):
                        texts.append(shown.span(ids[at : at + TEXT_TOKENS]).strip())
                task.advance(len(block))
        if not texts:
            raise DataError(f"no text has {TEXT_TOKENS} tokens; give longer ones.")
        return cls(texts, np.concatenate(peaks))

    def draw(
        self,
        features: Sequence[int] | None = None,
        *,
        number: int = 60,
        strongly: bool = False,
        seed: int = 0,
    ) -> list[LabelTest]:
        """Draw features by chance, and for each five texts that fire it and five that do not.

        Args:
            features: To be tested in place of drawn ones; those that cannot be are left out.
            number: How many are drawn, of those that fire on five texts and not on five others.
            strongly: Whether a text must reach half of a feature's largest activation here to fire
                it; any activation does otherwise.
            seed: Seeds the features and, for each feature by itself, its texts.
        """
        order = np.random.default_rng(seed).permutation(self.peaks.shape[1])
        tests: list[LabelTest] = []
        for feature in map(int, order if features is None else features):
            if features is None and len(tests) == number:
                break
            peaks = self.peaks[:, feature]
            least = STRONGLY * peaks.max() if strongly else 0
            found = (np.flatnonzero((peaks > 0) & (peaks >= least)), np.flatnonzero(peaks == 0))
            if min(map(len, found)) < N_EACH:
                continue
            choose = np.random.default_rng([seed, feature])
            firing, silent = (
                [self.texts[at] for at in choose.choice(places, N_EACH, replace=False)]
                for places in found
            )
            tests.append(LabelTest(feature, firing, silent))
        return tests


def label_aucs(
    tests: Sequence[LabelTest],
    labels: Mapping[int, str],
    embed: Callable[[Sequence[str]], Float[np.ndarray, "text width"]],
) -> Float[np.ndarray, " test"]:
    """Return for each test how well the similarity to the label ranks firing texts first.

    That is the AUC, 0.5 for chance.

    Args:
        labels: By feature; an empty or missing one tells nothing.
        embed: Gives unit vectors, such as `SentenceEmbedder().embed`.
    """
    from sklearn.metrics import roc_auc_score

    aucs = []
    for feature, firing, silent in tests:
        label = labels.get(feature, "")
        if not label:
            aucs.append(0.5)
            continue
        vectors = embed([label, *firing, *silent])
        is_firing = [True] * len(firing) + [False] * len(silent)
        aucs.append(float(roc_auc_score(is_firing, vectors[1:] @ vectors[0])))
    return np.array(aucs)


def score_labels(
    labels: Mapping[int, str],
    tests: Sequence[LabelTest],
    strong: Sequence[LabelTest],
    embed: Callable[[Sequence[str]], Float[np.ndarray, "text width"]],
) -> dict[str, float | int | None]:
    """Return mean AUCs with their standard errors, and the share of labels that are no text.

    Args:
        tests: Of texts that fire a feature at all.
        strong: Of texts that fire it strongly.
    """
    found: dict[str, float | int | None] = {"features": len(tests)}
    for prefix, some in (("", tests), ("strong_", strong)):
        aucs = label_aucs(some, labels, embed)
        found[f"{prefix}auc"] = float(aucs.mean()) if len(aucs) else None
        several = len(aucs) > 1
        found[f"{prefix}error"] = float(aucs.std(ddof=1)) / len(aucs) ** 0.5 if several else None
    broken = [not is_text(label) for label in labels.values()]
    found["broken"] = sum(broken) / len(broken) if broken else None
    return found
