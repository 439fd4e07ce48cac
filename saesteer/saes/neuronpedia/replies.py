"""What Neuronpedia answers, typed: unknown fields are tolerated, missing ones named."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from saesteer.utils.errors import NetworkError

Model = TypeVar("Model", bound=BaseModel)
# The database behind the service has null where a list is empty.
Texts = Annotated[tuple[str, ...], BeforeValidator(lambda value: value or ())]
Numbers = Annotated[tuple[float, ...], BeforeValidator(lambda value: value or ())]


class _Reply(BaseModel):
    # JSON knows no NaN, but Python's reader takes it.
    model_config = ConfigDict(
        extra="ignore", frozen=True, populate_by_name=True, allow_inf_nan=False
    )


class FeatureFacts(_Reply):
    """What is known of a feature but for its texts.

    Attributes:
        max_activation: Its largest activation on the service's text.
        density: Share of tokens on which it fires.
        top_tokens: Tokens that it promotes, with `top_logits`.
        bottom_tokens: Tokens that it demotes, with `bottom_logits`.
    """

    max_activation: float | None = Field(None, alias="maxActApprox")
    density: float | None = Field(None, alias="frac_nonzero")
    top_tokens: Texts = Field((), alias="pos_str")
    top_logits: Numbers = Field((), alias="pos_values")
    bottom_tokens: Texts = Field((), alias="neg_str")
    bottom_logits: Numbers = Field((), alias="neg_values")


class Explanation(_Reply):
    """What a feature stands for, in words.

    Attributes:
        description: The words.
        explainer: The model that wrote them, if said.
        kind: How they came about, such as "oai_token-act-pair".
        scores: How well they predict the feature, as the service gives them.
    """

    description: str
    explainer: str | None = Field(None, alias="explanationModelName")
    kind: str | None = Field(None, alias="typeName")
    scores: Annotated[tuple[dict[str, Any], ...], BeforeValidator(lambda value: value or ())] = ()


class Activation(_Reply):
    """A text on which a feature fires.

    Attributes:
        tokens: Its tokens.
        values: The feature's activation on each.
        largest: The largest of these.
        at: The token on which that is.
    """

    tokens: Texts
    values: Numbers
    largest: float | None = Field(None, alias="maxValue")
    at: int | None = Field(None, alias="maxValueTokenIndex")


class Feature(FeatureFacts):
    """A feature with what is known of it.

    Attributes:
        model: The model's id.
        source: The SAE's id.
        index: The feature's number.
        explanations: What it stands for, best first.
        activations: Texts on which it fires, strongest first.
    """

    model: str = Field(alias="modelId")
    source: str = Field(alias="layer")
    index: int
    explanations: Annotated[tuple[Explanation, ...], BeforeValidator(lambda v: v or ())]
    activations: Annotated[tuple[Activation, ...], BeforeValidator(lambda v: v or ())]

    @property
    def description(self) -> str:
        """The best explanation; "" without one."""
        return next((e.description.strip() for e in self.explanations if e.description.strip()), "")


class ExplanationHit(_Reply):
    """An explanation found by its words.

    Attributes:
        model: The model's id.
        source: The SAE's id.
        index: The feature's number.
        description: The explanation.
        similarity: Cosine of the two texts' embeddings, if said.
    """

    model: str = Field(alias="modelId")
    source: str = Field(alias="layer")
    index: int
    description: str
    similarity: float | None = Field(None, alias="cosine_similarity")


class ExplanationPage(_Reply):
    """Up to 20 explanations and where the next ones start."""

    results: tuple[ExplanationHit, ...]
    more: bool = Field(False, alias="hasMore")
    next_offset: int | None = Field(None, alias="nextOffset")


class TextHit(_Reply):
    """A feature that fires on a text.

    Attributes:
        model: The model's id.
        source: The SAE's id.
        index: The feature's number.
        values: Its activation on each token.
        largest: The largest of these.
        at: The token on which that is.
    """

    model: str = Field(alias="modelId")
    source: str = Field(alias="layer")
    index: int
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


class _Place(_Reply):
    model: str | None = None
    source: str
    index: int


class Similar(_Reply):
    """A feature with a decoder row close to another's.

    Attributes:
        feature: Where it is: source and index.
        cosine: Cosine of the two rows.
    """

    feature: _Place
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
    """A list of features that was made.

    Attributes:
        url: Its page.
        id: Its id.
        name: Its name.
    """

    url: str
    id: str | None = None
    name: str | None = None


class Steered(_Reply):
    """A completion with and without steering.

    Attributes:
        steered: The steered text.
        default: The text without steering.
        share_url: A page that shows both.
    """

    steered: str = Field(alias="STEERED")
    default: str = Field(alias="DEFAULT")
    share_url: str | None = Field(None, alias="shareUrl")


class ChatMessage(_Reply):
    """One message of a chat."""

    role: str
    content: str


class SteeredTurn(_Reply):
    """A chat that was completed.

    Attributes:
        raw: The whole chat with its template.
        messages: The same, message by message.
    """

    raw: str
    messages: Annotated[tuple[ChatMessage, ...], BeforeValidator(lambda v: v or ())] = Field(
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


class _VectorPlace(_Reply):
    model: str = Field(alias="modelId")
    source: str
    index: int


class UploadedVector(_Reply):
    """A vector that was uploaded.

    Attributes:
        url: Its page.
        vector: Its model, source and index, by which it is steered with as a feature is.
    """

    url: str
    vector: _VectorPlace


def read_reply(kind: type[Model], value: Any, where: str) -> Model:
    """Return an answer as its type.

    Args:
        kind: The type.
        value: The answer's JSON.
        where: What was asked, for the error.

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
