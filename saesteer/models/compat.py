"""Everything that depends on another library's version: one section a library.

Each shim names the release that brought it and the condition under which it goes.
"""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import logging
import subprocess
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor, nn

from saesteer.utils.progress import Progress

# --- transformers: the cache of keys, values and states ------------------------------------------
# 5.24 renamed `past_key_values`, and Mamba's `cache_params`, to `cache` in models, generate and
# outputs; models with remote code keep the names that they were written with. So a cache is known
# by what it says, and only handing one over needs a name.
# Goes: the older names, when the floor is 5.24 and transformers refuses them (announced for 6.0).
_CACHE_NAMES = ("cache", "past_key_values", "cache_params")


def named_arguments(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the arguments of a forward pass by name."""
    if not args:
        return kwargs
    return {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **kwargs}


def find_cache(values: Any) -> Any:
    """Return the cache among a pass's named arguments or a model's outputs; None without one."""
    if isinstance(values, Mapping):
        values = values.values()
    return next((v for v in values if _is_cache(v)), None) if isinstance(values, Iterable) else None


def _is_cache(value: Any) -> bool:
    if isinstance(value, (Tensor, nn.Module)):
        return False
    return any(
        hasattr(value, name) for name in ("get_seq_length", "has_previous_state", "seqlen_offset")
    )


def cached_length(cache: Any) -> int | None:
    """Return how many tokens a cache holds; None where it holds a state that does not say."""
    if hasattr(cache, "get_seq_length"):
        # A cache of state-space layers alone has the method and raises (5.15 to 5.24).
        with suppress(ValueError):
            return int(cache.get_seq_length())
    if hasattr(cache, "seqlen_offset"):
        return int(cache.seqlen_offset)
    state = cache.has_previous_state
    return None if (state() if callable(state) else state) else 0


def cache_argument(model: nn.Module, cache: Any) -> dict[str, Any]:
    """Return a cache under the name that the model's forward takes; nothing if it takes none."""
    parameters = inspect.signature(model.forward).parameters
    return {name: cache for name in _CACHE_NAMES if name in parameters}


def selected_cache(cache: Any, rows: Sequence[int]) -> Any:
    """Return a cache of the given rows of another, in that order; None if it has no such rows.

    Layers with a convolution or a recurrent state lack the method or select of their keys and
    values alone (5.15 to 5.24), so what was selected is looked at.
    """
    selected = copy.copy(cache)
    try:
        # Selecting, and running with it, makes new tensors and writes to none.
        selected.layers = [copy.copy(layer) for layer in cache.layers]
        selected.batch_select_indices(torch.tensor(rows))
        held = [tensor for layer in selected.layers for tensor in _tensors(vars(layer))]
    except (AttributeError, TypeError):
        return None
    return selected if {t.shape[0] for t in held if t.ndim > 1} == {len(rows)} else None


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in _tensors(item)]


# --- torch: logits of the last column -------------------------------------------------------------
# generate's first pass takes the logits of each prompt's last column. That is no contiguous part of
# the batch, so torch's linear on a CPU multiplies row by row, and in bfloat16 copies all weights
# for each (2.13.0: 10 ms and 57 MB a row of SmolLM2), unless the weights want gradients.
# Goes: when torch folds such a batch whatever the weights want.


def contiguous_head(model: Any) -> None:
    """Hand a model's unembedding contiguous rows from now on."""
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(
            lambda _, args: (*(states.contiguous() for states in args[:1]), *args[1:])
        )


# --- transformers: continuous batching collects garbage ------------------------------------------
# Whenever its loop stops it has Python collect twice, over everything that was ever imported: 3 s
# a call beside some tenths for the texts (5.24).
# Goes: when stopping it leaves that to the caller.


