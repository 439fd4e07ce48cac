"""What a sweep found: its table, what mattered, what is not beaten, and the best settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from saesteer.sweeps.overrides import TOGETHER, yaml_text
from saesteer.sweeps.parameters import Parameter
from saesteer.sweeps.storage import quiet_optuna
from saesteer.sweeps.study import TrialRow
from saesteer.sweeps.sweep import Sweep
from saesteer.tracking.queries import markdown_table
from saesteer.utils.run_folder import RunFolder, finite

if TYPE_CHECKING:
    import pandas as pd

    from saesteer.tracking import RecordedRun

Record = Mapping[str, Any]
RESULT, BEST, REPORT = "sweep.json", "best.yaml", "report.html"
# Below this, an importance says more of the luck of the draw than of the parameter.
FEWEST_TRIALS = 8


def sweep_record(sweep: Sweep, rows: Sequence[TrialRow]) -> dict[str, Any]:
    """Return a sweep as it stands, `sweep.json`.

    Of the trials that ended it names the best; `pareto`, the numbers of those that no other one
    beats; and each parameter's `importance`, its share of the metric's variance, where there are
    enough trials. `notes` are what to know when reading it.
    """
    ended = [row for row in rows if row.state == "done" and row.value is not None]
    best = max(ended, key=lambda row: (sweep.sign * (row.value or 0.0), -row.number), default=None)
    importance, reason = _importance(sweep, ended)
    notes = [reason, _front_note(ended), sweep.early and sweep.early.note(sweep.kind)]
    record = {
        "study": sweep.study,
        "name": sweep.name,
        "kind": sweep.kind,
        "method": sweep.method,
        "metric": sweep.metric,
        "goal": sweep.goal,
        "seed": sweep.seed,
        "base_file": sweep.base_file,
        "parameters": [
            {
                "name": parameter.name,
                "short": parameter.name.removeprefix(f"{TOGETHER}.").rpartition(".")[2],
                "distribution": parameter.distribution,
                "is_number": parameter.is_number,
                "is_log": parameter.is_log,
                "choices": [_label(parameter, value) for value in parameter.values],
            }
            for parameter in sweep.searched
        ],
        "constants": sweep.constants,
        "states": Counter(row.state for row in rows),
        "best": None if best is None else best.number,
        "importance": importance,
        "pareto": pareto(ended),
        "notes": list(filter(None, notes)),
        "trials": [
            {
                **asdict(row),
                "labels": {p.name: _label(p, row.values.get(p.name)) for p in sweep.searched},
            }
            for row in rows
        ],
    }
    return finite(record)


def _importance(sweep: Sweep, rows: Sequence[TrialRow]) -> tuple[dict[str, float], str | None]:
    """Return each parameter's share of the metric's variance, and why it is not there.

    Functional ANOVA over random forests (Hutter et al. 2014), as Optuna has it.
    """
    searched = [p for p in sweep.searched if len({str(r.values[p.name]) for r in rows}) > 1]
    if not searched:
        return {}, "No importance: no parameter took two values among the trials that ended."
    if len(rows) < FEWEST_TRIALS:
        return {}, (
            f"No importance: {len(rows)} trials have ended, and below {FEWEST_TRIALS} it would say "
            "little."
        )
    if len({row.value for row in rows}) < 2:
        return {}, "No importance: every trial has the same value."
    import optuna

    with quiet_optuna():
        study = optuna.create_study(direction=sweep.goal)
        for row in rows:
            study.add_trial(
                optuna.trial.create_trial(
                    value=row.value,
                    params={p.name: p.code(row.values[p.name]) for p in searched},
                    distributions={p.name: p.space() for p in searched},
                )
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=sweep.seed)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(value) for name, value in found.items()}, None


def pareto(rows: Sequence[TrialRow]) -> list[int]:
    """Return the trials on the front of effect against KL, cheapest first.

    None has at least their effect at no more than their cost, and more of the one or less of the
    other. The cost is the KL target that a trial was given: what was measured lies within 3% of
    it, and differences of that size are no cost.
    """
    front, most = [], float("-inf")
    for _, loss, number in sorted(
        (target, -effect, row.number) for row in rows for target, effect in _on_plane(row)
    ):
        if -loss > most:
            front.append(number)
            most = -loss
    return front


def _on_plane(row: TrialRow) -> list[tuple[float, float]]:
    target, effect = row.numbers.get("kl_target"), row.numbers.get("effect")
    return [] if target is None or effect is None else [(target, effect)]


def _front_note(rows: Sequence[TrialRow]) -> str | None:
    targets = {target for row in rows for target, _ in _on_plane(row)}
    if len(targets) != 1:
        return None
    return (
        f"Every trial was given the same KL target ({targets.pop():g}), so the front is the best "
        "one alone; sweep evaluation.kl_target to see one."
    )


def _label(parameter: Parameter, value: Any) -> str:
    """Return a value as a short word; of settings that change together, the one that tells."""
    if isinstance(value, dict):
        others = [v for v in parameter.values if isinstance(v, dict)]
        # Words tell more than numbers.
        for kind in (str, int | float):
            for key, inner in value.items():
                same = [v.get(key) for v in others]
                if all(isinstance(v, kind) for v in same) and len(set(same)) == len(others):
                    return str(inner)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    return yaml_text(value) if not isinstance(value, str) else value


def write_results(sweep: Sweep, record: Record) -> None:
    """Write table, summary, best settings and report page into the sweep's folder."""
    from saesteer.report.sweep import sweep_report

    files, table = RunFolder(sweep.folder), trial_table(record)
    texts = {"table.md": markdown(record)}
    if record["best"] is not None:
        texts[BEST] = best_settings(sweep, record)
    files.write_json(RESULT, record)
    files.write("table.parquet", lambda draft: table.to_parquet(draft, index=False))
    files.write("table.csv", lambda draft: table.to_csv(draft, index=False))
    for name, text in texts.items():
        files.write(name, lambda draft, text=text: draft.write_text(text, encoding="utf-8"))
    sweep_report(record).write(sweep.folder / REPORT)


