"""A student learns from what its teachers made of the data; what `edgeclip distill` trains with.

Being where the teacher is does most of the work, telling the teacher's texts and pictures apart and holding the batch as alike as it does
come behind (Yang et al. 2023, CLIP-KD, arXiv:2307.12732, whose 2000 times a mean over 512 values is 4 times our sum). Equal captions count
as different in `interactive_contrast`: of classes' names take it out.

Command:  edgeclip distill TEACHER --student half --data pairs.csv -o student
          The training alone, of data that was reinforced: edgeclip train distill -o student/again --set init_from=student/start
          --set data=pairs.csv --set teacher_data=student/reinforced
          Little time: --set steps=1000 --set warmup_steps=50. Less memory: --set accumulate=4
Hours:    not measured at that size; `pairs_per_s` in metrics.jsonl tells after the first steps
Score:    not measured at that size. The teacher's own on the same held-out pairs stands beside the student's in metrics.jsonl
"""

from edgeclip.models.training.recipe import Augmentation, Recipe

RECIPE = Recipe(
    name="distill",
    model="source",
    batches="reinforced",
    encode="reinforced",
    augmentation=Augmentation(crop_scale=(0.6, 1.0)),
    objectives=(("feature_mse", 4.0), ("interactive_contrast", 1.0), ("contrastive_relation", 1.0)),
    steps=10_000,
    batch_size=256,
    learning_rate=5e-4,
    weight_decay=0.1,
    warmup_steps=500,
    checkpoint_every=500,
    patience=5,
)
