"""Every engine writes what transformers writes, in order, and refuses what it cannot do."""

from __future__ import annotations

import base64
import copy
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

from saesteer.models import load_model, plain_model
from saesteer.models.tokens import TokenRow, encode_texts
from saesteer.steering import SteeringVector, generate
from saesteer.steering.bake import bake_gguf
from saesteer.steering.engines.base import Completion, Engine, Request, Requests
from saesteer.steering.engines.local import TransformersEngine
from saesteer.steering.engines.openai import OpenAIEngine
from saesteer.steering.engines.settings import EngineSettings
from saesteer.steering.vllm_vectors import export_live
from saesteer.utils.errors import MismatchError, NetworkError, SteeringError

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
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        servers.append(xllamacpp.Server(settings))
        return f"{servers[-1].listening_address}/v1"

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "NO_PROXY", "127.0.0.1")
        yield start
    servers.clear()


@pytest.fixture(params=["transformers", "paged", "vllm-lens", "hotwire", "llama.cpp"])
def engine(request, llama, vllm, paged, tmp_path) -> Callable[..., Engine]:
    """Return a function that gives an engine for a vector at a strength."""

    def make(vector: SteeringVector, strength: float = STRENGTH) -> Engine:
        if request.param == "transformers":
            return TransformersEngine(llama, 3)
        if request.param == "paged":
            return paged(llama, 3)
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
    # llama.cpp ends a text at <|endoftext|> as well, which this one never leads to.
    vector = make_vector(3)
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


def test_steering_around_the_call_is_the_same_for_one_prompt_and_for_several(llama, make_vector):
    with make_vector().steer(llama, strength=0.5):
        together = generate(llama, PROMPTS, max_new_tokens=6)
        alone = [generate(llama, prompt, max_new_tokens=6) for prompt in PROMPTS]
    assert [r.text for r in together.records] == [one.records[0].text for one in alone]


def test_no_requests_are_no_completions(make_vector, engine):
    assert engine(make_vector()).generate(Requests([])) == []


@pytest.mark.parametrize("where", [OWN, LATER, EVERY])
def test_packed_requests_are_steered_where_their_own_tokens_are(
    arch, tiny_model, make_vector, where, paged
):
    model = tiny_model(arch)
    vectors = [make_vector(arch=arch), make_vector(1, "blocks.2.hook_resid_pre", arch)]
    # The eighth token is a tie for one of them.
    how: dict[str, Any] = {"max_new_tokens": 7, "positions": where}
    asked = (model, PROMPTS, vectors, (0.0, 0.5, -0.5))
    wanted = generate(*asked, **how)
    assert generate(*asked, **how, engine=paged(model, 4)) == wanted
    assert wanted.texts(0.5) != wanted.texts(0.0) != wanted.texts(-0.5)


@pytest.mark.parametrize(("steering", "where"), [("vllm-lens", OWN), ("hotwire", LATER)])
def test_a_server_is_told_which_tokens_to_steer(
    llama, make_vector, vllm, tmp_path, steering, where
):
    vector = make_vector()
    export_live(vector, tmp_path / "new", steering, 1.0, "raw")
    server, address = vllm(tmp_path / "new")
    how: dict[str, Any] = {"max_new_tokens": 8, "positions": where}
    asked = (llama, PROMPTS[:3], vector, (0.0, 0.5, -0.5))
    made = generate(*asked, **how, engine=openai(llama, address, steering))
    assert made == generate(*asked, **how)
    # Ignoring what requests bring, it is believed no more.
    server.deaf = True
    with pytest.raises(
        MismatchError, match=r"steered at strength .*, but what it writes unsteered"
    ):
        generate(*asked, **how, engine=openai(llama, address, steering))


def test_samples_are_seeded_by_prompt_and_sample(llama, make_vector, http_server, vllm):
    server, _ = vllm()
    asked = http_server(server)
    engine = openai(llama, f"{asked.url}/v1", "vllm-lens", workers=1)
    how: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "n_samples": 2, "max_new_tokens": 5}
    generate(llama, PROMPTS[:2], make_vector(), (0.0, 0.5), positions=EVERY, engine=engine, **how)
    bodies = [one.json() for one in asked.asked if one.method == "POST"]
    sampled = [body for body in bodies if body["temperature"] == 0.7]
    assert {(body["top_p"], body["top_k"], body["max_tokens"]) for body in sampled} == {
        (0.9, -1, 5)
    }
    seeds = [body["seed"] for body in sampled]
    assert seeds[::2] == seeds[1::2] and len(set(seeds)) == 4
    # Steered otherwise, none reads what another left in a cache of prefixes.
    assert {"vllm_xargs" in body for body in sampled[1::2]} == {True}
    assert all(("cache_salt" in body) == ("vllm_xargs" in body) for body in bodies)


