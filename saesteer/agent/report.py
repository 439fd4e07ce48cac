"""The agent's report: question, method, every experiment, claims with what supports them."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from saesteer.agent.budget import Budget
from saesteer.agent.results import RECORDED, check_claim
from saesteer.agent.settings import AgentConfig
from saesteer.agent.state import Experiment, State
from saesteer.report.sheet import Part, Remark, Sheet, Table, write_sheet
from saesteer.utils.run_folder import RunFolder

REPORT, TEXT = "report.html", "report.md"
SHOWN = 8
PAGES = ("report.html", "figure.html", "metrics.json")
_NO_ANSWER = "It ended without a conclusion; the notes say how far it came."
_VERDICTS: dict[str, Literal["good", "open", "bad"]] = {
    "supported": "good",
    "named": "open",
    "contradicted": "bad",
    "unsupported": "bad",
}
_ABOUT_VERDICTS = (
    "Supported: its number stands in the experiments. Named: they finished, and no number was "
    "given to check. Contradicted: they hold another number. Unsupported: it names no experiment, "
    "or one that did not finish."
)


def agent_metrics(config: AgentConfig, state: State, ended_by: str) -> dict[str, Any]:
    """Return `metrics.json`: the answer, every claim with its verdict, and what was spent."""
    finish = state.finish or {}
    claims = [check_claim(state, claim)._asdict() for claim in finish.get("claims") or []]
    limits = config.budget.model_dump(mode="json")
    return {
        "name": config.name,
        "goal": config.goal,
        "planner": config.planner.model or config.planner.chosen,
        "answer": finish.get("answer"),
        "would_refute": finish.get("would_refute"),
        "ended_by": ended_by,
        "claims": claims,
        "verdicts": dict(Counter(claim["verdict"] for claim in claims)),
        "experiments": [asdict(experiment) for experiment in state.experiments],
        "notes": state.notes,
        "spent": {**Budget(config).spent(state), "limits": limits},
    }


def write_agent_report(
    folder: RunFolder, config: AgentConfig, state: State, metrics: dict[str, Any]
) -> None:
    """Write the report as a page and as text."""
    write_sheet(_sheet(folder, config, state, metrics), folder.path / REPORT)
    words = _markdown(folder, config, state, metrics)
    folder.write(TEXT, lambda draft: draft.write_text(words, encoding="utf-8", errors="replace"))


def _sheet(folder: RunFolder, config: AgentConfig, state: State, metrics: dict[str, Any]) -> Sheet:
    used, limits, claims = metrics["spent"], config.budget, metrics["claims"]
    supported = metrics["verdicts"].get("supported", 0)
    return Sheet(
        kind="agent",
        title=config.goal,
        lead=str(metrics["answer"] or _NO_ANSWER),
        facts={
            "planner": metrics["planner"],
            "seed": config.seed,
            "ended because": metrics["ended_by"],
        },
        remarks=[
            Remark(
                f"{claim['claim']} ({claim['verdict']}: {claim['remark']})",
                _VERDICTS[claim["verdict"]],
            )
            for claim in claims
        ],
        tiles=(
            ("Experiments", str(used["experiments"]), f"of {limits.experiments} allowed"),
            ("Claims supported", f"{supported} of {len(claims)}", "checked by the program"),
            ("Tokens", f"{used['tokens']:,}", f"cost {used['money']:g}"),
            ("Time", f"{used['seconds']:.0f} s", f"of {limits.seconds:.0f} s allowed"),
        ),
        parts=(
            Part("Method", _method(config)),
            Part(
                "Results",
                items=[_experiment_table(folder, state)],
                note="Every experiment is a run of its own, in the folder it links to.",
            ),
            Part("Notes", "" if state.notes else "No note was written.", [_note_table(state)]),
            Part("What would refute it", str(metrics["would_refute"] or "Nothing was named.")),
            Part(
                "Claims",
                "Each claim was held against the experiments that it names.",
                [_claim_table(folder, state, claims)],
                _ABOUT_VERDICTS,
            ),
        ),
    )


def _experiment_table(folder: RunFolder, state: State) -> Table:
    rows = [
        [e.name, e.kind, _settings(e), e.status, _numbers(e), e.reason, round(e.seconds, 1)]
        for e in state.experiments
    ]
    columns = ["experiment", "kind", "settings", "status", "found", "why", "seconds"]
    return Table(columns, rows, links=[_link(folder, e) for e in state.experiments])


def _note_table(state: State) -> Table:
    rows = [
        [note["observation"], note["hypothesis"], ", ".join(note["evidence"]) or "none"]
        for note in state.notes
    ]
    return Table(["observation", "hypothesis", "evidence"], rows)


def _claim_table(folder: RunFolder, state: State, claims: list[dict[str, Any]]) -> Table:
    """Return the claims, a row for each run that supports one, which the row leads to."""
    rows, links = [], []
    for claim in claims:
        for name in claim["experiments"] or (None,):
            experiment = state.experiment(name)
            links.append(_link(folder, experiment))
            place = "" if experiment is None else Path(experiment.folder or "").name
            run = f"{name}: {place}" if experiment else "none"
            rows.append([run, claim["claim"], claim["verdict"], claim["remark"]])
    return Table(["run", "claim", "verdict", "what the program found"], rows, links=links)


def _markdown(folder: RunFolder, config: AgentConfig, state: State, metrics: dict[str, Any]) -> str:
    def linked(name: str) -> str:
        link = _link(folder, state.experiment(name))
        return f"[{name}](<{link}>)" if link else name

    lines = [f"# {_line(config.goal)}", "", str(metrics["answer"] or _NO_ANSWER), ""]
    lines += ["## Method", "", _line(_method(config)), "", "## Claims", ""]
    for claim in metrics["claims"]:
        runs = ", ".join(map(linked, claim["experiments"])) or "no run"
        said = f"{_line(claim['claim'])} ({_line(claim['remark'])})"
        lines.append(f"- **{claim['verdict']}** by {runs}: {said}")
    lines += ["", "## Experiments", "", "| experiment | settings | status | found |"]
    lines.append("| --- | --- | --- | --- |")
    for e in state.experiments:
        what, found = _line(f"{e.kind} {_settings(e)}"), _line(_numbers(e))
        cells = [cell.replace("|", "\\|") for cell in (what, e.status, found)]
        lines.append(f"| {linked(e.name)} | {' | '.join(cells)} |")
    lines += ["", "## Notes", ""]
    for note in state.notes:
        evidence = ", ".join(note["evidence"]) or "no evidence"
        seen, then = _line(note["observation"]), _line(note["hypothesis"])
        lines.append(f"- {seen} Hypothesis: {then} ({evidence})")
    lines += ["", "## What would refute it", "", _line(metrics["would_refute"] or "Not named."), ""]
    return "\n".join(lines)


def _method(config: AgentConfig) -> str:
    search = config.search
    if config.planner.chosen == "llm" or search is None:
        return (
            f"The planner {config.planner.model} proposed experiments "
            f"({', '.join(config.experiments)}) through typed tools; the program checked each "
            "against its settings, ran it and kept the budget."
        )
    space = "; ".join(
        f"{name}: {values}" if isinstance(values, str) else f"{name}: {len(values)} values"
        for name, values in search.parameters.items()
    )
    rungs = f" over {search.fidelity} {search.rungs}" if search.fidelity else ""
    return (
        f"Successive halving ({search.goal} {'.'.join(search.metric)}) over {space}{rungs}, seed "
        f"{config.seed}. No language model planned: the goal's words were not read, the declared "
        "space was searched."
    )


def _link(folder: RunFolder, experiment: Experiment | None) -> str:
    """Return the address of an experiment's page from the agent's, "" where there is none."""
    if experiment is None or experiment.folder is None:
        return ""
    place = Path(experiment.folder)
    page = next((place / name for name in PAGES if (place / name).is_file()), place)
    return quote(Path(os.path.relpath(page, folder.path)).as_posix())


def _settings(experiment: Experiment) -> str:
    words = ", ".join(f"{name} = {value}" for name, value in experiment.settings.items())
    return words if len(words) <= 160 else words[:159] + "…"


def _numbers(experiment: Experiment) -> str:
    if experiment.error:
        return experiment.error
    shown = {
        name.removeprefix(f"{RECORDED}."): f"{value:.4g}" if isinstance(value, float) else value
        for name, value in list(experiment.headline.items())[:SHOWN]
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _line(words: object) -> str:
    return " ".join(str(words).split())