def trial_table(record: Record) -> pd.DataFrame:
    """Return a row for each trial: parameters, state, metric and numbers."""
    import pandas as pd

    numbers = sorted({name for trial in record["trials"] for name in trial["numbers"]})
    axes = [parameter["name"] for parameter in record["parameters"] if parameter["is_number"]]
    rows = [
        {
            "trial": trial["number"],
            **trial["labels"],
            **{name: trial["values"].get(name) for name in axes},
            **{name: trial[name] for name in ("state", "value")},
            **{name: trial["numbers"].get(name) for name in numbers},
            **{name: trial[name] for name in ("seconds", "attempts", "folder", "error", "key")},
        }
        for trial in record["trials"]
    ]
    return pd.DataFrame.from_records(rows)


def markdown(record: Record) -> str:
    """Return the trials, best first, as a table of Markdown."""
    from saesteer.report.sweep import best_first

    metric = record["metric"]
    extra = [name for name in ("effect", "kl") if name != metric]
    lines = []
    for trial in best_first(record):
        numbers = {metric: trial["value"], **{name: trial["numbers"].get(name) for name in extra}}
        line = {"trial": trial["number"], **trial["labels"]}
        line |= {name: "" if value is None else value for name, value in numbers.items()}
        line["state"] = trial["state"] + (f": {trial['error']}" if trial["error"] else "")
        lines.append(line)
    notes = "\n".join(f"- {note}" for note in record["notes"])
    parts = [f"# {record['study']}", markdown_table(lines), notes]
    return "\n\n".join(filter(None, parts)) + "\n"


def best_settings(sweep: Sweep, record: Record) -> str:
    """Return the best trial's settings as the YAML that its command takes."""
    import yaml

    best = next(trial for trial in record["trials"] if trial["number"] == record["best"])
    head = (
        f"# Trial {best['number']} of {sweep.study}: {sweep.metric} {best['value']:.6g}, the best "
        f"of {record['states'].get('done', 0)}.\n# saesteer {sweep.kind} THIS_FILE\n"
    )
    settings = sweep.settings(best["values"])
    return head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def tell_sweep(recorded: RecordedRun, record: Record) -> None:
    """Tell the run's record what a sweep found; its files are written."""
    from saesteer.report.sweep import sweep_report

    values = {trial["number"]: trial["value"] for trial in record["trials"]}
    recorded.summary({"states": record["states"], "best": values.get(record["best"])})
    recorded.table("trials", trial_table(record))
    if recorded.shown_elsewhere:
        for name, figure in sweep_report(record).figures.items():
            recorded.figure(name, figure)
    recorded.artifact("report", recorded.folder.path / REPORT, "report")
