"""Train nano's tokenizer on the names and tags: lower-cased byte-level subwords, so that any string gives some id."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers


def train(folder: Path, vocabulary: int = 3072) -> None:
    """Learn `vocabulary` subwords from training.json's texts; id 0 is padding. Untrained names and their tags are left out."""
    items = json.loads((folder / "training.json").read_text())
    texts = [text for item in items if item["split"] == "train" for text in (item["name"], *item["tags"])]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    train(Path(sys.argv[1]))
