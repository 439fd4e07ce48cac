"""Training a TopK SAE with sae_lens's model and losses, resumable at any step."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from saesteer.saes.corpus import CorpusSource
from saesteer.saes.harvest import Harvest
from saesteer.utils.errors import SaeError
from saesteer.utils.files import unwritable, write_atomic
from saesteer.utils.progress import Progress
from saesteer.utils.settings import Settings

if TYPE_CHECKING:
    from sae_lens import TopKTrainingSAE

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_EVERY_SHARDS = 4
Watch = Callable[[int, dict[str, float]], None]


class SaeTrainingConfig(Settings):
    site: str  # Such as "blocks.10.hook_resid_post".
    # Sites read in the same pass, so that SAEs at several can be compared.
    harvest_sites: list[str] = Field(default_factory=list)
    corpus: list[CorpusSource] = Field(min_length=1)
    held_out: float = Field(default=0.03, gt=0, lt=0.5)  # Share of documents for the metrics.
    context: int = Field(default=256, ge=16)  # Tokens in a row, BOS included.
    tokens: int | None = Field(default=None, gt=0)  # Distinct ones to train on; all there are.
    epochs: int = Field(default=2, ge=1)  # Passes over them.
    d_sae: int = Field(default=4608, ge=8)  # Number of features.
    k: int = Field(default=48, ge=1)  # Features active on each token (TopK).
    # Features active at the first step; falls linearly to k over `k_steps` steps, so that more
    # features find something to do before the competition is at its hardest.
    k_start: int | None = Field(default=None, ge=1)
    k_steps: int = Field(default=500, ge=0)
    batch: int = Field(default=4096, ge=16)  # Tokens in a step.
    # Adam's peak rate; warmed up linearly, then decayed to zero by a cosine.
    learning_rate: float = Field(default=1.2e-3, gt=0)
    warmup_steps: int = Field(default=200, ge=0)
    # A feature is dead when it has not fired for so many tokens; it is then revived by sae_lens's
    # auxiliary loss, of this weight.
    dead_after: int = Field(default=500_000, gt=0)
    dead_weight: float = Field(default=1.0, ge=0)
    autocast: bool = True  # Run the matrix products in bfloat16.
    seed: int = 0  # Seeds the split, the order and the initial weights.

    @model_validator(mode="after")
    def _k_fits(self) -> SaeTrainingConfig:
        if self.k >= self.d_sae:
            raise ValueError(f"k ({self.k}) must be smaller than d_sae ({self.d_sae})")
        return self

    @property
    def all_sites(self) -> list[str]:
        """Every site that the harvest reads, the training site among them, in order."""
        return sorted({self.site, *self.harvest_sites})


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
        metadata: What the SAE's users must know (model, hook, BOS, ...), kept in its cfg.json.
        folder: Checkpoints and the result `sae/`, which is returned, go here; a checkpoint there is
            resumed.
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
    checkpoint = folder / CHECKPOINT
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(checkpoint, error) from error
    if checkpoint.is_file():
        state = _Training.resumed(checkpoint, config, device)
    else:
        first = harvested.load(harvested.shards[0], config.site)
        state = _Training.started(first, config, metadata, device)
    shards = _epoch_order(harvested, config)
    with (progress or Progress()).task("training", total=total_steps, unit="steps") as task:

        def tell(step: int, values: dict[str, float]) -> None:
            task.advance(1, f"loss {values['loss']:.2f}, dead {values['dead'] * config.d_sae:.0f}")
            if watch is not None:
                watch(step, values)

        task.advance(state.step)
        for position, (shard, seed) in enumerate(shards):
            if position < state.shards_done:
                continue
            state.train(harvested.load(shard, config.site), seed, total_steps, tell)
            state.shards_done = position + 1
            if state.shards_done % CHECKPOINT_EVERY_SHARDS == 0 or position + 1 == len(shards):
                state.save(checkpoint)
    return state.finish(folder)


class _Training:
    """A training under way, with everything that a resumed one needs."""

    def __init__(self, sae: TopKTrainingSAE, config: SaeTrainingConfig, scale: float) -> None:
        self.sae, self.config, self.scale = sae, config, scale
        self.since_fired = torch.zeros(config.d_sae, device=sae.W_enc.device)
        self.step = self.shards_done = 0
        self.optimizer = torch.optim.Adam(
            sae.parameters(), lr=config.learning_rate, betas=(0.9, 0.999), fused=True
        )

    @classmethod
    def started(
        cls,
        sample: Tensor,
        config: SaeTrainingConfig,
        metadata: dict[str, Any],
        device: torch.device,
    ) -> _Training:
        """Return one at its start, centred and scaled by a sample of the activations."""
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
        return cls(sae, config, scale)

    @classmethod
    def resumed(cls, path: Path, config: SaeTrainingConfig, device: torch.device) -> _Training:
        """Return one where a checkpoint left it."""
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

        record, tensors = _read_checkpoint(path)
        cfg = record["cfg"]
        there, wanted = (cfg["d_sae"], cfg["k"]), (config.d_sae, config.k)
        if there != wanted:
            raise SaeError(
                f"{path} belongs to an SAE with d_sae and k of {there} and the settings say "
                f"{wanted}; choose another folder, or delete the checkpoint to start anew."
            )
        sae = TopKTrainingSAE(TopKTrainingSAEConfig.from_dict({**cfg, "device": str(device)}))
        weights = {n.removeprefix("sae."): t for n, t in tensors.items() if n.startswith("sae.")}
        sae.load_state_dict(weights)
        state = cls(sae, config, record["scale"])
        for index, parameter in enumerate(sae.parameters()):
            state.optimizer.state[parameter] = {
                key: tensors[f"adam.{index}.{key}"].to(device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        state.since_fired = tensors["since_fired"].to(device)
        state.step, state.shards_done = int(record["step"]), int(record["shards_done"])
        return state

    def train(
        self, activations: Float[Tensor, "token d_model"], seed: int, total_steps: int, tell: Watch
    ) -> None:
        """Take all steps that one shard has tokens for."""
        from sae_lens.saes.sae import TrainStepInput

        sae, config = self.sae, self.config
        device = sae.W_enc.device
        order = torch.randperm(len(activations), generator=torch.Generator().manual_seed(seed))
        for start in range(0, len(order) - config.batch + 1, config.batch):
            batch = activations[order[start : start + config.batch]].to(device, torch.float32)
            for group in self.optimizer.param_groups:
                group["lr"] = _rate(self.step, total_steps, config)
            sae.activation_fn.k = _active(self.step, config)  # type: ignore[union-attr]
            dead = self.since_fired >= config.dead_after
            with torch.autocast(device.type, torch.bfloat16, enabled=config.autocast):
                output = sae.training_forward_pass(
                    TrainStepInput(
                        sae_in=batch / self.scale,
                        coefficients={},
                        dead_neuron_mask=dead if bool(dead.any()) else None,
                        n_training_steps=self.step,
                        is_logging_step=False,
                    )
                )
            loss = float(output.loss.detach())
            if not math.isfinite(loss):
                raise _divergence(self.step, batch)
            self.optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
            self.optimizer.step()
            fired = (output.feature_acts.detach() > 0).any(dim=0)
            self.since_fired = torch.where(fired, 0, self.since_fired + len(batch))
            self.step += 1
            tell(self.step, {"loss": loss, "dead": float(dead.float().mean())})

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        tensors = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        for index, parameter in enumerate(self.sae.parameters()):
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{index}.{key}"] = torch.as_tensor(value)
        tensors["since_fired"] = self.since_fired
        record = {"step": self.step, "shards_done": self.shards_done, "scale": self.scale}
        record["cfg"] = self.sae.cfg.to_dict()
        kept = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
        metadata = {"saesteer": json.dumps(record)}
        write_atomic(path, lambda draft: save_file(kept, draft, metadata=metadata))

    def finish(self, folder: Path) -> Path:
        from safetensors import SafetensorError

        # sae_lens's factor multiplies the input: W_enc * f, W_dec / f, b_dec / f.
        self.sae.fold_activation_norm_scaling_factor(1.0 / self.scale)
        out, draft = folder / "sae", folder / ".sae.draft"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            self.sae.save_inference_model(draft)
            for file in sorted(draft.iterdir(), reverse=True):
                write_atomic(out / file.name, file.rename)
        except (OSError, SafetensorError) as error:
            raise unwritable(out, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return out


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
