"""What a run says, put into W&B's own calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saesteer.tracking.redaction import redact

MOST_ROWS = 10_000


class WandbCalls:
    """Calls a W&B run; each method has the name and the arguments that `RecordedRun` passes on.

    Args:
        run: What `wandb.init` gave.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        self._defined: set[str] = set()
        self._no_answer = False

    def tell(self, what: str, *arguments: Any) -> None:
        """Call the method of a name."""
        {
            "timings": self.timings,
            "log": self.log,
            "curve": self.curve,
            "table": self.table,
            "figure": self.figure,
            "artifact": self.artifact,
            "summary": self.summary,
        }[what](*arguments)

    def timings(self, seconds: Mapping[str, float]) -> None:
        """Put stages' seconds into the summary."""
        self._run.summary.update({"seconds": dict(seconds)})

    def log(self, record: Mapping[str, Any]) -> None:
        """Log one point; "step" is the horizontal axis where there is one."""
        values = {key: value for key, value in record.items() if value is not None}
        if "step" in values:
            self._define("step", hidden=True)
            for name in values:
                if name != "step":
                    self._define(name, step_metric="step")
        self._run.log(values)

    def curve(self, name: str, points: Sequence[Mapping[str, Any]], x: str) -> None:
        """Log a whole curve over an axis of its own."""
        axis = f"{name}/{x}"
        self._define(axis, hidden=True)
        self._define(f"{name}/*", step_metric=axis)
        for point in points:
            self._run.log({f"{name}/{k}": v for k, v in point.items() if v is not None})

    def table(self, name: str, frame: Any) -> None:
        """Log a table, its first 10,000 rows; one without any is left out."""
        import pandas as pd
        import wandb

        if self._no_answer:
            return
        data = frame if isinstance(frame, pd.DataFrame) else pd.DataFrame(list(frame))
        if data.empty:
            return
        rows: list[Any] = [
            [_cell(value) for value in row] for row in data.head(MOST_ROWS).to_numpy(object)
        ]
        columns: list[Any] = [str(column) for column in data.columns]
        made = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        self._ask(lambda: self._run.log({f"tables/{name}": made}))

    def figure(self, name: str, figure: Any) -> None:
        """Log a Plotly figure, a page or a picture."""
        import wandb

        key = f"figures/{name}"
        if not isinstance(figure, str | Path):
            self._run.log({key: wandb.Plotly(figure)})
        elif Path(figure).suffix.lower() in (".html", ".htm"):
            page = Path(figure).read_text(encoding="utf-8")
            self._run.log({key: wandb.Html(page, inject=False)})
        else:
            self._run.log({key: wandb.Image(str(figure))})

    def artifact(self, name: str, path: Path, kind: str) -> None:
        """Log a file or a folder as an artifact, without a copy on this disk."""
        import wandb

        if self._no_answer:
            return
        made = wandb.Artifact(_artifact_name(f"{self._run.name or self._run.id}-{name}"), kind)
        if path.is_dir():
            made.add_dir(str(path), policy="immutable", skip_cache=True)
        else:
            made.add_file(str(path), policy="immutable", skip_cache=True)
        self._ask(lambda: self._run.log_artifact(made))

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Put metrics into the summary."""
        self._run.summary.update(dict(metrics))

    def _ask(self, call: Callable[[], Any]) -> None:
        # These calls ask the server first, and wait long when it is silent: once is enough.
        self._no_answer = True
        call()
        self._no_answer = False

    def _define(self, name: str, **how: Any) -> None:
        if name not in self._defined:
            self._defined.add(name)
            self._run.define_metric(name, **how)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return redact(value)
    if isinstance(value, float):
        return None if value != value else float(value)
    if hasattr(value, "tolist"):
        return _cell(value.tolist())
    try:
        return json.dumps(redact(value))
    except (TypeError, ValueError):
        return str(value)


def _artifact_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:128]
