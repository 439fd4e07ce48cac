"""Every engine writes what transformers writes, in order, and refuses what it cannot do."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.models import plain_model
from saesteer.models.tokens import TokenRow, encode_texts
from saesteer.steering import SteeringVector
from saesteer.steering.bake import bake_gguf
from saesteer.steering.engines.base import Completion, Engine, Request, Requests
from saesteer.steering.engines.local import TransformersEngine
from saesteer.steering.engines.openai import OpenAIEngine
from saesteer.steering.engines.paged import PagedEngine
from saesteer.steering.engines.settings import EngineSettings
from saesteer.steering.vllm_vectors import export_live

PROMPTS = (
    "The cat sat on the mat",
    "I like",
    "What do you think about the weather today? It is warm. " * 2,
    "You are a helpful assistant.",
    "The dog ran home through the garden",
)
EVERY, OWN, LATER = "everywhere", "from_last_prompt_token", "generated"
STRENGTH = 0.7


class Vllm:
    """A server as vLLM with one of the two packages is read to be: hooks by hand, on torch alone.

    Args:
        folder: What hotwire loads its vectors from; None for vllm-lens.
    """

    def __init__(self, model: Any, tokenizer: Any, folder: Path | None = None) -> None:
        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        self.deaf = False  # to what requests bring
        self._lock = threading.Lock()

    def __call__(self, asked: Any) -> Any:
        if asked.method == "GET":
            return 200, {"data": [{"id": "tiny"}]}
        body = asked.json()
        with self._lock, self._steered({} if self.deaf else body.get("vllm_xargs", {})):
            ids, ends = torch.tensor([body["prompt"]]), body["stop_token_ids"]
            made = self.model.generate(
                ids, max_new_tokens=body["max_tokens"], do_sample=False, eos_token_id=ends
            )[0, ids.shape[1] :].tolist()
        finished = made[-1] in ends
        text = self.tokenizer.decode(made, skip_special_tokens=True)
        choice = {"text": text, "finish_reason": "stop" if finished else "length"}
        if body.get("return_token_ids"):
            choice["token_ids"] = made
        return 200, {"choices": [choice], "usage": {"completion_tokens": len(made)}}

    @contextmanager
    def _steered(self, fields: dict[str, str]) -> Iterator[None]:
        handles = []
        for one in json.loads(fields.get("apply_steering_vectors", "[]")):
            told = one["activations"]
            raw = np.frombuffer(base64.b64decode(told["data"]), dtype=told["dtype"])
            change = torch.from_numpy(raw.copy()).reshape(told["shape"])[0] * one["scale"]
            (layer,), at = one["layer_indices"], one["position_indices"]
            handles.append(self._hook(layer, change, at, False))
        for one in json.loads(fields.get("hotwire", "[]")):
            file = f"{self.folder}/{one['id']}.pt"
            change = torch.load(file, weights_only=True) * one["scale"]
            handles.append(self._hook(one["layer"], change, None, one.get("decode_only", False)))
        yield
        for handle in handles:
            handle.remove()

    def _hook(self, layer: int, change: Any, at: list[int] | None, decode_only: bool) -> Any:
        read = 0

        def add(_module: Any, _args: Any, hidden: Any) -> Any:
            nonlocal read
            read += (width := hidden.shape[1])
            if decode_only and width > 1:
                return hidden
            if at is None:
                return hidden + change
            hidden = hidden.clone()
            for place in range(read - width, read):
                if place in at:
                    hidden[:, place - read] += change[at.index(place)]
            return hidden

        return self.model.model.layers[layer].register_forward_hook(add)


@pytest.fixture
def vllm(http_server, hf_model, tiny_tokenizer) -> Callable[..., tuple[Vllm, str]]:
    """Return a function that starts such a server and gives it with its address."""

    def start(folder: Path | None = None) -> tuple[Vllm, str]:
        made = Vllm(hf_model("llama"), tiny_tokenizer(), folder)
        return made, f"{http_server(made).url}/v1"

    return start


def openai(model: Any, server: str, steering: str, **more: Any) -> OpenAIEngine:
    settings: dict[str, Any] = {"name": "openai", "server": server, "steering": steering, **more}
    return OpenAIEngine(model, EngineSettings(**settings), sleep=lambda seconds: None)


@pytest.fixture(scope="module")
def llama_cpp(tiny_gguf, tmp_path_factory) -> Iterator[Callable[..., str]]:
    """Return a function that starts llama.cpp's server, and gives its address.

    With the tiny model's file, or that file with vectors baked into it.
    """
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    servers = []

    def start(vectors: Any = None, strength: float = 0.0) -> str:
        file = tiny_gguf
        if strength:
            folder = tmp_path_factory.mktemp("baked") / "new"
            length = strength * (vectors.residual_norm or vectors.norm)
            file = bake_gguf(tiny_gguf, vectors, length, folder, "raw") / tiny_gguf.name
        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = 512, 2, 0
        settings.warmup, settings.port = False, 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        servers.append(xllamacpp.Server(settings))
        return f"{servers[-1].listening_address}/v1"

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "NO_PROXY", "127.0.0.1")
        yield start
    servers.clear()


@pytest.fixture(params=["transformers", "paged", "vllm-lens", "hotwire", "llama.cpp"])
def engine(request, llama, vllm, tmp_path) -> Callable[..., Engine]:
    """Return a function that gives an engine for a vector at a strength."""

    def make(vector: SteeringVector, strength: float = STRENGTH) -> Engine:
        if request.param == "transformers":
            return TransformersEngine(llama, 3)
        if request.param == "paged":
            return PagedEngine(llama, 3)
        if request.param == "llama.cpp":
            start = request.getfixturevalue("llama_cpp")
            return openai(llama, start(vector, strength), "baked")
        folder = tmp_path / f"vectors-{len(list(tmp_path.iterdir()))}"
        export_live(vector, folder, request.param, 1.0, "raw")
        return openai(llama, vllm(folder)[1], request.param)

    return make


def rows_of(model: Any, texts: Any = PROMPTS) -> list[TokenRow]:
    return encode_texts(model.tokenizer, texts)


@pytest.fixture(scope="module")
def by_hand(llama) -> Callable[[SteeringVector, float], list[Completion]]:
    """The reference: every prompt alone, its whole text read anew for each of 24 tokens."""
    plain: Any = plain_model(llama)
    end = llama.tokenizer.eos_token_id

    @cache
    def written(direction: bytes, layer: int, length: float) -> list[Completion]:
        change = torch.frombuffer(bytearray(direction), dtype=torch.float32) * length
        hooked = plain.model.layers[layer].register_forward_hook(lambda _, args, x: x + change)
        made = []
        for row in rows_of(llama):
            ids: list[int] = []
            while len(ids) < 24 and end not in ids:
                with torch.no_grad():
                    logits = plain(input_ids=torch.tensor([[*row.ids, *ids]])).logits
                ids.append(int(logits[0, -1].argmax()))
            finished = ids[-1] == end
            text = llama.tokenizer.decode(ids, skip_special_tokens=True)
            made.append(Completion(text, len(ids) - finished, finished))
        hooked.remove()
        return made

    return lambda vector, length: written(
        vector.direction.numpy().tobytes(), vector.site.layer, length
    )


def in_marks(completions: list[Completion]) -> list[Completion]:
    """Leave out what stands for bytes that are no character: llama.cpp puts one for several."""
    return [one._replace(text=one.text.replace("\ufffd", "")) for one in completions]


def test_greedy_texts_are_the_models_own_in_the_order_asked_for(
    llama, make_vector, engine, by_hand
):
    vector = make_vector()
    how: dict[str, Any] = {"vectors": (vector,), "positions": EVERY, "max_new_tokens": 24}
    for strength in (STRENGTH, 0.0):
        asked = Requests([Request(row, strength) for row in rows_of(llama)], **how)
        found = engine(vector, strength).generate(asked)
        assert in_marks(found) == in_marks(by_hand(vector, 10.0 * strength))


def test_a_text_ends_at_the_end_token_or_after_the_most_tokens(llama, make_vector, engine):
    vector, rows = make_vector(), rows_of(llama)
    how: dict[str, Any] = {"positions": EVERY, "max_new_tokens": 3}
    asked = Requests([Request(row, STRENGTH) for row in rows[:2]], (vector,), **how)
    found = engine(vector).generate(asked)
    assert [(one.n_tokens, one.finished) for one in found] == [(3, False)] * 2
    # What leads to the end token and nowhere else.
    plain: Any = plain_model(llama)
    end = plain.get_output_embeddings().weight[llama.tokenizer.eos_token_id].detach().numpy()
    vector = SteeringVector.from_raw(end, site="blocks.2.hook_resid_post", model="tiny")
    asked = Requests([Request(rows[0], 300.0)], (vector,), "raw", **how)
    assert engine(vector, 300.0 / vector.norm).generate(asked) == [Completion("", 0, True)]


def test_no_requests_are_no_completions(make_vector, engine):
    assert engine(make_vector()).generate(Requests([])) == []
