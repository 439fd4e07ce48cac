"""What Neuronpedia answers, typed: unknown fields are tolerated, missing ones named."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from saesteer.utils.errors import NetworkError

Model = TypeVar("Model", bound=BaseModel)
# The database behind the service has null where a list is empty.
_or_empty = BeforeValidator(lambda value: value or ())
Texts = Annotated[tuple[str, ...], _or_empty]
Numbers = Annotated[tuple[float, ...], _or_empty]


class _Reply(BaseModel):
    # JSON knows no NaN, but Python's reader takes it.
    model_config = ConfigDict(
        extra="ignore", frozen=True, populate_by_name=True, allow_inf_nan=False
    )


class FeatureFacts(_Reply):
    """What is known of a feature but for its texts."""

    max_activation: float | None = Field(None, alias="maxActApprox")  # On the service's text.
    density: float | None = Field(None, alias="frac_nonzero")  # Share of tokens.
    top_tokens: Texts = Field((), alias="pos_str")
    top_logits: Numbers = Field((), alias="pos_values")
    bottom_tokens: Texts = Field((), alias="neg_str")
    bottom_logits: Numbers = Field((), alias="neg_values")


class Explanation(_Reply):
    """What a feature stands for, in words."""

    description: str
    explainer: str | None = Field(None, alias="explanationModelName")
    kind: str | None = Field(None, alias="typeName")  # Such as "oai_token-act-pair".
    scores: Annotated[tuple[dict[str, Any], ...], _or_empty] = ()


class Activation(_Reply):
    """A text on which a feature fires: its tokens, and the activation on each."""

    tokens: Texts
    values: Numbers
    largest: float | None = Field(None, alias="maxValue")
    at: int | None = Field(None, alias="maxValueTokenIndex")


class Place(_Reply):
    """Where a feature is: model, SAE and number."""

    model: str = Field(alias="modelId")
    source: str = Field(validation_alias=AliasChoices("layer", "source"))
    index: int


class Feature(Place, FeatureFacts):
    """A feature with what is known of it, explanations best and texts strongest first."""

    explanations: Annotated[tuple[Explanation, ...], _or_empty]
    activations: Annotated[tuple[Activation, ...], _or_empty]

    @property
    def description(self) -> str:
        """The best explanation; "" without one."""
        return next((e.description.strip() for e in self.explanations if e.description.strip()), "")


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

    values: Numbers
    largest: float = Field(alias="maxValue")
    at: int = Field(alias="maxValueIndex")
    neuron: dict[str, Any] | None = None

    @property
    def description(self) -> str:
        """The best explanation; "" without one."""
        listed = (self.neuron or {}).get("explanations") or ()
        words = (e.get("description") for e in listed if isinstance(e, dict))
        return next((w.strip() for w in words if isinstance(w, str) and w.strip()), "")


class TextSearch(_Reply):
    """The features that fire most on a text, and the text's tokens."""

    tokens: Texts
    result: tuple[TextHit, ...]


class _OtherPlace(_Reply):
    model: str | None = None
    source: str
    index: int


class Similar(_Reply):
    """A feature with a decoder row close to another's."""

    feature: _OtherPlace
    cosine: float = Field(
        validation_alias=AliasChoices("cosineSimilarity", "cosine_similarity", "cosine")
    )

    @property
    def index(self) -> int:
        """The feature's number."""
        return self.feature.index


class SimilarList(_Reply):
    """The closest features, closest first."""

    similar: tuple[Similar, ...] = Field(
        validation_alias=AliasChoices(
            "topkDecoderCossimFeatures", "topk_decoder_cossim_features", "similar"
        )
    )


class FeatureList(_Reply):
    """A list of features that was made, and its page."""

    url: str
    id: str | None = None
    name: str | None = None


class Steered(_Reply):
    """A completion with and without steering, and a page that shows both."""

    steered: str = Field(alias="STEERED")
    default: str = Field(alias="DEFAULT")
    share_url: str | None = Field(None, alias="shareUrl")


class ChatMessage(_Reply):
    """One message of a chat."""

    role: str
    content: str


class SteeredTurn(_Reply):
    """A chat that was completed: whole with its template, and message by message."""

    raw: str
    messages: Annotated[tuple[ChatMessage, ...], _or_empty] = Field(
        (), validation_alias=AliasChoices("chatTemplate", "chat_template", "messages")
    )

    @property
    def text(self) -> str:
        """What the assistant said last; the whole chat where the service does not tell."""
        answers = [m.content for m in self.messages if m.role in ("assistant", "model")]
        return answers[-1] if answers else self.raw


class SteeredChat(_Reply):
    """A chat's answer with and without steering."""

    steered: SteeredTurn = Field(alias="STEERED")
    default: SteeredTurn = Field(alias="DEFAULT")
    share_url: str | None = Field(None, alias="shareUrl")


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
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    missing = [_name(fault["loc"]) for fault in faults if fault["type"] == "missing"]
    wrong = [_name(fault["loc"]) for fault in faults if fault["type"] != "missing"]
    said = [f"lacks {', '.join(missing[:5])}"] if missing else []
    said += [f"has another kind of {', '.join(wrong[:5])}"] if wrong else []
    return " and ".join(said)


def _name(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place)) or "an object"
