"""Training a TopK SAE with sae_lens's model and losses, resumable at any step."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.errors import OutputError, SaeError
from saesteer.progress import Progress
from saesteer.saes.harvest import Harvest
from saesteer.saes.settings import SaeTrainingConfig

if TYPE_CHECKING:
    from sae_lens import TopKTrainingSAE

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_EVERY_SHARDS = 4


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
) -> Path:
    """Train on stored activations and save the inference SAE in sae_lens's layout.

    The activations are divided by their mean norm over sqrt(d_model) while training (so that one
    learning rate suits every site) and the factor is folded into the weights at the end: the
    saved SAE takes raw activations and carries `normalize_activations: none`.

    Args:
        harvested: The stored activations.
        config: The settings.
        metadata: What the SAE's users must know (model, hook, BOS, ...), kept in its cfg.json.
        folder: Checkpoints and the result `sae/` go here; a checkpoint there is resumed.
        device: Where to train.
        progress: Where to show progress.

    Returns:
        The folder of the finished SAE.

    Raises:
        SaeError: Training diverged.
        OutputError: The folder cannot be written.
    """
    shards = _epoch_order(harvested, config)
    first = harvested.load(harvested.shards[0], config.site)
    steps_per_shard = [_steps(harvested, shard, config) for shard in harvested.shards]
    total_steps = sum(steps_per_shard) * config.epochs
    state = _resume(folder, config) or _start(first, config, metadata, device)
    task = (progress or Progress()).task("training", total=total_steps, unit="steps")
    with task:
        task.advance(state.step)
        for position, (shard, seed) in enumerate(shards):
            if position < state.shards_done:
                continue
            _train_shard(state, harvested.load(shard, config.site), seed, total_steps, config, task)
            state.shards_done = position + 1
            if state.shards_done % CHECKPOINT_EVERY_SHARDS == 0:
                _save_checkpoint(state, folder)
    return _finish(state, folder)


def _train_shard(
    state: _State,
    activations: Float[Tensor, "token d_model"],
    seed: int,
    total_steps: int,
    config: SaeTrainingConfig,
    task: Any,
) -> None:
    from sae_lens.saes.sae import TrainStepInput

    sae = state.sae
    device = sae.W_enc.device
    order = torch.randperm(len(activations), generator=torch.Generator().manual_seed(seed))
    for start in range(0, len(order) - config.batch + 1, config.batch):
        batch = activations[order[start : start + config.batch]].to(device, torch.float32)
        for group in state.optimizer.param_groups:
            group["lr"] = _rate(state.step, total_steps, config)
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
            raise SaeError(
                f"training diverged at step {state.step} (the loss is not finite); lower "
                "learning_rate and start in a new folder."
            )
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        state.optimizer.step()
        fired = (output.feature_acts.detach() > 0).any(dim=0)
        state.since_fired = torch.where(fired, 0, state.since_fired + len(batch))
        state.step += 1
        note = f"loss {float(loss.detach()):.2f}, dead {int(dead.sum())}"
        task.advance(1, note)


def _rate(step: int, total: int, config: SaeTrainingConfig) -> float:
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _epoch_order(harvested: Harvest, config: SaeTrainingConfig) -> list[tuple[int, int]]:
    order = []
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(config.seed * 1009 + epoch)
        for i in torch.randperm(len(harvested.shards), generator=generator).tolist():
            order.append((harvested.shards[i], config.seed * 7919 + epoch * 100_003 + i))
    return order


def _steps(harvested: Harvest, shard: int, config: SaeTrainingConfig) -> int:
    from safetensors import safe_open

    path = harvested.folder / f"{shard:05d}" / f"{config.site}.safetensors"
    with safe_open(path, "pt") as file:
        return file.get_slice("activations").get_shape()[0] // config.batch


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
            aux_loss_coefficient=1 / 32,
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
    draft = folder / f".{CHECKPOINT}.draft"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.detach().contiguous().cpu() for name, value in tensors.items()},
            draft,
            metadata={"saesteer": json.dumps(record)},
        )
        os.replace(draft, folder / CHECKPOINT)
    except OSError as error:
        raise OutputError(
            f"the checkpoint cannot be written to {folder} ({error.strerror}); choose another "
            "folder or free some space."
        ) from error


def _resume(folder: Path, config: SaeTrainingConfig) -> _State | None:
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["saesteer"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    sae = TopKTrainingSAE(TopKTrainingSAEConfig.from_dict(record["cfg"]))
    sae.load_state_dict({n.removeprefix("sae."): t for n, t in tensors.items() if "sae." in n})
    optimizer = _adam(sae, config)
    for index, parameter in enumerate(sae.parameters()):
        optimizer.state[parameter] = {
            key: tensors[f"adam.{index}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
        }
    device = sae.W_enc.device
    since = tensors["since_fired"].to(device)
    return _State(
        sae, optimizer, since, record["scale"], int(record["step"]), int(record["shards_done"])
    )


def _finish(state: _State, folder: Path) -> Path:
    sae = state.sae
    # sae_lens's factor multiplies the input: W_enc * f, W_dec / f, b_dec / f.
    sae.fold_activation_norm_scaling_factor(1.0 / state.scale)
    out = folder / "sae"
    sae.save_inference_model(out)
    return out
