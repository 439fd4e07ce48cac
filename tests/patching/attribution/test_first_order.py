"""Attribution patching against autograd by hand, transformer_lens and activation patching."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saesteer.models import load_model
from saesteer.patching.activation import activation_patching
from saesteer.patching.attribution.first_order import attribution_patching, attribution_patching_all
from saesteer.patching.metrics import Metric, metric_named
from saesteer.patching.prompts.batch import encode_pairs
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.saes import load_sae
from saesteer.utils.errors import ConfigError

EQUAL = (
    PromptPair("The cat sat on the mat", "The dog ran on the mat", "a", "b", name="same length"),
    PromptPair("The cat sat on the mat", "The mat sat on the cat", "c", "b"),
)
UNEQUAL = (
    *EQUAL[:1],
    PromptPair("I like sunny weather", "I like helping", "c", "d"),
    PromptPair("The weather today is warm.", "The warm weather is today.", "s", "d"),
)
COLUMNS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
HEADS = ("z", "q", "k", "v")
DIFFERENCE = metric_named("logit_difference")
# Where the parts of a block stand in the Hugging Face models.
LLAMA = {
    "blocks": "model.layers",
    "resid_mid": ("post_attention_layernorm", "input"),
    "attn_out": ("self_attn", "output"),
    "mlp_out": ("mlp", "output"),
    "z": ("self_attn.o_proj", "input"),
    "q": ("self_attn.q_proj", "output"),
    "k": ("self_attn.k_proj", "output"),
    "v": ("self_attn.v_proj", "output"),
}
PARTS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": LLAMA,
    "gemma3": LLAMA
    | {
        "resid_mid": ("pre_feedforward_layernorm", "input"),
        "attn_out": ("post_attention_layernorm", "output"),
        "mlp_out": ("post_feedforward_layernorm", "output"),
    },
    "gpt2": {
        "blocks": "transformer.h",
        "resid_mid": ("ln_2", "input"),
        "attn_out": ("attn", "output"),
        "mlp_out": ("mlp", "output"),
        "z": ("attn.c_proj", "input"),
    },
}


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_every_cell_is_the_gradient_times_the_difference(arch, mode, tiny_model, hf_model):
    batch = encode_pairs(tiny_model(arch), UNEQUAL)
    names = [name for name in (*COLUMNS, *HEADS) if name in PARTS[arch] or "resid" in name]
    found = attribution_patching_all(
        tiny_model(arch), batch, (*names, "pattern"), DIFFERENCE, mode=mode, by_position=True
    )
    reference = hf_model(arch)
    reference.set_attn_implementation("eager")
    for pair in range(len(batch)):
        wanted, clean, corrupted = _by_hand(reference, arch, batch, pair, mode, names)
        for name in (*names, "pattern"):
            ours = found[name]
            np.testing.assert_allclose(ours.clean[pair], clean, atol=2e-5)
            np.testing.assert_allclose(ours.corrupted[pair], corrupted, atol=2e-5)
            np.testing.assert_allclose(ours.values[pair], wanted[name], atol=5e-5, rtol=1e-4)


def _by_hand(model, arch, batch, pair, mode, names):
    """Return every component's cells of one pair, from unpadded prompts and plain autograd."""
    sides = [(batch.corrupted, batch.corrupted_mask), (batch.clean, batch.clean_mask)]
    steps = [(b, int(a)) for b, a in enumerate(batch.to_clean[pair]) if a >= 0]
    if mode == "noising":
        sides, steps = sides[::-1], [(a, b) for b, a in steps]
    (ids, source_ids) = ((ids[pair][mask[pair]], int((~mask[pair]).sum())) for ids, mask in sides)
    steps = [(mine - ids[1], theirs - source_ids[1]) for mine, theirs in steps]
    answers = batch.right[pair], batch.wrong[pair]
    goal, source = _run(model, arch, source_ids[0], answers, names)
    start, own = _run(model, arch, ids[0], answers, names)
    cells = {}
    for name, layers in own.items():
        gradients = torch.autograd.grad(start, layers, retain_graph=True)
        found = [
            _effects(name, steps, [x[0].detach() for x in each], ids[1])
            for each in zip(source[name], layers, gradients, strict=True)
        ]
        cells[name] = start.item() + torch.stack(found).numpy()
    clean, corrupted = (goal, start) if mode == "denoising" else (start, goal)
    return cells, clean.item(), corrupted.item()


def _effects(name, steps, parts, pads):
    source, own, gradient = parts
    heads = own.shape[0] if name == "pattern" else {"k": 2, "v": 2, "z": 4, "q": 4}.get(name, 1)
    cells = torch.full((heads, pads + own.shape[-2]), float("nan"))
    for mine, theirs in steps:
        if name == "pattern":
            row = torch.zeros_like(own[:, mine])
            for key, other in steps:
                row[:, key] = source[:, theirs, other]
            effect = (gradient[:, mine] * (row - own[:, mine])).sum(-1)
        else:
            effect = gradient[mine] * (source[theirs] - own[mine])
            effect = effect.reshape(heads, -1).sum(-1)
        cells[:, pads + mine] = effect
    return cells if name in (*HEADS, "pattern") else cells[0]


