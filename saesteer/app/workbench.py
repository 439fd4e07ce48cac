"""What the page works with: one model, one vector taken apart into features, no web."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from saesteer.methods.features import vector_of_features
from saesteer.models import chat_prompt
from saesteer.models.loading import context_length, model_info
from saesteer.models.reading import read_rows
from saesteer.models.tokens import encode_texts, has_chat_template
from saesteer.saes.adapter import check_compatible
from saesteer.saes.labels import known_descriptions, own_table, search_table
from saesteer.steering import SteeringVector, Unit, generate, match_strength
from saesteer.steering.apply import check_belongs
from saesteer.steering.divergence import DivergenceMeter, neutral_rows
from saesteer.utils.errors import MismatchError, SaeError, SteeringError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.saes.adapter import LensSae
    from saesteer.saes.table import FeatureTable

# At temperature 1 over the whole vocabulary a small model's text is hardly readable.
TOP_P = 0.9
# Of the features that fire on a token so many are listed.
FIRING = 8
# What is left of a vector beside its features is taken for rounding below this share of its norm.
ROUNDING = 1e-3

Mix = Mapping[str, Any]


class Workbench:
    """A model, a vector and, where there is one, the SAE whose features the vector is mixed of.

    A mix is `{"rest": weight, "features": {index: weight}}`: the vector is the weighted sum of
    decoder rows and of what it holds beside its own features (all of it, if it is dense). None is
    the vector as it came.

    Raises:
        MismatchError: Model, vector and SAE do not belong together.
    """

    def __init__(
        self, model: TransformerBridge, vector: SteeringVector, sae: LensSae | None = None
    ) -> None:
        check_belongs(model, vector)
        self.model, self.vector, self.sae = model, vector, sae
        self._costs: dict[tuple[Any, ...], float] = {}
        if sae is None:
            return
        check_compatible(model, sae)
        if sae.write_site != vector.site:
            raise MismatchError(
                f"SAE {sae.name} writes at {sae.write_site} and vector {vector.name!r} at "
                f"{vector.site}; choose an SAE of the vector's site."
            )
        known = (vector.sae_fingerprint, sae.fingerprint)
        if vector.sae_features and all(known) and known[0] != known[1]:
            raise MismatchError(
                f"vector {vector.name!r} names features of SAE {vector.sae}, which is not "
                f"{sae.name}; give the one it was made with as --sae."
            )

    @cached_property
    def table(self) -> FeatureTable | None:
        """The SAE's own feature table."""
        return None if self.sae is None or self.sae.folder is None else own_table(self.sae.folder)

    @cached_property
    def labels(self) -> Mapping[int, str]:
        """What is known offline of what features stand for."""
        return {} if self.sae is None else known_descriptions(self.sae, self.table, Progress())

    @cached_property
    def rest(self) -> SteeringVector | None:
        """What the vector holds beside its features; None where that is nothing."""
        if self.sae is None or not self.vector.sae_features:
            return replace(self.vector, sae_features=())
        left = self.vector.raw - self._of_features(_weights(self.vector)).raw
        if float(left.norm()) <= ROUNDING * self.vector.norm:
            return None
        return replace(
            SteeringVector.from_raw(left, site=self.vector.site, model=self.vector.model),
            residual_norm=self.vector.residual_norm,
            positions=self.vector.positions,
            model_fingerprint=self.vector.model_fingerprint,
            method=self.vector.method,
            name=f"rest of {self.vector.name}",
        )

    def mixed(self, mix: Mix | None) -> SteeringVector:
        """Return the vector of a mix.

        Raises:
            SteeringError: Nothing in it is switched on.
            SaeError: It names features and there is no SAE, or the SAE has no such feature.
        """
        if mix is None:
            return self.vector
        weights = {int(index): float(weight) for index, weight in mix["features"].items()}
        weights = {index: weight for index, weight in weights.items() if weight}
        share = float(mix["rest"])
        if share == 1.0 and weights == _weights(self.vector):
            return self.vector
        if weights and self.sae is None:
            raise SaeError("there is no SAE to take features from; start the app with --sae.")
        parts = [self._of_features(weights)] if weights else []
        if share and self.rest is not None:
            parts.append(self.rest.scaled(share))
        if not parts:
            raise SteeringError("every feature is switched off; switch one on, or add one.")
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def _of_features(self, weights: Mapping[int, float]) -> SteeringVector:
        assert self.sae is not None
        peaks = None
        if self.table is not None and all(0 <= index < len(self.table) for index in weights):
            peaks = {index: float(self.table.max_activation[index]) for index in weights}
        own = self.vector
        clusters = {f.index: f.cluster for f in own.sae_features if f.cluster is not None}
        return vector_of_features(
            self.sae,
            weights,
            model=own.model,
            name=f"{own.name}, mixed by hand",
            max_activation=peaks,
            descriptions=self.described(weights),
            clusters=clusters,
            residual_norm=own.residual_norm,
            positions=own.positions,
            model_fingerprint=own.model_fingerprint,
        )

    def described(self, indices: Iterable[int]) -> dict[int, str]:
        """Return the labels of features, "" where none is known."""
        own = {f.index: f.description for f in self.vector.sae_features if f.description}
        return {index: self.labels.get(index) or own.get(index, "") for index in indices}

    def about(self) -> dict[str, Any]:
        """Return what the page shows before anything is asked."""
        vector, tokenizer = self.vector, self.model.tokenizer
        # Without their SAE there is nothing to weigh.
        features = () if self.sae is None else vector.sae_features
        described = self.described([f.index for f in features])
        return {
            "model": model_info(self.model).source.name,
            "context": context_length(self.model),
            "chat": has_chat_template(tokenizer) if tokenizer is not None else False,
            "vector": {"name": vector.name, "method": vector.method, "site": str(vector.site)},
            "sae": None if self.sae is None else self.sae.name,
            "search": self.table is not None,
            "rest": self.rest is not None,
            "measures": measures(vector),
            "features": [
                {"index": f.index, "weight": f.weight, "cluster": f.cluster}
                | {"label": described[f.index], **self._facts(f.index)}
                for f in features
            ],
        }

    def _facts(self, index: int) -> dict[str, Any]:
        if self.table is None or not 0 <= index < len(self.table):
            return {"fires": [], "promotes": []}
        card = self.table.row(index)
        return {"fires": list(card.fires_on[:6]), "promotes": list(card.promotes[:6])}

    def search(self, words: str, limit: int = 12) -> list[dict[str, Any]]:
        """Return the features closest to some words, by the SAE's own table.

        Raises:
            SaeError: There is no such table.
        """
        if self.table is None:
            raise SaeError("there is no feature table to search; start the app with --sae smollm2.")
        hits = search_table(self.table, words, limit)
        return [
            {"index": hit.feature, "label": hit.description, **self._facts(hit.feature)}
            for hit in hits
        ]

    def write(
        self,
        prompt: str,
        strengths: Sequence[float],
        unit: Unit,
        mix: Mix | None,
        on_piece: Callable[[int, str], None],
        *,
        chat: bool,
        earlier: Sequence[tuple[str, str]] = (),
        system: str | None = None,
        **sampling: Any,
    ) -> list[dict[str, Any]]:
        """Answer a prompt at several strengths as one batch; see `generate`."""
        if chat and prompt.strip():
            prompt = chat_prompt(self.model.tokenizer, prompt, system, earlier)
        result = generate(
            self.model,
            prompt,
            self.mixed(mix),
            strengths,
            unit,
            chat=False,
            top_p=TOP_P,
            on_piece=on_piece,
            **sampling,
        )
        return [
            {"text": record.text, "tokens": record.n_tokens, "finished": record.finished}
            for record in result.records
        ]

    @cached_property
    def _meter(self) -> DivergenceMeter:
        return DivergenceMeter(self.model, neutral_rows(self.model), site=self.vector.site)

    def cost(self, mix: Mix | None, strength: float, unit: Unit) -> dict[str, Any]:
        """Return KL(steered || base) at a strength, in nats per token on the neutral answers."""
        vector = self.mixed(mix)
        key = (vector.direction.numpy().tobytes(), strength, unit, vector.norm, vector.max_act)
        if key not in self._costs:
            self._costs[key] = self._meter(vector, strength, unit)
        return {"kl": self._costs[key], "strength": strength, "measures": measures(vector)}

    def strength_at(self, mix: Mix | None, kl: float, sign: int, unit: Unit) -> dict[str, Any]:
        """Return the strength that costs a KL.

        Raises:
            SteeringError: No strength does.
        """
        vector = self.mixed(mix)
        known = measures(vector)
        per = known[unit]
        if per is None:
            raise SteeringError(f"unit {unit!r} is not known for this vector; use another.")
        # 0.2 and 8 residual norms, in whatever unit.
        length = known["norm"] or vector.norm
        found = match_strength(
            self._meter,
            vector,
            kl,
            sign=sign,
            unit=unit,
            start=0.2 * length / per,
            largest=8.0 * length / per,
        )
        if not found.reached:
            raise SteeringError(
                f"no strength costs KL {kl:g}: the nearest is {found.kl:.3g} at "
                f"{found.strength:.3g} ({unit}); ask for another."
            )
        return {"kl": found.kl, "strength": found.strength, "measures": known}

    def read(self, text: str, feature: int | None) -> dict[str, Any]:
        """Return a text's tokens, each with a feature's activation and the features that fire most.

        Without a feature, or an SAE, the value is the activation's projection on the vector.
        """
        site = self.vector.site if self.sae is None else self.sae.site
        bos = None if self.sae is None else self.sae.prepend_bos
        rows = encode_texts(
            self.model.tokenizer, [text], prepend_bos=bos, max_length=context_length(self.model)
        )
        tokenizer: Any = self.model.tokenizer
        ids = [i for i, kept in zip(rows[0].ids, rows[0].kept, strict=True) if kept]
        pieces = [tokenizer.decode([i]) for i in ids]
        sites = list(dict.fromkeys((site, self.vector.site)))
        found = read_rows(self.model, rows, sites)
        codes = None if self.sae is None else self.sae.encode(found[site].values.float())
        if feature is None:
            values = found[self.vector.site].values.float() @ self.vector.direction
        elif codes is None or self.sae is None:
            raise SaeError("there is no SAE to read features with; start the app with --sae.")
        elif not 0 <= feature < self.sae.d_sae:
            raise SaeError(
                f"SAE {self.sae.name} has features 0 to {self.sae.d_sae - 1}; {feature} is none."
            )
        else:
            values = codes[:, feature]
        firing = [[] for _ in ids] if codes is None else [_strongest(row) for row in codes]
        named = sorted({index for row in firing for index, _ in row})
        return {
            "tokens": [
                {"text": piece, "value": float(value), "features": row}
                for piece, value, row in zip(pieces, values, firing, strict=True)
            ],
            "labels": {str(index): label for index, label in self.described(named).items()},
        }


def measures(vector: SteeringVector) -> dict[str, float | None]:
    """Return the L2 length of strength 1 in every unit, None where the vector does not carry it."""
    return {"norm": vector.residual_norm, "raw": 1.0, "max_act": vector.max_act}


def _weights(vector: SteeringVector) -> dict[int, float]:
    return {feature.index: feature.weight for feature in vector.sae_features}


def _strongest(codes: torch.Tensor) -> list[tuple[int, float]]:
    values, indices = codes.topk(min(FIRING, len(codes)))
    both = zip(indices.tolist(), values.tolist(), strict=True)
    return [(index, value) for index, value in both if value > 0]
