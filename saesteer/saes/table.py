"""The feature table that ships with an SAE: what each feature fires on and promotes, offline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.models.reading import read_rows
from saesteer.models.tokens import TokenRow
from saesteer.saes.adapter import Sae, check_compatible
from saesteer.saes.lens import TokenTexts, extreme_tokens
from saesteer.utils.errors import DataError, SaeError
from saesteer.utils.files import write_atomic
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from transformer_lens.model_bridge import TransformerBridge

ROWS_AT_ONCE = 256
N_TOP = 8
N_BOTTOM = 5
DESCRIPTIONS_BY = "automatic: firing tokens and logit lens, read by nobody"
COLUMNS = (
    "feature",
    "density",
    "max_activation",
    "mean_activation",
    "top_tokens",
    "bottom_tokens",
    "contexts",
    "description",
)


@dataclass(frozen=True)
class FeatureContext:
    """One place in the text where a feature fires.

    Attributes:
        text: The firing token with some tokens around it.
        token: The firing token.
        activation: How strongly it fires there.
    """

    text: str
    token: str
    activation: float


@dataclass(frozen=True)
class FeatureRow:
    """What the table knows of one feature.

    Attributes:
        feature: Its index in the SAE.
        density: Share of tokens on which it fires.
        max_activation: Its strongest activation (by size, for SAEs with negative ones).
        mean_activation: Mean size of its activation where it fires; 0 if it never did.
        top_tokens: Tokens that its decoder direction promotes most, by logit lens.
        bottom_tokens: Tokens that it demotes most.
        contexts: Where it fires most strongly, each from another row of text.
        description: A line made from these by rule, not by a reader.
    """

    feature: int
    density: float
    max_activation: float
    mean_activation: float
    top_tokens: tuple[str, ...]
    bottom_tokens: tuple[str, ...]
    contexts: tuple[FeatureContext, ...]
    description: str


@dataclass(frozen=True)
class FeatureTable:
    """A feature table from disk.

    Attributes:
        frame: The columns of `build_feature_table`, one row for each feature in order.
        source: The file it came from.
    """

    frame: pd.DataFrame
    source: str

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

    def row(self, index: int) -> FeatureRow:
        """Return all that the table knows of a feature.

        Raises:
            SaeError: The table has no such feature.
        """
        fields = self.frame.iloc[self._checked(index)]
        return FeatureRow(
            feature=int(fields["feature"]),
            density=float(fields["density"]),
            max_activation=float(fields["max_activation"]),
            mean_activation=float(fields["mean_activation"]),
            top_tokens=tuple(map(str, fields["top_tokens"])),
            bottom_tokens=tuple(map(str, fields["bottom_tokens"])),
            contexts=tuple(
                FeatureContext(str(c["text"]), str(c["token"]), float(c["activation"]))
                for c in fields["contexts"]
            ),
            description=str(fields["description"]),
        )

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise SaeError(
                f"feature {index} is not in {self.source}, which has 0 to {len(self) - 1}; "
                "choose one of them, or the table of the right SAE."
            )
        return int(index)


def build_feature_table(
    model: TransformerBridge,
    sae: Sae,
    rows: Sequence[TokenRow],
    *,
    n_contexts: int = 5,
    context_tokens: int = 12,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Describe every feature of an SAE from one pass over text and from the logit lens.

    Args:
        model: The model.
        sae: The SAE.
        rows: Tokenised text; only kept tokens count and are shown.
        n_contexts: The most contexts of a feature, each from another row.
        context_tokens: Tokens in a context, the firing one among them.
        progress: Where to show progress.

    Returns:
        One row for each feature, columns as the attributes of `FeatureRow`; contexts are
        dictionaries of text, token and activation.

    Raises:
        MismatchError: The SAE's width is not the model's.
        SiteError: The model has no such site.
        DataError: There is no text, or a row keeps no token.
    """
    import pandas as pd

    check_compatible(model, sae)
    if not rows:
        raise DataError("the feature table needs text; give at least one row.")
    stats = _Stats.empty(sae.d_sae, n_contexts)
    task = (progress or Progress()).task("describing features", total=len(rows), unit="rows")
    with task:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            block = rows[start : start + ROWS_AT_ONCE]
            stats = _extended(stats, model, sae, block, start)
            task.advance(len(block))
    texts = TokenTexts(model.tokenizer)
    top, bottom = extreme_tokens(model, sae, texts, n_top=N_TOP, n_bottom=N_BOTTOM)
    contexts = [
        _contexts(stats, feature, rows, texts, context_tokens) for feature in range(sae.d_sae)
    ]
    return pd.DataFrame(
        {
            "feature": np.arange(sae.d_sae),
            "density": (stats.fired / max(1, stats.tokens)).numpy(),
            "max_activation": stats.maximum.numpy(),
            "mean_activation": (stats.total / stats.fired.clamp_min(1)).numpy(),
            "top_tokens": top,
            "bottom_tokens": bottom,
            "contexts": contexts,
            "description": [_description(c, t) for c, t in zip(contexts, top, strict=True)],
        }
    )


