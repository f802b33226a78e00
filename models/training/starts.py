"""Where a run's model comes from: a trained source, or a new CLIP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

from edgeclip.bundle.manifest import Licence, Preprocessing, TextSettings
from edgeclip.errors import InputError, TrainingError
from edgeclip.models.clip import Attention, Clip, ImageTower, TextTower
from edgeclip.models.config import ImageConfig, TextConfig
from edgeclip.models.feed_forward import Mlp
from edgeclip.models.prompter import PromptedClip
from edgeclip.models.regions import with_regions
from edgeclip.models.resolution import at_resolution
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.training.data import open_pairs
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.settings import nearest
from edgeclip.models.upcycling import upcycled

PAD, END = "<pad>", "<end>"  # ids 0 and 1 of a tokenizer learned here
LEARN_FROM = 100_000  # captions at most

UNKNOWN_DATA = "trained with edgeclip on data whose licence was not stated"


def start(recipe: Recipe) -> Source:
    """The model to train, with all that a bundle must know about it.

    Raises:
        TrainingError: no such start, or the recipe lacks what it needs.
        SourceError: `init_from` cannot be loaded.
    """
    if callable(recipe.model):
        source: Source = recipe.model(recipe)
    elif recipe.model in STARTS:
        source = STARTS[recipe.model](recipe)
    else:
        raise TrainingError(
            f"model: no {recipe.model!r}{nearest(recipe.model, STARTS)} There are {', '.join(STARTS)}, or pass a callable."
        )
    if recipe.preprocessing is not None:
        source = replace(source, preprocessing=recipe.preprocessing)
    warnings = tuple(dict.fromkeys((*source.licence.warnings, UNKNOWN_DATA)))
    licence = recipe.licence or replace(source.licence, warnings=warnings)
    return replace(source, licence=licence)


def from_source(recipe: Recipe) -> Source:
    """Go on from the checkpoint that `init_from` names."""
    if not recipe.init_from:
        raise TrainingError(
            "init_from: not set. Name the source to start from, e.g. --set init_from=hf:openai/clip-vit-base-patch32."
        )
    source = load_source(recipe.init_from)
    for tower, part in (("image", source.preprocessing), ("text", source.text)):
        if part is None:
            raise TrainingError(
                f"init_from: {recipe.init_from} has no {tower} tower, and training needs both. Name the whole model."
            )
    return at_resolution(source, (recipe.resolution,) * 2) if recipe.resolution else source


def sparsely_upcycled(recipe: Recipe) -> Source:
    """The source with experts that are copies of its feed-forwards (models/upcycling.py); the seed decides the routers."""
    return upcycled(
        from_source(recipe),
        experts=recipe.experts,
        top_k=recipe.top_k,
        last_blocks=recipe.expert_layers,
        towers=recipe.expert_towers,
        seed=recipe.seed,
    )


class InFolder:
    """A recipe's model: the source in a folder. A run's record then holds no path, so that what was begun may be moved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, recipe: Recipe) -> Source:
        """The source, at the recipe's resolution."""
        source = load_source(str(self.folder))
        return at_resolution(source, (recipe.resolution,) * 2) if recipe.resolution else source


def region_encoder(recipe: Recipe) -> Source:
    """The source, and a dense map of its image tower that boxes are pooled from (models/regions.py)."""
    return with_regions(from_source(recipe))


def prompter(recipe: Recipe) -> Source:
    """The source, and a new prompter that is asked with boxes, points and texts (models/prompter.py)."""
    source = from_source(recipe)
    if isinstance(source.model, PromptedClip):
        return source
    if not isinstance(source.model, Clip):
        raise TrainingError(
            f"model: a prompter asks a plain CLIP, {recipe.init_from} is a {type(source.model).__name__}. Start from another source."
        )
    return replace(source, model=PromptedClip.of(source.model))


