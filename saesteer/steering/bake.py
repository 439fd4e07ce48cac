"""Baking: a model that is steered always, as an ordinary checkpoint that any engine serves.

A vector that is added at every position behind a block is a bias of that block's MLP. Baked into a
Hugging Face folder it needs no hook, and neither in a GGUF file, whose architecture llama reads a
tensor `blk.L.ffn_down.bias` where there is one. What `hook_resid_pre` of a block takes is what the
block before it gives.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from saesteer.models.biases import with_output_biases
from saesteer.models.blocks import ROUGH, TOLERANCE
from saesteer.models.compat import quiet
from saesteer.models.gguf_files import gguf_digest, gguf_header
from saesteer.models.gguf_tensors import add_tensors
from saesteer.models.loading import context_length, load_model, model_info, plain_model
from saesteer.models.resolve import (
    BUNDLED,
    ModelSource,
    known_outside,
    resolve_model,
)
from saesteer.models.tokens import TokenRow, encode_texts, input_device
from saesteer.steering.apply import check_shape_of, steer
from saesteer.steering.divergence import divergence, neutral_rows
from saesteer.steering.strength import Addition, Unit, check_strengths, per_site, to_raw
from saesteer.steering.teacher_forced import TeacherForced
from saesteer.steering.vector import SteeringVector, load_vector
from saesteer.utils.errors import DataError, MismatchError, ModelError, OutputError, SteeringError
from saesteer.utils.files import build_folder, unwritable
from saesteer.utils.progress import Progress
from saesteer.utils.text import spoken_list

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

# A folder inside the folder: engines take every .safetensors beside the weights for weights.
NOTES = "steering"
RECORD = "bake.json"
# The only one of llama.cpp's that reads a bias where the model had none.
GGUF_ARCHITECTURE = "llama"
# Of the logits' standard deviation, where a bias is kept in half precision: to 1/256 of itself.
ROUNDED = 0.02
_TRIED = "The quick brown fox jumps over the lazy dog, and then it has a rest in the shade."


def bake(
    model: TransformerBridge,
    vectors: SteeringVector | Sequence[SteeringVector],
    strength: float | Sequence[float],
    folder: str | Path,
    unit: Unit = "norm",
    *,
    kl: float | None = None,
) -> Path:
    """Write a folder for `from_pretrained` with a model that vectors are always added in.

    Before anything is written its logits are compared with the hook's.

    Args:
        vectors: One vector or several, at `hook_resid_post` or, from block 1 on, `hook_resid_pre`.
        strength: One for every vector, or one for each.
        folder: A new one.
        kl: What the strength was measured to cost (`kl_everywhere`), for the card.

    Raises:
        SteeringError: A vector's site or a strength cannot be baked.
        ModelError: No bias of this architecture does the same as the hook.
        MismatchError: A vector is of another model, or the logits differ.
        OutputError: The folder is there already or cannot be written.
    """
    additions, target = _additions(vectors, strength, unit), check_free(folder)
    assert model.tokenizer is not None
    plain: Any = plain_model(model)
    row = encode_texts(model.tokenizer, [_TRIED])[0]
    biases = _biases(additions)
    # Before the biases, because steering checks that vectors and model belong together.
    with everywhere(model, additions):
        hooked = _logits(plain, row)
    made: Any = with_output_biases(model, biases)
    found = _difference([(hooked, _logits(made, row))])
    _check_same(found, plain.dtype, f"model {model_info(model).source.name}")
    facts = {"format": "hf", "fingerprint": model_info(model).fingerprint, "kl": kl}
    facts |= {"dtype": str(made.dtype).removeprefix("torch."), **found}

    def write(draft: Path) -> None:
        with quiet():
            made.save_pretrained(draft)
        model.tokenizer.save_pretrained(draft)  # type: ignore[union-attr]

    return _write(target, write, model_info(model).source, additions, unit, facts)


def bake_gguf(
    source: str | Path,
    vectors: SteeringVector | Sequence[SteeringVector],
    strength: float | Sequence[float],
    folder: str | Path,
    unit: Unit = "norm",
    *,
    kl: float | None = None,
) -> Path:
    """Write a folder with a copy of a GGUF file that vectors are always added in.

    The file's own weights stay as they are, packed or not, and are not read. The arguments are
    those of `bake`, and for the model its file (or "smollm2").

    Raises:
        SteeringError: A vector's site or a strength cannot be baked.
        ModelError: It is no such file, or llama.cpp reads no such bias in its architecture.
        MismatchError, SiteError: A vector does not fit the model's width and depth.
        OutputError: The folder is there already or cannot be written.
    """
    additions, target = _additions(vectors, strength, unit), check_free(folder)
    model = resolve_model(source)
    if model.kind != "gguf":
        raise ModelError(f"{source} is no GGUF file; give the path of one.")
    file = Path(model.location)
    header = gguf_header(file)
    experts = " with a mixture of experts" if header.size("expert_count") else ""
    if header.architecture != GGUF_ARCHITECTURE or experts:
        raise ModelError(
            f"{file} is of architecture {header.architecture}{experts}, where llama.cpp reads no "
            "bias for steering; write a control vector (saesteer vector export), which it adds in "
            "every architecture from block 1 on."
        )
    for vector, _ in additions:
        check_shape_of(vector, model)
    tensors = {
        f"blk.{layer}.ffn_down.bias": bias.numpy()
        for layer, bias in sorted(_biases(additions).items())
    }
    facts = {"format": "gguf", "sha256": gguf_digest(file), "kl": kl, "file": file.name}

    def write(draft: Path) -> None:
        add_tensors(file, draft / file.name, tensors)

    return _write(target, write, model, additions, unit, facts)


def kl_everywhere(
    model: TransformerBridge,
    vectors: SteeringVector | Sequence[SteeringVector],
    unit: Unit = "norm",
) -> Callable[[float], float]:
    """Return what vectors cost that are added at every position: nats per token at a strength.

    It is measured on the bundled neutral answers, as in runs, but with their prompts steered too,
    as they are in a baked model; a run's own strength at the same KL is another one.
    """
    chosen = _several(vectors)
    # What stands before the answers is steered, so nothing of it is shared.
    forced = TeacherForced(model, neutral_rows(model), max_tokens=1024, share_prefix=False)
    base = forced.last_states()

    def kl_at(strength: float) -> float:
        additions = _additions(chosen, strength, unit)
        return divergence(forced, base, editing=lambda _: everywhere(model, additions))

    return kl_at


@contextmanager
def everywhere(
    model: TransformerBridge, additions: Sequence[Addition], *, strict: bool = True
) -> Iterator[None]:
    """Steer as a baked model is: at every position."""
    with ExitStack() as stack:
        for vector, length in additions:
            how: dict[str, Any] = {"positions": "all", "strict": strict}
            stack.enter_context(steer(model, vector, length, "raw", **how))
        yield


def compare_with_hook(
    folder: str | Path,
    texts: Sequence[str],
    *,
    context: int = 256,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare what `bake` or `bake_gguf` wrote, loaded afresh, with its own model under the hook.

    Returns:
        n_tokens, difference (the largest of a logit), spread (the logits' standard deviation),
        same_choice (the share of tokens behind which both find the same one likeliest), and what
        was compared: model, baked, vectors (name, site, strength, unit, length).

    Raises:
        SteeringError: The folder was not baked, or is not whole.
        DataError: The texts hold no token.
        MismatchError: The logits differ.
    """
    root, progress = Path(folder), progress or Progress()
    record = _read_record(root)
    additions = [
        (load_vector(root / NOTES / one["file"]), float(one["length"])) for one in record["vectors"]
    ]
    baked = root / record["file"] if record["format"] == "gguf" else root
    progress.say(f"Loading {baked} and model {record['model']} ...")
    served: Any = plain_model(load_model(baked, dtype=dtype, progress=progress))
    # Rounded as the baked weights were, where they were.
    model = load_model(record["model"], dtype=record.get("dtype", dtype), progress=progress)
    plain: Any = plain_model(model).to(served.dtype)
    assert model.tokenizer is not None
    limit = min(context, context_length(model) or context)
    rows = [row.part(0, limit) for row in encode_texts(model.tokenizer, texts) if row.ids]
    if not rows:
        raise DataError("the texts hold no token to compare logits at; give longer ones.")

    def both() -> Iterator[tuple[Tensor, Tensor]]:
        with progress.task("texts", total=len(rows), unit="texts") as task:
            for row in rows:
                # A GGUF file may hold the vector's model in another quantisation.
                with everywhere(model, additions, strict=False):
                    hooked = _logits(plain, row)
                yield hooked, _logits(served, row)
                task.advance(1)

    found = _difference(both())
    _check_same(found, plain.dtype, str(root), rounded=record.get("dtype", "float32") != "float32")
    return found | {"model": record["model"], "baked": str(baked), "vectors": record["vectors"]}


