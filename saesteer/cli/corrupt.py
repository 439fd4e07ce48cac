"""`saesteer corrupt`: run a model's layers in any order, and see what that does to tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saesteer.cli.experiment import DefaultGroup, experiment_command
from saesteer.cli.options import AsJson, MaxNewTokens, check_not_blank
from saesteer.utils.terminal import say_json

if TYPE_CHECKING:
    from saesteer.corruption.llm_tasks import Caps
    from saesteer.corruption.tasks import Task
    from saesteer.evaluation.llm_client import Endpoint

app = typer.Typer(
    cls=DefaultGroup,
    no_args_is_help=True,
    help="Skip, repeat or permute layers, and see what that does to tasks: saesteer corrupt depth.",
)


app.command("run")(
    experiment_command(
        "corrupt", "Score tasks under families of layer programs, with heatmaps and a report."
    )
)


@app.command("complete")
def complete_command(
    prompts: Annotated[list[str], typer.Argument(help="Prompts, as plain text.")],
    program: Annotated[
        list[str] | None,
        typer.Option(help='A program, such as "skip 4-6"; may be given again.'),
    ] = None,
    family: Annotated[
        str, typer.Option(help="Where no program is given: keep, skip, repeat, swap or permute.")
    ] = "keep",
    every: Annotated[int, typer.Option(min=1, help="Only every n-th of the family.")] = 1,
    max_new_tokens: MaxNewTokens = 10,
    model: Annotated[str, typer.Option("--model", help="The model.")] = "smollm2",
    as_json: AsJson = False,
) -> None:
    """Complete prompts under a whole family of programs, side by side."""
    from saesteer.cli.corrupt_show import show_completions
    from saesteer.corruption.measure import complete_prompts
    from saesteer.corruption.program import check_program
    from saesteer.models import load_model
    from saesteer.models.resolve import model_shape, resolve_model
    from saesteer.utils.progress import terminal_progress

    check_not_blank(prompts)
    for text in program or ():
        check_program(text)
    shape = model_shape(resolve_model(model))
    if shape is not None:
        _programs(program, family, every, shape.n_layers, shape.n_heads)
    progress = terminal_progress()
    progress.say(f"Loading model {model} ...")
    bridge = load_model(model, progress=progress)
    programs = _programs(program, family, every, int(bridge.cfg.n_layers), int(bridge.cfg.n_heads))
    found = complete_prompts(
        bridge, programs, prompts, max_new_tokens=max_new_tokens, progress=progress
    )
    if as_json:
        say_json(found)
    else:
        show_completions(found)


@app.command("tasks")
def tasks_command(
    source: Annotated[
        list[str] | None, typer.Argument(help="Names, JSON files or folders; bundled if left out.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write tasks made by rule, or by --llm, to this folder.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds tasks made by rule.")] = 0,
    llm: Annotated[
        str | None, typer.Option(help="Have this model at --base-url make up tasks.")
    ] = None,
    base_url: Annotated[
        str, typer.Option(help="An OpenAI-compatible endpoint.")
    ] = "https://api.openai.com/v1",
    key_variable: Annotated[
        str, typer.Option(help="The environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    topic: Annotated[list[str] | None, typer.Option(help="What a task is to be about.")] = None,
    number: Annotated[int, typer.Option(min=1, max=1000, help="Most tasks from --llm.")] = 5,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="Most that they may cost; needs both prices.")
    ] = None,
    price_in: Annotated[float, typer.Option(min=0, help="Price of a million prompt tokens.")] = 0.0,
    price_out: Annotated[
        float, typer.Option(min=0, help="Price of a million answer tokens.")
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """List tasks, write those made by rule, or have a language model make up new ones."""
    from saesteer.cli.corrupt_show import show_tasks
    from saesteer.corruption.rules import make_tasks
    from saesteer.corruption.tasks import load_tasks, write_task
    from saesteer.utils.errors import ConfigError

    if llm is not None:
        if write is None:
            raise ConfigError("--llm needs --write and a folder for its tasks.")
        from saesteer.corruption.llm_tasks import Caps
        from saesteer.evaluation.llm_client import Endpoint

        caps = Caps(tasks=number, cost=max_cost, price_in=price_in, price_out=price_out)
        endpoint = Endpoint(llm, base_url=base_url, key_variable=key_variable, max_tokens=2048)
        tasks = _asked(endpoint, caps, topic or (), write)
    elif write is not None:
        tasks = list(make_tasks(source or (), seed=seed))
        for task in tasks:
            write_task(task, write)
    else:
        tasks = list(load_tasks(source or ["bundled"]))
    if as_json:
        say_json([task.model_dump() for task in tasks])
    else:
        show_tasks(tasks, write)


def _asked(endpoint: Endpoint, caps: Caps, topics: Sequence[str], write: Path) -> list[Task]:
    from saesteer.corruption.llm_tasks import generate_tasks
    from saesteer.corruption.tasks import load_tasks, write_task
    from saesteer.utils.progress import terminal_progress

    known = load_tasks(["bundled"])
    if any(write.glob("*.json")):
        known += load_tasks([str(write)])
    progress = terminal_progress()
    found = generate_tasks(
        endpoint,
        caps,
        topics=topics,
        known=known,
        # Each is kept as it comes, so that what was paid for is not lost.
        keep=lambda task: write_task(task, write),
        progress=progress,
    )
    progress.say(found.account())
    return found.tasks


def _programs(
    program: list[str] | None, family: str, every: int, n_layers: int, n_heads: int
) -> list[Any]:
    from saesteer.corruption.program import every_nth, make_family, parse_program
    from saesteer.utils.errors import ConfigError

    if program:
        found = [parse_program(text, n_layers, n_heads=n_heads) for text in program]
        for one in found:
            if one.spans or one.needs_means:
                raise ConfigError(
                    f"program '{one}' needs texts to be fitted on; name it in completions.programs "
                    "of a configuration and use saesteer corrupt run."
                )
        return found
    plain = ("keep", "skip", "repeat", "swap", "permute", "zero_mlp")
    if family not in plain:
        raise ConfigError(
            f"family {family!r} is unknown here; choose one of {', '.join(plain)}, or use saesteer "
            "corrupt run for those that are fitted on texts."
        )
    return [*every_nth(make_family(family, n_layers), every)]  # type: ignore[arg-type]
