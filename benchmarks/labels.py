"""Do labels tell texts that fire a feature from others? On documents held out of the SAE's corpus.

Another table's labels are tested on the same texts with --before, such as those of an older commit:
git show COMMIT:saesteer/assets/sae-smollm2/features.parquet > before.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from saesteer.data.texts import read_texts
from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.evaluation.label_score import FeaturePeaks, score_labels
from saesteer.experiments.train_sae import TrainSaeConfig
from saesteer.models import load_model
from saesteer.saes.corpus import pack_corpus
from saesteer.saes.labels import FEATURE_TABLE
from saesteer.saes.loading import load_sae
from saesteer.saes.table import load_feature_table
from saesteer.saes.words import SIGN_NAMES, is_text, words_of
from saesteer.utils.progress import terminal_progress
from saesteer.utils.settings import load_config


def main() -> None:
    """Print mean AUCs, and the share of labels that hold a part of a word or what is no text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--features", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load_config("configs/sae/smollm2.yaml", kind=TrainSaeConfig)
    model, sae = load_model("smollm2"), load_sae("smollm2")
    assert sae.folder is not None and model.tokenizer is not None
    held_out = pack_corpus(model.tokenizer, config).held_out
    read = FeaturePeaks.read(model, sae, held_out, terminal_progress())
    how = {"number": options.features, "seed": options.seed}
    draws, strong = read.draw(**how), read.draw(**how, strongly=True)
    # What stands alone in the corpus is a word; the table's pieces that never do are parts of one.
    files = [source.path for source in config.corpus if source.path is not None]
    texts = [text for file in files for text in read_texts(file)]
    known = {w.casefold() for text in (*texts, *SIGN_NAMES) for w in words_of(text)}
    embed = SentenceEmbedder().embed
    for path in filter(None, (options.before, sae.folder / FEATURE_TABLE)):
        table = load_feature_table(path)
        labels = {index: table.describe(index) for index in range(len(table))}
        found = score_labels(labels, draws, strong, embed)
        broken = sum(
            not is_text(label) or any(w.casefold() not in known for w in words_of(label))
            for label in labels.values()
        )
        print(
            f"{path}: AUC {found['auc']:.3f} +/- {found['error']:.3f}, fired strongly "
            f"{found['strong_auc']:.3f} +/- {found['strong_error']:.3f}; broken or a lone letter: "
            f"{broken / len(labels):.1%} of {len(labels):,} labels"
        )


if __name__ == "__main__":
    main()
