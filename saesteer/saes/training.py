"""Training a TopK SAE with sae_lens's model and losses, resumable at any step."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.saes.harvest import Harvest
from saesteer.saes.settings import SaeTrainingConfig
from saesteer.utils.errors import SaeError
from saesteer.utils.files import unwritable, write_atomic
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from sae_lens import TopKTrainingSAE

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_EVERY_SHARDS = 4
Watch = Callable[[int, dict[str, float]], None]


@dataclass
class _State:
    """Where training stands: everything a resumed run needs."""

    sae: TopKTrainingSAE
    optimizer: torch.optim.Adam
    since_fired: Tensor
    scale: float
    step: int = 0
    shards_done: int = 0


def train_topk(
    harvested: Harvest,
    config: SaeTrainingConfig,
    metadata: dict[str, Any],
    folder: Path,
    *,
    device: torch.device,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Path:
    """Train on stored activations and save the inference SAE in sae_lens's layout.

    The activations are divided by their mean norm over sqrt(d_model) while training (so that one
    learning rate suits every site) and the factor is folded into the weights at the end: the
    saved SAE takes raw activations and carries `normalize_activations: none`.

    Args:
        harvested: The stored activations.
        config: The settings.
        metadata: What the SAE's users must know (model, hook, BOS, ...), kept in its cfg.json.
        folder: Checkpoints and the result `sae/`, which is returned, go here; a checkpoint there is
            resumed.
        device: Where to train.
        progress: Where to show progress.
        watch: Called after every step with its number, "loss" and "dead", a share of the features.

    Raises:
        SaeError: Training diverged, there are too few tokens for one step, or the folder holds a
            checkpoint of other settings.
        OutputError: The folder cannot be written.
    """
    total_steps = _total_steps(harvested, config)
    if _active(total_steps, config) != config.k:
        raise SaeError(
            f"the features active on a token fall to k over {config.k_steps:,} steps and the "
            f"training has {total_steps:,}; lower k_steps, or train for longer."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder / CHECKPOINT, error) from error
    shards = _epoch_order(harvested, config)
    state = _resume(folder, config, device)
    if state is None:
        first = harvested.load(harvested.shards[0], config.site)
        state = _start(first, config, metadata, device)
    task = (progress or Progress()).task("training", total=total_steps, unit="steps")
    with task:
        task.advance(state.step)
        for position, (shard, seed) in enumerate(shards):
            if position < state.shards_done:
                continue
            rows = harvested.load(shard, config.site)
            _train_shard(state, rows, seed, total_steps, config, task, watch)
            state.shards_done = position + 1
            if state.shards_done % CHECKPOINT_EVERY_SHARDS == 0 or position + 1 == len(shards):
                _save_checkpoint(state, folder)
    return _finish(state, folder)


def _train_shard(
    state: _State,
    activations: Float[Tensor, "token d_model"],
    seed: int,
    total_steps: int,
    config: SaeTrainingConfig,
    task: Any,
    watch: Watch | None,
) -> None:
    from sae_lens.saes.sae import TrainStepInput

    sae = state.sae
    device = sae.W_enc.device
    order = torch.randperm(len(activations), generator=torch.Generator().manual_seed(seed))
    for start in range(0, len(order) - config.batch + 1, config.batch):
        batch = activations[order[start : start + config.batch]].to(device, torch.float32)
        for group in state.optimizer.param_groups:
            group["lr"] = _rate(state.step, total_steps, config)
        sae.activation_fn.k = _active(state.step, config)  # type: ignore[union-attr]
        dead = state.since_fired >= config.dead_after
        with torch.autocast(device.type, torch.bfloat16, enabled=config.autocast):
            output = sae.training_forward_pass(
                TrainStepInput(
                    sae_in=batch / state.scale,
                    coefficients={},
                    dead_neuron_mask=dead if bool(dead.any()) else None,
                    n_training_steps=state.step,
                    is_logging_step=False,
                )
            )
        loss = output.loss
        if not math.isfinite(float(loss.detach())):
            raise _divergence(state.step, batch)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        state.optimizer.step()
        fired = (output.feature_acts.detach() > 0).any(dim=0)
        state.since_fired = torch.where(fired, 0, state.since_fired + len(batch))
        state.step += 1
        values = {"loss": float(loss.detach()), "dead": float(dead.float().mean())}
        task.advance(1, f"loss {values['loss']:.2f}, dead {int(dead.sum())}")
        if watch is not None:
            watch(state.step, values)


def _divergence(step: int, batch: Tensor) -> SaeError:
    if not bool(torch.isfinite(batch).all()):
        return SaeError(
            f"the activations of step {step} hold NaN or infinity, so the model overflowed while "
            "they were read; load it in float32 and read them again."
        )
    return SaeError(
        f"training diverged at step {step} (the loss is not finite); lower learning_rate and start "
        "in a new folder."
    )


def _rate(step: int, total: int, config: SaeTrainingConfig) -> float:
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _active(step: int, config: SaeTrainingConfig) -> int:
    """Return how many features may fire on a token at a step, falling from k_start to k."""
    start = max(config.k, min(config.k_start or config.k, config.d_sae - 1))
    share = min(1.0, step / config.k_steps) if config.k_steps else 1.0
    return round(start + (config.k - start) * share)


def _epoch_order(harvested: Harvest, config: SaeTrainingConfig) -> list[tuple[int, int]]:
    order = []
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(config.seed * 1009 + epoch)
        for i in torch.randperm(len(harvested.shards), generator=generator).tolist():
            order.append((harvested.shards[i], config.seed * 7919 + epoch * 100_003 + i))
    return order


def _total_steps(harvested: Harvest, config: SaeTrainingConfig) -> int:
    tokens = [_tokens(harvested, shard, config.site) for shard in harvested.shards]
    steps = sum(count // config.batch for count in tokens)
    if not steps:
        raise SaeError(
            f"the {sum(tokens):,} tokens in {harvested.folder} do not fill one batch of "
            f"{config.batch:,} in any shard; lower batch, or give more text."
        )
    return steps * config.epochs


def _tokens(harvested: Harvest, shard: int, site: str) -> int:
    from safetensors import SafetensorError, safe_open

    path = harvested.folder / f"{shard:05d}" / f"{site}.safetensors"
    try:
        with safe_open(path, "pt") as file:
            return file.get_slice("activations").get_shape()[0]
    except (OSError, SafetensorError) as error:
        raise SaeError(
            f"{path} cannot be read ({error}); delete the folder {path.parent} and run again."
        ) from error


def _start(
    sample: Tensor, config: SaeTrainingConfig, metadata: dict[str, Any], device: torch.device
) -> _State:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    torch.manual_seed(config.seed)
    sample = sample.to(torch.float32)
    d_in = sample.shape[1]
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=d_in,
            d_sae=config.d_sae,
            k=config.k,
            dtype="float32",
            device=str(device),
            normalize_activations="none",
            apply_b_dec_to_input=True,
            aux_loss_coefficient=config.dead_weight,
            metadata=SAEMetadata(**metadata),
        )
    )
    centre = sample.mean(dim=0)
    # Measured about the mean: a large constant part would otherwise set the scale alone.
    scale = float((sample - centre).norm(dim=1).mean()) / math.sqrt(d_in)
    with torch.no_grad():
        sae.b_dec.copy_((centre / scale).to(device))
    return _State(sae, _adam(sae, config), torch.zeros(config.d_sae, device=device), scale)


def _adam(sae: TopKTrainingSAE, config: SaeTrainingConfig) -> torch.optim.Adam:
    return torch.optim.Adam(
        sae.parameters(), lr=config.learning_rate, betas=(0.9, 0.999), fused=True
    )


def _save_checkpoint(state: _State, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {f"sae.{name}": value for name, value in state.sae.state_dict().items()}
    for index, parameter in enumerate(state.sae.parameters()):
        for key, value in state.optimizer.state[parameter].items():
            tensors[f"adam.{index}.{key}"] = torch.as_tensor(value)
    tensors["since_fired"] = state.since_fired
    record = {"step": state.step, "shards_done": state.shards_done, "scale": state.scale}
    record["cfg"] = state.sae.cfg.to_dict()
    kept = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    metadata = {"saesteer": json.dumps(record)}
    write_atomic(folder / CHECKPOINT, lambda draft: save_file(kept, draft, metadata=metadata))


def _resume(folder: Path, config: SaeTrainingConfig, device: torch.device) -> _State | None:
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    record, tensors = _read_checkpoint(path)
    cfg = record["cfg"]
    there, wanted = (cfg["d_sae"], cfg["k"]), (config.d_sae, config.k)
    if there != wanted:
        raise SaeError(
            f"{path} belongs to an SAE with d_sae and k of {there} and the settings say {wanted}; "
            "choose another folder, or delete the checkpoint to start anew."
        )
    sae = TopKTrainingSAE(TopKTrainingSAEConfig.from_dict({**cfg, "device": str(device)}))
    sae.load_state_dict(
        {n.removeprefix("sae."): t for n, t in tensors.items() if n.startswith("sae.")}
    )
    optimizer = _adam(sae, config)
    for index, parameter in enumerate(sae.parameters()):
        optimizer.state[parameter] = {
            key: tensors[f"adam.{index}.{key}"].to(device)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    since = tensors["since_fired"].to(device)
    return _State(
        sae, optimizer, since, record["scale"], int(record["step"]), int(record["shards_done"])
    )


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            record = json.loads(file.metadata()["saesteer"])
            return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SaeError(
            f"checkpoint {path} cannot be read ({error}); delete it, and training starts anew."
        ) from error


def _finish(state: _State, folder: Path) -> Path:
    from safetensors import SafetensorError

    sae = state.sae
    # sae_lens's factor multiplies the input: W_enc * f, W_dec / f, b_dec / f.
    sae.fold_activation_norm_scaling_factor(1.0 / state.scale)
    out, draft = folder / "sae", folder / ".sae.draft"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        sae.save_inference_model(draft)
        for file in sorted(draft.iterdir(), reverse=True):
            write_atomic(out / file.name, file.rename)
    except (OSError, SafetensorError) as error:
        raise unwritable(out, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out
