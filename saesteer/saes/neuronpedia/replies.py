"""What Neuronpedia answers, typed: unknown fields are tolerated, missing ones named."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from saesteer.saes.neuronpedia.links import SITE, dashboard_url
from saesteer.saes.table import FeatureCard, FeatureContext
from saesteer.utils.errors import NetworkError

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")
# The database behind the service has null where a list is empty.
Listed = Annotated[tuple[Item, ...], BeforeValidator(lambda value: value or ())]
TOKENS_BEFORE = 8
TOKENS_AFTER = 4
# Tokens come as the tokenizer spells them: spaces and line breaks as marks.
_MARKS = str.maketrans({"\u0120": " ", "\u2581": " ", "\u010a": "\n"})


class _Reply(BaseModel):
    # JSON knows no NaN, but Python's reader takes it.
    model_config = ConfigDict(
        extra="ignore", frozen=True, populate_by_name=True, allow_inf_nan=False
    )


class FeatureFacts(_Reply):
    """What is known of a feature but for its texts."""

    max_activation: float | None = Field(None, alias="maxActApprox")  # On the service's text.
    density: float | None = Field(None, alias="frac_nonzero")  # Share of tokens.
    top_tokens: Listed[str] = Field((), alias="pos_str")
    top_logits: Listed[float] = Field((), alias="pos_values")
    bottom_tokens: Listed[str] = Field((), alias="neg_str")
    bottom_logits: Listed[float] = Field((), alias="neg_values")


class Explanation(_Reply):
    description: str
    explainer: str | None = Field(None, alias="explanationModelName")
    kind: str | None = Field(None, alias="typeName")  # Such as "oai_token-act-pair".


class Activation(_Reply):
    """A text on which a feature fires: its tokens, and the activation on each."""

    tokens: Listed[str]
    values: Listed[float]
    largest: float | None = Field(None, alias="maxValue")
    at: int | None = Field(None, alias="maxValueTokenIndex")

    def context(self) -> FeatureContext:
        """Return the tokens around the one on which the feature fires most."""
        at, values = self.at, self.values[: len(self.tokens)]
        if at is None or not 0 <= at < len(self.tokens):
            at = max(range(len(values)), key=values.__getitem__) if values else 0
        around = "".join(self.tokens[max(0, at - TOKENS_BEFORE) : at + 1 + TOKENS_AFTER])
        value = max(self.values, default=0.0) if self.largest is None else self.largest
        return FeatureContext(around.translate(_MARKS), self.tokens[at].translate(_MARKS), value)


class Explained(_Reply):
    """Something with explanations, the best first."""

    explanations: Listed[Explanation]

    @property
    def best(self) -> Explanation | None:
        """The first explanation that has words."""
        return next((e for e in self.explanations if e.description.strip()), None)

    @property
    def description(self) -> str:
        return "" if self.best is None else self.best.description.strip()


class Place(_Reply):
    """Where a feature is: model, SAE and number."""

    model: str = Field(alias="modelId")
    source: str = Field(validation_alias=AliasChoices("layer", "source"))
    index: int


class Feature(Explained, FeatureFacts, Place):
    """A feature with what is known of it, texts strongest first."""

    activations: Listed[Activation]

    def card(self, *, n_contexts: int = 5, site: str = SITE) -> FeatureCard:
        """Return what it says as the card that the SAE's own table would give."""
        by = "" if self.best is None else self.best.explainer or self.best.kind
        return FeatureCard(
            self.index,
            self.description,
            by or "Neuronpedia",
            dashboard_url(f"{self.model}/{self.source}", self.index, site=site),
            self.max_activation,
            self.density,
            self.top_tokens,
            self.bottom_tokens,
            tuple(one.context() for one in self.activations[:n_contexts] if one.tokens),
        )


class ExplanationHit(Place):
    """An explanation found by its words; similarity is the cosine of the texts' embeddings."""

    description: str
    similarity: float | None = Field(None, alias="cosine_similarity")


class ExplanationPage(_Reply):
    """Up to 20 explanations and where the next ones start."""

    results: tuple[ExplanationHit, ...]
    more: bool = Field(False, alias="hasMore")
    next_offset: int | None = Field(None, alias="nextOffset")


class TextHit(Place):
    """A feature that fires on a text, with its activation on each token."""

    values: Listed[float]
    largest: float = Field(alias="maxValue")
    at: int = Field(alias="maxValueIndex")
    neuron: Explained | None = None

    @property
    def description(self) -> str:
        return "" if self.neuron is None else self.neuron.description


class TextSearch(_Reply):
    """The features that fire most on a text, and the text's tokens."""

    tokens: Listed[str]
    result: tuple[TextHit, ...]


class _Numbered(_Reply):
    index: int


class _Similar(_Reply):
    feature: _Numbered
    cosine: float = Field(
        validation_alias=AliasChoices("cosineSimilarity", "cosine_similarity", "cosine")
    )


class SimilarList(_Reply):
    """The features whose decoder rows are closest to another's, closest first."""

    similar: tuple[_Similar, ...] = Field(
        validation_alias=AliasChoices("topkDecoderCossimFeatures", "topk_decoder_cossim_features")
    )


def _last_said(turn: Any) -> Any:
    """Return what the assistant said last in a chat; all of it where that is not told."""
    if not isinstance(turn, dict):
        return turn
    messages = turn.get("chatTemplate") or turn.get("chat_template") or ()
    said = [m.get("content") for m in messages if m.get("role") in ("assistant", "model")]
    return said[-1] if said else turn.get("raw")


Said = Annotated[str, BeforeValidator(_last_said)]


class Steered(_Reply):
    """A completion or a chat's answer with and without steering, and a page that shows both."""

    steered: Said = Field(alias="STEERED")
    default: Said = Field(alias="DEFAULT")
    share_url: str | None = Field(None, alias="shareUrl")


class FeatureList(_Reply):
    url: str


class UploadedVector(_Reply):
    """A vector that was uploaded: its page, and where it is steered with as a feature is."""

    url: str
    vector: Place


def read_reply(kind: type[Model], value: Any, where: str) -> Model:
    """Return an answer as its type; `where` is what was asked, for the error.

    Raises:
        NetworkError: Fields are missing or of another kind, with their names.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        said = named_faults(error)
    # Outside the except block: a pydantic error would carry the whole answer along.
    raise NetworkError(
        f"Neuronpedia's answer to {where} {said}; its API may have changed, so look for a newer "
        "saesteer."
    )


def named_faults(error: ValidationError) -> str:
    """Return which fields are missing or of another kind: "lacks a and has another kind of b"."""
    missing, wrong = [], []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        name = ".".join(map(str, fault["loc"])) or "an object"
        (missing if fault["type"] == "missing" else wrong).append(name)
    said = [f"lacks {', '.join(missing[:5])}"] if missing else []
    said += [f"has another kind of {', '.join(wrong[:5])}"] if wrong else []
    return " and ".join(said)
