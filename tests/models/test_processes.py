"""Loading a model starts no process, whatever it is loaded from, and shows nothing of others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch
import transformers as tf

from saesteer.models import encode_texts, load_model, plain_model, wrap_model

TEXT = {
    "vocab_size": 420,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "sliding_window": 8,
}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
TOKENS: dict[str, Any] = {"boi_token_index": 417, "eoi_token_index": 418, "image_token_index": 419}
MULTIMODAL = {
    "gemma3": lambda: tf.Gemma3ForConditionalGeneration(
        tf.Gemma3Config(
            text_config=TEXT,
            vision_config={**VISION, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            **TOKENS,
        )
    ),
    "gemma4": lambda: tf.Gemma4ForConditionalGeneration(
        tf.Gemma4Config(
            text_config={
                **TEXT,
                "vocab_size_per_layer_input": 420,
                "hidden_size_per_layer_input": 8,
                "num_kv_shared_layers": 0,
                "global_head_dim": 16,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            vision_config=None,
            audio_config=None,
            image_token_id=419,
            boi_token_id=418,
            eoi_token_id=417,
        )
    ),
}
TEXT_CLASS = {"gemma3": tf.Gemma3ForCausalLM, "gemma4": tf.Gemma4ForCausalLM}

# Every way a program can start another, seen from the interpreter. Python's own look-up of a shared
# library (ctypes.util.find_library) reads the linker's list with ldconfig.
CHILD = """
import sys
STARTS = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.forkpty")
started = []

def hook(event, args):
    if event in STARTS and "/sbin/ldconfig" not in args[:1]:
        started.append(str(args))

sys.addaudithook(hook)
import json, saesteer as ss
told = {}
for way, name in json.loads(sys.argv[1]):
    if way == "wrap_model":
        import transformers
        auto = transformers.AutoModelForCausalLM
        hf = auto.from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        told[f"{way} {name}"] = []
        started.clear()
        ss.wrap_model(hf, tokenizer)
    else:
        started.clear()
        ss.load_model(name, device="cpu", dtype="float32")
    told[f"{way} {name}"] = list(started)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def multimodal_folder(tmp_path_factory, tiny_tokenizer):
    """Return a function from an architecture to the folder of a tiny multimodal checkpoint."""

    @cache
    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = MULTIMODAL[kind]()
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return make


def hub_cached(folder, cache):
    """Lay a folder out as the Hub's cache has it, under the id tiny/model."""
    snapshot = cache / "models--tiny--model" / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    os.symlink(folder, snapshot)
    (cache / "models--tiny--model" / "refs").mkdir()
    (cache / "models--tiny--model" / "refs" / "main").write_text("0123abcd")
    return "tiny/model"


def load_in_child(ways, tmp_path, **environment):
    kept = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_PROGRESS_BARS"}
    return subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(ways)],
        env={**kept, "SAESTEER_CACHE": str(tmp_path / "cache"), **environment},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.slow
def test_no_loader_starts_a_process_or_prints_a_line(
    tmp_path, multimodal_folder, tiny_model_folder, tiny_gguf
):
    llama, both = str(tiny_model_folder("llama")), [str(multimodal_folder(k)) for k in MULTIMODAL]
    ways = [(way, name) for way in ("folder", "wrap_model") for name in (llama, *both)]
    ways += [("gguf", str(tiny_gguf)), ("hub", hub_cached(both[0], tmp_path / "hub"))]
    done = load_in_child(ways, tmp_path, HF_HUB_CACHE=str(tmp_path / "hub"))
    told = json.loads(done.stdout)
    assert len(told) == len(ways)
    assert told == {f"{way} {name}": [] for way, name in ways}


@pytest.mark.parametrize(("kind", "way"), [("gemma3", "folder"), ("gemma4", "in memory")])
def test_of_a_multimodal_model_the_text_part_is_loaded(kind, way, multimodal_folder):
    folder = multimodal_folder(kind)
    reference = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert "ForConditionalGeneration" in type(reference).__name__
    if way == "folder":
        model = load_model(folder, device="cpu", dtype="float32")
    else:
        hf = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = wrap_model(hf, tf.AutoTokenizer.from_pretrained(folder))
    assert type(plain_model(model)) is TEXT_CLASS[kind]
    assert (model.cfg.n_layers, model.cfg.d_model) == (2, 32)
    ids = torch.tensor([encode_texts(model.tokenizer, ["I like helping people."])[0].ids])
    plain: Any = plain_model(model)
    with torch.no_grad():
        wanted = reference(input_ids=ids).logits
        assert torch.equal(plain(input_ids=ids).logits, wanted)
        torch.testing.assert_close(model(ids), wanted, rtol=1e-4, atol=1e-4)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    made = plain.generate(ids, **settings)
    whole: Any = reference
    assert torch.equal(made, whole.generate(ids, **settings))


def test_a_library_that_starts_a_process_while_a_model_is_wrapped_is_refused(
    hf_model, tiny_tokenizer, monkeypatch
):
    from transformer_lens.model_bridge import TransformerBridge

    refused = []
    real = TransformerBridge.boot_transformers

    def with_pip(*args, **kwargs):
        for start in (subprocess.run, subprocess.check_call, subprocess.check_output):
            with pytest.raises(PermissionError, match="saesteer starts no process"):
                start([sys.executable, "-c", "pass"])
            refused.append(start)
        return real(*args, **kwargs)

    monkeypatch.setattr(TransformerBridge, "boot_transformers", with_pip)
    wrap_model(hf_model("llama"), tiny_tokenizer())
    assert len(refused) == 3
    assert subprocess.run([sys.executable, "-c", "pass"], check=True).returncode == 0
