"""The engine of transformers' continuous batching: requests of any length, packed without padding.

The tokens of all requests lie end to end in one row, and a request that ends makes room for the
next. So a hook cannot tell rows apart, and every strength is written by itself; what it can tell is
where a request's tokens of a pass end, and what their positions are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saesteer.models.compat import objects_left_alone, quiet
from saesteer.models.forward import greedy_settings
from saesteer.models.hooks import hooked
from saesteer.models.loading import plain_model
from saesteer.models.sites import resolve_target
from saesteer.steering.apply import check_belongs
from saesteer.steering.edits import Add
from saesteer.steering.engines.base import (
    EVERYWHERE,
    Completion,
    Request,
    Requests,
    completed,
    end_ids,
    pad_id,
)
from saesteer.steering.engines.local import key_seed
from saesteer.steering.positions import DEFAULT_POSITIONS
from saesteer.utils.errors import HookError, ModelError, SteeringError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ABLE = (DEFAULT_POSITIONS, "generated", EVERYWHERE)
_PAGE = 32  # tokens


class PagedEngine:
    """Writes with transformers' continuous batching, at one strength after the other.

    It draws its own random numbers, so samples at several strengths share no noise.

    Args:
        max_requests: The most requests under way at once.

    Raises:
        ModelError: The installed transformers is too old.
    """

    def __init__(self, model: TransformerBridge, max_requests: int = 64) -> None:
        from transformers import ContinuousBatchingConfig

        if "auto_switch_to_flash" not in ContinuousBatchingConfig.__dataclass_fields__:
            raise ModelError(
                "the engine paged needs a newer transformers (5.24 was tried); upgrade it, or use "
                "the engine transformers."
            )
        self._model, self._max_requests = model, max_requests

    def generate(self, requests: Requests) -> list[Completion]:
        """Return one completion for each request; see `Engine`."""
        requests.check_positions("the engine paged", ABLE)
        plain: Any = plain_model(self._model)
        for vector in requests.pieces:
            check_belongs(self._model, vector)
            if not vector.site.between_blocks:
                raise SteeringError(
                    f"the engine paged steers between blocks and vector {vector.name!r} is at "
                    f"{vector.site}; use the engine transformers."
                )
        made: dict[int, Completion] = {}
        for strength in dict.fromkeys(request.strength for request in requests.rows):
            own = [n for n, request in enumerate(requests.rows) if request.strength == strength]
            for start in range(0, len(own), self._max_requests * 16):
                numbers = own[start : start + self._max_requests * 16]
                rows = [requests.rows[number] for number in numbers]
                with self._steered(plain, requests, strength, len(rows)):
                    texts = self._written(plain, requests, rows)
                made |= dict(zip(numbers, texts, strict=True))
        for number, completion in made.items():
            if requests.on_piece is not None:
                requests.on_piece(number, completion.text)
        return [made[number] for number in range(len(requests.rows))]

    def _written(self, plain: Any, requests: Requests, rows: Sequence[Request]) -> list[Completion]:
        from transformers import ContinuousBatchingConfig

        tokenizer: Any = self._model.tokenizer
        ends, new = end_ids(plain, tokenizer), requests.max_new_tokens
        settings: Any = greedy_settings(new, ends=sorted(ends) or None, pad=pad_id(tokenizer, ends))
        if requests.temperature:
            settings.update(
                do_sample=True, temperature=requests.temperature, top_p=requests.top_p, top_k=0
            )
        # Of those that can be under way at once.
        widths = sorted(len(request.row) for request in rows)[-self._max_requests :]
        together = len(widths)
        batching = ContinuousBatchingConfig(
            page_size=_PAGE,
            # Twice what is needed: a request that is put off would be read again from its start.
            num_blocks=2 * together * math.ceil((widths[-1] + new) / _PAGE) + 8,
            # Their prompts fit into one pass, so that none is cut up; a mask of its square is kept.
            max_batch_tokens=sum(widths) + together,
            max_requests_per_batch=together,
            # What was steered for one request must not be read by another.
            allow_block_sharing=False,
            # Hooks are Python, which a recorded graph would leave out.
            use_cuda_graph=False,
            use_async_batching=False,
            # The kernels would be fetched.
            auto_switch_to_flash=False,
        )
        # It draws from torch's own generator.
        with torch.random.fork_rng(), quiet(), objects_left_alone():
            torch.manual_seed(key_seed(requests.seed))
            try:
                # Its thread takes over the caller's mode.
                with torch.inference_mode():
                    found = plain.generate_batch(
                        [list(request.row.ids) for request in rows],
                        generation_config=settings,
                        continuous_batching_config=batching,
                        warmup=False,
                    )
            except (ValueError, NotImplementedError, AttributeError, KeyError) as error:
                raise ModelError(
                    f"continuous batching does not run this model ({error}); use the engine "
                    "transformers."
                ) from error
        failed = next((one.error for one in found.values() if one.error), None)
        if failed or len(found) < len(rows):
            raise ModelError(
                f"continuous batching wrote {len(found)} of {len(rows)} texts "
                f"({failed or 'it ended early'}); use the engine transformers."
            )
        return [completed(tokenizer, one.generated_tokens, ends) for one in found.values()]

    @contextmanager
    def _steered(
        self, plain: Any, requests: Requests, strength: float, n_requests: int
    ) -> Iterator[None]:
        additions = requests.lengths(strength)
        if not additions:
            yield
            return
        packing = _Packing()
        functions = []
        for vector, length in additions:
            edit = Add(vector, length, "raw")
            where = requests.where(vector)
            functions.append(
                (
                    resolve_target(self._model, vector.site),
                    lambda hidden, edit=edit, where=where: edit(hidden, packing.mask(where)),
                )
            )
        watch = plain.register_forward_pre_hook(packing.observe, with_kwargs=True)
        try:
            with hooked(functions):
                yield
        finally:
            watch.remove()
        if packing.begun != n_requests:
            raise HookError(
                f"continuous batching read {packing.begun} prompts where there are {n_requests}, "
                "so it cannot be told what was steered; use the engine transformers."
            )


class _Packing:
    """Where the requests of the pass under way lie in its one row of tokens."""

    def __init__(self) -> None:
        self.begun = 0  # prompts that were read
        self._places = self._ends = torch.empty(0, dtype=torch.long)
        self._single = torch.empty(0, dtype=torch.bool)

    def observe(self, _model: Any, _args: Any, given: Mapping[str, Any]) -> None:
        """Take what a pass is about to run with."""
        places, bounds = given["position_ids"][0], given["cu_seq_lens_q"].long()
        lengths = bounds.diff()
        starts, self._ends = bounds[:-1][lengths > 0], bounds[1:][lengths > 0] - 1
        self._places, self._single = places, lengths[lengths > 0] == 1
        first = places[starts] == 0
        self.begun += int(first.sum())
        if bool((~first & ~self._single).any()):
            raise HookError(
                "continuous batching read a prompt in several passes, so it cannot be told what "
                "was steered; use the engine transformers."
            )

    def mask(self, where: str) -> Tensor | None:
        """Return the tokens to write to, [1, token, 1]; None for all."""
        if where == EVERYWHERE:
            return None
        chosen = torch.zeros_like(self._places, dtype=torch.bool)
        # The last token of a prompt, or the one that was generated last.
        chosen[self._ends] = True
        if where != DEFAULT_POSITIONS:
            chosen[self._ends] = self._single & (self._places[self._ends] > 0)
        return chosen[None, :, None]
