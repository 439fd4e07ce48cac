"""A tiny random Llama, and random SAEs of every architecture as folders on disk."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.models.loading import plain_model, wrap_model
from saesteer.models.tokens import TokenRow, encode_texts
from saesteer.saes.neuronpedia import Cache, Neuronpedia, Service
from saesteer.utils.http import Patience
from tests.saes.player import Player

D_MODEL, D_SAE, WORDS, CONTEXT, LAYERS = 32, 64, 56, 96, 3
SITE = "blocks.1.hook_resid_post"


def tiny_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # The padding token is the end token, as in several real tokenizers.
    vocab = {"<s>": 0, "</s>": 1, "<unk>": 2, "user": 3, "bot": 4}
    vocab.update({f"w{i}": i + 8 for i in range(WORDS)})
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{{ bos_token }} {% for m in messages %}user {{ m['content'] }} {% endfor %}bot "
    )
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS + 8,
        hidden_size=D_MODEL,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        # Large enough that the tiny model's loss depends on what it reads.
        initializer_range=0.6,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # A gain of ones would hide a forgotten gain.
        model.model.norm.weight.copy_(torch.rand(D_MODEL) + 0.5)
    return model


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def model(tokenizer):
    return wrap_model(tiny_llama(), tokenizer)


@pytest.fixture(scope="session")
def plain(model) -> Any:
    return plain_model(model)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """The same model as a folder, for what starts from a name."""
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def make_texts():
    """Return a function that makes texts of random words and random length."""

    def make(n: int, seed: int = 0, low: int = 5, high: int = 30) -> list[str]:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(low, high, n)
        return [" ".join(f"w{i}" for i in rng.integers(0, WORDS, k)) for k in lengths]

    return make


@pytest.fixture(scope="session")
def rows(tokenizer, make_texts) -> list[TokenRow]:
    """Rows of many lengths, some with a special token in the middle."""
    texts = make_texts(24)
    texts[3] += " </s> w1 w2"
    texts[7] = "w5 </s> " + texts[7]
    return encode_texts(tokenizer, texts)


def _randomise(sae: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(sae.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(drawn.abs() * 0.3 if "threshold" in name else drawn)
        if sae.cfg.architecture() == "matching_pursuit":
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)


SPECIFIC: dict[str, dict[str, Any]] = {
    "standard": {},
    "gated": {},
    "topk": {"k": 6},
    "abstopk": {"k": 6},
    "jumprelu": {},
    "transcoder": {"d_out": D_MODEL, "apply_b_dec_to_input": False},
    "skip_transcoder": {"d_out": D_MODEL, "apply_b_dec_to_input": False},
    "jumprelu_transcoder": {"d_out": D_MODEL, "apply_b_dec_to_input": False},
    "jumprelu_skip_transcoder": {"d_out": D_MODEL, "apply_b_dec_to_input": False},
    "temporal": {"n_heads": 2, "bottleneck_factor": 8, "kval_topk": 6},
    "matching_pursuit": {"max_iterations": 8},
}


@pytest.fixture
def make_sae(tmp_path):
    """Return a function that writes a random SAE with sae_lens and returns its folder."""
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    count = 0

    def make(architecture: str = "standard", *, metadata=None, change=None, seed=0, **fields):
        nonlocal count
        count += 1
        sae_class, config_class = get_sae_class(architecture)
        facts = {"hook_name": SITE, "model_name": "tiny", "prepend_bos": True}
        if "transcoder" in architecture:
            facts |= {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
        facts |= metadata or {}
        sizes = {"d_in": D_MODEL, "d_sae": D_SAE}
        settings: dict[str, Any] = sizes | SPECIFIC[architecture] | fields
        config: Any = config_class(metadata=SAEMetadata(**facts), **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sae: Any = sae_class(config)
            _randomise(sae, seed)
            if change is not None:
                with torch.no_grad():
                    change(sae)
            folder = tmp_path / f"sae{count}"
            sae.save_model(folder)
        return folder

    return make


@pytest.fixture
def perfect(mirror_sae):
    """An SAE that gives back what it gets: x = relu(x) - relu(-x)."""
    return mirror_sae(prepend_bos=True)


@pytest.fixture(scope="session")
def read_by_hand(plain):
    """Return a function that runs one row alone through the Hugging Face model.

    It returns what stands at the site (block 1's output) at the kept tokens.
    """

    def read(row: TokenRow) -> torch.Tensor:
        with torch.no_grad():
            output = plain(input_ids=torch.tensor([row.ids]), output_hidden_states=True)
        return output.hidden_states[2][0][torch.tensor(row.kept)]

    return read


@pytest.fixture
def player(http_server):
    """A server on this machine that answers as Neuronpedia's documentation says."""
    return Player(http_server)


@pytest.fixture
def service_to(player):
    """The player as a service that writes down its waits instead of waiting."""

    def make(base_url=None, *, offline=False, **patience):
        waits: list[float] = []
        patience = {"timeout": 2.0, "attempts_unanswered": 3, **patience}
        made = Service(
            base_url or player.api,
            player.bucket,
            offline=offline,
            patience=Patience(**patience),
            slow_timeout=2.0,
            sleep=waits.append,
            chance=lambda: 0.0,
        )
        return made, waits

    return make


@pytest.fixture
def client_to(service_to, tmp_path):
    """A client of the player with a cache."""

    def make(*, now=None, max_age=1000.0, **settings):
        clock = {} if now is None else {"now": now}
        cache = Cache(tmp_path / "cache" / "neuronpedia.sqlite", **clock)
        return Neuronpedia(service_to(**settings)[0], cache=cache, max_age=max_age)

    return make
