"""Baked models beside a hook that is written by hand, and in llama.cpp."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.models import plain_model
from saesteer.steering import SteeringVector, steer
from saesteer.steering.bake import bake, bake_gguf, compare_with_hook, kl_everywhere
from saesteer.steering.divergence import strength_at_kl
from saesteer.utils.errors import MismatchError, ModelError, OutputError, SiteError, SteeringError
from tests.hybrids import hybrid, random_model

ARCHITECTURES = (
    *("bloom", "gpt2", "gpt-neox", "granite", "llama", "mistral", "nemotron", "opt", "phi"),
    *("qwen2", "smollm3", "starcoder2"),
)
BLOCKS = {
    "bloom": "transformer.h",
    "gpt2": "transformer.h",
    "gpt-neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
}


def vector_at(layer: int, seed: int = 0, width: int = 32, hook: str = "hook_resid_post", **more):
    raw = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    fields: dict[str, Any] = {"residual_norm": 5.0} | more
    return SteeringVector.from_raw(raw, site=f"blocks.{layer}.{hook}", model="tiny", **fields)


@contextmanager
def by_hand(blocks: Any, additions: dict[int, torch.Tensor]):
    """Add to the output of blocks, with torch alone."""

    def adding(change):
        def hook(_module, _inputs, output):
            if isinstance(output, tuple):
                return (output[0] + change.to(output[0].dtype), *output[1:])
            return output + change.to(output.dtype)

        return hook

    handles = [blocks[n].register_forward_hook(adding(change)) for n, change in additions.items()]
    yield
    for handle in handles:
        handle.remove()


def from_folder(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy(model: Any, ids: torch.Tensor, n: int) -> list[int]:
    made = model.generate(ids, max_new_tokens=n, min_new_tokens=n, do_sample=False)
    return made[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_folder_loaded_by_hugging_face_alone_says_what_the_hook_says(
    arch, tiny_tokenizer, tmp_path, random_ids
):
    vectors = [vector_at(0), vector_at(3, 1, hook="hook_resid_pre")]
    folder = bake(hybrid(arch, tiny_tokenizer), vectors, [0.3, -0.4], tmp_path / "baked")
    baked, original = from_folder(folder), random_model(arch)
    blocks = original.get_submodule(BLOCKS.get(arch, "model.layers"))
    # What enters block 3 is what leaves block 2.
    additions = {0: vectors[0].direction * 1.5, 2: vectors[1].direction * -2.0}
    ids = random_ids(2, 40)
    with torch.no_grad():
        unsteered = original(ids).logits
        with by_hand(blocks, additions):
            hooked = original(ids).logits
            wanted = greedy(original, ids[:1, :8], 64)
        got = baked(ids).logits
    largest = float(hooked.abs().max())
    assert float((hooked - unsteered).abs().max()) > 0.1 * largest
    assert float((got - hooked).abs().max()) <= 1e-6 * largest
    assert greedy(baked, ids[:1, :8], 64) == wanted
    # Beyond the rounding of each sum to float32 nothing is left.
    with torch.no_grad():
        with by_hand(blocks.double(), additions):
            exact = original.double()(ids).logits
        got = baked.double()(ids).logits
    assert float((got - exact).abs().max()) <= 1e-6


def test_padded_rows_and_saesteers_own_hook_agree_too(tiny_llama, tmp_path, random_ids):
    folder = bake(tiny_llama, vector_at(1), 0.3, tmp_path / "baked")
    batch = {"input_ids": random_ids(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    batch["attention_mask"][1, :5] = 0
    with torch.no_grad(), steer(tiny_llama, vector_at(1), 0.3, positions="all"):
        hooked = plain_model(tiny_llama)(**batch).logits
    real = batch["attention_mask"].bool()
    got = from_folder(folder)(**batch).logits
    torch.testing.assert_close(got[real], hooked[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "changed", "why"),
    [
        ("gemma2", {}, "a norm follows"),
        ("olmo2", {}, "a norm follows"),
        ("opt-post-norm", {}, "a norm follows"),
        ("qwen3", {}, "has no bias"),
        ("qwen3-moe", {}, "mixture of experts"),
        ("mistral", {"sliding_window": 8}, "attention slides"),
    ],
)
def test_what_no_bias_can_do_is_refused_with_a_way_that_works(
    arch, changed, why, tiny_tokenizer, tmp_path
):
    from saesteer.models import wrap_model

    model = wrap_model(random_model(arch, **changed), tiny_tokenizer())
    with pytest.raises(ModelError, match=rf"{why}.*control vector .*saesteer vector export"):
        bake(model, vector_at(1), 0.3, tmp_path / "baked")
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_baked_is_said_before_anything_is_written(
    tiny_llama, make_vector, tiny_gguf, tmp_path
):
    new = tmp_path / "baked"
    for site in ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.attn.hook_z"):
        vector = SteeringVector.from_raw([1.0] * 32, site=site, model="m", residual_norm=1.0)
        with pytest.raises(SteeringError, match=f"is at {site}, which no block's MLP"):
            bake(tiny_llama, vector, 0.1, new)
    for strength, told in ((0.0, "0 bakes nothing"), ([0.1, 0.2, 0.3], "3 strengths and 2")):
        with pytest.raises(SteeringError, match=told):
            bake(tiny_llama, [vector_at(0), vector_at(1)], strength, new)
    with pytest.raises(MismatchError, match="other weights"):
        bake(tiny_llama, make_vector(arch="gpt2", model="other"), 0.1, new)
    with pytest.raises(OutputError, match="there already"):
        bake(tiny_llama, vector_at(1), 0.1, tmp_path)
    with pytest.raises(SiteError, match="blocks 0 to 2"):
        bake_gguf(tiny_gguf, vector_at(7), 0.1, new)
    with pytest.raises(MismatchError, match="8 wide"):
        bake_gguf(tiny_gguf, vector_at(1, width=8), 0.1, new)
    with pytest.raises(SteeringError, match=r"steering/bake\.json; give a folder of"):
        compare_with_hook(tmp_path, ["The cat"])
    assert not new.exists()


def test_the_card_says_what_is_in_it_and_what_differs(tiny_llama, tmp_path):
    folder = bake(tiny_llama, vector_at(1, name="kind"), -0.25, tmp_path / "baked", kl=0.123)
    card = " ".join((folder / "README.md").read_text(encoding="utf-8").split())
    for said in (
        "| kind | unknown | blocks.1.hook_resid_post | -0.25 (norm) | -1.25 | block 1 |",
        "is 0.123 nats per token",
        "Every position is steered: BOS, the system prompt",
        "(from_last_prompt_token) is lost",
        "saesteer doctor baked",
    ):
        assert said in card
    # Engines read whatever safetensors lie beside the weights.
    assert [file.name for file in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["mlp_bias"] is True


def test_the_strength_at_a_kl_is_that_of_every_position(roomy_model):
    from saesteer.data import read_answers
    from saesteer.models import encode_statements

    match = strength_at_kl(kl_everywhere(roomy_model, vector_at(1)), vector_at(1), 0.2)
    assert match.kl == pytest.approx(0.2, rel=0.03)
    answers = read_answers("neutral_answers")[:6]
    texts = [[one.answer for one in answers], [one.question for one in answers]]
    model, total, count = plain_model(roomy_model), 0.0, 0
    change = vector_at(1).direction * 5.0 * match.strength
    for row in encode_statements(roomy_model.tokenizer, *texts):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            base = model(ids).logits[0].log_softmax(-1)
            with by_hand(model.model.layers, {1: change}):
                steered = model(ids).logits[0].log_softmax(-1)
        scored = torch.tensor(row.kept[1:])
        total += float((steered.exp() * (steered - base)).sum(-1)[:-1][scored].sum())
        count += int(scored.sum())
    assert match.kl == pytest.approx(total / count, rel=1e-3)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path / "cache"))


def test_a_gguf_file_gets_one_tensor_and_keeps_every_byte_of_its_own(tiny_gguf, tmp_path, cache):
    from gguf import GGUFReader

    vectors = [vector_at(1), vector_at(1, 1), vector_at(1, 2, hook="hook_resid_pre")]
    folder = bake_gguf(tiny_gguf, vectors, [0.3, -0.2, 0.1], tmp_path / "baked")
    before, after = GGUFReader(tiny_gguf), GGUFReader(folder / "tiny.gguf")
    made = {tensor.name: tensor for tensor in after.tensors}
    for tensor in before.tensors:
        same = made.pop(tensor.name)
        assert (same.tensor_type, same.data.tobytes()) == (
            tensor.tensor_type,
            tensor.data.tobytes(),
        )
    counts = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count")
    own = {key: field.contents() for key, field in before.fields.items() if key not in counts}
    assert own == {k: field.contents() for k, field in after.fields.items() if k not in counts}
    assert list(made) == ["blk.0.ffn_down.bias", "blk.1.ffn_down.bias"]
    assert {tensor.tensor_type.name for tensor in made.values()} == {"F32"}
    wanted = vectors[0].direction * 1.5 - vectors[1].direction
    np.testing.assert_allclose(made["blk.1.ffn_down.bias"].data, wanted, rtol=1e-5, atol=1e-6)
    # Read back here, the bias is in it, and the whole is what the hook says.
    found = compare_with_hook(folder, ["The cat sat on the mat.", "What do you think?"])
    assert found["difference"] < 1e-4 * found["spread"]
    assert found["same_choice"] == 1.0
    with pytest.raises(ModelError, match=r"has a tensor blk\.0\.ffn_down\.bias already"):
        bake_gguf(folder / "tiny.gguf", vectors, 0.3, tmp_path / "twice")


def test_a_gguf_file_that_takes_no_bias_or_is_cut_off_is_refused(tiny_gguf, tmp_path):
    from gguf import GGUFWriter

    file = tmp_path / "other.gguf"
    writer = GGUFWriter(file, "qwen3")
    writer.add_block_count(3)
    writer.add_embedding_length(32)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"architecture qwen3, .*vector export"):
        bake_gguf(file, vector_at(1), 0.3, tmp_path / "baked")
    file.write_bytes(tiny_gguf.read_bytes()[:-4000])
    with pytest.raises(ModelError, match="ends before its tensor"):
        bake_gguf(file, vector_at(1), 0.3, tmp_path / "baked")
    assert not (tmp_path / "baked").exists()


def test_a_baked_model_that_was_changed_is_found_out(tiny_gguf, tmp_path, cache):
    folder = bake_gguf(tiny_gguf, vector_at(1), 0.3, tmp_path / "baked")
    shutil.copy(tiny_gguf, folder / "tiny.gguf")
    with pytest.raises(MismatchError, match="its logits differ from the hook's by up to"):
        compare_with_hook(folder, ["The cat sat on the mat."])
    record = folder / "steering" / "bake.json"
    record.write_text(record.read_text().replace("tiny.gguf", "../tiny.gguf"))
    with pytest.raises(SteeringError, match="lies elsewhere"):
        compare_with_hook(folder, ["The cat"])


def unpacked(source: Path, target: Path) -> Path:
    """Write a GGUF file with its weights in float32: packed, llama.cpp rounds activations too."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    reader, writer = GGUFReader(source), GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if key != "general.architecture" and not key.startswith("GGUF."):
            if field.types[0] == GGUFValueType.ARRAY:
                writer.add_array(key, field.contents())
            else:
                writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.real
@pytest.mark.slow
def test_llama_cpp_writes_what_transformers_writes_under_the_hook(
    smollm2_float32, bundled_gguf, tmp_path
):
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    model = smollm2_float32
    vector = vector_at(12, width=576, residual_norm=60.0)
    source = unpacked(bundled_gguf, tmp_path / "unpacked.gguf")
    folder = bake_gguf(source, vector, 0.3, tmp_path / "baked")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(folder / source.name)
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers, settings.warmup = 512, 1, 0, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(settings)
    tokenizer: Any = model.tokenizer
    unsteered = []
    for question in ("How was your day?", "Tell me about the sea."):
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        asked = {"prompt": ids, "max_tokens": 32, "temperature": 0, "logprobs": 1}
        answer = server.handle_completions(asked)
        told = [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]
        assert len(told) == 32
        prompt = torch.tensor([ids])
        with steer(model, vector, 0.3, positions="all"):
            assert told == greedy(plain_model(model), prompt, 32)
        unsteered.append(told == greedy(plain_model(model), prompt, 32))
    assert not any(unsteered)