@contextmanager
def objects_left_alone() -> Iterator[None]:
    """Have the garbage collector pass over what is there already."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# --- transformers: what generate is given ---------------------------------------------------------
# generate runs no hook of its own, and its first pass need not be the prompt: prompt look-up and
# assistants put candidates behind it, chunked prefill cuts it up (all releases).
# Goes: when transformers lets a caller observe generate.


class Watcher(Protocol):
    """Is told of a model's passes, and when its generate begins and ends."""

    def observe(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take what a pass is about to run with."""

    def conclude(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Take what a pass gave."""

    def begin(self, prompt_length: int, num_beams: int) -> None:
        """Take the prompt's width in columns, padding included, and the number of beams."""

    def end(self, new_tokens: int) -> None:
        """Take how many tokens were generated; 0 if generate was left by an error."""


class _WatchedGenerate:
    """Stands in for a model's generate; a call inside another (an assistant's) is no new prompt."""

    def __init__(self, model: Any) -> None:
        self.model, self.generate = model, model.generate
        self.own = {name: value for name, value in vars(model).items() if name == "generate"}
        self.watchers: list[Watcher] = []
        self.running = False
        functools.update_wrapper(self, model.generate)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.running:
            return self.generate(*args, **kwargs)
        names = inspect.signature(self.generate).parameters
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        ids = given.get("inputs")
        ids = given.get("input_ids") if ids is None else ids
        whole = given.get("inputs_embeds")
        whole = ids if whole is None else whole
        # With a cache that holds the beginning, the attention mask alone may cover the prompt.
        widths = [t.shape[1] for t in (whole, given.get("attention_mask")) if t is not None]
        # Without any input, generate starts from BOS.
        prompt_length = max(widths, default=1)
        beams = given.get("num_beams") or getattr(given.get("generation_config"), "num_beams", 0)
        beams = beams or getattr(self.model.generation_config, "num_beams", 0) or 1
        watchers = list(self.watchers)
        new_tokens = 0
        self.running = True
        try:
            for watcher in watchers:
                watcher.begin(prompt_length, beams)
            output = self.generate(*args, **kwargs)
            width = getattr(output, "sequences", output).shape[-1]
            new_tokens = width - (ids.shape[1] if ids is not None else 0 if widths else 1)
            return output
        finally:
            self.running = False
            for watcher in watchers:
                watcher.end(new_tokens)


@contextmanager
def watching(model: nn.Module, watcher: Watcher) -> Iterator[None]:
    """Tell a watcher of the model's passes and of its generate."""
    before = model.register_forward_pre_hook(watcher.observe, with_kwargs=True)
    behind = model.register_forward_hook(watcher.conclude, with_kwargs=True)
    watched: Any = vars(model).get("generate")
    if not isinstance(watched, _WatchedGenerate):
        watched = vars(model)["generate"] = _WatchedGenerate(model)
    watched.watchers.append(watcher)
    try:
        yield
    finally:
        before.remove()
        behind.remove()
        watched.watchers.remove(watcher)
        if not watched.watchers:
            del vars(model)["generate"]
            vars(model).update(watched.own)


def is_watched(model: nn.Module) -> bool:
    """Whether anybody is told of the model's passes, and so counts on whole ones."""
    return isinstance(vars(model).get("generate"), _WatchedGenerate)


# --- transformer_lens: the cache's old names ------------------------------------------------------
# Its parts that compute attention or a recurrence themselves look for `past_key_values` or
# `cache_params` (3.9 and 4.3); under transformers 5.24 they would find none, and attend to the
# pass's own tokens alone. Goes: when transformer_lens reads `cache`.


def keep_cache_names(bridge: Any) -> None:
    """Hand the bridge's model, and the parts in it, their cache under the names that they know."""
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
    from transformer_lens.model_bridge.generalized_components.ssm_protocol import SSMStateHookMixin

    model: Any = bridge.original_model
    for name in cache_argument(model, None):
        for old in set(_CACHE_NAMES) - {name}:
            model.register_forward_pre_hook(_renaming(old, name), with_kwargs=True)
    for part in list(model.modules()):
        attends = issubclass(type(part), AttentionBridge)
        if attends or issubclass(type(part), SSMStateHookMixin):
            old = "past_key_values" if attends else "cache_params"
            part.register_forward_pre_hook(_renaming("cache", old), with_kwargs=True)
            inner: Any = part.original_component
            if "cache" in inspect.signature(inner.forward).parameters:
                inner.register_forward_pre_hook(_renaming(old, "cache"), with_kwargs=True)


def _renaming(old: str, new: str) -> Any:
    def rename(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if old not in kwargs:
            return None
        return args, {new if name == old else name: value for name, value in kwargs.items()}

    return rename


# --- transformer_lens: Hugging Face's arguments --------------------------------------------------
# Its generate takes the prompt as `input` and drops `input_ids` without a word (3.9 and 4.3).
# Goes: when it takes what a tokenizer gives.


def take_tokenizer_output(bridge: Any, plain: Any) -> None:
    """Let `bridge.generate(**inputs)` be Hugging Face's where the inputs are a tokenizer's."""
    own = bridge.generate

    @functools.wraps(own)
    def generate(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.keys() & {"input_ids", "inputs", "inputs_embeds"}
        return (plain.generate if given else own)(*args, **kwargs)

    bridge.generate = generate


# --- loading: what other libraries run and print --------------------------------------------------
# transformer_lens runs pip where a multimodal model's processor cannot be made (3.9 to 4.3), and
# goes on without the processor where that fails. Goes: when it installs nothing.


@contextmanager
def nothing_started() -> Iterator[None]:
    """Let this thread start no process for a while."""
    start, thread = subprocess.Popen.__init__, threading.get_ident()

    def refuse(process: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        if threading.get_ident() == thread:
            raise PermissionError(f"saesteer starts no process while it loads a model: {command}")
        start(process, command, *args, **kwargs)

    with mock.patch.object(subprocess.Popen, "__init__", refuse):
        yield


# transformers, transformer_lens and sae_lens draw bars and log between a program's own lines, each
# with a switch of its own (all releases). Goes: when a call can be told to be quiet.


@contextmanager
def quiet() -> Iterator[None]:
    """Show no bar, warning or log line below an error of other libraries for a while.

    Bars of downloads stay: gigabytes may come, and a user wants to see that they do.
    """
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as transformers_logging

    shown, level = transformers_logging.is_progress_bar_enabled(), logging.root.manager.disable
    downloads = disable_progress_bars if are_progress_bars_disabled() else enable_progress_bars
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(max(level, logging.WARNING))
        # The switch of transformers turns the Hub's as well.
        transformers_logging.disable_progress_bar()
        downloads()
        try:
            yield
        finally:
            if shown:
                transformers_logging.enable_progress_bar()
                downloads()
            logging.disable(level)


@contextmanager
def counting_tensors(progress: Progress, name: str) -> Iterator[None]:
    """Show the conversion of a GGUF file as a task of ours, where transformers shows its own bar.

    transformers draws it with tqdm itself and not with its own switch (5.15 to 5.24).
    """
    from transformers import modeling_gguf_pytorch_utils as module

    def counted(tensors: Any, **_: Any) -> Iterator[Any]:
        with progress.task(f"converting {name}", len(tensors), "tensors") as task:
            for tensor in tensors:
                yield tensor
                task.advance()

    with mock.patch.object(module, "tqdm", counted, create=True):
        yield
