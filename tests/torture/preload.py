"""What a server of forks imports once, so that no process under test spends seconds on it."""

# ruff: noqa: F401
import sae_lens
import torch
import transformer_lens.model_bridge

import saesteer.cli.main
import saesteer.sweeps.worker
import tests.torture.processes
from saesteer.experiments.kinds import KINDS, experiment_named

for kind in KINDS:
    experiment_named(kind)
for model in ("GPT2LMHeadModel", "LlamaForCausalLM", "LlamaConfig", "AutoTokenizer"):
    getattr(__import__("transformers"), model)
torch.set_num_threads(1)
