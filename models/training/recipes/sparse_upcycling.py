"""Sparse upcycling: a dense CLIP whose feed-forwards are copied as experts, and all of it trained on, the routers from small random values.

The plain way to a mixture of experts, beside which Diversified Multiplet Upcycling is judged (Zhang et al. 2024, arXiv:2409.19291): its
experts start equal and must come apart by themselves. Source: Komatsuzaki et al. 2023, arXiv:2212.05055.

Command:  edgeclip train sparse_upcycling -o runs/experts --set init_from=hf:openai/clip-vit-base-patch16 --set data=pairs.csv
          Fewer experts: --set experts=2 --set top_k=1 --set expert_layers=6 --set expert_towers=image. Routers alone: --set trained=*.router.weight
Hours:    not measured; `pairs_per_s` in metrics.jsonl tells after the first steps. The model holds 4 feed-forwards and runs 2 of them.
Score:    depends on the pairs. At step 0 it is the dense checkpoint's own, since equal experts change nothing; `expert_use_max` and
          `expert_use_min` in metrics.jsonl are both 0.5 where 2 of 4 experts are used evenly, and 1 and 0 where routing has collapsed.
"""

from edgeclip.models.training.recipe import Augmentation, Recipe

RECIPE = Recipe(
    name="sparse_upcycling",
    model="upcycled",
    experts=4,
    top_k=2,
    augmentation=Augmentation(crop_scale=(0.5, 1.0)),
    objectives=(("info_nce", 1.0), ("load_balance", 0.01)),
    steps=2000,
    batch_size=256,
    learning_rate=1e-5,
    weight_decay=0.1,
    warmup_steps=100,
    expert_dropout=0.1,
    precision="bf16",
    checkpoint_every=200,
    workers=8,
)
