"""What the stages of an experiment share: the model, loaded when first needed and once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch

from saesteer.models import load_model, model_info
from saesteer.models.placement import choose_device, choose_dtype, memory_of
from saesteer.saes.adapter import LensSae, check_compatible
from saesteer.saes.loading import load_sae
from saesteer.utils.cache import Cache
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


# What the weights of one model in several dtypes may take of a machine's memory.
MEMORY_SHARE = 0.25


@cache
def _chosen_dtype(dtype: str, device: torch.device, threads: int) -> torch.dtype:
    # Measured once: all runs of a process have one answer, and with it one model.
    return choose_dtype(dtype, device)


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Compute on so many CPU threads inside, or as many as there are, and afterwards as before."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Context:
    """What an experiment works with, each loaded once and on first use.

    A resumed experiment so loads only what it still needs. `cache` holds what other experiments
    of this process have loaded already.
    """

    # What dtype "auto" stands for where another process has settled it; measured if None.
    settled_dtype: str | None = None

    def __init__(self, plan: Any, progress: Progress, cache: Cache | None = None) -> None:
        self.plan: Any = plan
        self.progress = progress
        self.cache = cache or Cache()

    @cached_property
    def model(self) -> TransformerBridge:
        """The model."""
        settings = self.plan.config.model

        def load() -> TransformerBridge:
            self.progress.say(f"Loading model {settings.name} ...")
            return load_model(
                settings.name,
                device=self._device,
                dtype=self.dtype,
                device_map=settings.device_map,
                trust_remote_code=settings.trust_remote_code,
                progress=self.progress,
            )

        return self.cache.keep("model", self._model_key, load, room=self._has_room_beside)

    @cached_property
    def _device(self) -> torch.device | None:
        settings = self.plan.config.model
        mapped = settings.device_map is not None and settings.device == "auto"
        return None if mapped else choose_device(settings.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        device = self._device or choose_device()
        asked = self.settled_dtype or self.plan.config.model.dtype
        return _chosen_dtype(asked, device, torch.get_num_threads())

    @property
    def _model_key(self) -> tuple[str, ...]:
        left_out = {"threads", "device", "dtype"}
        settings = self.plan.config.model.model_dump_json(exclude=left_out)
        # What "auto" stands for, and where it was found, with the hash of a file: other weights
        # under one name are another.
        return (settings, str(self._device), str(self.dtype), str(self.plan.model))

    def _has_room_beside(self, others: Sequence[TransformerBridge]) -> bool:
        """Whether models may stay in memory while this one is loaded."""
        infos = [model_info(other) for other in others]
        # Only of the same weights the size is known before they are loaded.
        if self._device is None or any(info.source != self.plan.model for info in infos):
            return False
        numbers = sum(weight.numel() for weight in infos[0].plain.parameters())
        each = [self.dtype.itemsize, *(info.plain.dtype.itemsize for info in infos)]
        return numbers * sum(each) <= MEMORY_SHARE * memory_of(self._device)

    def loaded_sae(self, name: str | None) -> LensSae | None:
        """Return an SAE, checked against the model; None for no name."""
        if name is None:
            return None
        self.progress.say(f"Loading SAE {name} ...")
        sae = load_sae(name)
        check_compatible(self.model, sae)
        return sae

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        assert self.model.tokenizer is not None
        return self.model.tokenizer

    @property
    def context(self) -> int:
        """The longest row that the model takes, in tokens."""
        return int(self.model.cfg.n_ctx)
