"""The engine behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp.

Nothing that a server writes is believed before it has been shown to serve this model, steered as
it is asked to: its likeliest tokens for some of the prompts are read by the model here. Prompts go
as token ids, which no server's own template or tokenizer changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models.loading import model_info, plain_model
from saesteer.models.tokens import TokenRow, input_device, special_ids
from saesteer.steering.apply import check_belongs, steer
from saesteer.steering.engines.base import EVERYWHERE, Completion, Request, Requests, end_ids
from saesteer.steering.engines.local import key_seed
from saesteer.steering.engines.settings import EngineSettings
from saesteer.steering.positions import DEFAULT_POSITIONS
from saesteer.steering.vllm_vectors import hotwire_fields, lens_fields
from saesteer.utils.errors import MismatchError, NetworkError, SteeringError
from saesteer.utils.http import HttpReply, Key, Patience, request, said_by_server
from saesteer.utils.text import one_line

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ABLE = {
    "baked": (EVERYWHERE,),
    "vllm-lens": (EVERYWHERE, DEFAULT_POSITIONS, "generated"),
    "hotwire": (EVERYWHERE, "generated"),
}
# How far below the likeliest token one that a server takes for it may lie here, in standard
# deviations of the logits: quantised weights, or activations, put near ones in another order. The
# bundled Q4_1 file in llama.cpp: 0.05; with half the steering, 0.15.
SAME = 0.1
# How many times as far they have to lie below, all together, without the steering.
TELLING = 2.0
_TRIED_PROMPTS, _TRIED_TOKENS, _DOUBLINGS = 3, 32, 6


class _Told(NamedTuple):
    completion: Completion
    tokens: tuple[int, ...] | None  # where they were asked for
    n_tokens: int  # the one that ended it counted too


class OpenAIEngine:
    """Writes by asking a server for each completion; `sleep` waits between attempts.

    Samples are drawn by the server, seeded by the request's key.

    Args:
        model: The model that is served, unsteered; it checks what the server says.
    """

    def __init__(
        self,
        model: TransformerBridge,
        settings: EngineSettings,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        assert settings.server is not None
        self._model, self._settings = model, settings
        self._address = settings.server.rstrip("/")
        self._where = f"the server at {self._address}"
        self._served = settings.served_model
        self._sleep = sleep
        # What may end a text there: llama.cpp takes more tokens for ends than the model's own.
        self._ends = special_ids(model.tokenizer) | end_ids(plain_model(model), model.tokenizer)
        # Set when it was away: what came back may be another one.
        self._away = threading.Event()
        self._proven: set[tuple[Any, ...]] = set()

    def generate(self, requests: Requests) -> list[Completion]:
        """Return one completion for each request; see `Engine`.

        Raises:
            SteeringError: The server's way of steering cannot do what is asked.
            MismatchError: It serves another model, or one that is steered otherwise.
            NetworkError: It does not answer, or refuses.
        """
        if not requests.rows:
            return []
        self._check_able(requests)
        self._prove(requests)
        self._away.clear()
        asked = [self._payload(requests, one) for one in requests.rows]
        pool = ThreadPoolExecutor(self._settings.workers)
        stopped = threading.Event()

        def one(number: int) -> Completion:
            if stopped.is_set():
                raise NetworkError(f"{self._where} was given up.")
            try:
                made = self._ask(asked[number]).completion
                if requests.on_piece is not None:
                    requests.on_piece(number, made.text)
                return made
            except BaseException:
                stopped.set()
                raise

        try:
            made = list(pool.map(one, range(len(asked))))
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
        if self._away.is_set():
            self._proven.clear()
            self._prove(requests)
        return made

    def _check_able(self, requests: Requests) -> None:
        kind = self._settings.steering
        requests.check_positions(f"a server with steering {kind!r}", ABLE[kind])
        strengths = {one.strength for one in requests.rows}
        if kind == "baked" and len(strengths) > 1:
            raise SteeringError(
                f"a baked model has one strength and {len(strengths)} are asked for; give one, or "
                "a server that takes vectors (steering vllm-lens or hotwire)."
            )
        for vector in requests.vectors if any(strengths) else ():
            check_belongs(self._model, vector)
        for strength in strengths:
            self._fields(requests, requests.rows[0].row, strength)

    def _fields(self, requests: Requests, row: TokenRow, strength: float) -> dict[str, Any]:
        """Return what a request holds for steering."""
        additions, kind = requests.lengths(strength), self._settings.steering
        if not additions or kind == "baked":
            return {}
        places = {requests.where(vector) for vector, _ in additions}
        if len(places) > 1:
            raise SteeringError(
                "the vectors are written to different positions, which one request cannot say; "
                f"give positions such as {EVERYWHERE}."
            )
        place = places.pop()
        if kind == "hotwire":
            return hotwire_fields(additions, decode_only=place == "generated")
        if place == EVERYWHERE:
            return lens_fields(additions)
        first = len(row) - (place == DEFAULT_POSITIONS)
        return lens_fields(additions, range(first, len(row) + requests.max_new_tokens))

    def _payload(self, requests: Requests, one: Request) -> dict[str, Any]:
        ends = end_ids(plain_model(self._model), self._model.tokenizer)
        return {
            "model": self._name(),
            "prompt": list(one.row.ids),
            "max_tokens": requests.max_new_tokens,
            "temperature": requests.temperature,
            "top_p": requests.top_p,
            "seed": key_seed(requests.seed, *one.key) % 2**31,
            # What servers add of their own where nothing is said.
            "top_k": -1,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "repeat_penalty": 1.0,
            "stop_token_ids": sorted(ends),
            **self._fields(requests, one.row, one.strength),
        }

    def _name(self) -> str:
        if self._served is None:
            reply = self._exchange("GET", "models")
            try:
                names = [str(one["id"]) for one in reply.json["data"]]
            except (TypeError, KeyError):
                raise NetworkError(
                    f"{self._where} does not say what it serves; check that its address ends as "
                    "OpenAI's does, in /v1."
                ) from None
            if len(names) != 1:
                raise NetworkError(
                    f"{self._where} serves {len(names)} models ({one_line(', '.join(names))}); "
                    "say which with served_model."
                )
            self._served = names[0]
        return self._served

    def _exchange(self, method: str, path: str, payload: Any = None) -> HttpReply:
        settings = self._settings

        def sleep(seconds: float) -> None:
            self._away.set()
            self._sleep(seconds)

        reply = request(
            method,
            f"{self._address}/{path}",
            payload=payload,
            key=Key(settings.key_variable),
            patience=Patience(
                timeout=settings.timeout,
                attempts=settings.attempts,
                attempts_unanswered=settings.attempts,
            ),
            called=self._where,
            sleep=sleep,
        )
        if reply.status >= 300:
            raise NetworkError(
                f"{self._where} refuses the request (status {reply.status}"
                f"{said_by_server(reply.body)}); check the server's address and the model's name."
            )
        return reply

    def _ask(self, payload: dict[str, Any]) -> _Told:
        reply, tokenizer = self._exchange("POST", "completions", payload), self._model.tokenizer
        try:
            answer = reply.json
            choice = answer["choices"][0]
            text, finished = choice["text"], choice["finish_reason"] == "stop"
            if not isinstance(text, str) or choice["finish_reason"] not in ("stop", "length"):
                raise TypeError
            counted = (answer.get("usage") or {}).get("completion_tokens")
            if counted is None:
                counted = len(tokenizer(text, add_special_tokens=False)["input_ids"]) + finished  # type: ignore[misc, index]
            # The token that ended it is counted there.
            n_tokens = int(counted) - finished
            tokens = _tokens(choice)
        except (TypeError, KeyError, IndexError, AttributeError, ValueError):
            raise NetworkError(
                f"{self._where} gives no completion in its answer; check that it speaks OpenAI's "
                "API for completions."
            ) from None
        return _Told(Completion(text, max(n_tokens, 0), finished), tokens, int(counted))

    def _prove(self, requests: Requests) -> None:
        """Have the server show that it serves this model, steered as asked.

        Steered by requests, at a strength at which the steering shows; what else it is asked for
        then differs in a number alone.
        """
        strengths = {one.strength for one in requests.rows}
        rows = [Request(row) for row in dict.fromkeys(one.row for one in requests.rows)]
        tried = replace(requests, temperature=0.0, max_new_tokens=_TRIED_TOKENS, on_piece=None)
        tried = replace(tried, rows=rows[:_TRIED_PROMPTS])
        directions = tuple(v.direction.numpy().tobytes() for v in requests.pieces)
        for strength in {0.0 if not s else max(strengths, key=abs) for s in strengths}:
            key = (bool(strength), strength if self._settings.steering == "baked" else None)
            key += (directions, tuple(map(requests.where, requests.vectors))) if strength else ()
            if key not in self._proven:
                self._prove_at(tried, strength)
                self._proven.add(key)

    def _prove_at(self, tried: Requests, strength: float) -> None:
        baked = self._settings.steering == "baked"
        name = model_info(self._model).source.name
        for _ in range(1 if baked else _DOUBLINGS):
            seen = [self._gaps(tried, one.row, strength) for one in tried.rows]
            steered, plain = (torch.cat(gaps) for gaps in zip(*seen, strict=True))
            if not len(steered):
                raise SteeringError(
                    f"{self._where} writes nothing to these prompts by which its model could be "
                    "known; add other prompts."
                )
            worst = float(steered.max())
            # What steering makes of the same tokens.
            unmoved = bool(strength) and float(plain.sum()) * TELLING < float(steered.sum())
            if worst > SAME or unmoved:
                how = f"steered at strength {strength:g}" if strength else "unsteered"
                also = ", but what it writes unsteered" if unmoved else ""
                raise MismatchError(
                    f"{self._where} does not write what model {name} writes {how}{also}: of its "
                    f"likeliest tokens one is {worst:.2g} standard deviations of the logits below "
                    "the likeliest here; serve that model, steered so."
                )
            if not strength or float(plain.sum()) > max(TELLING * float(steered.sum()), SAME):
                return
            strength *= 2
        raise SteeringError(
            f"{self._where} writes the same as model {name} without steering, so it cannot be told "
            "whether it steers; give a greater strength, or longer prompts."
        )

    def _gaps(self, tried: Requests, row: TokenRow, strength: float) -> tuple[Tensor, Tensor]:
        """Return how far the server's likeliest tokens lie below those here, steered and not."""
        payload = self._payload(tried, Request(row, strength))
        # Servers say tokens' ids in one of these ways.
        told = self._ask(payload | {"logprobs": 1, "return_token_ids": True})
        tokens = self._likeliest(told)
        return self._gap(tried, row, tokens, strength), self._gap(tried, row, tokens, 0.0)

    def _likeliest(self, told: _Told) -> list[int]:
        """Return the tokens that a server wrote, as far as they are known; -1 for an end."""
        tokenizer: Any = self._model.tokenizer
        # A text may hold the mark for bytes that are no character, of which tokens are not known.
        text = told.completion.text.split("\ufffd")[0]
        whole = text == told.completion.text
        if told.tokens is None:
            listed = tokenizer(text, add_special_tokens=False)["input_ids"]
            known = list(listed if whole else listed[:-1])
        else:
            # llama.cpp leaves tokens out that are no whole character.
            known = []
            for token in told.tokens:
                if token in self._ends or len(known) == told.n_tokens:
                    break
                if not text.startswith(tokenizer.decode([*known, token], skip_special_tokens=True)):
                    whole = False
                    break
                known.append(token)
        return [*known, -1] if whole and told.completion.finished else known

    def _gap(
        self, tried: Requests, row: TokenRow, tokens: Sequence[int], strength: float
    ) -> Float[Tensor, " token"]:
        if not tokens:
            return torch.zeros(0)
        ends = sorted(self._ends)
        logits = self._logits(tried, row, [t for t in tokens if t >= 0], strength)[: len(tokens)]
        chosen = [
            own[ends].max() if token < 0 else own[token]
            for token, own in zip(tokens, logits, strict=True)
        ]
        return ((logits.amax(-1) - torch.stack(chosen)) / logits.std(-1)).cpu()

    def _logits(
        self, tried: Requests, row: TokenRow, tokens: Sequence[int], strength: float
    ) -> Float[Tensor, "pos vocab"]:
        """Return the logits here behind the prompt and each token that follows."""
        plain: Any = plain_model(self._model)
        ids = torch.tensor([[*row.ids, *tokens]], device=input_device(plain))
        steered: Any = nullcontext()
        where = tried.positions
        later = {tried.where(vector) for vector in tried.vectors} == {"generated"}
        # Of these there may be none.
        if strength and (tokens or not later):
            steered = steer(
                self._model,
                tried.vectors,
                strength,
                tried.unit,
                positions="all" if where == EVERYWHERE else where,
                prompt_length=len(row),
            )
        with steered, torch.no_grad():
            return plain(input_ids=ids).logits[0, len(row) - 1 :].float()


def _tokens(choice: dict[str, Any]) -> tuple[int, ...] | None:
    """Return the ids of the tokens, where a server says them as vLLM or as llama.cpp does."""
    if choice.get("token_ids"):
        return tuple(map(int, choice["token_ids"]))
    listed = (choice.get("logprobs") or {}).get("content")
    if not listed or "id" not in listed[0]:
        return None
    return tuple(int(one["id"]) for one in listed)
