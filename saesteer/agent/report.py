"""The agent's report: question, method, every experiment, claims with what supports them."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from saesteer.agent.results import RECORDED, check_claim
from saesteer.agent.settings import AgentConfig
from saesteer.agent.state import Budget, Experiment, State
from saesteer.report import Report, Section, Table
from saesteer.report.layout import Column, Remark, Tile
from saesteer.tracking.queries import markdown_table
from saesteer.utils.run_folder import RunFolder
from saesteer.utils.text import one_line

REPORT, TEXT = "report.html", "report.md"
SHOWN = 8
PAGES = ("report.html", "figure.html", "metrics.json")
NO_ANSWER = "It ended without a conclusion; the notes say how far it came."
_MARKS: dict[str, Literal["good", "open", "bad"]] = {
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
    claims = [check_claim(state, claim) for claim in finish.get("claims") or []]
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


def agent_report(
    folder: Path, config: AgentConfig, state: State, metrics: dict[str, Any]
) -> Report:
    """Return what page, text and terminal show of an agent's work."""
    used, limits, claims = metrics["spent"], config.budget, metrics["claims"]
    supported = metrics["verdicts"].get("supported", 0)
    spent = (
        f"Spent: {used['experiments']} experiments, {used['tokens']:,} tokens, "
        f"{used['seconds']:.0f} s; ended because {metrics['ended_by']}."
    )
    again = "the same command goes on from here, with a larger --budget if that is spent"
    listed = f"saesteer runs filter group={folder.name} --root {config.folder}"
    return Report(
        kind="agent",
        title=config.goal,
        lead=str(metrics["answer"] or NO_ANSWER),
        facts={
            "planner": metrics["planner"],
            "seed": config.seed,
            "ended because": metrics["ended_by"],
        },
        remarks=[
            Remark(f"{c['claim']} ({c['verdict']}: {c['remark']})", _MARKS[c["verdict"]])
            for c in claims
        ],
        tiles=(
            Tile("Experiments", str(used["experiments"]), f"of {limits.experiments} allowed"),
            Tile("Claims supported", f"{supported} of {len(claims)}", "checked by the program"),
            Tile("Tokens", f"{used['tokens']:,}", f"cost {used['money']:g}"),
            Tile("Time", f"{used['seconds']:.0f} s", f"of {limits.seconds:.0f} s allowed"),
        ),
        sections=(
            Section("Method", _method(config)),
            Section(
                "Results",
                items=[_experiment_table(folder, state, spent)],
                note="Every experiment is a run of its own, in the folder it links to.",
            ),
            Section("Notes", "" if state.notes else "No note was written.", [_note_table(state)]),
            Section("What would refute it", str(metrics["would_refute"] or "Nothing was named.")),
            Section(
                "Claims",
                "Each claim was held against the experiments that it names.",
                [_claim_table(folder, state, claims)],
                _ABOUT_VERDICTS,
            ),
        ),
        beside=(TEXT,),
        commands=[listed if metrics["answer"] else again],
    )


def write_agent_report(folder: RunFolder, report: Report) -> None:
    """Write the report as a page and as text."""
    report.write(folder.path / REPORT)
    words = _markdown(report)
    folder.write(TEXT, lambda draft: draft.write_text(words, encoding="utf-8", errors="replace"))


def _experiment_table(folder: Path, state: State, note: str) -> Table:
    columns = [
        Column("experiment", lambda e: e.name),
        Column("kind", lambda e: e.kind),
        Column("settings", _settings),
        Column("status", lambda e: e.status),
        Column("found", _numbers),
        Column("why", lambda e: e.reason),
        Column("seconds", lambda e: round(e.seconds, 1)),
    ]
    links = [_link(folder, e) for e in state.experiments]
    printed = ("experiment", "settings", "status", "found")
    return Table.of(state.experiments, columns, printed=printed, links=links, note=note)


def _note_table(state: State) -> Table:
    columns = [
        "observation",
        "hypothesis",
        Column("evidence", lambda note: ", ".join(note["evidence"]) or "none"),
    ]
    return Table.of(state.notes, columns)


def _claim_table(folder: Path, state: State, claims: list[dict[str, Any]]) -> Table:
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


def _markdown(report: Report) -> str:
    """Return a report's words and tables as Markdown; a row's first cell links to its run."""
    parts = [f"# {one_line(report.title, None)}", report.lead]
    for section in report.sections:
        parts += [f"## {section.title}", one_line(section.about, None)]
        for item in section.items:
            assert isinstance(item, Table)
            rows = []
            for at, row in enumerate(item.rows):
                cells = dict(zip(item.columns, row, strict=True))
                link = item.link(at)
                if link:
                    cells[item.columns[0]] = f"[{row[0]}](<{link}>)"
                rows.append(cells)
            parts += [markdown_table(rows), item.note]
        parts.append(section.note)
    return "\n\n".join(filter(None, parts)) + "\n"


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


def _link(folder: Path, experiment: Experiment | None) -> str:
    """Return the address of an experiment's page from the agent's, "" where there is none."""
    if experiment is None or experiment.folder is None:
        return ""
    place = Path(experiment.folder)
    page = next((place / name for name in PAGES if (place / name).is_file()), place)
    return quote(Path(os.path.relpath(page, folder)).as_posix())


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
