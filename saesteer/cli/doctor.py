"""`saesteer doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from saesteer.cli.options import AsJson
from saesteer.utils.terminal import say_json


def doctor_command(
    baked: Annotated[
        Path | None,
        typer.Argument(help="A folder of saesteer vector bake; a model and an SAE if left out."),
    ] = None,
    model: Annotated[str, typer.Option(help="The model.")] = "smollm2",
    sae: Annotated[str, typer.Option(help="smollm2, a folder, or release:id.")] = "smollm2",
    text: Annotated[
        Path | None, typer.Option(help="A .txt, .jsonl or .jsonl.gz file; bundled prose if none.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most texts to measure on.")] = 60,
    context: Annotated[int, typer.Option(min=2, help="The most tokens of each text.")] = 256,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure on text whether a model and an SAE belong together, or a baked model is the hook's.

    Logits are compared in float32 unless another dtype is named.

    saesteer doctor kind-model
    """
    from saesteer.data import datasets_folder, read_texts
    from saesteer.experiments.recorded import recorded_look
    from saesteer.models import load_model
    from saesteer.models.resolve import check_shape, resolve_model
    from saesteer.report.sae import sae_report
    from saesteer.report.terminal import console
    from saesteer.saes.doctor import doctor, rows_for
    from saesteer.saes.loading import check_planned, load_sae, resolve_sae
    from saesteer.utils.progress import terminal_progress
    from saesteer.utils.run_folder import finite

    texts = list(read_texts(text or datasets_folder() / "prose.jsonl", limit=limit))
    if baked is not None:
        _baked(baked, texts, context, "float32" if dtype == "auto" else dtype, as_json)
        return
    source = resolve_model(model)
    check_planned(source, resolve_sae(sae), sae)
    progress = terminal_progress()
    settings = {"model": model, "sae": sae, "text": None if text is None else str(text)}
    settings |= {"limit": limit, "context": context, "dtype": dtype}
    with recorded_look("doctor", settings, name=Path(sae).name, progress=progress) as recorded:
        progress.say(f"Loading SAE {sae} and model {model} ...")
        loaded = load_sae(sae)
        check_shape(source, loaded.site, loaded.d_in, f"SAE {sae}")
        bridge = load_model(model, dtype=dtype, progress=progress)
        rows = rows_for(bridge, loaded, texts, context=context)
        report = doctor(bridge, loaded, rows, progress=progress)
        recorded.summary(report.as_dict())
    if as_json:
        say_json(finite(asdict(report)))
    else:
        sae_report(report, sae, model, str(loaded.site)).print(console())


def _baked(folder: Path, texts: list[str], context: int, dtype: str, as_json: bool) -> None:
    from saesteer.experiments.recorded import recorded_look
    from saesteer.report.terminal import console, print_fields
    from saesteer.steering.bake import compare_with_hook
    from saesteer.utils.progress import terminal_progress

    settings = {"baked": str(folder), "texts": texts, "context": context, "dtype": dtype}
    progress = terminal_progress()
    with recorded_look("doctor", settings, name=folder.name, progress=progress) as recorded:
        found = compare_with_hook(folder, texts, context=context, dtype=dtype, progress=progress)
        measured = ("n_tokens", "difference", "spread", "same_choice")
        recorded.summary({name: found[name] for name in measured})
    if as_json:
        say_json(found)
        return
    vectors = [
        f"{one['name']} at {one['site']}, strength {one['strength']:.4g} ({one['unit']})"
        for one in found["vectors"]
    ]
    fields = {
        "baked": found["baked"],
        "model": f"{found['model']}, steered at every position by the hook",
        "vectors": "; ".join(vectors),
        "tokens": f"{found['n_tokens']:,}",
        "largest difference": f"{found['difference']:.2g} of a logit; they spread by "
        f"{found['spread']:.2g}",
        "same likeliest token": f"{found['same_choice']:.2%}",
    }
    print_fields(console(), fields)
