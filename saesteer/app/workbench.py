"""What the page works with: one model, one vector taken apart into features, no web."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saesteer.app.evidence import Evidence
from saesteer.evaluation.text_quality import completion_nll, repeated_share
from saesteer.methods.features import vector_of_features
from saesteer.models import chat_prompt
from saesteer.models.loading import context_length, model_info
from saesteer.models.reading import read_rows
from saesteer.models.tokens import encode_texts, has_chat_template
from saesteer.probes.readout import read_texts_with
from saesteer.saes.adapter import check_compatible
from saesteer.saes.labels import known_descriptions, own_table
from saesteer.saes.sources import search_features
from saesteer.steering import SteeringVector, Unit, generate
from saesteer.steering.apply import check_belongs
from saesteer.steering.divergence import DivergenceMeter, neutral_rows, strength_at_kl
from saesteer.utils.errors import MismatchError, SaeError, SteeringError
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import finite

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.probes import ProbeSet
    from saesteer.probes.readout import TokenReading
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

    Args:
        others: Vectors to compare it with, by what they are called on the page. Where a method
            below takes the number of a vector, 0 is the mix and they follow from 1 on.
        probes: What a text's tokens are read with, too.
        evidence: What a run knows of what is written.

    Raises:
        MismatchError: Model, vectors, SAE and probes do not belong together.
    """

    def __init__(
        self,
        model: TransformerBridge,
        vector: SteeringVector,
        sae: LensSae | None = None,
        *,
        others: Mapping[str, SteeringVector] | None = None,
        probes: ProbeSet | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        self.others = dict(others or {})
        for one in (vector, *self.others.values()):
            check_belongs(model, one)
        if probes is not None:
            probes.check_belongs(model)
        self.model, self.vector, self.sae, self.probes = model, vector, sae, probes
        self.evidence = evidence or Evidence()
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
        return like(self.vector, left, name=f"rest of {self.vector.name}")

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
        if self.vector.parts:
            raise SteeringError(
                f"vector {self.vector.name!r} is at {self.vector.place}, and a mix is of one site; "
                "leave its features as they are."
            )
        if weights and self.sae is None:
            raise SaeError("there is no SAE to take features from; start the app with --sae.")
        parts = [self._of_features(weights)] if weights else []
        if share and self.rest is not None:
            parts.append(self.rest.scaled(share))
        if not parts:
            raise SteeringError("every feature is switched off; switch one on, or add one.")
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def _chosen(self, mix: Mix | None, number: int) -> SteeringVector:
        if not number:
            return self.mixed(mix)
        if number > len(self.others):
            raise SteeringError(f"there is no vector {number} to compare with; reload the page.")
        return list(self.others.values())[number - 1]

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
            "vector": {"name": vector.name, "method": vector.method, "site": vector.place},
            "sae": None if self.sae is None else self.sae.name,
            "others": list(self.others),
            "report": self.evidence.report is not None,
            "judged": self.evidence.judged,
            "probe": None if self.probes is None else self._probe_facts(self.probes),
            "search": self.sae is not None,
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

    def _probe_facts(self, probes: ProbeSet) -> dict[str, Any]:
        return {"name": probes.name, "layer": probes.best, "classes": list(probes.classes)}

    def search(self, words: str, limit: int = 12) -> dict[str, Any]:
        """Return the features found for some words, and by what; see `search_features`.

        Raises:
            SaeError: There is nothing to search.
        """
        if self.sae is None:
            raise SaeError("there is no SAE whose features to search; start the app with --sae.")
        hits, how = search_features(self.sae, self.table, words, limit)
        return {
            "how": how,
            "features": [
                {"index": hit.feature, "label": hit.description, "url": hit.url}
                | self._facts(hit.feature)
                for hit in hits
            ],
        }

    def _prompt(
        self, prompt: str, chat: bool, earlier: Sequence[tuple[str, str]], system: str | None
    ) -> str:
        if not (chat and prompt.strip()):
            return prompt
        return chat_prompt(self.model.tokenizer, prompt, system, earlier)

    def write(
        self,
        prompt: str,
        columns: Sequence[tuple[int, float]],
        unit: Unit,
        mix: Mix | None,
        on_piece: Callable[[int, str], None],
        *,
        chat: bool,
        earlier: Sequence[tuple[str, str]] = (),
        system: str | None = None,
        **sampling: Any,
    ) -> list[dict[str, Any]]:
        """Answer a prompt in columns, each a vector's number and its strength, as one batch.

        See `generate` for the rest.
        """
        result = generate(
            self.model,
            self._prompt(prompt, chat, earlier, system),
            # A plain column has no use for the mix, in which everything may be switched off.
            [self._chosen(mix, number) if by else self.vector for number, by in columns],
            [strength for _, strength in columns],
            unit,
            chat=False,
            top_p=TOP_P,
            on_piece=on_piece,
            side_by_side=True,
            **sampling,
        )
        return [
            {"text": record.text, "tokens": record.n_tokens, "finished": record.finished}
            for record in result.records
        ]

    def fluency(
        self,
        prompt: str,
        texts: Sequence[str],
        *,
        chat: bool,
        earlier: Sequence[tuple[str, str]] = (),
        system: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return each answer's perplexity under the plain model and its share of repeated 4-grams.

        None is missing: an answer is empty, or too short.
        """
        asked = self._prompt(prompt, chat, earlier, system)
        nll = completion_nll(self.model, [asked] * len(texts), texts, chat=False)
        return [
            finite({"perplexity": float(np.exp(one)), "repeated": repeated_share(text)})
            for one, text in zip(nll, texts, strict=True)
        ]

    @cached_property
    def _meter(self) -> DivergenceMeter:
        return DivergenceMeter(self.model, neutral_rows(self.model), site=self.vector.site)

    def cost(self, mix: Mix | None, strength: float, unit: Unit, vector: int = 0) -> dict[str, Any]:
        """Return KL(steered || base) at a strength, in nats per token on the neutral answers.

        It is None where the strength is more than numbers can hold.
        """
        chosen = self._chosen(mix, vector)
        kl = self._cost(chosen, strength, unit)
        return finite({"kl": kl, "strength": strength, "measures": measures(chosen)})

    def _cost(self, vector: SteeringVector, strength: float, unit: Unit) -> float:
        directions = [(piece.direction.numpy().tobytes(), piece.norm) for piece in vector.pieces]
        key = (*directions, strength, unit, vector.max_act)
        if key not in self._costs:
            self._costs[key] = self._meter(vector, strength, unit)
        return self._costs[key]

    def strength_at(
        self, mix: Mix | None, kl: float, unit: Unit, vector: int = 0
    ) -> dict[str, Any]:
        """Return the strength that costs a KL; see `strength_at_kl`."""
        chosen = self._chosen(mix, vector)
        found = strength_at_kl(lambda s: self._cost(chosen, s, unit), chosen, kl, unit)
        return {"kl": found.kl, "strength": found.strength, "measures": measures(chosen)}

    def read(self, text: str, feature: int | None, *, probe: bool = False) -> dict[str, Any]:
        """Return a text's tokens, each with a value and the features that fire most.

        The value is the probe's P(last class) - P(first class), a feature's activation, or without
        either the activation's projection on the vector.

        Raises:
            SaeError: There is no such feature.
            MismatchError: There is no probe, or it cannot read this model.
        """
        site = self.vector.site if self.sae is None else self.sae.site
        bos = None if self.sae is None else self.sae.prepend_bos
        tokenizer: Any = self.model.tokenizer
        rows = encode_texts(
            tokenizer, [text], prepend_bos=bos, max_length=context_length(self.model)
        )
        ids = [i for i, kept in zip(rows[0].ids, rows[0].kept, strict=True) if kept]
        pieces = [tokenizer.decode([i]) for i in ids]
        found = read_rows(self.model, rows, list(dict.fromkeys((site, self.vector.site))))
        codes = None if self.sae is None else self.sae.encode(found[site].values.float())
        firing = [[] for _ in ids] if codes is None else [_strongest(row) for row in codes]
        if probe:
            read = self._read_with_probe(text)
            # Words before the text, which some probes were trained with, may part it otherwise.
            firing = firing if list(read.tokens) == pieces else [[] for _ in read.tokens]
            pieces, values = read.tokens, read.lean()[0]
        elif feature is None:
            values = found[self.vector.site].values.float() @ self.vector.direction
        elif codes is None or self.sae is None:
            raise SaeError("there is no SAE to read features with; start the app with --sae.")
        elif not 0 <= feature < self.sae.d_sae:
            raise SaeError(
                f"SAE {self.sae.name} has features 0 to {self.sae.d_sae - 1}; {feature} is none."
            )
        else:
            values = codes[:, feature]
        named = sorted({index for row in firing for index, _ in row})
        return {
            "tokens": [
                {"text": piece, "value": float(value), "features": row}
                for piece, value, row in zip(pieces, values, firing, strict=True)
            ],
            "labels": {str(index): label for index, label in self.described(named).items()},
        }

    def _read_with_probe(self, text: str) -> TokenReading:
        if self.probes is None:
            raise MismatchError("there is no probe to read with; start the app with --probe RUN.")
        return read_texts_with(self.model, self.probes, [text], [self.probes.best])[0]


def like(vector: SteeringVector, raw: torch.Tensor, **named: Any) -> SteeringVector:
    """Return a vector of other numbers, and of no features, in a vector's place."""
    kept = ("site", "model", "model_fingerprint", "residual_norm", "positions", "method")
    return SteeringVector.from_raw(raw, **{name: getattr(vector, name) for name in kept} | named)


def measures(vector: SteeringVector) -> dict[str, float | None]:
    """Return the L2 length of strength 1 in every unit, None where the vector does not carry it."""
    return {"norm": vector.residual_norm, "raw": 1.0, "max_act": vector.max_act}


def _weights(vector: SteeringVector) -> dict[int, float]:
    return {feature.index: feature.weight for feature in vector.sae_features}


def _strongest(codes: torch.Tensor) -> list[tuple[int, float]]:
    values, indices = codes.topk(min(FIRING, len(codes)))
    both = zip(indices.tolist(), values.tolist(), strict=True)
    return [(index, value) for index, value in both if value > 0]
