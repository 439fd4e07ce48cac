"""`saesteer app`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saesteer.cli.options import Model
from saesteer.utils.errors import ConfigError, SaesteerError
from saesteer.utils.terminal import say

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.saes.adapter import LensSae
    from saesteer.steering import SteeringVector
    from saesteer.utils.progress import Progress

# What the page opens with where it is given no vector, and how many of its pairs that is fitted to.
PAIRS, N_PAIRS = "agreeableness", 60


def app_command(
    run: Annotated[Path | None, typer.Argument(help="A run's folder that holds a vector.")] = None,
    vector: Annotated[
        Path | None, typer.Option(help="A vector.safetensors, in place of a run.")
    ] = None,
    model: Model = None,
    sae: Annotated[
        str | None, typer.Option(help="The SAE to take features from; the vector's if left out.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8123,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Open a page on this machine to steer by hand: move a slider, read what changes.

    Without a vector one is fitted to the bundled pairs, which takes seconds.
    """
    from saesteer.steering import SteeringVector
    from saesteer.utils.progress import terminal_progress

    if run is not None and vector is not None:
        raise ConfigError("a run and --vector were both given; give one of them.")
    try:
        from saesteer.app.server import listen, serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the page needs {error.name}, which is not installed; run pip install 'saesteer[app]'."
        ) from error
    from saesteer.app.workbench import Workbench
    from saesteer.models import load_model, resolve_model
    from saesteer.models.resolve import check_shape

    given = vector or run
    steering = None if given is None else SteeringVector.load(given)
    name = model or (steering.model if steering else "smollm2")
    source = resolve_model(name)
    if steering is not None:
        check_shape(source, steering.site, steering.d_model, f"vector {steering.name!r}")
    progress = terminal_progress()
    with listen(port) as listening:
        progress.say(f"Loading model {name} ...")
        bridge = load_model(name, dtype=dtype, progress=progress)
        features = _sae(sae, steering, name, progress)
        if steering is None:
            steering = _fitted(bridge, features, progress)
        bench = Workbench(bridge, steering, features)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        say(f"The page is at {address} (Ctrl-C ends it).")
        serve(bench, listening)


def _sae(
    named: str | None, vector: SteeringVector | None, model: str, progress: Progress
) -> LensSae | None:
    """Return the SAE that is asked for, else the vector's or the bundled model's, if there."""
    from saesteer.saes import load_sae

    of_vector = vector.sae if vector is not None else ("smollm2" if model == "smollm2" else None)
    if named is None and of_vector is None:
        return None
    try:
        return load_sae(named or of_vector or "")
    except SaesteerError as error:
        if named is not None:
            raise
        progress.say(f"warning: no features to mix or read: {error}")
        return None


def _fitted(model: TransformerBridge, sae: LensSae | None, progress: Progress) -> SteeringVector:
    from dataclasses import replace

    from saesteer.data import load_pairs
    from saesteer.methods import ClusteredSAE, DifferenceInMeans

    progress.say(f"Fitting a vector to {N_PAIRS} bundled pairs on {PAIRS} ...")
    pairs = load_pairs(PAIRS)
    pairs = pairs.subset(range(min(N_PAIRS, len(pairs))))
    site = f"blocks.{int(model.cfg.n_layers) // 2}.hook_resid_post" if sae is None else None
    method = DifferenceInMeans() if sae is None else ClusteredSAE()
    return replace(method.fit(model, pairs, sae=sae, site=site).vector_, name=PAIRS)
