"""CLOC: a CLIP and a prompter that turns its picture's tokens into the embedding of a region, asked by a box or a text.

Command:  edgeclip train cloc -o runs/prompted --set init_from=hf:openai/clip-vit-base-patch16 --set data=regions.jsonl
          From pictures and captions: python examples/pseudo_regions.py pairs.csv -b DETECTOR -o regions.jsonl makes the boxes
Hours:    not measured at that size
Score:    not measured at that size
"""

from edgeclip.models.training.recipe import Augmentation, Recipe

RECIPE = Recipe(
    name="cloc",
    model="prompter",
    batches="regions",
    encode="regions",
    augmentation=Augmentation(crop_scale=(1.0, 1.0)),  # the whole picture, as the runtime lays it out
    objectives=(("info_nce", 1.0), ("region_text", 1.0), ("grounding", 1.0)),
    steps=10_000,
    batch_size=256,
    learning_rate=5e-5,
    weight_decay=0.2,
    warmup_steps=1000,
)