def test_llama_cpp_with_other_weights_or_another_strength_is_not_believed(
    make_model_folder, llama, llama_cpp, make_vector
):
    vector = make_vector(3)
    rows = [Request(row, STRENGTH) for row in rows_of(llama)[:2]]
    asked = Requests(rows, (vector,), positions=EVERY)
    for address in (llama_cpp(), llama_cpp(vector, -STRENGTH)):
        with pytest.raises(MismatchError, match=r"does not write what model .* at strength 0\.7"):
            openai(llama, address, "baked").generate(asked)
    other = load_model(make_model_folder("llama", seed=1), device="cpu", dtype="float32")
    with pytest.raises(MismatchError, match=r"model .* writes unsteered: of"):
        openai(other, llama_cpp(), "baked").generate(Requests([rows[0]._replace(strength=0.0)]))
    # Of next to no steering it cannot be told whether it takes place.
    faint = Requests([one._replace(strength=1e-7) for one in rows], (vector,), positions=EVERY)
    with pytest.raises(SteeringError, match="cannot be told whether it steers"):
        openai(llama, llama_cpp(), "baked").generate(faint)


def test_a_server_that_falls_silent_or_comes_back_as_another_is_found_out(llama, http_server, vllm):
    server, _ = vllm()
    requests = Requests([Request(row) for row in rows_of(llama)], max_new_tokens=5)
    counts = {"asked": 0}

    def silent(asked: Any) -> Any:
        counts["asked"] += 1
        return server(asked) if counts["asked"] < 6 else None

    engine = openai(llama, f"{http_server(silent).url}/v1", "baked", timeout=2, attempts=2)
    with pytest.raises(NetworkError, match="no usable answer in 2 attempts"):
        engine.generate(requests)
    counts["asked"] = 0
    wrong: Any = copy.deepcopy(server.model)
    with torch.no_grad():
        wrong.lm_head.weight.copy_(wrong.lm_head.weight.roll(1, 0))

    def replaced(asked: Any) -> Any:
        counts["asked"] += 1
        if counts["asked"] == 6:
            server.model = wrong
            return 503, {}
        return server(asked)

    with pytest.raises(MismatchError, match="writes unsteered"):
        openai(llama, f"{http_server(replaced).url}/v1", "baked").generate(requests)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, r"serves 2 models \(a, b\)"),
        ({"choices": []}, "does not say what it serves"),
        ({"data": [{"id": "a"}], "choices": []}, "gives no completion in its answer"),
        ({"data": [{"id": "a"}], "choices": [{"text": 3}]}, "gives no completion in its answer"),
    ],
)
def test_what_is_no_answer_is_one_sentence(llama, http_server, answer, told):
    engine = openai(llama, http_server(lambda asked: (200, answer)).url, "baked")
    with pytest.raises(NetworkError, match=told):
        engine.generate(Requests([Request(rows_of(llama)[0])]))


def test_what_an_engine_cannot_do_is_refused_before_anything_runs(llama, make_vector, paged):
    two = [make_vector(), make_vector(1)]
    inside = make_vector(site="blocks.1.hook_mlp_out")
    nowhere = "http://127.0.0.1:9/v1"
    packed, baked = paged(llama), openai(llama, nowhere, "baked")
    lens, hotwire = (openai(llama, nowhere, kind) for kind in ("vllm-lens", "hotwire"))
    for engine, vectors, strengths, where, told in (
        (packed, two, 0.5, "all", "paged cannot write to positions 'all'"),
        (packed, inside, 0.5, EVERY, "steers between blocks"),
        (baked, two, 0.5, None, "steering 'baked' cannot write to positions 'from_last"),
        (baked, two, [0.0, 0.5], EVERY, "has one strength and 2"),
        (lens, inside, 0.5, EVERY, "no block's output"),
        (hotwire, two, 0.5, OWN, "steering 'hotwire' cannot write"),
        (hotwire, two, 0.5, EVERY, "adds one vector at a block"),
    ):
        with pytest.raises(SteeringError, match=told):
            generate(llama, "I like", vectors, strengths, positions=where, engine=engine)