def save_feature_table(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a feature table as Parquet.

    Args:
        table: From `build_feature_table`.
        path: The file; its folder is made if it is not there.

    Raises:
        OutputError: The file cannot be written; nothing half-written is left.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = pa.Table.from_pandas(table, schema=_schema(), preserve_index=False)
    data = data.replace_schema_metadata({"saesteer.descriptions": DESCRIPTIONS_BY})
    write_atomic(path, lambda draft: pq.write_table(data, draft, compression="zstd"))


def load_feature_table(path: str | os.PathLike[str]) -> FeatureTable:
    """Read a feature table.

    Args:
        path: A file from `save_feature_table`.

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
        text = " ".join(str(error).split())[:200].rstrip(".")
        raise SaeError(
            f"feature table {path} cannot be read ({text}); fetch or build it again."
        ) from error
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing or not np.array_equal(frame["feature"], np.arange(len(frame))):
        fault = f"has no column {missing[0]}" if missing else "does not list every feature in order"
        raise SaeError(f"feature table {path} {fault}; build it again for this SAE.")
    return FeatureTable(frame[list(COLUMNS)], os.fspath(path))


def _schema() -> pa.Schema:
    import pyarrow as pa

    context = pa.struct(
        [("text", pa.string()), ("token", pa.string()), ("activation", pa.float32())]
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
            ("description", pa.string()),
        ]
    )


@dataclass(frozen=True)
class _Stats:
    """What has been seen so far; the strongest rows of each feature, strongest first."""

    tokens: int
    fired: Int[Tensor, " feature"]
    total: Float[Tensor, " feature"]
    maximum: Float[Tensor, " feature"]
    strongest: Float[Tensor, "n_contexts feature"]
    signed: Float[Tensor, "n_contexts feature"]
    row: Int[Tensor, "n_contexts feature"]
    token: Int[Tensor, "n_contexts feature"]

    @classmethod
    def empty(cls, d_sae: int, n_contexts: int) -> _Stats:
        nothing = torch.zeros((n_contexts, d_sae))
        nowhere = torch.full((n_contexts, d_sae), -1)
        zeros = torch.zeros(d_sae, dtype=torch.float64)
        return cls(0, zeros, zeros, torch.zeros(d_sae), nothing, nothing, nowhere, nowhere)


def _extended(
    stats: _Stats, model: TransformerBridge, sae: Sae, block: Sequence[TokenRow], start: int
) -> _Stats:
    read = read_rows(model, block, [sae.site])[sae.site]
    fired, total = stats.fired.clone(), stats.total.clone()
    peaks: list[tuple[Tensor, Tensor, Tensor]] = []
    for index in range(read.n_texts):
        codes = sae.encode(read.text(index)).cpu()
        size = codes.abs()
        fired += (codes != 0).sum(dim=0)
        total += size.sum(dim=0, dtype=torch.float64)
        peak, token = size.max(dim=0)
        peaks.append((peak, codes.gather(0, token[None])[0], token))
    peak, signed, token = (torch.stack(part) for part in zip(*peaks, strict=True))
    row = torch.arange(start, start + len(block))[:, None].expand_as(token)
    strongest = torch.cat([stats.strongest, peak])
    # Stable, so that of equal contexts the earlier row wins in every run.
    order = strongest.argsort(dim=0, descending=True, stable=True)[: len(stats.strongest)]
    return _Stats(
        stats.tokens + len(read.values),
        fired,
        total,
        torch.maximum(stats.maximum, peak.amax(dim=0)),
        strongest.gather(0, order),
        torch.cat([stats.signed, signed]).gather(0, order),
        torch.cat([stats.row, row]).gather(0, order),
        torch.cat([stats.token, token]).gather(0, order),
    )


def _contexts(
    stats: _Stats, feature: int, rows: Sequence[TokenRow], texts: TokenTexts, width: int
) -> list[dict[str, Any]]:
    found = []
    for rank in range(len(stats.strongest)):
        if stats.strongest[rank, feature] <= 0:
            break
        row = rows[int(stats.row[rank, feature])]
        place = int(np.flatnonzero(row.kept)[int(stats.token[rank, feature])])
        first, last = _window(row, place, width)
        found.append(
            {
                "text": texts.span(row.ids[first:last]),
                "token": texts.one(row.ids[place]),
                "activation": float(stats.signed[rank, feature]),
            }
        )
    return found


def _window(row: TokenRow, place: int, width: int) -> tuple[int, int]:
    """Return where a context starts and ends: kept tokens only, more before than after."""
    lowest, highest = place, place + 1
    while lowest > 0 and row.kept[lowest - 1]:
        lowest -= 1
    while highest < len(row) and row.kept[highest]:
        highest += 1
    first = max(lowest, place - (width - 1) * 2 // 3)
    last = min(highest, first + max(1, width))
    return max(lowest, min(first, last - max(1, width))), last


def _description(contexts: Sequence[dict[str, Any]], top: Sequence[str]) -> str:
    tokens = dict.fromkeys(context["token"].strip() or context["token"] for context in contexts)
    fires = f"fires on {_quoted(tokens, 3)}" if tokens else "never fired on the table's text"
    return f"{fires}; promotes {_quoted(top, 3)}" if top else fires


def _quoted(tokens: Sequence[str] | dict[str, None], most: int) -> str:
    shown = []
    for token in list(tokens)[:most]:
        plain = token.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
        shown.append(f'"{plain}"')
    return ", ".join(shown)