def _several(vectors: SteeringVector | Sequence[SteeringVector]) -> tuple[SteeringVector, ...]:
    chosen = (vectors,) if isinstance(vectors, SteeringVector) else tuple(vectors)
    if not chosen:
        raise SteeringError("there are no vectors to bake; give at least one.")
    return chosen


def _additions(
    vectors: SteeringVector | Sequence[SteeringVector],
    strength: float | Sequence[float],
    unit: Unit,
) -> list[Addition]:
    chosen, strengths = _several(vectors), check_strengths(strength)
    if len(strengths) == 1:
        strengths *= len(chosen)
    if len(strengths) != len(chosen):
        raise SteeringError(
            f"there are {len(strengths)} strengths and {len(chosen)} vectors; give one strength "
            "for all, or one for each."
        )
    if not all(strengths):
        raise SteeringError("a strength of 0 bakes nothing; give one such as 0.2, or -0.2.")
    return [(v, to_raw(s, unit, v)) for v, s in zip(chosen, strengths, strict=True)]


def _biases(additions: Sequence[Addition]) -> dict[int, Float[Tensor, " d_model"]]:
    """Return what is added behind each block, by the block's number, in float32."""
    sums: dict[int, Tensor] = {}
    for piece, length in chain.from_iterable(per_site(v, raw, "raw") for v, raw in additions):
        layer = _layer(piece)
        exact = piece.direction.detach().cpu().to(torch.float64)
        sums[layer] = sums.get(layer, 0) + exact / exact.norm() * length
    return {layer: total.to(torch.float32) for layer, total in sums.items()}


