"""One run of the prompts with the activations at many sites kept, as attribution needs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.models.sites import Site, check_site
from saesteer.patching.components import check_per_token
from saesteer.patching.engine.limits import check_memory
from saesteer.patching.engine.sides import Sides, sides_of
from saesteer.patching.metrics import Metric, MetricRows
from saesteer.patching.prompts.batch import PairBatch, position_ids
from saesteer.patching.result import Mode
from saesteer.utils.errors import ConfigError, HookError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

INPUT = Site(0, "hook_resid_pre")


@dataclass(frozen=True)
class Ends:
    """The prompts that are patched, those that the patches come from, and their answers.

    Attributes:
        sides: The prompts.
        right: The token ids of the clean prompts' answers.
        wrong: The token ids of the corrupted prompts' answers.
        denoising: Whether the source is the clean prompt.
    """

    sides: Sides
    right: Int[Tensor, " pair"]
    wrong: Int[Tensor, " pair"]
    denoising: bool


def ends_of(batch: PairBatch, mode: Mode, pairs: slice, device: torch.device) -> Ends:
    """Return which prompts are patched from which.

    Args:
        batch: The pairs.
        mode: "denoising" patches clean activations into the corrupted run, "noising" the other way.
        pairs: Which pairs.
        device: Where the tensors go.
    """
    sides = sides_of(batch, mode, pairs, device)
    right, wrong = (ids[pairs].to(device) for ids in (batch.right, batch.wrong))
    return Ends(sides, right, wrong, mode == "denoising")


def destination_words(batch: PairBatch, mode: Mode) -> tuple[tuple[str, ...], ...]:
    """Return the tokens of the patched prompts as text."""
    return batch.corrupted_words if mode == "denoising" else batch.clean_words


def chosen_layers(model: TransformerBridge, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Return the layers asked for, all if None.

    Raises:
        ConfigError: None is left, or the model has no such layer.
    """
    count = int(model.cfg.n_layers)
    chosen = tuple(range(count)) if layers is None else tuple(dict.fromkeys(layers))
    if not chosen:
        raise ConfigError(f"layers: there is none; choose some of 0 to {count - 1}.")
    for layer in chosen:
        if not 0 <= layer < count:
            raise ConfigError(
                f"layers: the model has layers 0 to {count - 1}, not {layer}; choose one of them."
            )
    return chosen


@contextmanager
def keeping(
    model: TransformerBridge, sites: Sequence[Site], *, graph: bool
) -> Iterator[dict[Site, Tensor]]:
    """Keep what passes the sites while the context is open.

    Args:
        model: The model; run it through `answer_logits`.
        sites: Where.
        graph: Keep the very tensors of the computation, to ask for gradients of them.

    Yields:
        The activations by site, heads side by side; filled by the run.

    Raises:
        SiteError: The model has no such site.
        HookError: Nothing passed a site.
    """
    kept: dict[Site, Tensor] = {}
    points = model.hook_dict

    def keep(site: Site) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            check_per_token(output, str(site))
            kept[site] = output if graph else output.detach()

        return hook

    with ExitStack() as stack:
        for site in dict.fromkeys(sites):
            if str(site) not in points:
                check_site(model, site)
            stack.callback(points[str(site)].register_forward_hook(keep(site)).remove)
        yield kept
    missing = [str(site) for site in sites if site not in kept]
    if missing:
        raise HookError(f"nothing passed through {', '.join(missing)}; choose another site.")


@contextmanager
def replacing(
    model: TransformerBridge, site: Site, function: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Put what the function makes of the activation in its place while the context is open."""
    check_site(model, site)

    def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return function(output)

    handle = model.hook_dict[str(site)].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def adding(
    model: TransformerBridge, site: Site, change: Float[Tensor, "row pos ..."]
) -> Iterator[None]:
    """Add a change to the activation at a site while the context is open.

    In the middle of a block transformer_lens hooks what the MLP reads; the residual stream runs
    past it, so there the change is added behind the block as well.
    """
    with ExitStack() as stack:
        stack.enter_context(replacing(model, site, lambda hidden: hidden + change))
        if site.hook == "hook_resid_mid":
            behind = Site(site.layer, "hook_resid_post")
            stack.enter_context(replacing(model, behind, lambda hidden: hidden + change))
        yield


@contextmanager
def differentiable(model: TransformerBridge) -> Iterator[None]:
    """Let gradients be taken of everything from the first block's input on."""
    with torch.inference_mode(False), torch.enable_grad():
        with replacing(model, INPUT, _leaf):
            yield


def _leaf(hidden: Tensor) -> Tensor:
    return hidden.detach().requires_grad_(True)


def answer_logits(
    model: TransformerBridge, ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"]
) -> Float[Tensor, "row vocab"]:
    """Run left-padded prompts and return the logits at the answer's position, in float32."""
    runner: Any = model.original_model
    takes = inspect.signature(runner.forward).parameters
    wanted: dict[str, Any] = {"position_ids": position_ids(mask), "logits_to_keep": 1}
    extra = {name: value for name, value in wanted.items() if name in takes}
    logits = runner(input_ids=ids, attention_mask=mask.long(), use_cache=False, **extra).logits
    return logits[:, -1].float()


def scores(
    metric: Metric,
    logits: Float[Tensor, "row vocab"],
    right: Int[Tensor, " row"],
    wrong: Int[Tensor, " row"],
    clean: Float[Tensor, "row vocab"],
) -> Float[Tensor, " row"]:
    """Return a metric of full logits, giving it the columns that it takes.

    Args:
        metric: The metric.
        logits: The logits at the answer's position.
        right: The token ids of the right answers.
        wrong: The token ids of the wrong answers.
        clean: The logits of the clean prompts.
    """
    if not metric.answers_only:
        return metric.score(logits, MetricRows(right, wrong, clean.detach()))
    two = logits.gather(1, torch.stack([right, wrong], dim=1))
    first = torch.zeros_like(right)
    return metric.score(two, MetricRows(first, first + 1))


def pairs_at_once(model: TransformerBridge, width: int, memory_gb: float) -> int:
    """Return how many prompts a run whose graph is kept may hold.

    Counted are the tensors that a block keeps for its backward pass, about 16 of the model's
    width, 6 of the MLP's and 5 attention matrices a token, and as many again in use.

    Raises:
        ConfigError: The memory is not above 0.
    """
    check_memory(memory_gb)
    cfg = model.cfg
    d_mlp = int(getattr(cfg, "d_mlp", None) or 4 * cfg.d_model)
    a_token = 16 * int(cfg.d_model) + 6 * d_mlp + 5 * int(cfg.n_heads) * width
    return max(1, int(memory_gb * 2**30 / (2 * 4 * a_token * int(cfg.n_layers) * width)))
