"""What a model runs on: device, dtype (measured where it matters) and memory."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from saesteer.utils.errors import ModelError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

# Logits of a few rows stay in a processor's cache; a kernel's launch on a GPU costs more than that.
_CACHED_ROWS, _ROWS_BESIDE_A_CPU = 16, 1024


def few_rows(*arrays: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Divide arrays into few rows at a time, as many as a processor's cache holds logits of."""
    few = _CACHED_ROWS if arrays[0].device.type == "cpu" else _ROWS_BESIDE_A_CPU
    return zip(*(array.split(few) for array in arrays), strict=True)


def by_rows(
    function: Callable[..., tuple[torch.Tensor, ...]], *arrays: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return the arrays that a function of rows gives, computed for few rows at a time.

    Over a vocabulary this takes half the time of all rows at once, or less, and the memory of few.
    """
    found = (function(*part) for part in few_rows(*arrays))
    return tuple(map(torch.cat, zip(*found, strict=True)))


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device to run on: None and "auto" are CUDA, else Apple's MPS, else the CPU."""
    if device is None or str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).cpu()
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0]
        raise ModelError(
            f"device {str(device)!r} is not available here ({why}); use device 'auto' or 'cpu'."
        ) from error
    return chosen


def choose_dtype(
    dtype: str | torch.dtype | None = None, device: torch.device | None = None
) -> torch.dtype:
    """Return the dtype to load weights in; None and "auto" choose by the device, or the CPU.

    On a CPU bfloat16 is several times faster than float32 where the processor has instructions
    for it and slower where it has not, so the choice is measured (about 50 ms).
    """
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype not in (None, "auto"):
        if dtype not in DTYPES:
            raise ModelError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}.")
        return DTYPES[dtype]
    device = device or torch.device("cpu")
    # Never float16 by itself, whose largest number many a residual stream exceeds.
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "mps":
        return torch.bfloat16 if _takes_bfloat16(device) else torch.float32
    return _fastest_dtype()


@cache
def _fastest_dtype() -> torch.dtype:
    # Once: on a busy machine a second answer may be another one, and so would a model's numbers.
    ratio = _matmul_seconds(torch.float32) / _matmul_seconds(torch.bfloat16)
    return torch.bfloat16 if ratio > 1.2 else torch.float32


def _takes_bfloat16(device: torch.device) -> bool:
    # Metal knows bfloat16 from macOS 14 on.
    try:
        torch.ones(1, dtype=torch.bfloat16, device=device).sum().item()
    except (RuntimeError, TypeError):
        return False
    return True


def memory_of(device: torch.device) -> int:
    """Return how many bytes of memory a device has; 0 where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    found = []
    with suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    # What a container may use of it; the word "max" where it may use all.
    with suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(found, default=0)


def trim_memory() -> None:
    """Give freed memory back to the system.

    glibc keeps pieces below its mapping threshold (32 MB at most), hundreds of megabytes after
    gradients or generation, which the large arrays of the next step cannot use. Other C libraries
    have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _matmul_seconds(dtype: torch.dtype, repeats: int = 5) -> float:
    # The shapes are those of a small model's MLP over a short batch.
    left = torch.ones(256, 576, dtype=dtype)
    right = torch.ones(576, 1536, dtype=dtype)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
