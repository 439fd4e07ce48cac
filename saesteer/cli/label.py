"""`saesteer sae label`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saesteer.cli.options import AsJson, Seed
from saesteer.utils.terminal import say_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from saesteer.evaluation.llm_client import Endpoint
    from saesteer.saes.table import FeatureTable
    from saesteer.utils.progress import Progress

CONTEXT = 256


def label_command(
    sae: Annotated[str, typer.Argument(help="smollm2, or the folder of an SAE.")] = "smollm2",
    model: Annotated[str, typer.Option(help="The model.")] = "smollm2",
    text: Annotated[
        list[Path] | None,
        typer.Option(help="A .txt, .jsonl or .jsonl.gz file to test on; bundled prose if none."),
    ] = None,
    number: Annotated[int, typer.Option(min=1, help="How many features are drawn.")] = 60,
    feature: Annotated[
        list[int] | None, typer.Option(help="This feature in place of drawn ones; repeat.")
    ] = None,
    seed: Seed = 0,
    llm: Annotated[
        str | None, typer.Option(help="A language model that writes a label for each feature.")
    ] = None,
    base_url: Annotated[
        str, typer.Option(help="Its OpenAI-compatible endpoint.")
    ] = "https://api.openai.com/v1",
    key_variable: Annotated[
        str, typer.Option(help="Environment variable with the endpoint's key.")
    ] = "OPENAI_API_KEY",
    as_json: AsJson = False,
) -> None:
    """Test an SAE's labels: do they tell texts that fire a feature from texts that do not?

    With --llm a language model writes labels, which are kept, shown everywhere in place of the
    table's from then on, and tested on the same texts.
    """
    from saesteer.data import datasets_folder, read_texts
    from saesteer.evaluation.embeddings import SentenceEmbedder
    from saesteer.evaluation.label_score import FeaturePeaks, score_labels
    from saesteer.evaluation.llm_client import Endpoint
    from saesteer.experiments.recorded import recorded_look
    from saesteer.models import load_model
    from saesteer.models.resolve import resolve_model
    from saesteer.saes.doctor import rows_for
    from saesteer.saes.labels import own_table
    from saesteer.saes.loading import check_planned, load_sae, resolve_sae
    from saesteer.utils.errors import SaeError
    from saesteer.utils.progress import terminal_progress

    files = text or [datasets_folder() / "prose.jsonl"]
    texts = [one for file in files for one in read_texts(file)]
    where = resolve_sae(sae)
    check_planned(resolve_model(model), where, sae)
    table = own_table(where, explained=False)
    if table is None or not isinstance(where, Path):
        raise SaeError(
            f"SAE {sae} has no table of features of its own; give the folder of one that saesteer "
            "sae train made, or import labels with saesteer neuronpedia import."
        )
    for index in feature or ():
        # One that is not there is refused before anything is loaded.
        table.describe(index)
    asked = Endpoint(llm, base_url, key_variable, called="the labelling model") if llm else None
    embed, progress = SentenceEmbedder().embed, terminal_progress()
    settings: dict[str, Any] = {"model": model, "sae": sae, "text": [str(file) for file in files]}
    settings |= {"number": number, "feature": feature, "seed": seed, "llm": llm}
    with recorded_look("label", settings, name=Path(sae).name, progress=progress) as recorded:
        loaded, bridge = load_sae(sae), load_model(model, progress=progress)
        rows = rows_for(bridge, loaded, texts, context=CONTEXT)
        read = FeaturePeaks.read(bridge, loaded, rows, progress)
        tests = read.draw(feature or None, number=number, seed=seed)
        strong = read.draw(feature or None, number=number, seed=seed, strongly=True)
        features = feature or sorted({test.feature for test in (*tests, *strong)})
        labels = {"the table": {index: table.describe(index) for index in features}}
        if asked is not None:
            labels[asked.model] = _written(asked, where, table, features, progress)
        found = {by: score_labels(known, tests, strong, embed) for by, known in labels.items()}
        measured = {f"{by}.{name}": one for by, row in found.items() for name, one in row.items()}
        recorded.summary(measured)
    if as_json:
        both = {by: {**found[by], "labels": known} for by, known in labels.items()}
        say_json(both)
    else:
        _show(labels, found)


def _written(
    endpoint: Endpoint, folder: Path, table: FeatureTable, features: list[int], progress: Progress
) -> dict[int, str]:
    """Return a language model's labels; those that it wrote before are not asked for again."""
    from saesteer.evaluation.explain import explain_features
    from saesteer.saes.labels import explanations_of, keep_explanation

    kept = explanations_of(folder)
    known = {i: kept[i][0] for i in features if i in kept and kept[i][1] == endpoint.model}
    cards = [table.row(index) for index in features if index not in known]

    def keep(feature: int, phrase: str) -> None:
        keep_explanation(folder, feature, phrase, endpoint.model)

    return {**known, **explain_features(endpoint, cards, keep, progress=progress)}


def _show(labels: Mapping[str, Mapping[int, str]], found: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.text import Text

    from saesteer.report import Table
    from saesteer.report.layout import Column
    from saesteer.report.terminal import console, grid, heading, one_line, print_table

    out = console()
    heading(out, "labels")
    made = grid(("feature", "right"), *labels)
    for index in labels["the table"]:
        words = (Text(one_line(known.get(index, ""))) for known in labels.values())
        made.add_row(str(index), *words)
    out.print(made)
    heading(out, "do they tell five texts that fire a feature from five that do not? (0.5: chance)")
    rows = [{"labels by": by, **row} for by, row in found.items()]
    columns = (
        "labels by",
        *(Column("AUC", "auc", ".3f"), Column("+/-", "error", ".3f"), "features"),
        *(Column("fired strongly", "strong_auc", ".3f"), Column("±", "strong_error", ".3f")),
        Column("broken", "broken", ".0%"),
    )
    print_table(out, Table.of(rows, columns))
