"""Tiny random models, wrapped as `load_model` would."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.models.loading import model_info, wrap_model
from saesteer.steering import SteeredFeature, SteeringVector

WORDS = 56
CONTEXT = 96


def make_tokenizer(folder, chat: bool = True):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # The padding token is the end token, as in several real tokenizers.
    vocab = {"<s>": 0, "</s>": 1, "<unk>": 2, "user": 3, "bot": 4}
    vocab.update({f"w{i}": i + 8 for i in range(WORDS)})
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    if chat:
        tokenizer.chat_template = (
            "{{ bos_token }} {% for m in messages %}user {{ m['content'] }} {% endfor %}bot"
        )
    # transformer_lens takes only tokenizers that were read from somewhere.
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def make_llama(dtype: torch.dtype = torch.float32):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS + 8,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        # Large enough that the tiny model's choices depend on what it reads.
        initializer_range=0.6,
        bos_token_id=0,
        eos_token_id=1,
    )
    model: Any = LlamaForCausalLM(config)
    return model.to(dtype)


def make_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS + 8,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=CONTEXT,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def llama(tokenizer):
    return wrap_model(make_llama(), tokenizer)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"), chat=False)
    return wrap_model(make_gpt2(), tokenizer)


@pytest.fixture(scope="session")
def bf16_llama(tokenizer):
    return wrap_model(make_llama(torch.bfloat16), tokenizer)


@pytest.fixture(scope="session")
def second_llama(tokenizer):
    """The same weights once more, in other modules."""
    return wrap_model(make_llama(), tokenizer)


@pytest.fixture(scope="session")
def random_ids():
    """Return a function that makes random tokens, none of them special."""

    def make(batch: int, width: int, seed: int = 0):
        return torch.randint(8, 64, (batch, width), generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def make_vector(llama):
    """Return a function that makes a random vector for the tiny Llama."""

    def make(seed: int = 0, site: str = "blocks.1.hook_resid_post", **fields):
        raw = torch.randn(32, generator=torch.Generator().manual_seed(seed))
        defaults = {
            "model": "tiny",
            "model_fingerprint": model_info(llama).fingerprint,
            "residual_norm": 10.0,
            "max_act": 4.0,
            "features": (SteeredFeature(3, 0.5, 0, "cats"), SteeredFeature(7, -1.0, 1)),
            "name": f"v{seed}",
        }
        return SteeringVector.from_raw(raw, site=site, **(defaults | fields))

    return make


@pytest.fixture(scope="session")
def vector_on(tiny_model):
    """Return a function that makes a random vector of a shared tiny model: arch, layer, seed."""

    def make(arch: str = "llama", layer: int = 1, seed: int = 0, **fields: Any) -> SteeringVector:
        raw = torch.randn(32, generator=torch.Generator().manual_seed(seed))
        defaults = {
            "model": "tiny",
            "model_fingerprint": model_info(tiny_model(arch)).fingerprint,
            "residual_norm": 5.0,
            "positions": "all",
            "provenance": {
                "towards": "positive",
                "away": "negative",
                "class_alphas": {"negative": -1.0, "neutral": 0.5, "positive": 3.0},
            },
        }
        site = f"blocks.{layer}.hook_resid_post"
        return SteeringVector.from_raw(raw, site=site, **(defaults | fields))

    return make
