"""`saesteer patch`: where in a model a behaviour lives, and which site to steer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saesteer.cli.run import Overrides

if TYPE_CHECKING:
    from saesteer.experiments.patch.settings import PatchConfig

app = typer.Typer(
    no_args_is_help=True,
    help="Find where in a model a behaviour lives: patching, logit lens, circuits.",
)
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, load and write nothing.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print metrics.json instead of tables.")]
SuggestSite = Annotated[
    bool, typer.Option("--suggest-site", help="Name the layer and positions to steer, and why.")
]
Model = Annotated[str, typer.Option("--model", help="The model.")]


@app.command("run")
def run_command(
    config: Annotated[
        list[Path], typer.Argument(help="YAML files such as configs/patching/capitals.yaml.")
    ],
    set_: Overrides = None,
    suggest_site: SuggestSite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Patch every component on pairs of prompts, and report where the behaviour lives."""
    from saesteer.experiments.patch.settings import PatchConfig
    from saesteer.utils.settings import load_config

    # All of them are read before the first one is run.
    for settings in [load_config(path, set_ or (), kind=PatchConfig) for path in config]:
        _do(settings, suggest_site=suggest_site, dry_run=dry_run, as_json=as_json)


@app.command("ioi")
def ioi_command(
    model: Model = "smollm2",
    n: Annotated[int, typer.Option("--n", min=2, help="How many pairs of prompts.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seeds names, places and objects.")] = 0,
    eight: Annotated[
        bool, typer.Option("--eight", help="The eight well-known prompts instead.")
    ] = False,
    circuit: Annotated[
        bool, typer.Option("--circuit/--no-circuit", help="Search a circuit of heads.")
    ] = True,
    set_: Overrides = None,
    suggest_site: SuggestSite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Indirect object identification, in full: prompts made for the model's own tokenizer."""
    from saesteer.experiments.patch.settings import PatchConfig
    from saesteer.utils.settings import apply_override, parse_config

    data: dict[str, Any] = {
        "name": "ioi",
        "model": {"name": model},
        "pairs": {"ioi": {"n": n, "eight": eight}},
        "components": ["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"],
        "by_position": ["z"],
        "attribution": {"methods": ["attribution", "integrated_gradients"]},
        "path": {},
        "circuit": {} if circuit else None,
        "seed": seed,
    }
    for override in set_ or ():
        apply_override(data, override)
    settings = parse_config(data, kind=PatchConfig, place="saesteer patch ioi")
    _do(settings, suggest_site=suggest_site, dry_run=dry_run, as_json=as_json)


@app.command("lens")
def lens_command(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to read.")] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Read the clean prompts of a file or bundled set of pairs.")
    ] = None,
    model: Model = "smollm2",
    top: Annotated[int, typer.Option(min=1, max=20, help="Top tokens at each layer.")] = 3,
    every: Annotated[int, typer.Option(min=1, help="Show every so manieth layer.")] = 1,
    html: Annotated[
        Path | None, typer.Option(help="Write every token's reading to a page.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the readings.")] = False,
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
    if any(not text.strip() for text in texts):
        raise DataError("a prompt is empty; give it at least one word.")
    progress = terminal_progress()
    progress.say(f"Loading model {model} ...")
    bridge = load_model(model, dtype="float32", progress=progress)
    readings = lens(bridge, texts, top_k=top)
    if html is not None:
        write_atomic(html, lens_page(readings, model).encode("utf-8", "replace"))
    if as_json:
        typer.echo(json.dumps([reading.record() for reading in readings], indent=2))
        return
    show_lens(readings, every=every)
    if html is not None:
        typer.echo(f"wrote {html}")


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
            typer.echo(json.dumps(suggestion.record(), indent=2))
        else:
            show_suggestion(suggestion, results.metrics["verdict"])
    elif as_json:
        typer.echo(json.dumps(results.metrics, indent=2))
    else:
        report_of(results).print(console(), results.folder.path)


def _do(settings: PatchConfig, *, suggest_site: bool, dry_run: bool, as_json: bool) -> None:
    from saesteer.cli.patch_show import show_patch_plan, show_suggestion
    from saesteer.experiments.patch.experiment import Patch
    from saesteer.experiments.patch.results import PatchResults
    from saesteer.report.terminal import console
    from saesteer.utils.progress import terminal_progress

    experiment = Patch(settings, terminal_progress())
    if dry_run:
        show_patch_plan(experiment.plan)
        return
    run = experiment.run()
    if as_json:
        typer.echo(json.dumps(run.metrics, indent=2))
        return
    if suggest_site:
        show_suggestion(PatchResults(run.folder).suggestion(), run.metrics["verdict"])
    experiment.report(run).print(console(), run.folder.path)
