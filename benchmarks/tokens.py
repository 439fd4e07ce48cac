"""Count the tokens that one persona of a comparison takes through the model's blocks.

    python benchmarks/tokens.py [SETTINGS] [KEY=VALUE ...]

The counts depend on texts, methods and seeds and hardly on the model, so a stand-in of three narrow
blocks with the bundled model's tokenizer takes its place, with an SAE after its first: a third of
the way up, as the bundled one. A token through every block counts as one. What is written is an
upper bound, for the stand-in seldom ends an answer. docs/runs.md turns the counts into hours.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from saesteer.experiments.registry import load_experiment, run_experiment
from saesteer.models import load_model
from saesteer.utils.progress import terminal_progress

BLOCKS, WIDTH = 3, 64


def stand_in(folder: Path) -> tuple[str, str]:
    """Write the narrow model and an SAE that gives back what it gets; return their folders."""
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    tokenizer: Any = load_model("smollm2").tokenizer
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": BLOCKS}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, **heads, **ids)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    card: Any = {"hook_name": "blocks.0.hook_resid_post", "model_name": "stand-in"}
    card = SAEMetadata(**card, prepend_bos=None)
    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=2 * WIDTH, metadata=card))
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    with torch.no_grad():
        sae.W_enc.copy_(both.T)
        sae.W_dec.copy_(both)
    sae.save_model(folder / "sae")
    return str(folder / "model"), str(folder / "sae")


def main() -> None:
    """Print the counts as JSON: read, with a gradient, and written, in thousands of tokens."""
    settings = sys.argv[1:2] or ["twelve"]
    counts: Counter[str] = Counter()
    forward = LlamaDecoderLayer.forward

    def counted(self: Any, hidden_states: torch.Tensor, *rest: Any, **more: Any) -> Any:
        found = forward(self, hidden_states, *rest, **more)
        tensor = found[0] if isinstance(found, tuple) else found
        kind = "written" if tensor.shape[1] == 1 else "read"
        kind = "gradient" if tensor.requires_grad else kind
        counts[kind] += tensor.shape[0] * tensor.shape[1]
        return found

    with TemporaryDirectory() as place:
        model, sae = stand_in(Path(place))
        LlamaDecoderLayer.forward = counted  # type: ignore[method-assign]
        given = [f"model.name={model}", "model.dtype=float32", f"sae={sae}", f"folder={place}/runs"]
        config = load_experiment(settings[0], [*given, *sys.argv[2:]])
        results = run_experiment(config, terminal_progress())
        stages = {
            name: seconds
            for file in (Path(place) / "runs" / "personas").glob("*/done.json")
            for name, seconds in json.loads(file.read_text())["seconds"].items()
        }
    thousands = {kind: round(n / BLOCKS / 1000) for kind, n in sorted(counts.items())}
    personas = len(results.metrics["personas"])
    print(json.dumps({"personas": personas, "thousand_tokens": thousands, "seconds": stages}))


if __name__ == "__main__":
    main()
