"""What is known of an SAE's features: a card for one, and the table that ships with the SAE."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.utils.errors import SaeError
from saesteer.utils.files import write_atomic
from saesteer.utils.text import one_line

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

DESCRIPTIONS_BY = "automatic: words and places of firing, read by nobody"
LOCAL = "the local table"
# Columns that tables of earlier versions lack.
_LATER = ("words",)


@dataclass(frozen=True)
class FeatureHit:
    """A feature found by words or by another feature."""

    feature: int
    description: str
    similarity: float | None = None  # How close it is, 0 to 1; None if not said.
    url: str | None = None  # Its dashboard, if it has one.


@dataclass(frozen=True)
class FeatureContext:
    """One place in the text where a feature fires."""

    text: str  # The firing token with some tokens around it; whole words from our own tables.
    token: str
    activation: float
    at: int | None = None  # Where in the text the token stands, if known.

    @property
    def parts(self) -> tuple[str, str, str]:
        """The text before the token, the token, and the text after it."""
        at = self.at
        if at is None:
            places = [
                place
                for place in range(len(self.text))
                if self.token and self.text.startswith(self.token, place)
            ]
            if not places:
                return self.text, "", ""
            # More stands before the token than after it, so of several the later one is meant.
            at = min(places, key=lambda place: abs(place - 0.7 * len(self.text)))
        return self.text[:at], self.token, self.text[at + len(self.token) :]

    def marked(self, opening: str = "[", closing: str = "]") -> str:
        """Return the text with the token in brackets, or between other marks."""
        before, token, after = self.parts
        return f"{before}{opening}{token}{closing}{after}" if token else before


@dataclass(frozen=True)
class FeatureCard:
    """What is known of a feature, whoever knows it: the SAE's own table or Neuronpedia."""

    feature: int
    description: str = ""
    by: str = ""  # Who says so, such as "gpt-4o-mini" or "the local table".
    url: str | None = None  # Its dashboard; None where Neuronpedia does not have the SAE.
    # On text, if known; by size, for SAEs with negative activations.
    max_activation: float | None = None
    density: float | None = None  # Share of tokens on which it fires, if known.
    # What its decoder row promotes most, by logit lens; whole words from our own tables.
    top_tokens: tuple[str, ...] = ()
    bottom_tokens: tuple[str, ...] = ()
    contexts: tuple[FeatureContext, ...] = ()  # The strongest first.
    words: tuple[str, ...] = ()  # On which it fires most in proportion to chance, if known.

    @property
    def label(self) -> str:
        """What it stands for; "" if unknown."""
        return self.description

    @property
    def promotes(self) -> tuple[str, ...]:
        return self.top_tokens

    @property
    def fires_on(self) -> tuple[str, ...]:
        """The words on which it fires most, else the tokens of its contexts, each once."""
        return self.words or tuple(dict.fromkeys(context.token for context in self.contexts))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def table(self) -> pd.DataFrame:
        """One row for each thing that is known."""
        import pandas as pd

        rows = {
            "label": self.label,
            "label by": self.by,
            "fires on": ", ".join(map(repr, self.fires_on)),
            "promotes": ", ".join(map(repr, self.promotes)),
            "demotes": ", ".join(map(repr, self.bottom_tokens)),
            "density": self.density,
            "max activation": self.max_activation,
            "url": self.url,
        }
        known = {name: value for name, value in rows.items() if value not in (None, "")}
        frame = pd.DataFrame({f"feature {self.feature}": known.values()}, index=list(known))
        return frame.astype(object)

    def _repr_html_(self) -> str:
        import pandas as pd

        places = "".join(
            f"<li>{place.activation:.2f}  {_emphasised(place)}</li>" for place in self.contexts
        )
        with pd.option_context("display.max_colwidth", None):
            return f"{self.table.to_html(render_links=True)}<ul>{places}</ul>"


def _emphasised(context: FeatureContext) -> str:
    before, token, after = map(escape, context.parts)
    return f"{before}<b>{token}</b>{after}"


