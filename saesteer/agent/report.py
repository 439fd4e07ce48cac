"""The agent's report: question, method, every experiment, claims with what supports them."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from saesteer.agent.budget import Budget
from saesteer.agent.claims import CheckedClaim, check_claims
from saesteer.agent.results import RECORDED
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


def write_agent_report(
    folder: RunFolder, config: AgentConfig, state: State, budget: Budget, ended_by: str
) -> dict[str, Any]:
    """Write the report as a page and as text, and return what `metrics.json` holds.

    Args:
        folder: The agent's folder.
        config: Its settings.
        state: Everything that happened.
        budget: What was spent.
        ended_by: Why it ended.

    Raises:
        OutputError: A file cannot be written.
    """
    finish = state.finish or {}
    claims = check_claims(state, finish.get("claims") or [])
    metrics = {
        "name": config.name,
        "goal": config.goal,
        "planner": config.planner.model or config.planner.chosen,
        "answer": finish.get("answer"),
        "would_refute": finish.get("would_refute"),
        "ended_by": ended_by,
        "claims": [asdict(claim) for claim in claims],
        "verdicts": dict(Counter(claim.verdict for claim in claims)),
        "experiments": [asdict(experiment) for experiment in state.experiments],
        "notes": state.notes,
        "spent": spent(state, budget),
    }
    write_sheet(_sheet(folder, config, metrics, state, claims, ended_by), folder.path / REPORT)
    words = _markdown(folder, config, metrics, state, claims)
    folder.write(TEXT, lambda draft: draft.write_text(words, encoding="utf-8", errors="replace"))
    return metrics


def spent(state: State, budget: Budget) -> dict[str, Any]:
    """Return what was spent, and the limits beside it."""
    limits = budget.limits
    return {
        "experiments": len(state.experiments),
        "turns": state.turns,
        "tokens": state.tokens_in + state.tokens_out,
        "money": round(budget.money(state.tokens_in, state.tokens_out), 6),
        "seconds": round(state.seconds, 1),
        "limits": limits.model_dump(mode="json"),
    }


def _sheet(
    folder: RunFolder,
    config: AgentConfig,
    metrics: dict[str, Any],
    state: State,
    claims: list[CheckedClaim],
    ended_by: str,
) -> Sheet:
    used = metrics["spent"]
    supported = metrics["verdicts"].get("supported", 0)
    return Sheet(
        kind="agent",
        title=config.goal,
        lead=str(metrics["answer"] or _NO_ANSWER),
        facts={
            "planner": metrics["planner"],
            "seed": config.seed,
            "ended because": ended_by,
        },
        remarks=[
            Remark(f"{claim.claim} ({claim.verdict}: {claim.remark})", _VERDICTS[claim.verdict])
            for claim in claims
        ],
        tiles=(
            ("Experiments", str(used["experiments"]), f"of {config.budget.experiments} allowed"),
            ("Claims supported", f"{supported} of {len(claims)}", "checked by the program"),
            ("Tokens", f"{used['tokens']:,}", f"cost {used['money']:g}"),
            ("Time", f"{used['seconds']:.0f} s", f"of {config.budget.seconds:.0f} s allowed"),
        ),
        parts=(
            Part("Method", _method(config)),
            Part("Results", items=[_experiment_table(folder, state)], note=_results_note()),
            Part("Notes", "" if state.notes else "No note was written.", [_note_table(state)]),
            Part("What would refute it", str(metrics["would_refute"] or "Nothing was named.")),
            Part(
                "Claims",
                "Each claim was held against the experiments that it names.",
                [_claim_table(folder, state, claims)],
                "Supported: its number stands in the experiments. Named: they finished, and no "
                "number was given to check. Contradicted: they hold another number. Unsupported: "
                "it names no experiment, or one that did not finish.",
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


def _claim_table(folder: RunFolder, state: State, claims: list[CheckedClaim]) -> Table:
    """Return the claims, a row for each run that supports one, which the row leads to."""
    rows, links = [], []
    for claim in claims:
        for name in claim.experiments or (None,):
            experiment = state.experiment(name)
            links.append(_link(folder, experiment) if experiment else "")
            run = "none" if experiment is None else f"{name}: {_run_name(experiment)}"
            rows.append([run, claim.claim, claim.verdict, claim.remark])
    return Table(["run", "claim", "verdict", "what the program found"], rows, links=links)


def _markdown(
    folder: RunFolder,
    config: AgentConfig,
    metrics: dict[str, Any],
    state: State,
    claims: list[CheckedClaim],
) -> str:
    lines = [f"# {_line(metrics['goal'])}", "", str(metrics["answer"] or _NO_ANSWER), ""]
    lines += ["## Method", "", _line(_method(config)), "", "## Claims", ""]
    for claim in claims:
        runs = ", ".join(_linked(folder, state, name) for name in claim.experiments) or "no run"
        said = f"{_line(claim.claim)} ({_line(claim.remark)})"
        lines.append(f"- **{claim.verdict}** by {runs}: {said}")
    lines += ["", "## Experiments", "", "| experiment | settings | status | found |"]
    lines.append("| --- | --- | --- | --- |")
    for e in state.experiments:
        cells = [
            _linked(folder, state, e.name),
            _cell(f"{e.kind} {_settings(e)}"),
            e.status,
            _cell(_numbers(e)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Notes", ""]
    for note in state.notes:
        evidence = ", ".join(note["evidence"]) or "no evidence"
        seen, then = _line(note["observation"]), _line(note["hypothesis"])
        lines.append(f"- {seen} Hypothesis: {then} ({evidence})")
    lines += ["", "## What would refute it", "", _line(metrics["would_refute"] or "Not named."), ""]
    return "\n".join(lines)


def _method(config: AgentConfig) -> str:
    kinds = ", ".join(config.experiments)
    if config.planner.chosen == "llm":
        return (
            f"The planner {config.planner.model} proposed experiments ({kinds}) through typed "
            "tools; the program checked each against its settings, ran it and kept the budget."
        )
    search = config.search
    assert search is not None
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


def _results_note() -> str:
    return "Every experiment is a run of its own, in the folder it links to and in the run store."


def _link(folder: RunFolder, experiment: Experiment) -> str:
    if experiment.folder is None:
        return ""
    place = Path(experiment.folder)
    page = next((place / name for name in PAGES if (place / name).is_file()), place)
    return quote(Path(os.path.relpath(page, folder.path)).as_posix())


def _linked(folder: RunFolder, state: State, name: str) -> str:
    experiment = state.experiment(name)
    link = _link(folder, experiment) if experiment else ""
    return f"[{name}](<{link}>)" if link else name


def _run_name(experiment: Experiment) -> str:
    return Path(experiment.folder or "").name


def _settings(experiment: Experiment) -> str:
    words = ", ".join(f"{name} = {value}" for name, value in experiment.settings.items())
    return words if len(words) <= 160 else words[:159] + "…"


def _numbers(experiment: Experiment) -> str:
    if experiment.error:
        return experiment.error
    shown = list(experiment.headline.items())[:SHOWN]
    return ", ".join(
        f"{name.removeprefix(f'{RECORDED}.')} {_short(value)}" for name, value in shown
    )


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(words: object) -> str:
    return " ".join(str(words).split())


def _cell(words: str) -> str:
    return _line(words).replace("|", "\\|")
