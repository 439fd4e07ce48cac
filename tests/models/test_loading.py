"""Models of four architectures through one door, and what is kept with them."""

from __future__ import annotations

import json
import shutil
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saesteer.models import (
    encode_texts,
    load_model,
    model_info,
    placement,
    plain_model,
    resolve_model,
    wrap_model,
)
from saesteer.models.placement import choose_device, choose_dtype
from saesteer.models.tokens import pad_rows, padding_id
from saesteer.utils.errors import ModelError, NetworkError

TEXTS = ["I like helping people, and I always listen.", "The cat", "What do you think?"]


def inputs_for(model):
    rows = encode_texts(model.tokenizer, TEXTS)
    return pad_rows(rows, padding_id(model), side="right")


def storages(*modules) -> dict[int, int]:
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def copied(folder, to):
    shutil.copytree(folder, to)
    return to


def test_bridge_and_plain_model_say_what_hugging_face_says(arch, tiny_model, hf_model):
    model = tiny_model(arch)
    batch = inputs_for(model)
    real = batch.attention_mask.bool()
    with torch.no_grad():
        wanted = hf_model(arch)(**batch.inputs).logits[real]
        plain = plain_model(model)(**batch.inputs).logits[real]
        inner = model.original_model(**batch.inputs).logits[real]
        bridge = model(batch.input_ids, attention_mask=batch.attention_mask)[real]
    assert wanted.std() > 0.3
    assert torch.equal(plain, wanted)
    torch.testing.assert_close(inner, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bridge, wanted, rtol=1e-4, atol=1e-4)
    # They share every weight.
    plain = plain_model(model)
    together = storages(model.original_model, plain)
    assert set(storages(plain)) <= set(together)
    # The bridge may keep a few scalars of its own; a second copy of the weights would be 100%.
    assert sum(together.values()) < 1.02 * sum(storages(hf_model(arch)).values())
    inner = {p.data_ptr() for p in model.original_model.parameters()}
    assert {p.data_ptr() for p in plain.parameters()} <= inner


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16])
def test_the_dtype_asked_for_is_the_dtype_of_the_weights(tiny_model_folder, dtype):
    model = load_model(tiny_model_folder("llama"), device="cpu", dtype=dtype)
    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    assert {p.dtype for p in plain_model(model).parameters()} == {wanted}
    assert model.cfg.dtype == wanted
    logits = plain_model(model)(**inputs_for(model).inputs).logits
    assert torch.isfinite(logits).all()


def test_an_offloaded_or_unheard_of_model_is_refused(hf_model, tiny_tokenizer, tiny_model_folder):
    import accelerate

    with pytest.raises(ModelError, match=r"device and device_map exclude each other"):
        load_model(tiny_model_folder("llama"), device="cpu", device_map="cpu")
    model = hf_model("llama")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(ModelError, match=r"leaves a part of it outside .*; use more devices"):
        wrap_model(model, tiny_tokenizer())
    model = hf_model("llama")
    model.config.architectures, model.config.model_type = ["UnheardOfForCausalLM"], "unheard_of"
    with pytest.raises(ModelError, match=r"architecture LlamaForCausalLM cannot be wrapped"):
        wrap_model(model, tiny_tokenizer())