def from_scratch(recipe: Recipe) -> Source:
    """A new CLIP of the sizes in `clip`, with a tokenizer from a file or learned from the captions."""
    config = recipe.clip
    if config is None:
        raise TrainingError(
            "clip: not set. A model from scratch needs its sizes; see the recipe clip_vit_tiny."
        )
    image, text = config.image, config.text
    if not isinstance(image, ImageConfig) or not isinstance(text, TextConfig):
        raise TrainingError("clip: a model from scratch has a canonical image tower and text tower.")
    tokenizer = (
        read_tokenizer(Path(recipe.tokenizer), text)
        if recipe.tokenizer
        else learn_tokenizer(_captions(recipe), text)
    )
    model = Clip(config)
    initialise(model)
    return Source(
        spec=recipe.name or "scratch",
        name=recipe.name or "scratch",
        family="clip",
        model=model,
        embedding_dim=config.embed_dim,
        activation="sigmoid" if config.logit_bias else "softmax",
        preprocessing=Preprocessing(image.image_size, "squash", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        text=TextSettings(
            context_length=text.context_length,
            pad_id=text.pad_id,
            eos_id=text.eos_id,
            dynamic_length=text.ignores_padding(text.pad_id, text.eos_id),
            vocab_size=text.vocab_size,
        ),
        tokenizer_json=tokenizer.to_str().encode(),
        pooling=config.pooling,
        licence=Licence(weights="unknown", code="Apache-2.0"),
        digest="",
    )


STARTS: dict[str, Callable[[Recipe], Source]] = {
    "source": from_source,
    "scratch": from_scratch,
    "upcycled": sparsely_upcycled,
    "regions": region_encoder,
    "prompter": prompter,
}


def read_tokenizer(path: Path, text: TextConfig) -> Tokenizer:
    """A tokenizer.json that fits the text tower.

    Raises:
        TrainingError: it cannot be read, has more ids than the tower, or its texts do not end as the tower pools.
    """
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises a bare Exception
        raise TrainingError(f"tokenizer: {path} cannot be read as a tokenizer.json ({error}).") from error
    size = tokenizer.get_vocab_size()
    if size > text.vocab_size:
        raise TrainingError(
            f"tokenizer: {path} has {size} ids, the text tower {text.vocab_size}. Set clip.text.vocab_size={size}."
        )
    last = tokenizer.encode("a").ids[-1:]
    if text.pool == "eos" and last != [text.eos_id]:
        raise TrainingError(
            f"tokenizer: {path} ends a text with id {last}, the text tower pools at {text.eos_id}. Set clip.text.eos_id."
        )
    return tokenizer


def learn_tokenizer(captions: Iterator[str], text: TextConfig) -> Tokenizer:
    """Lower-cased byte-level subwords, so that any string has ids; 0 is padding, 1 ends a text.

    Raises:
        TrainingError: the text tower has other ids for these two, or room for fewer than all bytes.
    """
    if (text.pad_id, text.eos_id) != (0, 1) or text.vocab_size < 258:
        raise TrainingError(
            f"tokenizer: one learned here has pad id 0, end id 1 and at least 258 ids; clip.text has {text.pad_id}, {text.eos_id} "
            f"and {text.vocab_size}. Set those, or name a tokenizer.json."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=text.vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return tokenizer


def _captions(recipe: Recipe) -> Iterator[str]:
    pairs = open_pairs(recipe.data, recipe.data_format)
    for index in range(min(len(pairs.keys), LEARN_FROM)):
        try:
            yield from pairs.read(index)[1]
        except (InputError, OSError):  # counted and reported when a batch draws it
            continue


def initialise(model: Clip) -> None:
    """`initialise_tower` for both towers."""
    for tower in (model.image, model.text):
        assert isinstance(tower, (ImageTower, TextTower))
        initialise_tower(tower)


@torch.no_grad()
def initialise_tower(tower: ImageTower | TextTower) -> None:
    """CLIP's own initialisation: deeper stacks get smaller residual branches.

    Source: Radford et al. 2021, arXiv:2103.00020, as openai/CLIP's `initialize_parameters` has it.
    """
    blocks = tower.config.blocks
    spread = blocks.width**-0.5
    residual = spread * (2 * blocks.layers) ** -0.5
    for module in tower.modules():
        if isinstance(module, Attention):
            nn.init.normal_(module.qkv.weight, std=spread)
            nn.init.normal_(module.out.weight, std=residual)
            nn.init.zeros_(module.qkv.bias)
            nn.init.zeros_(module.out.bias)
        elif isinstance(module, Mlp):
            nn.init.normal_(module.fc1.weight, std=(2 * blocks.width) ** -0.5)
            nn.init.normal_(module.fc2.weight, std=residual)
            nn.init.zeros_(module.fc1.bias)
            nn.init.zeros_(module.fc2.bias)
    if tower.projection is not None:
        nn.init.normal_(tower.projection.weight, std=spread)
    if isinstance(tower, TextTower):
        nn.init.normal_(tower.embedding.weight, std=0.02)
        nn.init.normal_(tower.position, std=0.01)
