"""A small canonical CLIP of nano's emoji: the dense base that mixtures of experts grow from.

Command:  python examples/nano_moe/pairs.py DATA PAIRS
          edgeclip train examples/nano_moe/dense.py -o runs/base --set data=PAIRS/training.jsonl --set tokenizer=PAIRS/tokenizer.json
Hours:    not measured alone (its cores were shared)
Score:    0.66 held-out retrieval R@1 of the styles it learned from; 0.18 and 0.27 top-1 of Noto and Twemoji among 1,911 names
"""

from edgeclip.bundle.manifest import Licence, Preprocessing
from edgeclip.models.config import ClipConfig, ImageConfig, TextConfig, TransformerConfig
from edgeclip.models.training import Augmentation, Recipe

SIDE = 48  # pixels of a picture
END = 3072  # id that ends a text, the last of the tokenizer's
# What a name is wrapped in; the bare name is drawn most often, and is what held-out pictures are scored with.
TEMPLATES = ("{}", "{}", "{}", "a {}", "the {}", "an icon of a {}", "a drawing of a {}", "{} emoji")

RECIPE = Recipe(
    name="nano_moe",
    model="scratch",
    clip=ClipConfig(
        embed_dim=96,
        image=ImageConfig(
            TransformerConfig(width=96, layers=5, heads=3, mlp_width=384),
            image_size=(SIDE, SIDE),
            patch_size=12,
        ),
        text=TextConfig(
            TransformerConfig(width=96, layers=2, heads=3, mlp_width=384),
            vocab_size=END + 1,
            context_length=32,
            eos_id=END,
        ),
    ),
    preprocessing=Preprocessing(
        (SIDE, SIDE), "squash", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), background=(255, 255, 255)
    ),
    templates=TEMPLATES,
    augmentation=Augmentation(crop_scale=(0.5, 1.0), brightness=0.3, contrast=0.3, saturation=0.5, grey=0.1),
    validation_share=0.1,
    objectives=(("multi_positive", 1.0),),  # several drawings of a batch may show the same name
    licence=Licence(
        weights="Apache-2.0",
        code="Apache-2.0",
        data="Apache-2.0 (Firefox OS Emoji); MIT (Fluent Emoji, flag-icons, emojibase)",
        credit="Mozilla; Microsoft; Panayiotis Lipiridis; Miles Johnson",
    ),
    steps=1200,
    batch_size=128,
    optimizer="muon",
    learning_rate=8e-3,
    weight_decay=0.05,
    warmup_steps=80,
    max_scale=50.0,
    ema_decay=0.995,
    device="cpu",
    workers=1,
    checkpoint_every=200,
)
