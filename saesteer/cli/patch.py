"""`saesteer patch`: where in a model a behaviour lives, and which site to steer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saesteer.cli.experiment import DefaultGroup, experiment_command
from saesteer.cli.options import AsJson, SuggestSite, check_not_blank
from saesteer.utils.terminal import say, say_json

app = typer.Typer(
    cls=DefaultGroup,
    no_args_is_help=True,
    help="Find where in a model a behaviour lives, such as saesteer patch capitals.",
)
app.command("run")(
    experiment_command(
        "patch", "Patch every component on pairs of prompts, and report where the behaviour lives."
    )
)
app.command("ioi")(
    experiment_command(
        "patch",
        "Indirect object identification, in full: prompts made for the model's own tokenizer.",
        name="ioi",
    )
)


@app.command("lens")
def lens_command(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to read.")] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Read the clean prompts of a file or bundled set of pairs.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="The model.")] = "smollm2",
    top: Annotated[int, typer.Option(min=1, max=20, help="Top tokens at each layer.")] = 3,
    every: Annotated[int, typer.Option(min=1, help="Show every n-th layer.")] = 1,
    html: Annotated[
        Path | None, typer.Option(help="Write every token's reading to a page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What the model would answer if it ended at each layer."""
    from saesteer.cli.patch_show import show_lens
    from saesteer.models import load_model
    from saesteer.patching.lens import lens, lens_page
    from saesteer.patching.pairs import load_prompt_pairs
    from saesteer.utils.errors import DataError
    from saesteer.utils.files import write_atomic
    from saesteer.utils.progress import terminal_progress

    texts = [*(prompts or ())]
    if pairs is not None:
        texts += [pair.clean for pair in load_prompt_pairs(pairs)]
    if not texts:
        raise DataError("there is no prompt to read; give one, or --pairs capitals.")
    check_not_blank(texts)
    progress = terminal_progress()
    progress.say(f"Loading model {model} ...")
    bridge = load_model(model, dtype="float32", progress=progress)
    readings = lens(bridge, texts, top_k=top)
    if html is not None:
        write_atomic(html, lens_page(readings, model).encode("utf-8", "replace"))
    if as_json:
        say_json([reading.record() for reading in readings])
        return
    show_lens(readings, every=every)
    if html is not None:
        say(f"wrote {html}")


@app.command("show")
def show_command(
    run: Annotated[Path, typer.Argument(help="The folder that saesteer patch names at its end.")],
    suggest_site: SuggestSite = False,
    sae: Annotated[
        str | None, typer.Option(help="Say where this SAE's site stands among the sites.")
    ] = None,
    redraw: Annotated[
        bool, typer.Option("--redraw", help="Write figures and report again, from the results.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a finished run again, and the site it speaks for."""
    from saesteer.cli.patch_show import show_suggestion
    from saesteer.experiments.patch.experiment import report_of, write_figures
    from saesteer.experiments.patch.results import PatchResults
    from saesteer.experiments.results import Results
    from saesteer.models.sites import Site
    from saesteer.report.terminal import console
    from saesteer.saes.loading import load_sae
    from saesteer.utils.errors import ConfigError

    results = Results.open(run)
    if not isinstance(results, PatchResults):
        raise ConfigError(f"{run} is of another kind of experiment; give one of saesteer patch.")
    if redraw:
        write_figures(results)
    site: Site | None = load_sae(sae).write_site if sae is not None else None
    if suggest_site or sae is not None:
        suggestion = results.suggestion(site)
        if as_json:
            say_json(suggestion.record())
        else:
            show_suggestion(suggestion, results.metrics["verdict"])
    elif as_json:
        say_json(results.metrics)
    else:
        report_of(results).print(console(), results.folder.path)
