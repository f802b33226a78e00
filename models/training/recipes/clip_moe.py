"""Diversified Multiplet Upcycling: a dense CLIP becomes a mixture of experts whose experts differ because each learned inside other clusters.

Three stages learn inside clusters with only the feed-forwards free, each cluster divided further by what the stage before makes of it;
then four feed-forwards (the source's own and the stages') stand in every block and the routers alone are trained.
Source: Zhang et al. 2024 (CLIP-MoE), arXiv:2409.19291.

Command:  edgeclip train clip_moe -o runs/moe --set init_from=hf:openai/clip-vit-large-patch14 --set data=pairs.csv
          Both kinds of run: --set batch_size=256. One of them: --set stage.steps=500 --set router.learning_rate=1e-5
          Few pairs: --set image_clusters=2 --set text_clusters=2 --set experts=3, for a batch is of one of 4, then of 16 clusters
          Experts too: --set router.trained=*.mlp.*. Less memory: --set accumulate=8
Hours:    not measured
Score:    not measured at that size. At step 0 of router/metrics.jsonl stands that of experts whose router is still random; the run should end
          above it, and above the source's, which stands at step 0 of stage-1/metrics.jsonl.
"""

from edgeclip.models.training.plan import Upcycling

RECIPE = Upcycling(name="clip_moe")
