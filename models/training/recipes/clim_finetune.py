"""CLIM: a CLIP learns to embed regions from captions alone. Pictures are tiled into mosaics, whose tiles are regions with known texts.

Command:  edgeclip train clim_finetune -o runs/regions --set init_from=hf:openai/clip-vit-base-patch16 --set data=pairs.csv --set resolution=1024
          With boxes instead of mosaics: --set data=instances.json --set batches=regions --set encode=regions --set objectives=region_text:1
Hours:    not measured at that size; 300 steps of a tiny tower took a minute of one core
Score:    not measured at that size. On drawn scenes a tiny tower's regions went from 0.07 to 0.93 (colour of a box; cutting boxes out:
          0.95), while retrieval of whole pictures fell from 0.95 to 0.85: try --set ensemble=0.7 (benchmarks/results/regions_training.md)
"""

from edgeclip.models.training.recipe import Augmentation, Recipe

RECIPE = Recipe(
    name="clim_finetune",
    model="regions",
    frozen=("text",),
    last_blocks=6,
    batches="mosaics",
    encode="mosaics",
    augmentation=Augmentation(crop_scale=(0.5, 1.0)),
    objectives=(("info_nce", 1.0),),
    steps=10_000,
    batch_size=128,
    learning_rate=1e-5,
    weight_decay=0.1,
    warmup_steps=1000,
)