def _layer(vector: SteeringVector) -> int:
    layer = vector.site.block_behind
    if layer is None:
        raise SteeringError(
            f"vector {vector.name!r} is at {vector.site}, which no block's MLP writes to alone; "
            "bake vectors at hook_resid_post, or at hook_resid_pre of block 1 or later, or steer "
            "with the hook (saesteer generate)."
        )
    return layer


def check_free(folder: str | Path) -> Path:
    """Return a folder's path; refuse one that is there already."""
    path = Path(folder)
    if path.exists():
        raise OutputError(f"{path} is there already; give the name of a new folder.")
    return path


def _logits(model: PreTrainedModel, row: TokenRow) -> Float[Tensor, "pos vocab"]:
    ids = torch.tensor([row.ids], device=input_device(model))
    with torch.inference_mode():
        return model(input_ids=ids).logits[0].float().cpu()


def _difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Compare the hook's logits with the baked model's, text by text."""
    n_tokens, differences, squares, same = 0, [], 0.0, 0
    for hooked, baked in pairs:
        n_tokens += len(hooked)
        differences.append(float((hooked - baked).abs().max()))
        squares += float(hooked.var(unbiased=False)) * len(hooked)
        same += int((hooked.argmax(-1) == baked.argmax(-1)).sum())
    return {
        "n_tokens": n_tokens,
        # In torch, where the largest of numbers with NaN is NaN.
        "difference": float(torch.tensor(differences).max()),
        "spread": (squares / n_tokens) ** 0.5,
        "same_choice": same / n_tokens,
    }


def _check_same(
    found: Mapping[str, float], dtype: torch.dtype, what: str, *, rounded: bool = False
) -> None:
    tolerance = max(TOLERANCE.get(dtype, ROUGH), ROUNDED if rounded else 0.0)
    if not found["difference"] <= tolerance * found["spread"]:
        raise MismatchError(
            f"{what}: baked, its logits differ from the hook's by up to {found['difference']:.3g} "
            f"where they spread by {found['spread']:.3g}; steer with the hook (saesteer generate)."
        )


def _write(
    target: Path,
    write: Callable[[Path], None],
    model: ModelSource,
    additions: Sequence[Addition],
    unit: Unit,
    facts: Mapping[str, Any],
) -> Path:
    names = [f"vector-{number}.safetensors" for number in range(1, len(additions) + 1)]
    # A path still leads there from another folder.
    lasting = model.name if model.kind == "hub" or model.name == BUNDLED else model.location
    one_unit = [to_raw(1.0, unit, vector) for vector, _ in additions]
    vectors = [
        {
            "file": name,
            "name": vector.name,
            "method": vector.method,
            "site": vector.place,
            "layer": _layer(vector),
            "parts": [_layer(part) for part in vector.parts],
            "strength": length / one,
            "unit": unit,
            "length": length,
            "positions": vector.positions,
        }
        for name, (vector, length), one in zip(names, additions, one_unit, strict=True)
    ]
    record = {"model": lasting, "vectors": vectors, **facts}

    def build(draft: Path) -> None:
        write(draft)
        notes = draft / NOTES
        for name, (vector, _) in zip(names, additions, strict=True):
            vector.save(notes / name)
        (notes / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (draft / "README.md").write_text(_card(target, model, record), encoding="utf-8")

    try:
        return build_folder(target, build)
    except (OSError, SafetensorError) as error:
        raise unwritable(target, error) from error


def _read_record(folder: Path) -> dict[str, Any]:
    file = folder / NOTES / RECORD
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        names = [v["file"] for v in record["vectors"] if math.isfinite(v["length"]) and v["site"]]
        if not names or record["format"] not in ("hf", "gguf") or not record["model"]:
            raise ValueError("it says of no vector what was baked")
        if any(Path(name).name != name for name in (*names, record.get("file", ""))):
            raise ValueError("a file that it names lies elsewhere")
    except FileNotFoundError:
        raise SteeringError(
            f"{folder} holds no {NOTES}/{RECORD}; give a folder of saesteer vector bake."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SteeringError(f"{file} cannot be read ({error}); bake the model again.") from error
    return record


def _blocks_of(vector: Mapping[str, Any]) -> str:
    return spoken_list([f"block {layer}" for layer in (vector["layer"], *vector["parts"])])


def _card(target: Path, model: ModelSource, record: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {v['name']} | {v['method']} | {v['site']} | {v['strength']:.4g} ({v['unit']}) | "
        f"{v['length']:.4g} | {_blocks_of(v)} |"
        for v in record["vectors"]
    )
    name = known_outside(model.name)
    base = f"base_model: {name}\n" if name != model.name or model.kind == "hub" else ""
    own = " or ".join(sorted({v["positions"] for v in record["vectors"]}))
    if record["format"] == "gguf":
        file = record["file"]
        what = f"`{file}`: the file that was given, with its weights as they were and a tensor more"
        serving = f"llama-server -m {target.name}/{file}"
        check = "Its weights and the tensor are compared with the hook, not llama.cpp's sums."
    else:
        what = f"A folder for `from_pretrained`, {record['dtype']}"
        serving = f"vllm serve {target.name}"
        check = (
            f"When it was written they differed by {record['difference']:.2g} at most, where "
            f"logits spread by {record['spread']:.2g}."
        )
    cost = "was not measured"
    if record["kl"] is not None:
        cost = f"is {record['kl']:.3g} nats per token on neutral answers"
    return f"""---
{base}tags: [saesteer, steering-vector]
---
# {model.name}, steered

{what}. An ordinary checkpoint: what was a hook is a bias on the output projection of a block's MLP.
The terms of {model.name} hold for it.

| vector | method | site | strength | length added | the bias of |
| --- | --- | --- | --- | --- | --- |
{rows}

KL(steered || unsteered) at all positions {cost}.

## How it differs from steering with the hook
- Every position is steered: BOS, the system prompt and what the user writes too. The vector's own
  choice of positions ({own}) is lost, so the same strength may cost more.
- The strength is fixed. For another one, or none, bake again or serve the model itself.
- The vectors are as they were, in `{NOTES}/`, for the check below; no engine reads them.

## Check and serve
    saesteer doctor {target.name}      # logits, beside {model.name} under the hook
    {serving}

{check}
"""