@dataclass(frozen=True)
class FeatureTable:
    """A feature table from disk."""

    frame: pd.DataFrame  # As `build_feature_table` gives it.
    source: str  # The file it came from.
    # Whose words descriptions are that the table's maker did not write.
    explained_by: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def density(self) -> Float[np.ndarray, " feature"]:
        """Share of tokens on which each feature fires."""
        return self.frame["density"].to_numpy(dtype=np.float64)

    @property
    def max_activation(self) -> Float[np.ndarray, " feature"]:
        """Strongest activation of each feature on the table's text."""
        return self.frame["max_activation"].to_numpy(dtype=np.float64)

    def describe(self, index: int) -> str:
        """Return the automatic description of a feature.

        Raises:
            SaeError: The table has no such feature.
        """
        return str(self.frame["description"].iloc[self._checked(index)])

    def row(self, index: int, *, n_contexts: int = 5) -> FeatureCard:
        """Return all that the table knows of a feature.

        Raises:
            SaeError: The table has no such feature.
        """
        fields = self.frame.iloc[self._checked(index)]
        contexts = [
            FeatureContext(str(c["text"]), str(c["token"]), float(c["activation"]), c.get("at"))
            for c in fields["contexts"][:n_contexts]
        ]
        return FeatureCard(
            feature=int(fields["feature"]),
            description=str(fields["description"]),
            by=self.explained_by.get(int(fields["feature"]), LOCAL),
            max_activation=float(fields["max_activation"]),
            density=float(fields["density"]),
            top_tokens=tuple(map(str, fields["top_tokens"])),
            bottom_tokens=tuple(map(str, fields["bottom_tokens"])),
            contexts=tuple(contexts),
            words=tuple(map(str, fields["words"])),
        )

    def explained(self, known: Mapping[int, tuple[str, str]]) -> FeatureTable:
        """Return the table with other words for some features: phrase and who says so."""
        descriptions = self.frame["description"].to_list()
        for feature, (phrase, _) in known.items():
            descriptions[self._checked(feature)] = phrase
        frame = self.frame.assign(description=descriptions)
        return FeatureTable(frame, self.source, {i: by for i, (_, by) in known.items()})

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise SaeError(
                f"feature {index} is not in {self.source}, which has 0 to {len(self) - 1}; "
                "choose one of them, or the table of the right SAE."
            )
        return int(index)


def save_feature_table(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write the frame of `build_feature_table` as Parquet, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = pa.Table.from_pandas(table, schema=_schema(), preserve_index=False)
    data = data.replace_schema_metadata({"saesteer.descriptions": DESCRIPTIONS_BY})
    write_atomic(path, lambda draft: pq.write_table(data, draft, compression="zstd"))


def load_feature_table(path: str | os.PathLike[str]) -> FeatureTable:
    """Read a file of `save_feature_table`.

    Raises:
        SaeError: There is no such file, or it is no feature table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise SaeError(f"there is no feature table at {path}; build one for this SAE.")
    try:
        frame: Any = pq.read_table(path).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise SaeError(
            f"feature table {path} cannot be read ({one_line(error).rstrip('.')}); fetch or build "
            "it again."
        ) from error
    columns = _schema().names
    for name in _LATER:
        if name not in frame.columns:
            frame[name] = [[] for _ in range(len(frame))]
    missing = [name for name in columns if name not in frame.columns]
    if missing or not np.array_equal(frame["feature"], np.arange(len(frame))):
        fault = f"has no column {missing[0]}" if missing else "does not list every feature in order"
        raise SaeError(f"feature table {path} {fault}; build it again for this SAE.")
    return FeatureTable(frame[columns], os.fspath(path))


def _schema() -> pa.Schema:
    import pyarrow as pa

    context = pa.struct(
        [
            *(("text", pa.string()), ("token", pa.string())),
            *(("activation", pa.float32()), ("at", pa.int32())),
        ]
    )
    return pa.schema(
        [
            ("feature", pa.int32()),
            ("density", pa.float64()),
            ("max_activation", pa.float32()),
            ("mean_activation", pa.float32()),
            ("top_tokens", pa.list_(pa.string())),
            ("bottom_tokens", pa.list_(pa.string())),
            ("contexts", pa.list_(context)),
            ("words", pa.list_(pa.string())),
            ("description", pa.string()),
        ]
    )
