"""What experiments found: looked up by path, aggregated, and held against claims."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from saesteer.agent.state import Experiment, State
from saesteer.experiments.results import METRICS, RECORD
from saesteer.utils.errors import DataError, OutputError
from saesteer.utils.run_folder import RunFolder

Verdict = Literal["supported", "named", "contradicted", "unsupported"]
RECORDED = "recorded"
SHOWN_NUMBERS = 16
# Numbers are quoted to three or four digits.
TOLERANCE = 5e-3


def metrics_of(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment's metrics, and as "recorded" the few that a list of runs shows."""
    if experiment.status != "finished" or experiment.folder is None:
        raise DataError(f"{experiment.name} is {experiment.status} and has no results to read.")
    folder = RunFolder(Path(experiment.folder))
    try:
        metrics = folder.read_json(METRICS)
        recorded = folder.read_json(RECORD).get("metrics") if folder.has(RECORD) else None
        return {**metrics, RECORDED: recorded} if recorded else metrics
    except OutputError as error:
        raise DataError(f"the results of {experiment.name} are gone ({error})") from None


def look_up(value: Any, path: Sequence[str]) -> Any:
    """Return what stands at a path in nested records, as JSON has them.

    The path has keys from outside in; in a list a place (from 0, or -1 for the last), or
    "field=word" for the record whose field is that word.
    """
    for depth, part in enumerate(path):
        found = list(_step(value, str(part)))
        if not found:
            here = ".".join(map(str, path[:depth])) or "the results"
            raise DataError(f"{here} holds no {part!r}{_known(value)}.")
        value = found[0]
    return value


def number_at(value: Any, path: Sequence[str]) -> float:
    """Return the number at a path."""
    found = look_up(value, path)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise DataError(f"{'.'.join(map(str, path))} is {_brief(found)} and no number.")
    return float(found)


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the few recorded metrics by dotted path; the first few of all where none are."""
    plain = {key: value for key, value in metrics.items() if key not in ("config", "seconds")}
    plain = {RECORDED: metrics[RECORDED]} if RECORDED in metrics else plain
    leaves = list(_leaves(plain, "", 3))[:SHOWN_NUMBERS]
    return {path: round(leaf, 6) if isinstance(leaf, float) else leaf for path, leaf in leaves}


def aggregate(
    state: State, metric: Sequence[str], *, by: str | None, kind: str | None
) -> list[dict[str, Any]]:
    """Return mean, least and largest of a metric over finished experiments.

    Args:
        state: What has happened.
        metric: Where it stands in their metrics.
        by: A setting to group by, such as "programs"; all together if None.
        kind: Only experiments of this kind.
    """
    import pandas as pd

    rows, missing = [], ""
    for experiment in state.experiments:
        if experiment.status != "finished" or kind not in (None, experiment.kind):
            continue
        try:
            value = number_at(metrics_of(experiment), metric)
        except DataError as error:
            missing = str(error)
            continue
        group = _brief(experiment.settings.get(by)) if by else "all"
        rows.append({"group": group, "value": value, "experiment": experiment.name})
    if not rows:
        raise DataError(f"no finished experiment has that metric ({missing or 'none is there'})")
    table = pd.DataFrame(rows).groupby("group", sort=False)
    found = table["value"].agg(["mean", "min", "max", "count"])
    found["experiments"] = table["experiment"].agg(", ".join)
    return found.reset_index().to_dict("records")  # type: ignore[return-value]


def check_claim(state: State, claim: dict[str, Any]) -> dict[str, Any]:
    """Hold a claim against the experiments it names; the program judges, not the planner.

    Its verdict is "supported" where its number stands in every experiment it names; "named" where
    it names finished experiments and no number, so that a person has to read them; "contradicted"
    where the experiments hold another number; "unsupported" where it names no experiment, or one
    that did not finish.
    """
    wanted = dict.fromkeys(map(str, claim.get("experiments") or []))
    named = {name: state.experiment(name) for name in wanted}
    finished = [e for e in named.values() if e is not None and e.status == "finished"]
    names = [experiment.name for experiment in finished]
    verdict, remark = _verdict(
        finished, [name for name in named if name not in names], claim.get("path"), claim["value"]
    )
    return {"claim": claim["claim"], "experiments": names, "verdict": verdict, "remark": remark}


def _verdict(
    finished: Sequence[Experiment],
    unknown: Sequence[str],
    path: Sequence[str] | None,
    value: float | None,
) -> tuple[Verdict, str]:
    if unknown:
        return "unsupported", f"{', '.join(unknown)} did not finish"
    if not finished:
        return "unsupported", "it names no experiment"
    if not path or value is None:
        return "named", "no number to check; read the experiments"
    there: dict[str, float] = {}
    for experiment in finished:
        try:
            there[experiment.name] = number_at(metrics_of(experiment), path)
        except DataError as error:
            return "contradicted", f"{experiment.name}: {error}"
    shown = ", ".join(f"{name}: {found:.4g}" for name, found in there.items())
    remark = f"{'.'.join(map(str, path))} is {shown}"
    if all(math.isclose(n, value, rel_tol=TOLERANCE, abs_tol=1e-6) for n in there.values()):
        return "supported", remark
    return "contradicted", f"{remark}, not {value:.4g}"


def _step(value: Any, part: str) -> Iterator[Any]:
    if isinstance(value, dict):
        if part in value:
            yield value[part]
    elif isinstance(value, list):
        field, equals, word = part.partition("=")
        if equals:
            records = (record for record in value if isinstance(record, dict))
            yield from (record for record in records if str(record.get(field)) == word)
        elif part.lstrip("-").isdigit() and -len(value) <= int(part) < len(value):
            yield value[int(part)]


def _known(value: Any) -> str:
    if isinstance(value, dict):
        return f" (there is: {', '.join(list(map(str, value))[:20])})"
    if isinstance(value, list):
        first = value[0] if value else None
        fields = f" with {', '.join(first)}" if isinstance(first, dict) else ""
        return f" (a list of {len(value)} records{fields}; take one by its place or field=word)"
    return f" (it is {_brief(value)})"


def _leaves(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and depth:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key), depth - 1)
    elif isinstance(value, int | float | str) and len(str(value)) <= 120:
        yield path, value


def _brief(value: Any) -> str:
    words = str(value)
    return words if len(words) <= 60 else words[:59] + "…"