def _run(model, arch, ids, answers, names):
    """Return the logit difference and every component's tensors, [1, ...] for each layer."""
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    handles = []
    for block in model.get_submodule(PARTS[arch]["blocks"]):
        for name in names:
            path, side = PARTS[arch].get(name) or ("", "input" if name[-3:] == "pre" else "output")
            module = block.get_submodule(path)

            def hook(module, args, kwargs, output=None, name=name):
                whole = output if output is not None else [*args, *kwargs.values()][0]
                kept[name].append(whole[0] if isinstance(whole, tuple) else whole)

            put = {
                "input": module.register_forward_pre_hook,
                "output": module.register_forward_hook,
            }
            handles.append(put[side](hook, with_kwargs=True))
    out = model(input_ids=ids[None], output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    last = out.logits[0, -1]
    return last[answers[0]] - last[answers[1]], {**kept, "pattern": list(out.attentions)}


def test_heads_and_mlps_agree_with_transformer_lens(arch, tiny_model_folder):
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    # A model of its own: theirs needs parameters that ask for gradients.
    model = load_model(tiny_model_folder(arch), device="cpu", dtype="float32")
    batch = encode_pairs(model, EQUAL[:1])
    ours = attribution_patching_all(model, batch, ("z", "mlp_out"), DIFFERENCE, by_position=True)
    model.original_model.requires_grad_(True)
    right, wrong = int(batch.right[0]), int(batch.wrong[0])
    theirs = attribution_patch(
        model, batch.clean, batch.corrupted, lambda x: x[0, -1, right] - x[0, -1, wrong]
    ).node_scores
    for node, score in theirs.items():
        if node.layer is None:
            continue
        result = ours["mlp_out" if node.head is None else "z"]
        at = (0, node.layer) + (() if node.head is None else (node.head,)) + (node.position,)
        np.testing.assert_allclose(result.values[at] - result.corrupted[0], score, atol=2e-5)


@pytest.fixture(scope="module")
def linear_model(tmp_path_factory, tiny_tokenizer):
    """A GPT-2 without anything that bends: even attention, linear MLPs, norms that only centre."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_tokenizer(roles={"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    # (x - mean) / sqrt(variance + 1e8) times 1e4: the variance is lost beside 1e8.
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=64,
        activation_function="linear",
        layer_norm_epsilon=1e8,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
        for name, weight in model.named_parameters():
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                weight.fill_(1e4)
            if "c_attn" in name:
                weight[..., :64] = 0  # Queries and keys: every earlier token counts the same.
    folder = tmp_path_factory.mktemp("linear")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("by_position", [False, True], ids=["whole", "by position"])
@pytest.mark.parametrize("mode", ["denoising", "noising"])
@pytest.mark.parametrize("pairs", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_on_a_linear_model_it_is_activation_patching(
    linear_model, mirror_sae, pairs, mode, by_position
):
    batch = encode_pairs(linear_model, pairs)
    sae = load_sae(mirror_sae())
    names = (*COLUMNS, *HEADS, "pattern", "sae")
    found = attribution_patching_all(
        linear_model, batch, names, DIFFERENCE, mode=mode, by_position=by_position, sae=sae
    )
    for name in names:
        more: dict[str, Any] = {"sae": sae} if name == "sae" else {}
        if by_position and name not in COLUMNS:
            more["by_position"] = True
        exact = activation_patching(linear_model, batch, name, DIFFERENCE, mode=mode, **more)
        ours = found[name]
        for what in ("dims", "coords", "tokens", "pairs"):
            assert getattr(ours, what) == getattr(exact, what)
        np.testing.assert_allclose(ours.values, exact.values, atol=2e-5)
        np.testing.assert_allclose(ours.clean, exact.clean, atol=2e-5)
        if name in ("resid_pre", "mlp_out", "z", "v", "sae"):
            start = exact.corrupted if mode == "denoising" else exact.clean
            effects = exact.values.reshape(len(batch), -1) - start[:, None]
            assert np.nanmax(np.abs(effects)) > 0.02


def test_two_forwards_and_one_backward_serve_all_components(tiny_llama, mirror_sae, monkeypatch):
    batch = encode_pairs(tiny_llama, UNEQUAL)
    sae = load_sae(mirror_sae())
    calls = []
    backward = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *a, **k: (calls.append("backward"), backward(*a, **k))[1]
    )
    handle = tiny_llama.original_model.register_forward_pre_hook(lambda *_: calls.append("forward"))
    try:
        attribution_patching_all(
            tiny_llama, batch, (*COLUMNS, *HEADS, "pattern", "sae"), DIFFERENCE, sae=sae
        )
    finally:
        handle.remove()
    assert calls == ["forward", "forward", "backward"]


def test_pairs_that_do_not_fit_at_once_give_the_same(tiny_llama, mirror_sae):
    batch = encode_pairs(tiny_llama, UNEQUAL)
    sae = load_sae(mirror_sae())
    names = ("resid_mid", "k", "pattern", "sae")
    whole = attribution_patching_all(tiny_llama, batch, names, DIFFERENCE, sae=sae)
    parts = attribution_patching_all(tiny_llama, batch, names, DIFFERENCE, sae=sae, memory_gb=1e-9)
    for name in names:
        assert parts[name].coords == whole[name].coords
        np.testing.assert_allclose(parts[name].values, whole[name].values, atol=1e-5)
        np.testing.assert_allclose(parts[name].clean, whole[name].clean, atol=1e-5)


def test_features_and_clusters_add_up(tiny_llama, mirror_sae):
    batch = encode_pairs(tiny_llama, UNEQUAL)
    sae = load_sae(mirror_sae())
    every = attribution_patching(tiny_llama, batch, "sae", DIFFERENCE, sae=sae, features=range(64))
    alive = attribution_patching(tiny_llama, batch, "sae", DIFFERENCE, sae=sae)
    groups = {"low": range(20), "high": [40, 41, 41]}
    clusters = attribution_patching(tiny_llama, batch, "sae", DIFFERENCE, sae=sae, clusters=groups)
    layer = attribution_patching(tiny_llama, batch, "resid_post", DIFFERENCE, layers=[1])
    effect = every.values - every.corrupted[:, None]
    # The mirror SAE gives back what it gets, so that all its features make up the activation.
    whole = np.nansum(layer.values[:, 0] - layer.corrupted[:, None], axis=1)
    np.testing.assert_allclose(effect.sum(axis=1), whole, atol=1e-4)
    assert clusters.dims == ("cluster",) and clusters.coords["cluster"] == ("low", "high")
    np.testing.assert_allclose(
        clusters.values - clusters.corrupted[:, None],
        np.stack([effect[:, :20].sum(axis=1), effect[:, 40:42].sum(axis=1)], axis=1),
        atol=1e-4,
    )
    assert 0 < len(alive.coords["feature"]) <= 64
    places = [every.coords["feature"].index(feature) for feature in alive.coords["feature"]]
    np.testing.assert_allclose(alive.values, every.values[:, places], atol=1e-6)


def test_it_works_inside_inference_mode_and_leaves_no_hook(tiny_llama):
    batch = encode_pairs(tiny_llama, EQUAL)
    before = attribution_patching(tiny_llama, batch, "resid_mid", DIFFERENCE)
    hooks = _n_hooks(tiny_llama)
    with torch.inference_mode():
        inside = attribution_patching(tiny_llama, batch, "resid_mid", DIFFERENCE)
    np.testing.assert_array_equal(inside.values, before.values)

    def fails(logits, rows):
        raise RuntimeError("no score")

    with pytest.raises(RuntimeError, match="no score"):
        attribution_patching(tiny_llama, batch, "z", Metric("broken", fails))
    assert _n_hooks(tiny_llama) == hooks


def _n_hooks(model) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def test_the_divergence_has_no_slope_on_the_clean_run(tiny_llama):
    batch = encode_pairs(tiny_llama, EQUAL)
    flat = attribution_patching(tiny_llama, batch, "z", metric_named("kl"), mode="noising")
    sloped = attribution_patching(tiny_llama, batch, "z", metric_named("kl"))
    np.testing.assert_allclose(flat.values, 0, atol=1e-5)
    assert np.abs(sloped.values - sloped.corrupted[:, None, None]).max() > 1e-2


@pytest.mark.parametrize(
    ("component", "options", "error", "says"),
    [
        ("resid", {}, ConfigError, "resid_pre"),
        ("sae", {}, ConfigError, "give one"),
        ("z", {"layers": [3]}, ConfigError, "0 to 2, not 3"),
        ("z", {"layers": []}, ConfigError, "there is none"),
        ("z", {"mode": "up"}, ConfigError, "neither"),
        ("z", {"memory_gb": 0}, ConfigError, "above 0"),
        ("z", {"memory_gb": float("nan")}, ConfigError, "above 0"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(tiny_llama, component, options, error, says):
    batch = encode_pairs(tiny_llama, EQUAL)
    with pytest.raises(error, match=says):
        attribution_patching(tiny_llama, batch, component, DIFFERENCE, **options)


def test_features_that_the_sae_lacks_are_refused(tiny_llama, mirror_sae):
    batch = encode_pairs(tiny_llama, EQUAL)
    sae = load_sae(mirror_sae())
    refused: tuple[dict[str, Any], ...] = (
        {"features": [64]},
        {"clusters": {"far": [-1]}},
        {"features": []},
    )
    for options in refused:
        with pytest.raises(ConfigError, match="feature"):
            attribution_patching(tiny_llama, batch, "sae", DIFFERENCE, sae=sae, **options)


def test_a_metric_without_a_slope_is_refused(tiny_llama):
    batch = encode_pairs(tiny_llama, EQUAL)
    accuracy = Metric("accuracy", lambda logits, rows: (logits[:, 0] > logits[:, 1]).float(), True)
    with pytest.raises(ConfigError, match="no gradient"):
        attribution_patching(tiny_llama, batch, "z", accuracy)