def test_a_model_too_large_or_not_there_is_a_sentence(tiny_model_folder, monkeypatch):
    from transformers import PreTrainedModel

    name = "google/gemma-2-2b-not-cached"
    with pytest.raises(NetworkError, match=rf"^model '{name}' is not in the local cache.*smollm2"):
        load_model(name, device="cpu", dtype="float32")

    with pytest.raises(NetworkError, match=r"cannot be reached \(did you mean 'smollm2'\?\)"):
        load_model("smolm2", device="cpu", dtype="float32")

    hint = "not in the local cache (did you mean 'smollm2'?))"
    assert str(resolve_model("smolm2")) == f"smolm2 (hub: smolm2, {hint}"

    def full(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(PreTrainedModel, "to", full)
    with pytest.raises(ModelError, match=r"in float32 does not fit on cpu; use bfloat16"):
        load_model(tiny_model_folder("llama"), device="cpu", dtype="float32")


def test_a_model_with_missing_weights_is_refused_not_made_up(tiny_model_folder, tmp_path):
    folder = copied(tiny_model_folder("llama"), tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    kept = {name: w for name, w in weights.items() if "layers.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    lost = len(weights) - len(kept)
    with pytest.raises(ModelError, match=rf"lacks {lost} of its weights \(model\.layers\.1\."):
        load_model(folder, device="cpu", dtype="float32")

    folder = copied(tiny_model_folder("llama"), tmp_path / "bare")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"bare' cannot be loaded \(.*tokenizer"):
        load_model(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    "config", ["{", '{"model_type": "nonesuch"}', '{"model_type": "t5", "d_model": 8}']
)
def test_a_config_that_is_no_language_models_is_a_sentence(tiny_model_folder, tmp_path, config):
    folder = copied(tiny_model_folder("llama"), tmp_path / "odd")
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError) as caught:
        load_model(folder, device="cpu", dtype="float32")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_config_that_declares_what_no_model_has_is_refused_before_it_is_built(
    tiny_model_folder, tmp_path
):
    folder = copied(tiny_model_folder("llama"), tmp_path / "deep")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    with pytest.raises(ModelError, match=r"num_hidden_layers is 1,000,000,000 and may be 10,000"):
        load_model(folder, device="cpu", dtype="float32")


def test_weights_that_hold_code_are_refused_without_advice_to_run_it(tiny_model_folder, tmp_path):
    class Code:
        def __reduce__(self):
            return print, ("this code ran",)

    folder = copied(tiny_model_folder("llama"), tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({"a": Code()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="which could run code; only safetensors") as caught:
        load_model(folder, device="cpu", dtype="float32")
    assert "weights_only" not in str(caught.value)


def test_a_model_with_its_own_code_asks_before_it_runs_it(tiny_model_folder, tmp_path):
    folder = copied(tiny_model_folder("llama"), tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('this code ran')\n")
    with pytest.raises(ModelError, match=r"pass trust_remote_code=True"):
        load_model(folder, device="cpu", dtype="float32")


def test_the_fingerprint_is_that_of_the_weights(tiny_model, tiny_model_folder, make_model_folder):
    wanted = model_info(tiny_model("llama")).fingerprint
    half = load_model(tiny_model_folder("llama"), device="cpu", dtype="bfloat16")
    same = load_model(make_model_folder("llama", seed=0), device="cpu", dtype="float32")
    other = load_model(make_model_folder("llama", seed=1), device="cpu", dtype="float32")
    assert len(wanted) == 64
    assert model_info(half).fingerprint == wanted
    assert model_info(same).fingerprint == wanted
    assert model_info(other).fingerprint != wanted
    assert len({model_info(tiny_model(a)).fingerprint for a in ("gpt2", "llama", "qwen3")}) == 3


def test_the_tokenizer_keeps_its_special_tokens(hf_model, tiny_tokenizer):
    # transformer_lens would make EOS the BOS, and add an <|endoftext|> where there is no EOS.
    tokenizer = tiny_tokenizer(roles={"eos_token": "<|im_end|>"})
    model = wrap_model(hf_model("qwen3"), tokenizer)
    assert model.tokenizer is tokenizer and model_info(model).source.kind == "folder"
    assert model.tokenizer.bos_token is None
    assert model.tokenizer.pad_token == "<|im_end|>"
    assert len(model.tokenizer) == len(tiny_tokenizer())
    bare = wrap_model(hf_model("qwen3"), tiny_tokenizer(roles={}))
    assert bare.tokenizer.eos_token is None
    assert padding_id(bare) == 0


def test_the_vocabulary_is_the_models_where_it_is_larger_than_the_tokenizers(tiny_tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_tokenizer()
    config = GPT2Config(vocab_size=512, n_embd=8, n_layer=1, n_head=2, n_positions=32)
    model = wrap_model(GPT2LMHeadModel(config), tokenizer)
    assert model.cfg.d_vocab == 512
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 512)


def test_a_model_that_saesteer_did_not_load_is_refused(hf_model, tiny_model_folder):
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder("gpt2"))
    foreign = TransformerBridge.boot_transformers(
        "foreign", hf_model=hf_model("gpt2"), tokenizer=tokenizer, device="cpu"
    )
    strangers: tuple[Any, ...] = (foreign, object())
    for stranger in strangers:
        for function in (model_info, plain_model):
            with pytest.raises(ModelError, match=r"was not loaded by saesteer; use .*load_model"):
                function(stranger)


def test_generate_takes_what_a_tokenizer_gives(tiny_llama, hf_model):
    inputs = tiny_llama.tokenizer("I like the garden", return_tensors="pt")
    settings = {"max_new_tokens": 4, "do_sample": False}
    wanted = hf_model("llama").generate(**inputs, **settings)
    assert torch.equal(tiny_llama.generate(**inputs, **settings), wanted)


def test_the_device_is_the_fastest_there_is_and_half_precision_only_where_faster(monkeypatch):
    fastest = placement._fastest_dtype.__wrapped__
    for half_seconds, wanted in ((0.2, torch.bfloat16), (5.0, torch.float32)):
        times = {torch.float32: 1.0, torch.bfloat16: half_seconds}
        measured: list[torch.dtype] = []
        monkeypatch.setattr(
            placement, "_matmul_seconds", lambda one, t=times, m=measured: m.append(one) or t[one]
        )
        monkeypatch.setattr(placement, "_fastest_dtype", cache(fastest))
        assert choose_dtype("auto", torch.device("cpu")) == wanted
        # A busy moment later changes nothing.
        assert choose_dtype("auto", torch.device("cpu")) == wanted and len(measured) == 2
    for known, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda known=known: known)
        monkeypatch.setattr(placement, "_takes_bfloat16", lambda _, known=known: known)
        for device in ("cuda", "mps"):
            assert choose_dtype("auto", torch.device(device)) == wanted
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device(None) == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("asked", ["banana", "cuda:99", "meta"])
def test_a_device_or_dtype_that_is_not_here_is_a_sentence(asked, tiny_model_folder):
    with pytest.raises(ModelError) as caught:
        load_model(tiny_model_folder("llama"), device=asked)
    text = str(caught.value)
    assert text.startswith(f"device '{asked}' is not available here (")
    assert text.endswith("use device 'auto' or 'cpu'.")
    assert "\n" not in text and len(text) < 330
    with pytest.raises(ModelError, match=r"is not one of auto, float32, bfloat16, float16\.$"):
        load_model(tiny_model_folder("llama"), device="cpu", dtype="int8")
