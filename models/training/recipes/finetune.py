"""Go on training a checkpoint on pairs of your own: a small rate, bf16, an averaged copy, the batch's negatives kept whole.

Command:  edgeclip train finetune -o runs/mine --set init_from=openclip:ViT-B-32/laion2b_s34b_b79k --set data=pairs.csv
          Less memory: --set accumulate=8. Several GPUs: torchrun --nproc-per-node 4 -m edgeclip train finetune ...
          A SigLIP-like source (with logit_bias): --set objectives=sigmoid:1
Hours:    not measured; `pairs_per_s` in metrics.jsonl tells after the first steps.
Score:    depends on the pairs. The score of the checkpoint as it came stands in metrics.jsonl at step 0: the run should
          end above it, and what is shipped is the best checkpoint of the run.
"""

from edgeclip.models.training.recipe import Augmentation, Recipe

RECIPE = Recipe(
    name="finetune",
    model="source",
    augmentation=Augmentation(crop_scale=(0.5, 1.0), brightness=0.2, contrast=0.2, saturation=0.2),
    objectives=(("info_nce", 1.0),),
    steps=2000,
    batch_size=256,
    learning_rate=1e-5,
    weight_decay=0.1,
    warmup_steps=100,
    ema_decay=0.999,
    precision="bf16",
    checkpoint_every=200,
    workers=8,
)
