"""nano, the embedded model: pictograms and clip art, from drawings that may be redistributed as weights.

Command:  python examples/nano/prepare.py DOWNLOADS DATA && python examples/nano/tokenizer.py DATA
          edgeclip train examples/nano/recipe.py -o runs/first --set data=DATA; then finish.py
Hours:    1.2 on 2 busy CPU cores
Score:    0.55 top-1 of held-out Noto pictures among 1,911 names. It is low (0.1 to 0.2) until step 1,650: scored pictures are
          of 64 pixels, and those that it has seen until then of 48.
"""

from pathlib import Path

import torch
from pictograms import CONTEXT_LENGTH, Batch, Pictograms
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from edgeclip.bundle.manifest import Licence, Preprocessing, TextSettings
from edgeclip.models.nano import NanoCLIP, NanoConfig
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.sources import load_source
from edgeclip.models.training import Recipe
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.objectives.info_nce import info_nce

CONFIG = NanoConfig(
    widths=(32, 64, 128, 176),
    depths=(0, 1, 3, 2),
    vocab_size=3072,
    text_width=128,
    context_length=CONTEXT_LENGTH,
)
WHITE = (255, 255, 255)
LICENCE = Licence(
    weights="Apache-2.0",
    code="Apache-2.0",
    data="public domain (Open Clip Art Library); Apache-2.0 (Noto Emoji, Noto Emoji v1, Firefox OS Emoji); "
    "MIT (Fluent Emoji, flag-icons, emojibase)",
    credit="Open Clip Art Library; Google; Mozilla; Microsoft; Panayiotis Lipiridis; Miles Johnson",
)


def new_nano(recipe: Recipe) -> Source:
    """An untrained NanoCLIP with the tokenizer that lies beside the data; with `init_from`, the trained one that it names."""
    if recipe.init_from:
        return load_source(recipe.init_from)
    tokenizer = (Path(recipe.data) / "tokenizer.json").read_bytes()
    return Source(
        spec="nano",
        name="nano",
        family="nano",
        model=NanoCLIP(CONFIG),
        embedding_dim=CONFIG.embed_dim,
        activation="softmax",
        preprocessing=Preprocessing(
            (CONFIG.image_size, CONFIG.image_size),
            "pad",
            "bicubic",
            (0.5, 0.5, 0.5),
            (0.5, 0.5, 0.5),
            pad_color=WHITE,
            background=WHITE,
        ),
        text=TextSettings(
            CONTEXT_LENGTH, CONFIG.pad_id, None, dynamic_length=True, vocab_size=CONFIG.vocab_size
        ),
        tokenizer_json=tokenizer,
        pooling="avg/weighted",
        licence=LICENCE,
        digest="",
    )


def pictograms(recipe: Recipe, source: Source, shard: Shard) -> Pictograms:
    """The batches; each is of `batch_size` pictures, 96 names twice and clip art for the rest."""
    tokenizer = Tokenizer.from_str(source.tokenizer_json.decode())
    clip_art = recipe.batch_size - 2 * 96
    return Pictograms(
        Path(recipe.data), tokenizer, steps=recipe.steps, names=96, clip_art=clip_art, seed=recipe.seed
    )


def encode(model: DualEncoder, batch: Batch) -> dict[str, Tensor]:
    """Unit embeddings of pictures, names and tags, and who belongs to whom."""
    # channels last: a third faster on CPUs
    image = model.encode_image(batch.pixels.contiguous(memory_format=torch.channels_last))
    image = F.normalize(image, dim=-1)
    return {
        "image": image,
        "names": F.normalize(model.encode_text(batch.names), dim=-1),
        "target": batch.target,
        "tags": F.normalize(model.encode_text(batch.tags), dim=-1),
        "tag_matches": batch.tag_matches,
        "first": image[: batch.pair],
        "second": image[batch.pair : 2 * batch.pair],
    }


def naming(image: Tensor, names: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of each picture's name among all candidates, smoothed: many names are near synonyms."""
    return F.cross_entropy(scale * image @ names.T, target, label_smoothing=0.1)


def tagging(image: Tensor, tags: Tensor, tag_matches: Tensor, scale: Tensor) -> Tensor:
    """Each picture among the texts that it carries, and each text among its pictures; targets shared evenly."""
    logits = scale * image @ tags.T
    total = logits.new_zeros(())
    for scores, matches in ((logits, tag_matches), (logits.T, tag_matches.T)):
        carries = matches.any(1)
        target = matches[carries].float()
        total = total + F.cross_entropy(scores[carries], target / target.sum(1, keepdim=True)) / 2
    return total


def drawing_contrast(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE between two drawings of the same names."""
    return info_nce(first, second, scale)


RECIPE = Recipe(
    name="nano",
    model=new_nano,
    batches=pictograms,
    encode=encode,
    objectives=((naming, 1.0), (tagging, 0.5), (drawing_contrast, 0.5)),
    licence=LICENCE,
    steps=2200,
    batch_size=248,
    optimizer="muon",
    learning_rate=8e-3,
    weight_decay=0.05,
    warmup_steps=150,
    max_scale=50.0,
    ema_decay=0.998,
    checkpoint_every=200,
    workers=1,
)
