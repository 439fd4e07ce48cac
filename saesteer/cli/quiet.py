"""Libraries' own bars and notices, which would drown ours."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Silence them for this process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in ("transformers", "transformer_lens", "sae_lens"):
        logging.getLogger(name).setLevel(logging.ERROR)
