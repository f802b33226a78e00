"""`OwlViTForObjectDetection` of transformers: CLIP whose patches find objects.

Facts of the format follow transformers; how it was trained and is asked, Minderer et al. 2022, arXiv:2205.06230, and the authors'
code (scenic, projects/owl_vit). Large models have patches of 14 and pictures of 840, which the config says.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeclip.bundle.manifest import Detection
from edgeclip.errors import SourceError
from edgeclip.models.detector import DetectorConfig, DetectorModel, DetectorModelConfig
from edgeclip.models.loaders.checkpoint import Rule, paired
from edgeclip.models.loaders.huggingface import clip
from edgeclip.models.loaders.huggingface.blocks import projection_dim

FAMILY = "owlvit"
MODEL, read_text = DetectorModel, clip.read_text
PROCESSOR = "OwlViTImageProcessor"
# CLIP's layout below the name of the model, but for one norm that is spelled right here.
RENAMED = {
    r"^(owlvit|owlv2)\.": "clip.",
    r"^clip\.vision_model\.pre_layernorm\.": "clip.vision_model.pre_layrnorm.",
}
# The authors' demos ask with a label as it was typed, which may be a whole phrase ("a red cup"), and 16 tokens hold little more. Their
# LVIS figures average seven of CLIP's templates ("itap of a {}.", ...): name those with `templates=` to have them.
TEMPLATES = ("{}",)
# 0.1 as transformers' post-processing has it, which knows no NMS: the bipartite loss leaves one good box for most objects. What it
# leaves twice overlaps itself by more than a half; true neighbours of one label seldom do.
DETECTION = Detection(threshold=0.1, nms_iou=0.5, class_agnostic=False, objectness=False)
_IMAGE = {"image_size": 768, "patch_size": 32}
_TEXT = {"max_position_embeddings": 16}


def read_config(data: dict[str, Any], path: Path) -> DetectorModelConfig:
    """An `OwlViTForObjectDetection`'s config.json as ours. Raises SourceError on an impossible value."""
    return detector_config(data, path, _IMAGE, objectness=False)


def detector_config(
    data: dict[str, Any], path: Path, image: dict[str, Any], *, objectness: bool
) -> DetectorModelConfig:
    """A config.json as ours. `image`: what transformers takes for a key that vision_config leaves out."""
    tower = replace(clip.read_image(data, path, **image), projection=False)
    # whatever the end mark's id, transformers pools at the largest one
    text = replace(clip.read_text_config(data, path, **_TEXT), pool="argmax")
    width = projection_dim(data, path)
    if tower.image_size[0] != tower.image_size[1]:
        raise SourceError(f"{path}: image_size is {list(tower.image_size)}, expected a square.")
    if width != text.blocks.width:
        raise SourceError(
            f"{path}: texts become {width} numbers (projection_dim), regions {text.blocks.width} (text_config.hidden_size); no "
            "score can be made of them. The file is damaged: fetch it again."
        )
    return DetectorModelConfig(DetectorConfig(tower, width, objectness), text)


def rules(config: DetectorModelConfig) -> dict[str, Rule]:
    """Where each tensor of ours comes from."""
    towers = {**clip.image_rules(config.detector.image), **clip.text_rules(config.text)}
    heads = {"detector.norm": "layer_norm", "detector.embedding": "class_head.dense0"}
    heads |= {f"detector.{name}": f"class_head.logit_{name}" for name in ("scale", "shift")}
    for head in ("box_head", "objectness_head"):
        heads |= {f"detector.{head}.fc{i + 1}": f"{head}.dense{i}" for i in range(3)}
    return {
        **{
            ours.replace("image.", "detector.trunk.", 1): Rule(tuple(f"clip.{name}" for name in rule.sources))
            for ours, rule in towers.items()
        },
        **paired(heads),
    }


def ignorable(name: str) -> bool:
    """Whether a tensor is no weight (the grid's bias follows from its size), or of CLIP's whole pictures, which detection lacks."""
    unused = ("clip.logit_scale", "clip.visual_projection.weight")
    return clip.ignorable(name) or name in (*unused, "box_bias")
