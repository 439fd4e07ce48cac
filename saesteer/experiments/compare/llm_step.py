"""The optional language-model judge's reading of what was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saesteer.evaluation.llm_client import Endpoint
from saesteer.evaluation.llm_judge import LlmJudge
from saesteer.experiments.compare.persona_run import PersonaRun
from saesteer.experiments.compare.plan import ComparePlan
from saesteer.experiments.compare.summary_texts import written_files

CACHE = "llm-ratings.jsonl"


def llm_rows(plan: ComparePlan, runs: Sequence[PersonaRun]) -> list[dict[str, Any]]:
    """Rate the completions at the headline KL target; nothing is asked where no judge is set.

    Returns:
        For each persona, method and sign the mean ratings (0 to 2) of behaviour, instruction and
        fluency, their harmonic mean, and how many are missing.

    Raises:
        NetworkError: The endpoint refuses or is gone; what is rated is kept for the next run.
    """
    settings = plan.config.llm_judge
    if settings is None:
        return []
    plan.cache.mkdir(parents=True, exist_ok=True)
    judge = LlmJudge(
        Endpoint(**settings.model_dump(exclude={"workers"})),
        cache=plan.cache / CACHE,
        workers=settings.workers,
    )
    rows = []
    for run in runs:
        behaviour = run.persona.settings.description or run.persona.name.replace("-", " ")
        for record in written_files(run):
            if record["kl_target"] not in (plan.config.evaluation.headline_kl_target, None):
                continue
            for sign in (1, 0, -1):
                chosen = [entry for entry in record["records"] if entry["sign"] == sign]
                questions = [plan.questions[entry["question"]] for entry in chosen]
                found = judge.rate(behaviour, questions, [entry["text"] for entry in chosen])
                fields = {"persona": run.persona.name, "method": record["method"], "sign": sign}
                rows.append({**fields, **found.mean()})
    return rows
